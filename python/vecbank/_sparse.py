"""What `sparse` is made of: the gradients of chosen pairs, and the ways of choosing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ._ops import METRICS, ops
from ._ops.tangents import Function
from ._prepared import PreparedBank
from .functional import project, topk

_DOT = METRICS["dot"]
_BLOCK_BYTES = 16 << 20  # of dense latent values at a time, where they are needed at all
_FEW = 24  # rows that are scored exactly in less time than it takes to pack the dictionary for a screen

Score: TypeAlias = Callable[[Tensor, slice], Tensor | tuple[Tensor, Tensor]]


class Dictionary(NamedTuple):
    """One row per latent, and a number for each that is added to its score."""

    weight: Tensor  # (K, d)
    bias: Tensor | None  # (K,)
    bank: Tensor | PreparedBank  # what is searched: the weight, or the Bank that brings both

    @property
    def beside(self) -> Tensor | None:
        """The bias, where the bank does not bring it."""
        return None if isinstance(self.bank, PreparedBank) else self.bias


# ---- Gradients of chosen pairs -----------------------------------------------------------------------------


class Pairs(Function):
    """`values[i, t] = x_i . weight_c + bias_c` for `c = indices[i, t]`, differentiable; -1 is left
    out.
    """

    operation = "a sparse encoding"

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, values: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        if values is not None:
            return values.view_as(values)
        return listed(x, weight, _wide(bias), indices).to(value_dtype(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, indices = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        rows, grad = weight.shape[0], grad.to(weight.dtype)
        grad_x = ops.lookup(indices, weight, grad, 1).to(x.dtype) if need_x else None
        grad_weight = ops.segment_sum(x.to(weight.dtype), indices, rows, grad) if need_weight else None
        grad_bias = None
        if need_bias:
            grad_bias = ops.segment_sum(grad.reshape(-1, 1), indices.reshape(-1), rows, None).squeeze(1)
        return grad_x, grad_weight, grad_bias, None, None


class Jump(Function):
    """`(z 1[z > theta], 1[z > theta])`; for theta the step counts as a ramp as wide as the bandwidth."""

    operation = "the jump of JumpReLU"

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        gate = (z > theta).to(z.dtype)
        return z * gate, gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_gate: Tensor) -> tuple[Any, ...]:
        z, theta = ctx.saved_tensors
        grad_theta = None
        if ctx.needs_input_grad[1] and ctx.bandwidth > 0:
            near = ((z - theta).abs() < ctx.bandwidth / 2).to(z.dtype) / ctx.bandwidth
            grad_theta = -near * (theta * grad + grad_gate)
        return grad * (z > theta).to(z.dtype), grad_theta, None


# ---- Choosing, none of it differentiable -------------------------------------------------------------------


def largest(
    x: Tensor, bank: Tensor | PreparedBank, bias: Tensor | None, k: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest of relu(x W^T + b) per row of x (n, d), best first: 0 and -1 where fewer are positive."""
    values, indices = topk(x, bank, k, "dot", allowed=allowed, bias=bias)
    off = ~(values > 0)
    return values.masked_fill(off, 0), indices.masked_fill(off, -1)


def value_dtype(x: Tensor) -> torch.dtype:
    """Of a latent's value."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _wide(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


# A value is the float64 score in the library's order of summation, plus the bias, rounded once: the same number
# wherever it is worked out. Dense float32 products only say for which pairs that has to be done.


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b (n, K) in float64, before that rounding; the bias comes in float64."""
    z: Tensor = ops.exact_scores(x, weight, _DOT, torch.float64)
    return z if bias is None else z.add_(bias)


def listed(x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor) -> Tensor:
    """`exact` of the pairs (n, c) alone; 0 at index -1."""
    z: Tensor = ops.exact_scores(x, weight, _DOT, torch.float64, indices)
    return z if bias is None else z + torch.where(indices < 0, 0.0, bias[indices.clamp_min(0)])


def lengths(x: Tensor) -> Tensor:
    """|x| (n,) in float64; torch's own norm is summed in an order that layout and batch decide."""
    itself = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    squares: Tensor = ops.exact_scores(x, x, _DOT, torch.float64, itself)
    return squares.squeeze(1).sqrt()


def running_sum(values: Tensor) -> Tensor:
    """Sums of the first 1, 2, ... of each row of numbers >= 0: never falling, and the same in a wider list."""
    step = 1
    while step < values.shape[1]:
        values = values + torch.nn.functional.pad(values[:, :-step], (step, 0))
        step *= 2
    return values.cummax(1).values


class Block(NamedTuple):
    """Some rows of x against all latents: a float32 screen, or `exact`."""

    rows: slice
    z: Tensor  # (r, K): x W^T + offset
    slack: Tensor | None  # (r,) float32, how far the screen can be off: inf where it says nothing; None: exact


class Latents:
    """All latents of a dictionary, a block of rows at a time; `offset` is what a screen adds: the bias, or less."""

    def __init__(self, x: Tensor, rows: Dictionary, offset: Tensor | None = None, screen: bool = True) -> None:
        self.x, self.weight, self.bias = x, rows.weight, _wide(rows.bias)
        self.screened = rows.weight if rows.bias is not None else rows.bank  # a pack with a bias is for searches alone
        self.offset = self.bias if offset is None else offset
        self.slack = self._slack() if screen and self.weight.dtype != torch.float64 and x.shape[0] > _FEW else None
        self.step = max(1, _BLOCK_BYTES // (self.weight.shape[0] * (8 if self.slack is None else 4)))

    def _slack(self) -> Tensor:
        """Bound on |screen - (exact + offset)|, with the rounding of values and floors to float32 in it.

        A float32 product of d + 2 steps in any order, of rows less the bank's mean (at most twice as long as the
        longest), and some roundings before and after. A tensor core may lose a few times as much per step.
        """
        d = self.weight.shape[1]
        norms = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32)
        if not bool(torch.isfinite(norms).all()):
            norms = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float64)
            norms = norms.masked_fill(~torch.isfinite(norms), 0)  # `project` scores rows with NaN or inf one by one
        tiny = d**0.5 * 2.0**-73  # squares may underflow
        longest = norms.max().double() * 1.001 + tiny
        rows = torch.linalg.vector_norm(self.x, dim=1, dtype=torch.float32).double() * 1.001 + tiny
        most = 0.0 if self.offset is None else self.offset.abs().nan_to_num(0, 0, 0).max()
        unit = 2.0**-24 * (d + 64) * (1 if self.x.device.type == "cpu" else 4)
        slack = unit * (2 * rows * longest + most) + (d + 64) * 2.0**-149
        slack.masked_fill_(rows * longest + most > 2.0**120, torch.inf)  # a float32 sum may overflow
        return slack.float().nextafter(rows.new_tensor(torch.inf).float())

    def blocks(self) -> Iterator[Block]:
        offset = None if self.offset is None or self.slack is None else self.offset.float()
        for start in range(0, self.x.shape[0], self.step):
            rows = slice(start, min(start + self.step, self.x.shape[0]))
            if self.slack is None:
                yield Block(rows, exact(self.x[rows], self.weight, self.bias), None)
            else:
                z = project(self.x[rows], self.screened, "dot", out_dtype=torch.float32)
                yield Block(rows, z if offset is None else z.add_(offset), self.slack[rows])

    def above(self, block: Block, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row (of x), latent and value of what exceeds its floor (K,); the offset is bias - floor."""
        z, x = block.z, self.x[block.rows]
        if block.slack is not None:
            near = z > -block.slack.unsqueeze(1)  # a row with NaN has no score at all, and no slack
            if bool((block.slack < torch.inf).logical_or_(block.slack.isnan()).all()):
                row, latent = near.nonzero(as_tuple=True)
                if row.numel() <= near.numel() // 4:
                    indices, place = padded(row, latent, x.shape[0])
                    values = listed(x, self.weight, self.bias, indices).to(value_dtype(self.weight))[row, place]
                    keep = values > floor[latent]
                    return row[keep] + block.rows.start, latent[keep], values[keep]
            z = exact(x, self.weight, self.bias)  # as fast as a list of so many pairs
        z = z.to(value_dtype(self.weight))
        row, latent = (z > floor).nonzero(as_tuple=True)
        return row + block.rows.start, latent, z[row, latent]

    def best(
        self, block: Block, factor: Tensor, k: int, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k firing latents of each row with the largest z * factor: scores (-inf: none), latents, values."""
        x, more = self.x[block.rows], k + max(8, k // 4)
        if block.slack is None or more >= self.weight.shape[0]:
            return self._best(block.z if block.slack is None else exact(x, self.weight, self.bias), factor, k, allowed)
        largest = factor.abs().nan_to_num(0, torch.inf).max().clamp_min(torch.finfo(torch.float64).tiny)
        off = ~(block.z > -block.slack.unsqueeze(1))
        off |= factor.isnan() if allowed is None else factor.isnan() | ~allowed
        rough, chosen = (block.z * (factor / largest).float()).masked_fill_(off, -torch.inf).topk(more)
        chosen = chosen.sort(1).values
        z = listed(x, self.weight, self.bias, chosen)
        scores, order = self._scores(z, factor[chosen], None if allowed is None else allowed[chosen]).sort(
            dim=1, descending=True, stable=True
        )
        scores, order = scores[:, :k], order[:, :k]
        chosen, z = chosen.gather(1, order), z.gather(1, order)
        # what is not in the list is at most as good as the last of it seems to be, and the slack
        rest = rough[:, -1].double()
        unsure = ~((rest == -torch.inf) | (scores[:, -1] > (rest + 1.01 * block.slack.double()) * largest))
        if bool(unsure.any()):
            scores[unsure], chosen[unsure], values = self._best(
                exact(x[unsure], self.weight, self.bias), factor, k, allowed
            )
            z[unsure] = values.double()
        return scores, chosen, z.to(value_dtype(self.weight))

    def _best(self, z: Tensor, factor: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores, chosen = best(self._scores(z, factor, allowed), k)
        return scores, chosen, z.gather(1, chosen).to(value_dtype(self.weight))

    def _scores(self, z: Tensor, factor: Tensor, allowed: Tensor | None) -> Tensor:
        scores = z * factor
        off = ~(z.to(value_dtype(self.weight)) > 0) | scores.isnan()
        return scores.masked_fill_(off if allowed is None else off | ~allowed, -torch.inf)


def furthest_above(x: Tensor, weight: Tensor, bias: Tensor | None, floor: Tensor, k: int) -> Tensor:
    """The k latents of each row furthest above their floor (K,), and perhaps some on it."""
    dtype = value_dtype(weight)
    lift = -floor.double() if bias is None else bias.double() - floor.double()
    lifted = lift.to(dtype)
    # rounded up where it has to be rounded, so that nothing above its floor is lost
    lifted = torch.where(lifted < lift, lifted.nextafter(lifted.new_tensor(torch.inf)), lifted)
    return largest(x.to(dtype), weight.to(dtype), lifted, k)[1]


def padded(row: Tensor, latent: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Lists of latents (n, c), filled up with -1, from pairs in the order of rows; and each pair's place in its."""
    counts = torch.bincount(row, minlength=n)
    width = max(1, int(counts.max())) if n else 1
    place = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
    indices = row.new_full((n, width), -1)
    indices[row, place] = latent
    return indices, place


def best(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of each row, with ties to the lower index."""
    values, indices = score.topk(k)
    last = values[:, -1:]
    # rows that hold more of the last value than were taken: which of them were taken is torch's choice
    unclear = ((score == last).sum(1) > (values == last).sum(1)) & (last.squeeze(1) > -torch.inf)
    if unclear.any():
        indices[unclear] = score[unclear].argsort(dim=1, descending=True, stable=True)[:, :k]
    indices = indices.sort(1).values
    values, order = score.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def bar(values: Tensor, budget: int | Tensor, most: int) -> Tensor:
    """The smallest of the `budget` largest values (n,), all 0 or more, and 0 if there are not so many; budget <= most.

    A budget that is a tensor is not looked at, so that nothing waits for a device.
    """
    if most >= values.numel() or most == 0 or (isinstance(budget, int) and budget == 0):
        return values.new_zeros(())
    if isinstance(budget, int):
        return values.topk(budget, sorted=False).values.min()
    return values.topk(most).values.gather(0, (budget - 1).clamp_min(0).view(1)).squeeze(0)


def _scored(z: Tensor, score: Score, rows: slice, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Score and value of each latent of a block, by the caller's function; one that does not fire, or is masked out,
    cannot be chosen.
    """
    found, value = score(z, rows), z
    if isinstance(found, tuple) and len(found) == 2:
        found, value = found
    if not isinstance(found, Tensor) or not isinstance(value, Tensor):
        raise TypeError(f"score must return a tensor or a pair of tensors, got {type(found).__name__}")
    if found.shape != z.shape or value.shape != z.shape:
        raise ValueError(f"score must return {tuple(z.shape)}, got {tuple(found.shape)}, {tuple(value.shape)}")
    off = ~(value > 0)
    return found.masked_fill(off if allowed is None else off | ~allowed, -torch.inf), value


def best_by_score(
    x: Tensor, rows: Dictionary, k: int, score: Tensor | Score, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k latents of each row with the best score, and their values."""
    values = x.new_zeros((x.shape[0], k), dtype=value_dtype(rows.weight))
    indices = x.new_zeros((x.shape[0], k), dtype=torch.int64)
    latents = Latents(x, rows, screen=isinstance(score, Tensor))
    for block in latents.blocks():
        if isinstance(score, Tensor):
            found, chosen, value = latents.best(block, score.double(), k, allowed)
        else:
            scores, value = _scored(block.z.to(values.dtype), score, block.rows, allowed)
            found, chosen = best(scores, k)
            value = value.gather(1, chosen)
        off = found == -torch.inf
        values[block.rows] = value.masked_fill(off, 0)
        indices[block.rows] = chosen.masked_fill(off, -1)
    return values, indices


def above(x: Tensor, rows: Dictionary, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Values over the floor of their latent, and their ascending indices: one padded list per row."""
    weight, bias, _ = rows
    latents = Latents(x, rows, -floor.double() if bias is None else bias.double() - floor.double())
    found = [latents.above(block, floor) for block in latents.blocks()]
    n = x.shape[0]
    if not found:
        return x.new_zeros((n, 1), dtype=value_dtype(weight)), torch.full((n, 1), -1, device=x.device)
    row, latent, value = (torch.cat(part) for part in zip(*found, strict=True))
    indices, place = padded(row, latent, n)
    values = value.new_zeros(indices.shape)
    values[row, place] = value
    return values, indices
