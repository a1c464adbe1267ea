"""Vector quantisation: every vector becomes the nearest of K codes, and the codes follow the vectors.

Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from .._checks import in_range, integer
from .._finite import both, finite_rows, over, voided, zeroed
from ._arguments import drawn_by, features, floats, integers, maybe_whole, number, numbers, whole
from ._arguments import rows as row_numbers
from ._derived import Derived
from ._layout import no_autocast
from ._vq.codebook import Codebook, UpdateWeight
from ._vq.forward import Call, Settings, attach_gradient, losses, score_given_codes, search_codes
from ._vq.in_place import take_step
from ._vq.layout import LaidOut, Layout, projections
from ._vq.ops import unit


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class VectorQuantize(Derived):
    """Vector quantisation with a learned codebook; replaces vector_quantize_pytorch.VectorQuantize (1.32).

    code(x) = argmin_k |x - e_k|, the lowest k among equals, ranked by float64 scores; with `use_cosine_sim` rows and
    codes are unit vectors and code(x) = argmax_k x.e_k. In training the result carries a gradient to x (rotation trick
    or straight-through), `loss = commitment_weight * mean (e_code - x)^2 + ...` pulls x to its code, and the codes
    move by exponential averages of their rows (or by gradient, `learnable_codebook`). One pass over x computes all of
    this: no N x K matrix and no one-hot matrix is made, and 16-bit rows are compared with float32 codes as they are.

    Constructor arguments, returned tuples, shapes and `state_dict` are those of the package named above;
    docs/vector_quantize.md lists each argument and the few cases where results differ. There is one more argument:

    Args:
        generator: draws the k-means start, re-seeded codes, sampled codes and noise; by default torch's own does.

    Shapes:
        x (b, n, dim), (b, ..., dim) or (b, dim); (b, dim, n) with `channel_last=False`; (b, dim, h, w) with
        `accept_image_fmap`; (b, dim, d, h, w) with `accept_3d_fmap`. float32, float64, bfloat16 or float16.

    Returns:
        quantized as x, codes (b, n) int64 (one more axis for heads, one more for topk), loss () float32. Rows outside
        `mask` are zeros with code -1. A row with NaN or inf becomes NaN with code -1: it updates nothing, and its
        gradient is zero.

    Raises:
        ValueError: arguments that exclude each other or do not fit x, by name.

    Example:
        >>> import torch, vecbank
        >>> vq = vecbank.nn.VectorQuantize(dim=32, codebook_size=512)
        >>> quantized, codes, loss = vq(torch.randn(2, 100, 32))
        >>> tuple(quantized.shape), tuple(codes.shape), tuple(loss.shape)
        ((2, 100, 32), (2, 100), ())
        >>> torch.equal(vq.eval()(vq.codebook[None])[1], torch.arange(512)[None])
        True

    Sources: the paper above; rotation trick: Fifty et al., ICLR 2025; k-means start and re-seeding: Zeghidour et al.,
    "SoundStream", 2021; cosine codes and codebook_dim: Yu et al., "Vector-quantized Image Modeling with Improved
    VQGAN", ICLR 2022; orthogonal term: Shin et al., 2021; affine codes and sync_update_v: Huh et al., ICML 2023;
    directional reparametrisation: Vali et al., "DiVeQ", 2025; bridge: Chang et al., "Scalable Training for
    Vector-Quantized Networks with 100% Codebook Utilization", 2025.
    """

    zero: Tensor
    _codebook: Codebook

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
        *,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        dim, codebook_size, heads = whole("dim", dim), whole("codebook_size", codebook_size), whole("heads", heads)
        codebook_dim = dim if codebook_dim is None else whole("codebook_dim", codebook_dim)
        bridged = vq_bridge is not None
        ema_update = not directional_reparam and not bridged if ema_update is None else ema_update
        learnable = directional_reparam or bridged if learnable_codebook is None else learnable_codebook
        rotation_trick = not directional_reparam and dim > 1 if rotation_trick is None else rotation_trick
        _require(
            sum((straight_through, rotation_trick, directional_reparam)) <= 1,
            "at most one of straight_through, rotation_trick (on by default: set rotation_trick=False) and "
            "directional_reparam may be set",
        )
        _require(not (use_cosine_sim and learnable), "learnable_codebook does not go with use_cosine_sim")
        _require(not (use_cosine_sim and affine_param), "affine_param does not go with use_cosine_sim")
        _require(not (straight_through and learnable), "straight_through does not go with learnable_codebook")
        _require(not (ema_update and learnable), "learnable_codebook does not go with ema_update: set ema_update=False")
        _require(not bridged or (learnable and not ema_update), "vq_bridge needs learnable_codebook and no ema_update")
        _require(
            not directional_reparam or threshold_ema_dead_code > 0,
            "directional_reparam needs threshold_ema_dead_code > 0: codes that are not used get no gradient",
        )
        orthogonal_reg_max_codes = maybe_whole("orthogonal_reg_max_codes", orthogonal_reg_max_codes)
        numbers(0, 1, sync_update_v=sync_update_v)
        numbers(commitment_weight=commitment_weight, orthogonal_reg_weight=orthogonal_reg_weight)
        numbers(codebook_diversity_loss_weight=codebook_diversity_loss_weight)
        numbers(codebook_diversity_temperature=codebook_diversity_temperature)
        numbers(sample_codebook_temp=sample_codebook_temp, directional_reparam_variance=directional_reparam_variance)
        _require(sync_update_v == 0 or learnable, "sync_update_v needs learnable_codebook")

        self.dim, self.heads, self.codebook_size = dim, heads, codebook_size
        self.separate_codebook_per_head = separate_codebook_per_head
        self.codebook_dim = codebook_dim
        width = self.codebook_dim * heads
        self.has_projections = width != dim
        self.project_in, self.project_out = projections(dim, width, layernorm_after_project_in)

        self.eps = eps
        self.learnable_codebook, self.use_cosine_sim = learnable, use_cosine_sim
        self.freeze_codebook = freeze_codebook
        self.commitment_weight = commitment_weight
        self.has_commitment_loss = commitment_weight > 0 and not directional_reparam
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.has_codebook_diversity_loss = codebook_diversity_loss_weight > 0
        self.codebook_diversity_temperature = codebook_diversity_temperature
        self.stochastic_sample_codes, self.straight_through = stochastic_sample_codes, straight_through
        self.sample_codebook_temp = sample_codebook_temp
        self.rotation_trick = rotation_trick
        self.directional_reparam = directional_reparam
        self.directional_reparam_variance = directional_reparam_variance
        self.sync_update_v = sync_update_v
        self.route_gradients_to_input = route_gradients_to_input
        self.channel_last = channel_last
        self.accept_image_fmap, self.accept_3d_fmap = accept_image_fmap, accept_3d_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.generator = drawn_by(generator)
        self._codebook = Codebook(
            dim=self.codebook_dim,
            codebook_size=codebook_size,
            num_codebooks=heads if separate_codebook_per_head else 1,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            sync_kmeans=sync_kmeans,
            decay=decay,
            eps=eps,
            threshold_ema_dead_code=threshold_ema_dead_code,
            use_ddp=True if sync_codebook is None else bool(sync_codebook),
            learnable_codebook=learnable or self.has_codebook_orthogonal_loss,
            ema_update=ema_update,
            manual_ema_update=manual_ema_update,
            affine_param=affine_param,
            sync_affine_param=sync_affine_param,
            affine_param_batch_decay=affine_param_batch_decay,
            affine_param_codebook_decay=affine_param_codebook_decay,
            use_cosine_sim=use_cosine_sim,
            vq_bridge=vq_bridge,
            generator=generator,
        )
        make = in_place_codebook_optimizer
        self.in_place_codebook_optimizer = None if make is None else make(self._codebook.parameters())
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update
        self._hold()

    def _derive(self) -> dict[str, Tensor]:
        return {"zero": torch.zeros((), device="cpu")}

    # ---- The codebook ---------------------------------------------------------------------------------------------

    @property
    def ema_update(self) -> bool:
        """Whether the codes follow moving averages."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes: (K, d), or (heads, K, d) with a codebook per head.

        An assignment copies into it, and replaces a start by k-means: moving averages go on from these codes, as if
        each had had one row a step (three times `threshold_ema_dead_code`, where that is more). With `use_cosine_sim`
        they are normalised. TypeError or ValueError for anything but floating-point codes of this shape.
        """
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        floats("codebook", codes)
        want = tuple(self.codebook.shape)
        _require(codes.shape == want, f"codebook must be {want}, got {tuple(codes.shape)}")
        self._codebook.assign(codes.detach() if self.separate_codebook_per_head else codes.detach().unsqueeze(0))

    def __setattr__(self, name: str, value: Any) -> None:
        # torch would register a parameter under this name
        super().__setattr__(name, value.detach() if name == "codebook" and isinstance(value, Tensor) else value)

    def usage(self) -> Tensor:
        """Share of the codes that the last training batch used, () or (heads,); stays on the device."""
        return self._codebook.usage()

    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes of the last training batch, () or (heads,); stays on the device."""
        return self._codebook.perplexity()

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The code vectors of indices as `forward` finds them in evaluation; index -1 gives zeros. Any integer dtype.

        These are the rows of `codebook`, changed by `vq_bridge` and the affine parameters if there are any: (..., d),
        (..., heads d) with a codebook per head, (..., heads, d) with a shared one. Features are on axis 1 if they are
        there in the input.
        """
        codes = self._codes(indices)
        return codes if self._layout.features_last else codes.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What `forward` returns, in evaluation, for vectors with these codes."""
        codes = self._codes(indices)
        codes = codes.flatten(-2) if self.heads > 1 and not self.separate_codebook_per_head else codes
        out = self.project_out(codes)
        return out if self._layout.features_last else out.movedim(-1, 1)

    def _codes(self, indices: Tensor) -> Tensor:
        given, count = row_numbers(indices, self.codebook_size, "indices"), self._codebook.num_codebooks
        if count > 1 and (given.dim() == 0 or given.shape[-1] != count):
            raise ValueError(f"indices must be (..., {count}), one for each head's codebook, got {tuple(given.shape)}")
        codes = self._codebook.decode(given)
        return codes if count == 1 else codes.flatten(-2)

    def expire_codes_(self, x: Tensor) -> None:
        """Re-seeds codes that are hardly used with rows of x (..., heads d), already projected."""
        features("x", x, self.codebook_dim * self.heads)
        rows = self._layout.split(x.reshape(1, -1, x.shape[-1]))
        finite = finite_rows(rows)
        rows = zeroed(rows, finite)
        self._codebook.expire_codes_(unit(rows) if self.use_cosine_sim else rows, finite)

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Updates the codes by x as if it had been given these codes: for codes that were chosen elsewhere."""
        layout = self._layout
        _, rows, finite = self._lay_out(layout, x)
        codes = self._given(layout, indices, x.shape)
        self._codebook.update_indices(rows, codes, layout.split_mask(both(mask, finite)))

    update_ema_indices = update_indices

    def update_in_place_optimizer(self) -> None:
        """One step of `in_place_codebook_optimizer`, over all ranks' gradients."""
        if self.in_place_codebook_optimizer is not None:
            take_step(self.in_place_codebook_optimizer, self._codebook)

    # ---- Forward --------------------------------------------------------------------------------------------------

    @property
    def _layout(self) -> Layout:
        spatial = 2 if self.accept_image_fmap else 3 if self.accept_3d_fmap else 0
        return Layout(self.heads, self.separate_codebook_per_head, self.channel_last, spatial)

    def _settings(self, layout: Layout) -> Settings:
        return Settings(
            layout=layout,
            training=self.training,
            has_projections=self.has_projections,
            use_cosine_sim=self.use_cosine_sim,
            learnable_codebook=self.learnable_codebook,
            rotation_trick=self.rotation_trick,
            straight_through=self.straight_through,
            directional_reparam=self.directional_reparam,
            directional_reparam_variance=self.directional_reparam_variance,
            sync_update_v=self.sync_update_v,
            stochastic_sample_codes=self.stochastic_sample_codes,
            has_commitment_loss=self.has_commitment_loss,
            commitment_weight=self.commitment_weight,
            commitment_use_cross_entropy_loss=self.commitment_use_cross_entropy_loss,
            has_codebook_orthogonal_loss=self.has_codebook_orthogonal_loss,
            orthogonal_reg_weight=self.orthogonal_reg_weight,
            orthogonal_reg_active_codes_only=self.orthogonal_reg_active_codes_only,
            orthogonal_reg_max_codes=self.orthogonal_reg_max_codes,
            has_codebook_diversity_loss=self.has_codebook_diversity_loss,
            codebook_diversity_loss_weight=self.codebook_diversity_loss_weight,
            codebook_diversity_temperature=self.codebook_diversity_temperature,
            in_place_codebook_optimizer=self.in_place_codebook_optimizer,
            manual_in_place_optimizer_update=self.manual_in_place_optimizer_update,
            generator=self.generator,
        )

    def _lay_out(self, layout: Layout, x: Tensor) -> LaidOut:
        """The input as rows that are compared with codes; with `use_cosine_sim` these are unit vectors."""
        inputs, rows, finite = layout.lay_out(x, self.dim, self.project_in if self.has_projections else None)
        if rows.dtype == torch.float64 and self._codebook.embed.dtype != torch.float64:
            rows = rows.float()
        return LaidOut(inputs, unit(rows) if self.use_cosine_sim else rows, finite)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | Tensor | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable[[Tensor], Tensor] | None = None,
        ema_update_weight: UpdateWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Any, ...]:
        """Quantises x.

        Args:
            x: see the class.
            indices: codes to be scored: returns (quantized, cross-entropy of the codes' softmax(score)) instead.
            mask: (b, n) bool, True = counts; or lens (b,), the lengths of the sequences.
            topk: the k best codes of every row instead of the best: quantized (..., k, dim), codes and loss (..., k).
            sample_codebook_temp: overrides the module's. freeze_codebook: overrides the module's.
            return_loss_breakdown: returns a LossBreakdown as fourth item.
            codebook_transform_fn: (1, K, d) to (1, b, n, K, d): gives every row a codebook of its own.
            ema_update_weight, accum_ema_update, ema_update: see Codebook.update.

        Returns:
            (quantized, codes, loss), or four items, or two, as above.
        """
        layout, codebook = self._layout, self._codebook
        settings = self._settings(layout)
        inputs, rows, finite = self._lay_out(layout, x)
        lead = inputs.shape[:2]
        if mask is not None or lens is not None:
            mask = self._mask(layout, x, mask, lens)
        if topk is not None:
            topk = self._check_topk(topk)
        temperature = self.sample_codebook_temp if sample_codebook_temp is None else sample_codebook_temp
        if not isinstance(temperature, Tensor) and not torch.compiler.is_compiling():  # tensors are not read
            number("sample_codebook_temp", temperature)
        if codebook_transform_fn is not None:
            _require(self.heads == 1, f"codebook_transform_fn needs heads = 1, got {self.heads}")
        counted = both(mask, finite)
        call = Call(
            mask=None if counted is None else layout.split_mask(counted),
            masked=mask is not None,
            topk=topk,
            temperature=temperature,
            frozen=self.freeze_codebook if freeze_codebook is None else freeze_codebook,
            transform=codebook_transform_fn,
            scored=indices is not None,
            routed=self.training and self.route_gradients_to_input and x.requires_grad,
            update={
                "ema_update_weight": ema_update_weight,
                "accum_ema_update": accum_ema_update,
                "ema_update": ema_update,
            },
        )
        with no_autocast(codebook.embed):
            found = search_codes(codebook, settings, call, rows)
            quantized = attach_gradient(settings, call, found).to(x.dtype)
            if indices is not None:
                given = self._given(layout, indices, x.shape)
                finite = layout.split_mask(finite)
                given = given if finite is None else torch.where(finite, given, -1)
                return layout.heads_apart(voided(quantized, finite), lead), score_given_codes(found, given)
            loss, terms = losses(codebook, settings, call, found, inputs)

        codes = found.codes
        if layout.heads > 1:
            quantized, codes = layout.join(quantized, lead), layout.join_codes(codes, lead)
        quantized = self.project_out(quantized)
        if finite is not None:
            quantized, codes = voided(quantized, finite), torch.where(over(finite, codes), codes, -1)
        if mask is not None:
            fill = 0.0 if self.return_zeros_for_masked_padding else inputs if topk is None else inputs.unsqueeze(-2)
            quantized = torch.where(over(mask, quantized), quantized, fill)
            codes = torch.where(over(mask, codes), codes, -1)
        quantized, codes = layout.like_input(quantized, x.shape), layout.codes_like_input(codes, x.shape)
        if loss.dim() > 0:
            loss = layout.codes_like_input(loss, x.shape)
        return (quantized, codes, loss, terms) if return_loss_breakdown else (quantized, codes, loss)

    def _given(self, layout: Layout, indices: Tensor, shape: torch.Size) -> Tensor:
        """Codes that came with an input of `shape`, in the layout of its rows."""
        codes = integers(indices, "indices")
        codes = layout.flat_codes(codes, shape) if codes.dim() else codes
        want = (shape[0], layout.positions_of(shape), *([self.heads] if self.heads > 1 else []))
        if codes.shape != want:
            named = "(b, n, heads)" if self.heads > 1 else "(b, n)"
            raise ValueError(f"indices must be {named} = {want} for x {tuple(shape)}, got {tuple(indices.shape)}")
        in_range(codes, self.codebook_size, "indices")
        return layout.split_codes(codes)

    def _mask(self, layout: Layout, x: Tensor, mask: Tensor | None, lens: Tensor | None) -> Tensor:
        """The mask (b, n) of a call that gives a mask or lengths."""
        _require(mask is None or lens is None, "give mask or lens, not both")
        if lens is not None:
            lens = integers(lens, "lens")
            if lens.shape != x.shape[:1]:
                raise ValueError(f"lens must be (b,) = ({x.shape[0]},), got {tuple(lens.shape)}")
            longest = x.shape[1 if self.channel_last else -1]
            in_range(lens, longest + 1, "lens", 0)
            mask = torch.arange(longest, device=x.device) < lens.unsqueeze(-1)
        assert mask is not None
        return layout.mask(mask, x.shape)

    def _check_topk(self, topk: int) -> int:
        topk = integer("topk", topk)
        if not 1 <= topk <= self.codebook_size:
            raise ValueError(f"topk must lie between 1 and {self.codebook_size}, got {topk}")
        _require(self.heads == 1, f"topk needs heads = 1, got {self.heads}")
        crossed = self.training and self.commitment_use_cross_entropy_loss
        _require(not crossed, "topk does not go with commitment_use_cross_entropy_loss in training")
        placed = self.training and self.in_place_codebook_optimizer is not None
        _require(not placed, "topk does not go with in_place_codebook_optimizer in training")
        return topk
