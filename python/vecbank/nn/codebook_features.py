"""Codebook features: a hidden state replaced by the sum (or mean) of the k codes most like it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .. import _checks
from .._deprecated import old_attribute, renamed
from .._finite import at_least_one, finite_rows, kept, voided, zeroed
from .._written import Snapshot
from ..cluster import kmeans
from ..functional import lookup, topk
from ..sparse import firing_counts
from ._arguments import drawn_by, features, integers, memory_for, numbers, whole
from ._arguments import rows as row_numbers
from ._checkpointing import inside_backward
from ._distributed import Ranks, draw_rows

_METRICS = ("cosine", "dot", "l2")


class Features(NamedTuple):
    """What `CodebookFeatures` returns."""

    features: Tensor  # (..., dim)
    codes: Tensor  # (..., k) int64, or (..., heads, k); best first, -1 where no code is left
    loss: Tensor  # (): the terms that train the codebook and hold the input to it


torch.utils._pytree._register_namedtuple(Features, serialized_type_name="vecbank.nn.Features")


class CodebookFeatures(nn.Module):
    """A bottleneck of k codes out of `num_codes`: `h -> (1 / k) * sum_{c in top-k_c cos(h, e_c)} e_c`.

    The gradient passes straight through to h; the codebook learns from the task (later layers read its codes), from
    `|features - h|^2` with h held still, or both.

    `codebook` (heads, num_codes, dim / heads) is the parameter that a state_dict names `book`.

    `counts` (heads, num_codes) and `inputs` count usage in training mode without waiting for the device.

    Args:
        dim: width of h; `heads` codebooks of width dim / heads quantise a slice each.
        num_codes, k: size of a codebook, and how many of its codes are summed.
        metric: "cosine" (default), "dot" or "l2", by which codes are chosen.
        reduce: "mean" (default) or "sum".
        task_gradient: whether the gradient of the output reaches the codebook.
        codebook_weight, commitment_weight: weights in `loss` of |features - h|^2 with h held still (trains the
            codebook), and with the features held still (trains h). Means over all elements.
        sync: count usage and draw replacements over all ranks of torch.distributed, where there are several; before
            the first step all take the first rank's codebook.
        generator: draws the first codebook (normal, of the norm of unit vectors): see also `fit_`.

    Shapes:
        h (..., dim).

    Returns:
        Features(features, codes, loss): features (..., dim), codes (..., k) int64 for one head and (..., heads, k) for
        more, loss (). A row of h with NaN or inf comes out as NaN with codes -1, and counts in nothing.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> layer = vecbank.nn.CodebookFeatures(dim=8, num_codes=32, k=3)
        >>> features, codes, loss = layer(torch.randn(5, 8))
        >>> features.shape, codes.shape, torch.equal(layer.decode(codes), features)
        (torch.Size([5, 8]), torch.Size([5, 3]), True)

    Source: Tamkin et al., "Codebook features: sparse and discrete interpretability for neural networks", 2023: a
    codebook much larger than k at every layer (or attention head), so that a code is a discrete feature that can be
    read, disabled or forced.
    """

    book: nn.Parameter  # `codebook`, by the name that it has in states
    enabled: Tensor
    counts: Tensor
    inputs: Tensor

    @renamed(book_weight="codebook_weight")
    def __init__(
        self,
        dim: int,
        num_codes: int,
        k: int = 1,
        *,
        heads: int = 1,
        metric: str = "cosine",
        reduce: str = "mean",
        task_gradient: bool = True,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.0,
        sync: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if metric not in _METRICS:
            raise ValueError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
        if reduce not in ("mean", "sum"):
            raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
        dim, num_codes = whole("dim", dim), whole("num_codes", num_codes)
        k, heads = whole("k", k, 1, num_codes, "num_codes"), whole("heads", heads)
        numbers(codebook_weight=codebook_weight, commitment_weight=commitment_weight)
        generator = drawn_by(generator)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim = {dim} and heads = {heads}")
        self.dim, self.num_codes, self.k, self.heads = dim, num_codes, k, heads
        self.metric, self.reduce, self.task_gradient, self.sync = metric, reduce, task_gradient, sync
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        width = dim // heads
        with memory_for(f"{heads} codebooks of {num_codes} x {width} numbers"):
            self.book = nn.Parameter(torch.randn(heads, num_codes, width, generator=generator) / width**0.5)
        self.register_buffer("enabled", torch.ones(heads, num_codes))  # numbers: averages of buffers subtract them
        self.register_buffer("counts", torch.zeros(heads, num_codes, dtype=torch.int64))
        self.register_buffer("inputs", torch.zeros((), dtype=torch.int64))
        self._shared = False  # whether the ranks have agreed on what to start from
        self._all_enabled = True  # spares the search a mask: asked of the device once for each change of `enabled`
        self._asked: Snapshot | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("book" if name == "codebook" else name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "book_weight" in state:  # a module pickled before the argument had its name
            state = {**state, "codebook_weight": state["book_weight"]}
            del state["book_weight"]
        super().__setstate__(state)

    @property
    def codebook(self) -> Tensor:
        """(heads, num_codes, dim / heads)."""
        return self.book

    book_weight = old_attribute("book_weight", "codebook_weight")

    # ---- Choosing ----

    def _split(self, h: Tensor) -> Tensor:
        """(..., dim) as (heads, n, width)."""
        return h.reshape(math.prod(h.shape[:-1]), self.heads, self.dim // self.heads).transpose(0, 1)

    def _mask(self) -> Tensor | None:
        """(heads, 1, K) of the codes that may be used; None where all of them may."""
        enabled = self.enabled
        if not torch.compiler.is_compiling():
            if not _checks.concrete(enabled):
                return self._usable().unsqueeze(1)
            if self._asked is None or not self._asked.shows(enabled):
                self._all_enabled = enabled.is_meta or bool(self._usable().all())
                self._asked = None if enabled.is_inference() else Snapshot.of(enabled)
        return None if self._all_enabled else self._usable().unsqueeze(1)

    def _usable(self) -> Tensor:
        """(heads, K) bool: which codes are enabled, in an average of modules in more than half of them."""
        return self.enabled > 0.5

    def _choose(self, parts: Tensor, force: Tensor | None) -> Tensor:
        """(heads, n, k) codes, best first, forced ones before all others."""
        mask = self._mask()
        codebook = self.codebook.detach()
        if self.heads == 1:
            own = None if mask is None else mask[0]
            chosen = topk(parts[0], codebook[0], self.k, self.metric, allowed=own).indices[None]
        else:
            chosen = topk(parts, codebook, self.k, self.metric, allowed=mask).indices
        if force is None:
            return chosen
        allowed = self._usable()[torch.arange(self.heads, device=force.device)[:, None, None], force.clamp_min(0)]
        both = torch.cat([torch.where(allowed, force, -1), chosen], -1)
        # a stable partition: codes that are valid and not repeated come first; there are always k of them
        same = both.unsqueeze(-1) == both.unsqueeze(-2)
        spare = (both < 0) | same.tril(-1).any(-1)
        order = spare.to(torch.int8).argsort(dim=-1, stable=True)[..., : self.k]
        return both.masked_fill(spare, -1).gather(-1, order)

    def _forced(self, force: Tensor, lead: torch.Size) -> Tensor:
        """(heads, n, j) from any shape that broadcasts to (..., heads, j)."""
        force = row_numbers(force, self.num_codes, "force")
        if self.heads == 1 and force.dim() <= len(lead) + 1:
            force = force.unsqueeze(-2) if force.dim() else force.view(1, 1)
        try:
            full = force.expand(*lead, self.heads, force.shape[-1])
        except RuntimeError:
            want = (*lead, "j") if self.heads == 1 else (*lead, self.heads, "j")
            raise ValueError(f"force must broadcast to {want}, got {tuple(force.shape)}") from None
        if full.shape[-1] > self.k:
            raise ValueError(f"force must name at most k = {self.k} codes, got {full.shape[-1]}")
        return full.reshape(math.prod(lead), self.heads, full.shape[-1]).transpose(0, 1)

    def _rows(self, codes: Tensor) -> Tensor:
        """Sum or mean of the codes (heads, n, k): (heads, n, width)."""
        offset = self.num_codes * torch.arange(self.heads, device=codes.device)[:, None, None]
        rows = torch.where(codes < 0, -1, codes + offset)
        return lookup(rows, self.codebook.flatten(0, 1), reduce=self.reduce)

    def _join(self, parts: Tensor, lead: torch.Size) -> Tensor:
        return parts.transpose(0, 1).reshape(*lead, self.dim)

    def forward(self, h: Tensor, force: Tensor | None = None) -> Features:
        """Features, codes and loss of h (..., dim).

        Args:
            force: integer codes that are used whatever h says, taking the place of its least similar ones: (j,) for all
                inputs alike, or any shape that broadcasts to (..., j) ((..., heads, j) for several heads), j <= k. -1
                forces nothing. A disabled code is not used even if forced.
        """
        features("h", h, self.dim)
        ranks = Ranks(self.sync)
        if ranks.several and self.training and not self._shared:
            ranks.share(self.codebook)
            self._shared = True
        lead = h.shape[:-1]
        parts = self._split(h.detach())
        finite = finite_rows(h)
        codes = self._choose(parts, None if force is None else self._forced(force, lead))
        codes = codes if finite is None else torch.where(finite.reshape(1, -1, 1), codes, -1)
        inputs = kept(finite, lead)
        elements = at_least_one(inputs * self.dim)
        if self.training and not inside_backward():  # a checkpoint's repeated forward has been counted
            self._count(codes, inputs)
        found = self._join(self._rows(codes), lead)
        held, still = h.detach().to(found.dtype), found.detach()
        loss = self.codebook_weight * (zeroed(found - held, finite).square().sum() / elements)
        if self.commitment_weight:
            loss = loss + self.commitment_weight * (zeroed(h - still, finite).square().sum() / elements)
        # h - h is 0 in value and the identity in gradient: what comes out is the codes' sum, bit for bit
        out = (found if self.task_gradient else still) + (h - h.detach()).to(found.dtype)
        named = (
            codes[0].reshape(*lead, self.k)
            if self.heads == 1
            else codes.transpose(0, 1).reshape(*lead, self.heads, self.k)
        )
        return Features(voided(out, finite), named, loss)

    def decode(self, codes: Tensor) -> Tensor:
        """Features (..., dim) of codes (..., k), or (..., heads, k), of any integer dtype; -1 adds nothing."""
        codes = integers(codes)
        if self.heads == 1 and codes.dim():
            codes = codes.unsqueeze(-2)
        if codes.dim() < 2 or codes.shape[-2] != self.heads:
            want = "(..., k)" if self.heads == 1 else f"(..., {self.heads}, k)"
            raise ValueError(f"codes must be {want}, got {tuple(codes.shape)}")
        lead, parts = codes.shape[:-2], codes.reshape(math.prod(codes.shape[:-2]), *codes.shape[-2:]).transpose(0, 1)
        head = torch.arange(self.heads, device=codes.device)[:, None, None]
        rows = _checks.stacked_rows(parts, self.num_codes, self.heads, head)
        return self._join(lookup(rows, self.codebook.flatten(0, 1), reduce=self.reduce), lead)

    # ---- Codes that may be used ----

    @torch.no_grad()
    def disable_(self, codes: Tensor | int, head: int = 0) -> CodebookFeatures:
        """Never use these codes (one head's) from now on."""
        self.enabled[head, codes] = 0
        self._mask()  # for compiled programs, which do not ask
        return self

    @torch.no_grad()
    def enable_(self, codes: Tensor | int | None = None, head: int = 0) -> CodebookFeatures:
        """Use these codes (one head's) again; all codes of all heads without an argument."""
        if codes is None:
            self.enabled.fill_(1)
        else:
            self.enabled[head, codes] = 1
        self._mask()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._mask()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}enabled"] = self._usable()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_asked": None}  # of this module's own buffer

    # ---- Start, usage, replacement ----

    @torch.no_grad()
    def fit_(self, samples: Tensor, *, iterations: int = 20, generator: Generator | None = None) -> CodebookFeatures:
        """Starts the codebooks from k-means on samples: each head's centroids become its codes.

        Of several ranks all call it, and the first one's answer counts.

        Args:
            samples: (..., dim), at least num_codes rows.
            iterations: k-means steps.
            generator: source of the draws.

        Returns:
            The module.
        """
        features("samples", samples, self.dim)
        rows = samples.shape[:-1].numel()
        if rows < self.num_codes:
            raise ValueError(f"samples must have at least num_codes = {self.num_codes} rows, got {rows}")
        parts = self._split(samples.detach().to(self.codebook.dtype))
        for codebook, part in zip(self.codebook, parts, strict=True):
            codebook.copy_(kmeans(part, self.num_codes, iterations=iterations, generator=generator).centroids)
        self._shared = False
        return self

    @torch.no_grad()
    def _count(self, codes: Tensor, inputs: int | Tensor) -> None:
        ranks = Ranks(self.sync)
        fired = torch.stack([firing_counts(c, self.num_codes) for c in codes])
        self.counts += ranks.total(fired)
        self.inputs += ranks.total(torch.zeros_like(self.inputs) + inputs)

    @property
    def frequency(self) -> Tensor:
        """(heads, num_codes) float: share of training inputs that used each code, since `reset_counts_`."""
        return self.counts / self.inputs.clamp_min(1)

    @property
    def perplexity(self) -> Tensor:
        """(heads,) float: exp of the entropy of the codes' usage; num_codes when all are used alike."""
        share = self.counts / self.counts.sum(1, keepdim=True).clamp_min(1)
        return torch.special.entr(share).sum(1).exp()

    def reset_counts_(self) -> None:
        """Starts counting usage anew."""
        self.counts.zero_()
        self.inputs.zero_()

    @torch.no_grad()
    def replace_rare_(self, h: Tensor, minimum: int = 1, *, generator: Generator | None = None) -> Tensor:
        """Codes used fewer than `minimum` times since the last count become random rows of h (..., dim) that hold
        no NaN or inf.

        Starts counting anew. Returns (heads, num_codes) bool: which were replaced. Nothing waits for the device.
        """
        rare = self.counts < minimum
        ranks = Ranks(self.sync)
        parts = self._split(h.detach().to(self.codebook.dtype))
        for codebook, part, where in zip(self.codebook, parts, rare, strict=True):
            rows, available = draw_rows(part, torch.isfinite(part).all(1), self.num_codes, generator, ranks)
            codebook.copy_(torch.where((where & (available > 0)).unsqueeze(1), rows, codebook))
        self.reset_counts_()
        return rare

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_codes={self.num_codes}, k={self.k}, heads={self.heads}, metric={self.metric!r}, "
            f"reduce={self.reduce!r}"
        )
