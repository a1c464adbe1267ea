"""vecbank: fused operations against a fixed bank of vectors.

Anchors, a search database and a codebook are the same thing, a bank: M vectors of width d. `Bank` prepares one; the
verbs are `project`, `topk`, `nearest`, `quantize`, `quantize_train`, `lookup` and `segment_sum`. What is built on them
has namespaces:

- `anchors`: the choice of anchors for relative representations
- `cluster`: k-means
- `pq`, `residual`: product and residual codes
- `sparse`: sparse dictionaries
- `bits`: exact search of packed bits
- `multivector`: sets of vectors (MaxSim), groups of bank rows
- `codes`: scalar, sign and binary codes, and their bits
- `embedding`: compressed tables
- `metrics`, `kernels`: metrics that map rows, and functions of distances
- `nn`: modules on all of these
- `reference`: what every verb means, in plain torch and float64
"""

from . import _cuda as _cuda
from . import _ops as _ops  # loads the extension and registers torch.ops.vecbank
from . import (
    anchors,
    bits,
    cluster,
    codes,
    embedding,
    kernels,
    losses,
    metrics,
    multivector,
    nn,
    pq,
    reference,
    residual,
    results,
    sparse,
)
from ._cuda import check
from ._ops import METRICS
from ._token_sets import TokenSets
from ._version import __version__
from .allowed import Allowed
from .attention import attend, logsumexp
from .bank import Bank
from .bits import BitBank
from .cluster import kmeans
from .columns import Column
from .functional import lookup, nearest, project, quantize, quantize_train, segment_sum, topk
from .maps import log_euclidean, whiten
from .metrics import Angular, Mahalanobis, Mapped, Pearson, Poincare
from .multivector import group_max, group_mean, maxsim, maxsim_pairs, maxsim_topk
from .parts import merge_topk, search_part
from .pq import ProductCodec
from .pq import decode as pq_decode
from .pq import encode as pq_encode
from .pq import scores as pq_scores
from .pq import symmetric_tables as pq_symmetric_tables
from .pq import tables as pq_tables
from .pq import train as pq_train
from .residual import lookup as residual_lookup
from .residual import quantize as residual_quantize
from .results import (
    Attended,
    Fired,
    KMeans,
    Nearest,
    Quantized,
    QuantizeTrain,
    RadiusHits,
    ResidualQuantized,
    SearchPart,
    TopK,
    Verified,
)
from .selections import farthest_points, radius, radius_count, score_pairs, verify
from .sparse import decode as sparse_decode
from .sparse import encode as sparse_encode
from .sparse import encode_batch as sparse_encode_batch
from .sparse import encode_norm as sparse_encode_norm
from .sparse import encode_threshold as sparse_encode_threshold
from .sparse import firing_counts

__all__ = [
    "verify",
    "search_part",
    "score_pairs",
    "radius_count",
    "radius",
    "merge_topk",
    "metrics",
    "farthest_points",
    "Verified",
    "SearchPart",
    "RadiusHits",
    "Column",
    "Allowed",
    "Attended",
    "attend",
    "logsumexp",
    "losses",
    "Angular",
    "Bank",
    "BitBank",
    "Fired",
    "KMeans",
    "METRICS",
    "Mahalanobis",
    "Mapped",
    "Nearest",
    "Pearson",
    "Poincare",
    "ProductCodec",
    "QuantizeTrain",
    "Quantized",
    "ResidualQuantized",
    "TokenSets",
    "TopK",
    "__version__",
    "anchors",
    "bits",
    "check",
    "cluster",
    "codes",
    "embedding",
    "firing_counts",
    "group_max",
    "group_mean",
    "kernels",
    "kmeans",
    "log_euclidean",
    "lookup",
    "maxsim",
    "maxsim_pairs",
    "maxsim_topk",
    "multivector",
    "nearest",
    "nn",
    "pq",
    "pq_decode",
    "pq_encode",
    "pq_scores",
    "pq_symmetric_tables",
    "pq_tables",
    "pq_train",
    "project",
    "quantize",
    "quantize_train",
    "reference",
    "residual",
    "residual_lookup",
    "residual_quantize",
    "results",
    "segment_sum",
    "sparse",
    "sparse_decode",
    "sparse_encode",
    "sparse_encode_batch",
    "sparse_encode_norm",
    "sparse_encode_threshold",
    "topk",
    "whiten",
]

_cuda.load()
