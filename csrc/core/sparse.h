// Retrieval with sparse vectors: a query is a list of terms with weights, and each term has a list of the documents
// that hold it.
#pragma once

#include "allowed.h"
#include "types.h"

namespace vecbank {

// Rows of a sparse matrix, in the order in which they came, and where the transposition puts their entries.
struct InvertProblem {
  const int64_t* offsets = nullptr;  // [documents + 1]
  const void* ids = nullptr;         // [entries], int32 or int64
  bool wide_ids = true;              // int64
  int64_t documents = 0, terms = 0, entries = 0;
  int64_t* starts = nullptr;    // out: [terms + 1]
  int32_t* listed = nullptr;    // out: [entries], of each term the documents that hold it, ascending
  int64_t* order = nullptr;     // out: [entries], where in `ids` each of them came from
  int64_t wrong_document = -1;  // out: one whose term is out of range, or comes twice
  int64_t wrong_term = 0;       // out: this term
};

// What the transposition has made, with the weights in its order.
struct InvertedLists {
  const int64_t* starts = nullptr;     // [terms + 1], ascending from 0 to the number of entries
  const int32_t* documents = nullptr;  // [entries]; one out of range, or out of order, ends what is read of its list
  const void* weights = nullptr;       // [entries], f32 or f64
  DType dtype = DType::f32;
  int64_t terms = 0;
  int64_t count = 0;  // documents
};

// The score of a document is the sum of weight[j] * (its weight of term ids[j]) over j, from zero in ascending order,
// in float64: a product is rounded before it is added. A term that the document does not hold adds nothing.
struct SparseQueries {
  const int64_t* ids = nullptr;   // [count][terms], below the lists' number of terms; -1: none
  const void* weights = nullptr;  // [count][terms] in the lists' dtype
  int64_t count = 0, terms = 0;
};

struct SparseSearchProblem {
  SparseQueries queries;
  InvertedLists lists;
  int64_t k = 0;                     // 0: all scores
  const Allowed* allowed = nullptr;  // null: every document is
  void* values = nullptr;            // out: [queries][k, or documents] in the lists' dtype, rounded once
  int64_t* indices = nullptr;        // out, with k: [queries][k]
};

// The gradients of scores. Sums run in float64: those of a query's weight over its documents in ascending order (over
// its ranks, with indices), those of a document's weight over queries and their terms in ascending order.
struct SparseGradientProblem {
  SparseQueries queries;
  InvertedLists lists;
  const void* grad = nullptr;        // [queries][k, or documents] in the lists' dtype
  const int64_t* indices = nullptr;  // [queries][k]: these documents alone; -1: none
  int64_t k = 0;
  void* grad_queries = nullptr;  // out: [queries][terms]; null: not wanted
  void* grad_lists = nullptr;    // out: [entries]; null: not wanted
};

}  // namespace vecbank
