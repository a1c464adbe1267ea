"""Binary mapper: bits drawn from their log-odds, and returned as the one-hot vector of the number that they spell."""

from __future__ import annotations

from contextlib import nullcontext
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .. import _checks
from .._finite import counted, finite_rows, uncoded, zeroed
from .._ops.tangents import Function
from ._arguments import features, integers, memory_for, number, numbers, whole
from ._bits import exponential, hits, log_table, odds_of, pack_bits, table, table_gradient, unpack_bits
from ._derived import Derived
from ._draws import uniform
from ._layout import no_autocast, working

_BIT = log(2.0)
_LARGE = 1 << 28  # entries of a result that may not fit into memory
_FEW = 1 << 16  # entries of a gradient: up to so many, one table of all codes takes less time than two of half the bits


def _one_hot(codes: Tensor, count: int, all_coded: bool) -> Tensor:
    """One-hot rows (N, count) float32 of codes (N,), NaN for code -1; `all_coded`: there is no such code."""
    if all_coded:
        zeros = torch.zeros(codes.shape[0], count, device=codes.device)
        return zeros.scatter_(1, codes.unsqueeze(1), 1.0)
    empty = torch.where(codes < 0, torch.nan, 0.0).to(torch.float32).unsqueeze(1)
    return empty.repeat(1, count).scatter_(1, codes.clamp_min(0).unsqueeze(1), empty + 1.0)


class _OneHot(Function):
    """One-hot rows of `codes`, with the gradient of the probability of every code under `logits` (N, bits)."""

    operation = "BinaryMapper"

    @staticmethod
    def forward(logits: Tensor, codes: Tensor, all_coded: bool) -> Tensor:
        return _one_hot(codes, 1 << logits.shape[1], all_coded)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        logits = working(kept).flip(1)  # a table's first bit is its highest, a code's first bit its lowest
        if grad.numel() <= _FEW:
            slope = hits(exponential(log_table(logits)) * grad, odds_of(logits))
            return slope.flip(1).to(kept.dtype), None, None
        half = logits.shape[1] // 2
        u, v = table(logits[:, :half])[1], table(logits[:, half:])[1]
        slope = table_gradient(logits, u, v, grad.to(u.dtype).view(-1, u.shape[1], v.shape[1]))
        return slope.flip(1).to(kept.dtype), None, None


class BinaryMapper(Derived):
    """Log-odds of bits to one-hot codes, with the arguments of `vector_quantize_pytorch.BinaryMapper`; without state.

    A row with NaN comes out as NaN with code -1.

    Formula: b_i ~ Bernoulli(sigmoid(l_i / T)), code = sum_i b_i * 2^i. Straight through: the output is the one-hot
    vector of the code, and its gradient that of G, G_c = prod_i sigmoid(+-l_i), the probability of every code.
    Loss: the mean over rows of relu(KL to uniform bits - threshold), KL = bits * log 2 - H(l).

    The result has an axis of 2^bits. The backward pass computes the probabilities again from two half tables instead
    of keeping them.

    Args:
        bits: the number of bits of one code, at most 30.
        kl_loss_threshold: nats that the loss leaves free; one bit by default.
        deterministic_on_eval: round instead of drawing, in evaluation.

    Shapes:
        logits (..., bits); one-hot rows (..., 2^bits) float32; codes int64 (...); loss (), or (...) unreduced.

    Example:
        >>> import torch
        >>> from vecbank.nn import BinaryMapper
        >>> module = BinaryMapper(bits=3, deterministic_on_eval=True).eval()
        >>> one_hot, codes, loss = module(torch.tensor([[9.0, -9.0, 9.0]]), return_indices=True)
        >>> codes, one_hot.int().tolist()
        (tensor([5]), [[0, 0, 0, 0, 0, 1, 0, 0]])

    Source: Fleuret, "The Free Transformer", 2025.
    """

    power_two: Tensor

    def __init__(self, bits: int = 1, kl_loss_threshold: float = _BIT, deterministic_on_eval: bool = False) -> None:
        super().__init__()
        bits = whole("bits", bits, 1, 30)  # the result has 2^bits entries
        numbers(kl_loss_threshold=kl_loss_threshold)
        self.bits = bits
        self.num_codes = 1 << bits
        self._hold()
        self.kl_loss_threshold = kl_loss_threshold
        self.deterministic_on_eval = deterministic_on_eval

    def _derive(self) -> dict[str, Tensor]:
        return {"power_two": 2 ** torch.arange(self.bits, device="cpu")}

    @property
    def codes(self) -> Tensor:
        """The bits of every code, (2^bits, bits) bool, the lowest first; made when it is read."""
        return unpack_bits(torch.arange(self.num_codes, device=self.power_two.device), self.power_two)

    def _check(self, logits: Tensor) -> None:
        features("logits", logits, self.bits)

    def binary_entropy(self, logits: Tensor) -> Tensor:
        """Sum of the bits' entropies, (..., bits) to (...)."""
        logits = logits.clamp(-1e4, 1e4)  # a bit that is certain has none, not 0 times infinity
        p = logits.sigmoid()
        return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).sum(-1)

    def calc_aux_loss(self, logits: Tensor, reduce_aux_kl_loss: bool = True) -> Tensor:
        """relu(KL to uniform bits - threshold) per row, or its mean; 0 for a row with NaN, which counts in no mean.

        Args:
            logits: (..., bits).
            reduce_aux_kl_loss: return the mean, (), instead of (...).
        """
        self._check(logits)
        with no_autocast(logits):
            known = finite_rows(working(logits.detach()).clamp(-1, 1))  # infinite log-odds are those of a certain bit
            entropy = self.binary_entropy(zeroed(working(logits), known))
            loss = zeroed(F.relu(self.bits * _BIT - entropy - self.kl_loss_threshold), known)
            return loss.sum() / counted(known, loss.shape) if reduce_aux_kl_loss else loss

    def log_prob(
        self,
        logits: Tensor,
        *,
        indices: Tensor | None = None,
        one_hot: Tensor | None = None,
        sum_bits: bool = True,
    ) -> Tensor:
        """Log-probability of codes, or of one-hot rows, under the logits; 0 for code -1.

        Args:
            logits: (..., bits).
            indices: codes (...), of any integer dtype; or else
            one_hot: rows (..., 2^bits).
            sum_bits: False returns the log-probability of each bit.

        Returns:
            (...), or (..., bits).
        """
        self._check(logits)
        if (indices is None) == (one_hot is None):
            raise ValueError("exactly one of indices and one_hot must be given")
        if indices is None:
            assert one_hot is not None
            indices = one_hot.argmax(-1)
        numbers = integers(indices, "indices")
        checked = _checks.in_range(numbers, self.num_codes, "indices")
        each = F.logsigmoid(torch.where(unpack_bits(numbers, self.power_two), logits, -logits))
        each = each if checked else _checks.only_rows(each, numbers, self.num_codes)
        return each.sum(-1) if sum_bits else each

    def forward(
        self,
        logits: Tensor,
        temperature: float = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        deterministic: bool | None = None,
        return_indices: bool = False,
        reduce_aux_kl_loss: bool = True,
        *,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Draws codes.

        Args:
            logits: (..., bits), log-odds.
            temperature: what the log-odds are divided by before bits are drawn.
            straight_through: pass the gradient of the codes' probabilities; by default in training.
            calc_aux_loss: compute the loss, which is 0 otherwise; by default in training.
            deterministic: round instead of drawing; by default as deterministic_on_eval says.
            return_indices: return the codes too.
            reduce_aux_kl_loss: the loss is a mean, and not one number for each row.
            generator: draws the bits.

        Returns:
            (one-hot rows, loss), or on request (one-hot rows, codes, loss).
        """
        self._check(logits)
        if not torch.compiler.is_compiling():
            number("temperature", temperature, above=True)
        if deterministic is None:
            deterministic = self.deterministic_on_eval and not self.training
        with no_autocast(logits):
            with torch.no_grad():
                p = (working(logits) / temperature).sigmoid()
                if deterministic:
                    bits = p > 0.5
                else:
                    bits = uniform(p.shape, p, generator).to(p) < p
                known = finite_rows(p)
                indices = uncoded(pack_bits(bits, self.power_two), known)
            flat = indices.reshape(-1)
            large = not torch.compiler.is_compiling() and flat.numel() << self.bits > _LARGE
            with memory_for(f"{flat.numel()} rows of {self.num_codes} numbers") if large else nullcontext():
                if self.training if straight_through is None else straight_through:
                    one_hot = _OneHot.apply(logits.reshape(-1, self.bits), flat, known is None)
                else:
                    one_hot = _one_hot(flat, self.num_codes, known is None)
            one_hot = one_hot.view(*indices.shape, self.num_codes)
        if self.training if calc_aux_loss is None else calc_aux_loss:
            loss = self.calc_aux_loss(logits, reduce_aux_kl_loss)
        else:
            loss = one_hot.new_zeros(())
        return (one_hot, indices, loss) if return_indices else (one_hot, loss)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
