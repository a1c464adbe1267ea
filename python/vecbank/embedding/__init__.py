"""Compressed embedding tables: `row(id)` read from a store much smaller than one row per id.

Every lookup turns ids (...), of any integer dtype, into rows (..., d) and ends in `vecbank.lookup`, so that gradients
are deterministic scatter-adds into the store and id -1 is a zero row (`segment_sum` and bags work as on any table).
`stored_bytes` counts the bytes of a store.

Sources: shared hashed rows, Coleman et al., "Unified embedding: battle-tested feature representations for web-scale ML
systems", NeurIPS 2023; two tables, Shi et al., "Compositional embeddings using complementary partitions", KDD 2020;
integer rows with trained scale, Esser et al., "Learned step size quantization", ICLR 2020; product codes, Chen et al.,
"Differentiable product quantization for end-to-end embedding compression", ICML 2020; pruned rows, Lyu et al.,
"OptEmbed", CIKM 2022; rows of different widths, Cheng et al., "Differentiable neural input search for recommender
systems" (DNIS), 2020. The families are those of Zhang et al., "Experimental analysis of large-scale learnable vector
storage compression", VLDB 2023.
"""

from ._integer import IntegerRows, fake_integer_lookup, integer_lookup, quantize_rows, row_scale
from ._parts_of_rows import PrunedRows, RaggedRows, prune_rows, pruned_lookup, ragged_lookup, ragged_rows
from ._store import stored_bytes
from ._tables import COMBINE, coded_lookup, hash_rows, hashed_lookup, low_rank_lookup, two_table_lookup

__all__ = [
    "COMBINE",
    "IntegerRows",
    "PrunedRows",
    "RaggedRows",
    "coded_lookup",
    "fake_integer_lookup",
    "hash_rows",
    "hashed_lookup",
    "integer_lookup",
    "low_rank_lookup",
    "prune_rows",
    "pruned_lookup",
    "quantize_rows",
    "ragged_lookup",
    "ragged_rows",
    "row_scale",
    "stored_bytes",
    "two_table_lookup",
]
