"""vecbank: fused operations against a fixed bank of vectors.

Anchors, a search database and a codebook are the same thing, a bank: M vectors of width d. `project` gives all
similarities to it, `topk` and `nearest` the best rows, `quantize` and `lookup` the codes and what they stand for.
"""

from . import _cuda as _cuda
from . import _ops as _ops  # loads the extension and registers torch.ops.vecbank
from . import nn, reference
from ._cuda import check
from ._ops import METRICS, Nearest, Quantized, QuantizeTrain, TopK
from ._version import __version__
from .bank import Bank
from .functional import lookup, nearest, project, quantize, quantize_train, segment_sum, topk
from .residual import ResidualQuantized, residual_lookup, residual_quantize

__all__ = [
    "METRICS",
    "Bank",
    "Nearest",
    "QuantizeTrain",
    "ResidualQuantized",
    "Quantized",
    "TopK",
    "__version__",
    "check",
    "lookup",
    "nearest",
    "nn",
    "project",
    "quantize",
    "quantize_train",
    "reference",
    "residual_lookup",
    "residual_quantize",
    "segment_sum",
    "topk",
]

_cuda.load()
