// By which way a search or a product goes. All ways of a search give the same bits; those of project() are each within
// its tolerance.
#pragma once

#include "api.h"

namespace vecbank::cpu {

// The ways that take the least time, by a model in nanoseconds of a core with AVX-512 (bench/NOTES.md). On other
// processors all ways take longer by about the same factor.
constexpr int64_t kMostPackBytes = 48 << 20;  // of a piece of a plain tensor
SearchWay way_of(const SearchProblem& p);

// The same where queries may be given some rows alone: so many on average, the same ones where `shared`.
SearchWay way_among(const SearchProblem& p, double each, bool shared);
// Whether it takes less time to refine so many rows of a query than to screen all; `mean`: rows of the other queries.
bool few_rows(const SearchProblem& p, double expected, double mean);

PanelKind panels_of(const SearchProblem& p);  // of its pack, or of the pieces that will be packed
ProjectWay way_of(const ProjectProblem& p);

// Whether the direct way multiplies by the processor's unit for bfloat16, and the raw way.
bool direct_by_bf16(const ProjectProblem& p);
bool raw_by_pairs(const ProjectProblem& p);

}  // namespace vecbank::cpu
