"""`attend` in plain torch, a block of queries at a time: every metric, every weight, every device.

A block's scores and weights live as long as the block: where a gradient is wanted they are made again on the way back
(`torch.utils.checkpoint`), so that nothing of the size N x M is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import _select
from ._ops.sets import Lowered
from ._prepared import PreparedBank
from .allowed import Allowed
from .metrics import Metric

Weight = Callable[[Tensor], Tensor]
Scores = Callable[[Tensor, int], Tensor]  # of queries (n, d) and a number of a batch: (n, M), larger is nearer


class Given(NamedTuple):
    """Checked arguments."""

    x: Tensor
    bank: Tensor | PreparedBank
    rows: Tensor  # of the bank
    values: Tensor | None
    metric: str | Metric | None  # None: what the Bank names, which maps rows
    code: int | None  # of the metric, if it has a kernel
    similarity: bool
    beta: Tensor  # (N,) of the dtype that sums run in
    allowed: Allowed | Tensor | None
    sets: Lowered | None  # the same, as ops take it

    @property
    def biased(self) -> bool:
        return isinstance(self.bank, PreparedBank) and self.bank._biased


class Problem(NamedTuple):
    """Queries x (..., d), how they are scored, and what is summed: values (M, e), or (B, M, e) with x (B, N, d)."""

    x: Tensor
    score: Scores
    bank: Tensor
    values: Tensor | None  # of the dtype that sums run in; None: the log-sum-exp alone is wanted
    beta: Tensor  # (N,), of that dtype
    allowed: Lowered | None
    wants_lse: bool  # beside the sums; without values it is all there is
    learned: bool = False  # a gradient may go to the metric, too


def softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (n, M) and the log-sum-exp (n,). A row of -inf alone has weights 0 and -inf."""
    most = z.detach().amax(-1, keepdim=True) if z.shape[-1] else z.new_full((*z.shape[:-1], 1), -torch.inf)
    most = torch.where(most == -torch.inf, 0.0, most)
    powers = torch.exp(z - most)
    total = powers.sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, total.log() + most).squeeze(-1)
    return powers / total, lse


def sparsemax(z: Tensor) -> Tensor:
    """The point of the simplex nearest to z (n, M): max(z - t, 0), whose sum is 1. A row of -inf alone gives 0.

    Source: Martins and Astudillo, "From softmax to sparsemax", ICML 2016.
    """
    if z.shape[-1] == 0:
        return z
    ordered = z.detach().double().sort(-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device)
    above = ordered[..., :1]
    above = torch.where(above == -torch.inf, 0.0, above)
    inside = 1 + rank * (ordered - above) > (ordered - above).cumsum(-1)
    count = inside.sum(-1, keepdim=True)
    support = (z.detach() >= ordered.gather(-1, (count - 1).clamp_min(0)).to(z.dtype)) & (z.detach() > -torch.inf)
    # As sums over the support, so that autograd finds the slope of the threshold.
    size = support.sum(-1, keepdim=True)
    apart = torch.where(support, z - above.to(z.dtype), 0.0)
    threshold = (apart.sum(-1, keepdim=True) - 1) / size.clamp_min(1)
    weights = torch.where(support, apart - threshold, 0.0).clamp_min(0)
    return torch.where(z.detach().isnan().any(-1, keepdim=True), torch.nan, weights)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, whatever autocast says, as the kernel sums."""
    device = a.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return a @ b
    with torch.autocast(device, enabled=False):
        return a @ b


def weigh(weight: str | Weight | None, z: Tensor, may: Tensor | None, lse: bool) -> tuple[Tensor, Tensor | None]:
    """The weights of scores z (n, M), which are -inf where a row may not be given, and their log-sum-exp if wanted."""
    if weight == "softmax":
        return softmax(z) if lse or may is not None else (z.softmax(-1), None)
    if weight == "sparsemax":
        return sparsemax(z), None
    weights = z if weight is None else weight(z)  # type: ignore[operator]
    if not isinstance(weights, Tensor) or weights.shape != z.shape:
        what = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weight must return a tensor of the shape of its scores, {tuple(z.shape)}, got {what}")
    return (weights if may is None else torch.where(may, weights, 0.0)), None


def _block(p: Problem, weight: str | Weight | None, x: Tensor, beta: Tensor, mask: Tensor | None, batch: int) -> Any:
    z = p.score(x, batch).to(beta.dtype) * beta.unsqueeze(-1)
    if mask is not None:
        z = torch.where(mask, z, -torch.inf)
    if p.values is None:
        return softmax(z)[1]
    weights, lse = weigh(weight, z, mask, p.wants_lse)
    out = product(weights.to(p.values.dtype), p.values[batch] if p.values.dim() == 3 else p.values)
    return (out, lse) if p.wants_lse else out


def _nothing(p: Problem, width: int) -> Tensor:
    """(0, width), for no queries: there is no block, and yet autograd is to know of all that was given."""
    given = [t for t in (p.x, p.bank, p.values, p.beta) if t is not None]
    none = torch.cat([t.reshape(-1)[:0].to(p.beta.dtype) for t in given])
    return none.unsqueeze(-1).expand(0, width)


def attend(p: Problem, weight: str | Weight | None) -> tuple[Tensor | None, Tensor | None]:
    """The sums (..., e) and, of "softmax", the log-sum-exp (...)."""
    lead = p.x.shape[:-1]
    flat, m = p.x.reshape(lead.numel(), p.x.shape[-1]), p.bank.shape[-2]
    given = (p.x, p.bank, p.values, p.beta)
    recorded = p.learned or any(t is not None and t.requires_grad for t in given)
    # Forward mode is carried by the ops themselves; a checkpoint does not know it.
    again = (recorded or callable(weight)) and torch.is_grad_enabled() and torch.autograd.forward_ad._current_level < 0
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    search = _select.Search(p.x, p.bank, None, 0)
    row_bytes = 4 * p.beta.dtype.itemsize * max(1, m)
    for first, last in _select.spans(search, row_bytes):
        batch = first // int(lead[-1]) if p.bank.dim() == 3 else 0
        mask = None if p.allowed is None else p.allowed.holds(first, last, lead, p.bank)
        x, beta = flat[first:last], p.beta[first:last]
        if again:
            found = checkpoint(_block, p, weight, x, beta, mask, batch, use_reentrant=False, preserve_rng_state=True)
        else:
            found = _block(p, weight, x, beta, mask, batch)
        if isinstance(found, tuple):
            outs.append(found[0])
            lses.append(found[1])
        else:
            (lses if p.values is None else outs).append(found)
    out = lse = None
    if p.values is not None:
        out = (torch.cat(outs) if outs else _nothing(p, p.values.shape[-1])).reshape(*lead, p.values.shape[-1])
    if p.wants_lse or p.values is None:
        lse = (torch.cat(lses) if lses else _nothing(p, 1)).reshape(lead)
    return out, lse
