"""What is read off the scores of rows and codes: drawn codes, soft codes, and the losses over all codes.

Scores are made a block of rows at a time, never N x K at once (except where torch.compile traces). The layouts are
those of `ops`. A loss makes its gradient in the same pass, so that no score is computed or kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ..._checks import readable
from ..._ops import METRICS
from ..._ops import ops as _ops
from ..._ops.tangents import Function
from ...functional import project
from .._draws import exponential, uniform
from .._estimators import once, twice

_SCORE_BYTES = 8 << 20  # the score matrix of one block of rows
_FEW_PAIRS = 1 << 16  # up to so many, products in float64 are quicker than float32 and a look at what it loses
_LEAST = -60.0  # logarithms of smaller probabilities: nothing that is added to 1, and far from slow denormals
_GROUP = 32  # codes whose weights are added up at once where one code is drawn
_FLOOR = 1e-5  # of probabilities inside the logarithm of the entropy
_NO_SECOND = (
    "the gradient of a loss over scores has no derivative: a second backward pass needs a loss without "
    "codebook_diversity_loss_weight and commitment_use_cross_entropy_loss"
)

# From the scores (R, K), or (H, R, K), of a block of rows, to which it may write, to the sum of the loss over the block
# and, where it is wanted, its gradient in the scores. A Term is told from where to where the block goes.
BlockTerm = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]
Term = Callable[[int, int, Tensor, bool], tuple[Tensor, Tensor | None]]


def scores(x: Tensor, bank: Tensor, metric: str) -> Tensor:
    """(..., K), larger is better; differentiable."""
    values = project(x, bank, metric, out_dtype=bank.dtype)
    return -values if metric == "l2" else values


def _step(x: Tensor, k: int, axis: int) -> int:
    """How many indices of an axis of x make a block, whose float32 scores take at most 8 MiB (or are of one index)."""
    if torch.compiler.is_compiling():
        return max(1, x.shape[axis])
    per_index = 4 * k * (x.numel() // max(1, x.shape[axis] * x.shape[-1]))
    return max(1, _SCORE_BYTES // max(1, per_index))


def _blocks(x: Tensor, k: int, axis: int) -> tuple[Tensor, ...]:
    """x in blocks along an axis."""
    step = _step(x, k, axis)
    return (x,) if x.shape[axis] <= step else x.split(step, axis)


# ---- Codes ----------------------------------------------------------------------------------------------------------


def _searched(edges: Tensor, target: Tensor) -> Tensor:
    """The first of the rising edges (..., n) that reaches the target (..., 1)."""
    return torch.searchsorted(edges, target).clamp_max(edges.shape[-1] - 1)  # past the end where edges are NaN


def draw(values: Tensor, temperature: float | Tensor, k: int | None, generator: Generator | None) -> Tensor:
    """Codes drawn from softmax(values / temperature): (...), or the k first of a draw without repeats (..., k).

    One code takes one random number, whose place among the sums of the weights is looked up: of groups first, and then
    within the group, in float64. A draw of k codes takes one for each code: Gumbel noise, of which the k largest are a
    draw. `values` are overwritten.
    """
    if k is not None:
        noise = exponential(values, generator).clamp_min_(torch.finfo(values.dtype).tiny).log_()
        return (values / temperature - noise).topk(k, dim=-1).indices
    codes = values.shape[-1]
    part = uniform((*values.shape[:-1], 1), values, generator, torch.float64)
    weights = values.sub_(values.amax(-1, keepdim=True)).div_(temperature).clamp_min_(_LEAST).exp_()
    first: Tensor | None = None
    if codes > 2 * _GROUP:
        weights = F.pad(weights, (0, -codes % _GROUP)) if codes % _GROUP else weights
        groups = weights.unflatten(-1, (-1, _GROUP))
        edges = groups.sum(-1).double().cumsum_(-1)
        target = part * edges[..., -1:]
        first = _searched(edges, target)
        whole = groups.sum(-1).gather(-1, first).double()
        part = 1 - (edges.gather(-1, first) - target) / whole  # of the group's own weight
        weights = groups.gather(-2, first.unsqueeze(-1).expand(*first.shape, _GROUP)).squeeze(-2)
    edges = weights.double().cumsum_(-1)
    drawn = _searched(edges, part.clamp_(0, 1) * edges[..., -1:])
    drawn = drawn if first is None else drawn.add_(first, alpha=_GROUP)
    return drawn.squeeze(-1).clamp_max_(codes - 1)


@torch.no_grad()
def sample_codes(
    x: Tensor, bank: Tensor, metric: str, temperature: float | Tensor, k: int | None, generator: Generator | None
) -> Tensor:
    """Codes drawn from softmax(score / temperature): (...), or the k first of a draw without repeats (..., k)."""
    axis = x.dim() - 2
    parts = [draw(scores(p, bank, metric), temperature, k, generator) for p in _blocks(x, bank.shape[-2], axis)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def soft_rows(x: Tensor, bank: Tensor, metric: str, temperature: float | Tensor) -> Tensor:
    """softmax(score / temperature) @ bank, the bank's rows held constant in the second factor."""

    def mixed(part: Tensor, codebook: Tensor) -> Tensor:
        return (scores(part, codebook, metric) / temperature).softmax(-1) @ codebook.detach()

    parts = _blocks(x, bank.shape[-2], x.dim() - 2)
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([mixed(part, bank) for part in parts], x.dim() - 2)
    # The backward pass computes the scores of each block again instead of keeping them.
    again = [checkpoint(mixed, part, bank, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(again, x.dim() - 2)


# ---- Losses ---------------------------------------------------------------------------------------------------------


def _probabilities(logits: Tensor) -> Tensor:
    """softmax of logits that it may write to, without the denormals that make every step after it slow."""
    return logits.log_softmax(-1).clamp_min_(_LEAST).exp_()


class _Sums:
    """Adds up terms and their gradients over blocks of rows; the scores of a block serve all terms."""

    def __init__(self, x: Tensor, bank: Tensor, metric: str, count: int, need_x: bool, need_bank: bool) -> None:
        self.bank, self.metric, self.need_x, self.need_bank = bank, metric, need_x, need_bank
        pairs = x.numel() // max(1, x.shape[-1]) * bank.shape[-2]
        self.few = metric == "l2" and x.device.type == "cpu" and pairs <= _FEW_PAIRS
        self.losses: list[list[Tensor]] = [[] for _ in range(count)]
        self.grads_x: list[list[Tensor]] = [[] for _ in range(count)]
        self.grads_bank: list[Tensor | None] = [None] * count

    def add(self, rows: Tensor, terms: list[BlockTerm]) -> None:
        """Rows (R, d), or (H, R, d) for codebooks (H, K, d)."""
        wanted = self.need_x or self.need_bank
        few = _Few(rows, self.bank) if self.few and wanted else None
        found = few.scores if few else _ops.project(rows, self.bank, None, METRICS[self.metric], self.bank.dtype)
        if self.metric == "l2" and not few:
            found = found.neg_()
        for i, term in enumerate(terms):
            last = i == len(terms) - 1
            loss, slope = term(found if last and not few else found.clone(), wanted)
            self.losses[i].append(loss)
            if slope is None:
                continue
            if few:
                grad_x, grad_bank = few.gradients(slope, self.need_x, self.need_bank)
            else:
                slope = slope.neg_() if self.metric == "l2" else slope
                needs = self.need_x, self.need_bank
                grad_x, grad_bank = _ops.project_backward(slope, rows, self.bank, METRICS[self.metric], *needs, None)
            if self.need_x:
                self.grads_x[i].append(grad_x)
            if self.need_bank:
                so_far = self.grads_bank[i]
                self.grads_bank[i] = grad_bank if so_far is None else so_far.add_(grad_bank)


class _Few:
    """-|x - b| of few pairs, in float64 where numbers cancel."""

    def __init__(self, rows: Tensor, bank: Tensor) -> None:
        self.dtypes = rows.dtype, bank.dtype
        self.x, self.bank = rows.double(), bank.double()
        squares = (self.x @ self.bank.mT).mul_(-2).add_((self.bank * self.bank).sum(-1).unsqueeze(-2))
        squares.add_((self.x * self.x).sum(-1, keepdim=True)).clamp_min_(0)
        self.scores = squares.to(bank.dtype).sqrt_().neg_()

    def gradients(self, slope: Tensor, need_x: bool, need_bank: bool) -> tuple[Tensor, Tensor]:
        """The gradient of -|x - b| is -(x - b) / |x - b|, and 0 where both are equal."""
        weights = slope.div_(self.scores)  # minus these
        if not (readable(self.scores) and self.scores.numel() and float(self.scores.max()) < 0):
            weights.masked_fill_(self.scores == 0, 0.0)
        weights = weights.double()
        grad_x = grad_bank = self.x.new_empty(0)
        if need_x:
            grad_x = (self.x * weights.sum(-1, keepdim=True)).sub_(weights @ self.bank).to(self.dtypes[0])
        if need_bank:
            grad_bank = (self.bank * weights.sum(-2).unsqueeze(-1)).sub_(weights.mT @ self.x).to(self.dtypes[1])
        return grad_x, grad_bank


class _ScoreLoss(Function):
    """The sum of each term over all rows x (..., d) against a bank (K, d), or (H, ..., d) against (H, K, d)."""

    operation = "a loss over scores"

    @staticmethod
    def forward(
        x: Tensor, bank: Tensor, terms: tuple[Term, ...], metric: str, axis: int, need_x: bool, need_bank: bool
    ) -> tuple[Tensor | None, ...]:
        sums, width = _Sums(x, bank, metric, len(terms), need_x, need_bank), x.shape[-1]
        lead, start = bank.shape[:-2], 0
        parts = _blocks(x, bank.shape[-2], axis)
        for part in parts:
            stop = start + part.shape[axis]
            sums.add(part.reshape(*lead, -1, width), [partial(term, start, stop) for term in terms])
            start = stop
        totals = [found[0] if len(parts) == 1 else torch.stack(found).sum() for found in sums.losses]
        grads_x: list[Tensor | None] = [None] * len(terms)
        if need_x:
            for i, found in enumerate(sums.grads_x):
                grads = [grad.view(part.shape) for grad, part in zip(found, parts, strict=True)]
                grads_x[i] = grads[0] if len(parts) == 1 else torch.cat(grads, axis)
        return *totals, *grads_x, *sums.grads_bank

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        x, bank, terms, *_ = inputs
        ctx.count = len(terms)
        grads = output[ctx.count :]
        ctx.mark_non_differentiable(*(grad for grad in grads if grad is not None))
        ctx.save_for_backward(x, *grads)
        ctx.bank = bank if grads[-1] is not None else None  # for its place in the graph: its values may change

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *kept = ctx.saved_tensors
        if twice():
            inputs = (x,) if ctx.bank is None else (x, ctx.bank)
            kept = [None if g is None else once(g, *inputs, words=_NO_SECOND) for g in kept]
        found: list[Tensor | None] = []
        for slopes in (kept[: ctx.count], kept[ctx.count :]):
            if slopes[0] is None:
                found.append(None)
                continue
            total = grads[0] * slopes[0]
            for grad, slope in zip(grads[1 : ctx.count], slopes[1:], strict=True):
                total = total + grad * slope
            found.append(total.to(slopes[0].dtype))
        return *found, None, None, None, None, None


def _summed(x: Tensor, bank: Tensor, metric: str, axis: int, *terms: Term) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        found = scores(x.reshape(*bank.shape[:-2], -1, x.shape[-1]), bank, metric)
        return tuple(term(0, x.shape[axis], found, False)[0] for term in terms)
    graph = torch.is_grad_enabled()
    needs = graph and x.requires_grad, graph and bank.requires_grad
    totals: tuple[Tensor, ...] = _ScoreLoss.apply(x, bank, terms, metric, axis, *needs)[: len(terms)]
    return totals


def _of_codes(codes: Tensor, axis: int) -> Term:
    """-log softmax(score)[code], of codes that are not -1."""

    def term(start: int, stop: int, found: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        chosen = codes.narrow(axis, start, stop - start).flatten()
        logs = found.log_softmax(-1).flatten(0, -2)
        loss = F.nll_loss(logs, chosen, ignore_index=-1, reduction="sum")
        if not wanted:
            return loss, None
        slope = logs.clamp_min_(_LEAST).exp_()  # p - 1 for the code, p for the others
        slope.scatter_add_(1, chosen.clamp_min(0).unsqueeze(1), slope.new_full((1, 1), -1.0).expand(len(chosen), 1))
        if not (readable(chosen) and chosen.numel() and int(chosen.min()) >= 0):
            slope.masked_fill_((chosen < 0).unsqueeze(1), 0.0)
        return loss, slope.view(found.shape)

    return term


def cross_entropy(x: Tensor, bank: Tensor, metric: str, codes: Tensor) -> Tensor:
    """Mean over codes that are not -1 of -log softmax(score)[code]; 0 where there are none."""
    if not x.numel():
        return x.sum()
    axis = x.dim() - 2
    return _summed(x, bank, metric, axis, _of_codes(codes, axis))[0] / (codes >= 0).sum().clamp_min(1)


def negative_entropy_of(p: Tensor) -> Tensor:
    """sum p log p over the last axis, p at least 1e-5 in the logarithm."""
    return (p * p.clamp_min(_FLOOR).log()).sum(-1)


def mean_negative_entropy(p: Tensor, mask: Tensor | None, summed: bool = False) -> Tensor:
    """Sum of q log q, q the mean of p (H, G, P, K) over codebooks and groups, averaged (or summed) over positions.

    Rows outside mask (H, G, P) do not count, nor do positions without rows.
    """
    if mask is None:
        each = negative_entropy_of(p.mean((0, 1)))
        return each.sum() if summed else each.mean()
    number = mask.sum((0, 1))
    total = negative_entropy_of((p * mask.unsqueeze(-1)).sum((0, 1)) / number.clamp_min(1).unsqueeze(-1)).sum()
    return total if summed else total / (number > 0).sum().clamp_min(1)


def _of_batch(shape: torch.Size, sharpness: float, mask: Tensor | None) -> Term:
    """The term of `negative_entropy`, for x of this shape."""
    heads, groups, positions, _ = shape
    whole = None if mask is None else mask.expand(heads, groups, positions)

    def term(start: int, stop: int, found: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        keep = None if whole is None else whole[..., start:stop]
        if not wanted:
            p = (found * sharpness).softmax(-1).view(heads, groups, stop - start, -1)
            return mean_negative_entropy(p, keep, summed=True), None
        p = _probabilities(found.mul_(sharpness)).view(heads, groups, stop - start, -1)
        if keep is None:
            share: Tensor | None = None
            q = p[0, 0] if heads * groups == 1 else p.mean((0, 1))
        else:
            share = (1 / keep.sum((0, 1)).clamp_min(1).to(p.dtype) * keep).unsqueeze(-1)
            q = (p * share).sum((0, 1))
        logs = q.clamp_min(_FLOOR).log_()
        loss = (q * logs).sum()
        slope_q = logs.add_(q >= _FLOOR).mul_(sharpness)  # of q log max(q, floor) in q, times that of the logits
        along = slope_q / (heads * groups) if share is None else slope_q * share
        inner = (p * along).sum(-1, keepdim=True)
        return loss, (along - inner).mul_(p).view(found.shape)

    return term


def _counted(x: Tensor, mask: Tensor | None) -> int | Tensor:
    """The positions of x (H, G, P, d) that have rows."""
    return x.shape[2] if mask is None else mask.any(1).any(0).sum().clamp_min(1)


def negative_entropy(x: Tensor, bank: Tensor, metric: str, sharpness: float, mask: Tensor | None = None) -> Tensor:
    """Sum of p log p of the codes' mean probabilities: x (H, G, P, d) against bank (H, K, d).

    p is the mean over codebooks and groups of softmax(sharpness * score): one p for each of the P positions, whose sums
    are averaged. Rows outside mask (H, G, P) do not count.
    """
    if not x.numel():
        return x.sum()
    return _summed(x, bank, metric, 2, _of_batch(x.shape, sharpness, mask))[0] / _counted(x, mask)


def negative_and_cross_entropy(
    x: Tensor, bank: Tensor, metric: str, sharpness: float, mask: Tensor | None, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """`negative_entropy` and `cross_entropy`, of codes (H, G, P), from the same scores."""
    if not x.numel():
        return x.sum(), x.sum()
    batch, coded = _summed(x, bank, metric, 2, _of_batch(x.shape, sharpness, mask), _of_codes(codes, 2))
    return batch / _counted(x, mask), coded / (codes >= 0).sum().clamp_min(1)
