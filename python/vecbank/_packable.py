"""Which tensors a pack can be kept of, and what suits their values."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _cuda
from ._ops import METRICS
from ._written import foreign

_L2, _SQEUCLIDEAN, _COSINE = METRICS["l2"], METRICS["sqeuclidean"], METRICS["cosine"]
_SAMPLE = 128  # rows
_TELLING_WIDTH = 2048  # up to here, codes pay for all vectors
_LEVELS, _CREST = 127, 3.8  # codes of a row; rows with larger coordinates than so many times the usual one are rotated
_MOST_MARGIN = 1.3  # standard deviations of scores: above, 16-bit codes take less time


def _pack_family(code: int) -> int:
    """The metric whose packs serve this one: those of "l2" and "sqeuclidean" are the same."""
    return _L2 if code == _SQEUCLIDEAN else code


def _packable(t: Tensor) -> bool:
    """A tensor whose content can be held to its version: on a device of ours, plain, its own, without a gradient."""
    there = t.device.type == "cpu" or (t.device.type == "cuda" and _cuda_runs(t))
    return there and _checks.concrete(t) and not t.requires_grad and not t.is_inference() and not foreign(t)


def _cuda_runs(t: Tensor) -> bool:
    """What is packed now is there at the next call: kernels run, and neither a compiler nor a graph records them."""
    return _cuda.module is not None and not torch.compiler.is_compiling() and not _capturing(t)


def _capturing(t: Tensor) -> bool:
    """Work on this tensor's device is being captured into a CUDA graph: what it writes is not there yet."""
    if t.device.type != "cuda" or not torch.cuda.is_initialized():  # a fake tensor may need no GPU
        return False
    if t.device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(t.device):  # torch asks the current device's stream
        return torch.cuda.is_current_stream_capturing()


def recorded() -> bool:
    """Calls are recorded, or dispatched by somebody else's rules: they may have no values to look at."""
    return torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0


@torch.no_grad()
def codes_tell_apart(vectors: Tensor, family: int) -> bool:
    """Whether the scores of these vectors (..., M, d) differ by more than 8-bit codes are off.

    The scores of wide vectors that are like noise lie within a few times the root of d of each other, but the bound of
    what codes lose is a share of the norms, so that it leaves most rows undecided. Rows of the vectors stand for
    queries.
    """
    rows, width = vectors.shape[-2:]
    if width <= _TELLING_WIDTH or rows < _SAMPLE or vectors.dim() != 2 or recorded():
        return True
    b = vectors[:: rows // _SAMPLE][:_SAMPLE].double()
    if family == _COSINE:
        b = b / b.norm(dim=1, keepdim=True).clamp(min=1e-300)
    y = b - b.mean(0)
    x = y if family == _L2 else b
    scores = x @ y.T - (y.square().sum(1) / 2 if family == _L2 else 0.0)
    spread = scores[~torch.eye(len(b), dtype=torch.bool, device=b.device)].view(len(b), -1).std(1).median()

    def lost(rows: Tensor) -> Tensor:
        usual = rows.square().mean(1).sqrt()
        step = torch.minimum(rows.abs().amax(1), _CREST * usual) / _LEVELS
        return (step * (width / 12) ** 0.5).median()

    margin = x.norm(dim=1).median() * lost(y) + lost(x) * y.norm(dim=1).median()
    return not bool(2 * margin > _MOST_MARGIN * spread)  # NaN: codes serve as well as anything
