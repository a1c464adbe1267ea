"""Latent quantisation (QLAE): every feature has its own small table of learned numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from .. import _checks
from .._finite import counted, finite_rows, uncoded, voided, zeroed
from ..functional import lookup
from ._arguments import features, integers, maybe_numbers, memory_for, whole, wholes
from ._derived import Derived
from ._estimators import straight_through
from ._layout import channel_last, no_autocast, working
from ._scalar import ScalarQuantizer, digits_of, place_values


def _first_tables(levels: Sequence[int], device: str | None = None) -> list[Tensor]:
    """Entries from -1/2 in even steps; 0 is one of them for an even number of entries too."""
    return [
        torch.linspace(-0.5, 0.5, n, device=device) if n % 2 else torch.arange(n, device=device) / n - 0.5
        for n in levels
    ]


class _FixedTables(Derived):
    """Tables that do not learn: they follow the module's device and dtype, and are not in its state_dict."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self._levels, self._count = list(levels), len(levels)
        self._hold()

    def _derive(self) -> dict[str, Tensor]:
        return {str(i): table for i, table in enumerate(_first_tables(self._levels, "cpu"))}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        nn.Module._apply(self, fn, recurse)
        for name, table in self._derive().items():
            was, now = before[name], self._buffers[name]
            assert was is not None and now is not None
            if _checks.concrete(now) and not now.is_meta and (was.is_meta or not torch.equal(was.to(now), now)):
                self._buffers[name] = table.to(now)  # `to_empty` has lost the values
        return self

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < self._count:
            raise IndexError(f"table {i} of {self._count}")
        return self.get_buffer(str(i))


class LatentQuantize(ScalarQuantizer):
    """A table of numbers for each feature, with the arguments and state_dict of
    `vector_quantize_pytorch.LatentQuantize`.

    A vector with NaN or inf has code -1, comes out as NaN and counts in no loss.

    Formula: q_j = V_j[k_j] with k_j = argmin_v |z_j - V_j[v]| (ties to the lower index), where V_j is the table of
    feature j and L_j its size; code = sum_j k_j * prod_{i<j} L_i. In training the loss is
    w_q * mean((sg(out) - x)^2) + w_c * mean((sg(x) - out)^2) on what goes in and what comes out, where sg stops the
    gradient.

    Args:
        levels: table sizes, one per feature of a code; or one size for codebook_dim features.
        dim: features of the input; a linear map goes in front and behind where it differs from the codes'
            width.
        commitment_loss_weight: w_c of the loss.
        quantization_loss_weight: w_q of the loss.
        num_codebooks: codes per vector.
        codebook_dim: features of a code; only read where levels is an int.
        keep_num_codebooks_dim: keep the axis of the codebooks in the codes; always where there is more than one.
        optimize_values: hold the tables as Parameters. In the peer no gradient reaches them; see
            value_gradient.
        in_place_codebook_optimizer: not supported (the peer fails with it in training): ValueError.
        value_gradient: let the tables learn, as the paper has it: the gradient of the quantised features goes
            to z (straight through) and is summed up per table entry as well. Not in the peer.

    Shapes:
        z (b, dim, ...), features on axis 1; codes int32 (b, ...), with one more axis where it is kept; loss ().

    Raises:
        ValueError, TypeError: arguments out of range, or that are not supported, by name.

    Example:
        >>> import torch
        >>> from vecbank.nn import LatentQuantize
        >>> module = LatentQuantize(levels=[5, 5, 8], dim=3)
        >>> quantized, codes, loss = module(torch.randn(2, 3, 7))
        >>> quantized.shape, codes.shape, torch.equal(module.indices_to_codes(codes), quantized)
        (torch.Size([2, 3, 7]), torch.Size([2, 7]), True)

    Source: Hsu et al., "Disentanglement via Latent Quantization", NeurIPS 2023.
    """

    _levels: Tensor
    _basis: Tensor
    commitment_loss_weight: Tensor
    quantization_loss_weight: Tensor
    values_per_latent: nn.ParameterList | _FixedTables

    def __init__(
        self,
        levels: Sequence[int] | int,
        dim: int,
        commitment_loss_weight: float | None = 0.1,
        quantization_loss_weight: float | None = 0.1,
        num_codebooks: int = 1,
        codebook_dim: int = -1,
        keep_num_codebooks_dim: bool | None = None,
        optimize_values: bool | None = True,
        in_place_codebook_optimizer: Callable[..., Optimizer] | None = None,
        *,
        value_gradient: bool = False,
    ) -> None:
        super().__init__()
        if in_place_codebook_optimizer is not None:
            raise ValueError(
                "LatentQuantize: in_place_codebook_optimizer is not supported: pass value_gradient=True and the "
                "parameters of values_per_latent to an optimiser of your own"
            )
        dim, num_codebooks = whole("dim", dim), whole("num_codebooks", num_codebooks)
        codebook_dim = whole("codebook_dim", codebook_dim, -1)
        maybe_numbers(commitment_loss_weight=commitment_loss_weight, quantization_loss_weight=quantization_loss_weight)
        if isinstance(levels, (int, np.integer)):
            levels = whole("levels", levels, 2)
            if codebook_dim < 1:  # the peer's own tests ask for this class of error
                raise RuntimeError(f"codebook_dim must be at least 1 where levels is an int, got {codebook_dim}")
            levels = [levels] * codebook_dim
        levels = wholes("levels", levels)
        if min(levels) < 2:
            raise ValueError(f"levels must be at least 2 each, got {levels}")
        keep = bool(keep_num_codebooks_dim) or num_codebooks > 1
        self._set_codes(math.prod(levels), len(levels), num_codebooks, keep)
        if self.codebook_size > 2**31:
            raise ValueError(f"levels give {self.codebook_size} codes, more than an int32 holds")
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self._project(dim, self.effective_codebook_dim)
        self._weights = (commitment_loss_weight or 0.0, quantization_loss_weight or 0.0)
        self._counts = levels
        self._hold()
        self.values_per_latent = nn.ParameterList(_first_tables(levels)) if optimize_values else _FixedTables(levels)
        self.value_gradient = value_gradient

    def _derive(self) -> dict[str, Tensor]:
        return {
            "commitment_loss_weight": torch.tensor(self._weights[0], device="cpu"),
            "quantization_loss_weight": torch.tensor(self._weights[1], device="cpu"),
            "_levels": torch.tensor(self._counts, dtype=torch.int32, device="cpu"),
            "_basis": torch.tensor(place_values(self._counts), dtype=torch.int32, device="cpu"),
        }

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes as vectors of the tables' present values, (codebook_size, d); made when it is read."""
        with memory_for(f"all {self.codebook_size} codes"):
            return self._vectors(torch.arange(self.codebook_size, device=self._levels.device)).detach()

    def _vectors(self, numbers: Tensor) -> Tensor:
        return self._values(digits_of(numbers, self._basis, self._levels))

    def _tables(self, padding: float) -> Tensor:
        """The tables as rows of one matrix, (d, size of the largest)."""
        tables = [self.values_per_latent[i] for i in range(self.codebook_dim)]
        return pad_sequence(tables, batch_first=True, padding_value=padding)

    def _digits(self, z: Tensor) -> Tensor:
        """The nearest entry of each feature's own table: (..., d) numbers to (..., d) int64, -1 for NaN and inf."""
        digits = self._nearest(z, self._tables(torch.inf).detach()).t().reshape(z.shape)
        return digits.masked_fill(~z.isfinite(), -1)

    def _nearest(self, z: Tensor, tables: Tensor) -> Tensor:
        """The numbers (d, N) of the nearest entries of `tables`, filled up with inf; of NaN and inf any number.

        Decided by the float64 midpoints between neighbouring entries; on a midpoint the first entry in the table wins.
        """
        entries, order = tables.double().sort(dim=1, stable=True)
        number = order.gather(1, torch.searchsorted(entries, entries))  # of equal entries the first
        between = (entries[:, :-1] + entries[:, 1:]) / 2
        if not (_checks.readable(number) and bool((number[:, :-1] <= number[:, 1:]).all())):
            below = torch.nextafter(between, torch.full_like(between, -torch.inf))
            between = torch.where(number[:, :-1] > number[:, 1:], below, between)
        features = (
            z.detach().reshape(-1, self.codebook_dim).t().to(torch.float64, memory_format=torch.contiguous_format)
        )
        return number.gather(1, torch.searchsorted(between, features))

    def _values(self, digits: Tensor) -> Tensor:
        """Table entries by number, (..., d), zero for -1; the gradient to a table is a sum per entry."""
        tables = self._tables(0.0)
        first = torch.arange(self.codebook_dim, device=digits.device) * tables.shape[1]
        rows = torch.where(digits < 0, -1, digits + first)
        return lookup(rows, tables.reshape(-1, 1)).squeeze(-1)

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest entries, the shape of z (..., d); gradient straight through."""
        return self._quantize(z, False)[0]

    def _quantize(self, z: Tensor, finite: bool) -> tuple[Tensor, Tensor]:
        """The nearest entries and their numbers; `finite`: nothing in z is NaN or inf, so that no number is -1."""
        if finite and not self.value_gradient:
            tables = self._tables(torch.inf).detach()
            chosen = self._nearest(z, tables)
            values = tables.gather(1, chosen).t().reshape(z.shape).to(z.dtype)
            return straight_through(z, values), chosen.t().reshape(z.shape)
        digits = self._digits(z)
        values = self._values(digits).to(z.dtype)
        values = torch.where(digits < 0, torch.nan, values)
        quantized = straight_through(z, values)
        if self.value_gradient:
            quantized = quantized + (values - values.detach())
        return quantized, digits

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Table entries (..., d) to codes (...): the number of the nearest entry, so `zhat` may be rounded."""
        features("zhat", zhat, self.codebook_dim)
        return self._number(self._digits(working(zhat)), False)

    def _number(self, digits: Tensor, finite: bool) -> Tensor:
        number = (digits * self._basis).sum(-1)
        return (number if finite else uncoded(number, (digits >= 0).all(-1))).to(torch.int32)

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """The quantised features (b, dim, ...) of codes, of any integer dtype, by the tables' present values.

        The vector of -1 is zero, before the linear map behind; project_out=False leaves that map out.
        """
        numbers = integers(indices, "indices")
        if numbers.dim() < 1 + int(self.keep_num_codebooks_dim):
            raise ValueError(f"indices must be (b, ...) as forward returns them, got {tuple(numbers.shape)}")
        return self._features_of(numbers, True, project_out)

    def quantization_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """(sg(zhat) - z)^2."""
        return F.mse_loss(zhat.detach(), z, reduction=reduce)

    def commitment_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """(sg(z) - zhat)^2."""
        return F.mse_loss(z.detach(), zhat, reduction=reduce)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (b, dim, ...) to (quantised like z, codes (b, ...), loss)."""
        x, finite = self._enter_finite(z, True, "z")
        with no_autocast(x):
            dtype = x.dtype
            quantized, digits = self._quantize(self._split(working(voided(x, finite))), finite is None)
            codes = self._as_returned(self._number(digits, finite is None))
            quantized = quantized.flatten(-2).to(dtype)
        out, known = self._left(quantized, True)
        return out, codes, self._loss(z, out, known)

    def _loss(self, z: Tensor, out: Tensor, known: bool) -> Tensor:
        """The weighted terms, means over the rows that have neither NaN nor inf; `known`: there are none of these."""
        commitment, quantization = self._weights
        if not self.training or commitment == quantization == 0:
            return out.new_zeros((), dtype=torch.float32)
        z, out = channel_last(z), channel_last(out)
        with no_autocast(z):
            finite = None if known else finite_rows(out)  # where z is not finite, `out` is not either
            z, out = (zeroed(working(t), finite) for t in (z, out))
            terms: list[Tensor] = []
            for weight, term in (
                (self.commitment_loss_weight if commitment != 0 else None, self.commitment_loss),
                (self.quantization_loss_weight if quantization != 0 else None, self.quantization_loss),
            ):
                if weight is None:
                    continue
                if finite is None and z.numel():
                    terms.append(weight * term(z, out))
                else:
                    terms.append(weight * (term(z, out, "sum") / (counted(finite, z.shape[:-1]) * self.dim)))
        return terms[0] + terms[1] if len(terms) == 2 else terms[0]

    def extra_repr(self) -> str:
        return f"levels={self._levels.tolist()}, dim={self.dim}, num_codebooks={self.num_codebooks}"
