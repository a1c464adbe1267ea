"""The state of a codebook and everything that changes it: start by k-means, moving averages, re-seeding of dead codes.

Vectors come as x (..., d) for one codebook, or (H, R, d) for H codebooks; masks have x's shape less the last
dimension, True = counts. State names and shapes are those of vector-quantize-pytorch: either loads the other's state.

Sources: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, appendix A.1 (moving averages);
Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019; Zeghidour et al., "SoundStream: An
End-to-End Neural Audio Codec", 2021 (k-means start, dead codes); Huh et al., "Straightening Out the Straight-Through
Estimator", ICML 2023 (affine parameters).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from ..._checks import concrete
from ...functional import lookup
from .._arguments import drawn_by, function, maybe_numbers, memory_for, numbers, tensor, warn, whole
from .._checkpointing import ForwardRecord, ForwardRecords
from .._distributed import Ranks, draw_rows
from .._draws import uniform
from .._layout import working
from .._state_updates import refuse_export, state_update, writable, write_rows
from .kmeans import kmeans_start
from .ops import NORM_FLOOR, snapshot, totals, unit

_VARIANCE_FLOOR = 1e-5
_KEPT = 3  # times the threshold: an assigned code that no row uses is kept for about 1 / (1 - decay) steps (e < 3)

_NOT_STARTED = (
    "a codebook that waits for its k-means start is all zeros: evaluation does not start it where there are several "
    "ranks; train on one batch first"
)

UpdateWeight: TypeAlias = Tensor | Callable[[Tensor, Tensor], Tensor]


class Codebook(nn.Module):
    """H codebooks of K codes of width d, `embed (H, K, d)`, with their moving averages.

    Moving averages, with decay m, counts n_k and sums s_k of the rows of code k in this batch (over all ranks):
        N_k <- m * N_k + (1 - m) * n_k        S_k <- m * S_k + (1 - m) * s_k        e_k = S_k / N'_k
        N'_k = (N_k + eps) / (sum_j N_j + K * eps) * sum_j N_j                  (Laplace smoothing)
    A code with N_k below `threshold_ema_dead_code` becomes a random row of the batch, with N_k = that threshold.

    Args:
        dim, codebook_size, num_codebooks: d, K, H.
        kmeans_init, kmeans_iters: start from k-means on the first batch; sync_kmeans: of all ranks, not of the first.
        decay, eps: m and eps of the formulas. manual_ema_update: leave e_k to the caller (`update_ema`).
        threshold_ema_dead_code: 0 never re-seeds. reset_cluster_size: N_k of a re-seeded code.
        use_ddp: one codebook for all ranks of torch.distributed: counts, sums, starts and re-seeds are shared.
            Whether there are several is asked at every step, so the module may be built before the process group.
            Evaluation talks to no other rank: a codebook that waits for its k-means start is zeros there, and a warning
            says so.
        learnable_codebook: embed is a Parameter. ema_update: keep moving averages.
        affine_param, affine_param_batch_decay, affine_param_codebook_decay: scale and shift the codebook by running
            moments, from its own to those of the rows. Only training updates them: evaluation and decoding read codes
            through the moments of the last training step (as they are where there was none), so a code means the same
            in every batch. The moments of the rows are `batch_mean` and `batch_variance` of the state_dict.
        sync_affine_param: has no effect of its own: where ranks share a codebook, its moments are of all their rows.
        use_cosine_sim: codes and rows are unit vectors. vq_bridge: a module applied to the codebook before use.
        generator: draws starts and re-seeds.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor
    batch_counts: Tensor
    batch_mean: Tensor
    batch_variance: Tensor
    codebook_mean: Tensor
    codebook_variance: Tensor
    codebook_mean_needs_init: Tensor
    codebook_variance_needs_init: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        reset_cluster_size: float | None = None,
        use_ddp: bool = False,
        learnable_codebook: bool = False,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        affine_param: bool = False,
        sync_affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        use_cosine_sim: bool = False,
        vq_bridge: nn.Module | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        dim, codebook_size = whole("dim", dim), whole("codebook_size", codebook_size)
        num_codebooks = whole("num_codebooks", num_codebooks)
        kmeans_iters = whole("kmeans_iters", kmeans_iters, 1 if kmeans_init else 0)
        numbers(0, 1, decay=decay, affine_param_batch_decay=affine_param_batch_decay)
        numbers(0, 1, affine_param_codebook_decay=affine_param_codebook_decay)
        numbers(eps=eps, threshold_ema_dead_code=threshold_ema_dead_code)
        maybe_numbers(reset_cluster_size=reset_cluster_size)
        function("vq_bridge", vq_bridge)
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.kmeans_iters, self.sync_kmeans = kmeans_iters, sync_kmeans
        self.decay, self.eps = decay, eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.reset_cluster_size = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.use_ddp, self.learnable_codebook = use_ddp, learnable_codebook
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.use_cosine_sim, self.generator = use_cosine_sim, drawn_by(generator)
        self.forward_records = ForwardRecords()
        self._started = not kmeans_init  # `initted`, once it is 1, as a bool: reading it waits for no device
        self._shared = False  # whether the ranks have agreed on a first state

        with memory_for(f"{num_codebooks} codebooks of {codebook_size} x {dim} numbers, and their averages"):
            embed = torch.zeros(num_codebooks, codebook_size, dim)
            embed_avg = torch.zeros_like(embed)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = unit(embed) if use_cosine_sim else embed
        # a number, not a bool: torch's averages of buffers subtract them
        self.register_buffer("initted", torch.tensor(float(not kmeans_init)))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed_avg.copy_(embed))
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self.register_buffer("batch_counts", torch.zeros(num_codebooks, codebook_size), persistent=False)
        # in a state_dict only while something waits; no buffers, as the number of these is to stay the same
        self.pending_size: Tensor | None = None
        self.pending_sum: Tensor | None = None
        self.vq_bridge = vq_bridge

        self.affine_param, self.sync_affine_param = affine_param, sync_affine_param
        self.affine_param_batch_decay = affine_param_batch_decay
        self.affine_param_codebook_decay = affine_param_codebook_decay
        if affine_param:
            for name in ("batch_mean", "batch_variance"):  # zeros until rows have been seen, and then in no state_dict
                self.register_buffer(name, torch.zeros(num_codebooks, 1, dim))
            for name in ("codebook_mean", "codebook_variance"):
                self.register_buffer(f"{name}_needs_init", torch.tensor(1.0))
                self.register_buffer(name, torch.zeros(num_codebooks, 1, dim))

    # ---- reading --------------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """How rows and codes are compared; cosine codebooks hold unit vectors and are compared with unit rows."""
        return "dot" if self.use_cosine_sim else "l2"

    @property
    def has_dead_code_replacement(self) -> bool:
        return self.threshold_ema_dead_code > 0

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.use_ddp)

    def bank(self, dtype: torch.dtype) -> Tensor:
        """The code vectors that rows are compared with, (K, d) or (H, K, d) for H > 1: float32, or float64 if both the
        rows (of `dtype`) and the codebook are.
        """
        embed = self.embed if self.learnable_codebook else self.embed.detach()
        if embed.dtype != torch.float32:
            embed = embed.to(torch.float64 if embed.dtype == dtype == torch.float64 else torch.float32)
        if self.vq_bridge is not None:
            embed = self.vq_bridge(embed)
        if self.affine_param:  # moments of zero change nothing
            embed = (embed - self.codebook_mean) / snapshot(self._spread()) + self.batch_mean
        return embed[0] if self.num_codebooks == 1 else embed

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors that codes (..., ) of one codebook, or (..., H) of H, stand for in evaluation; -1 is a zero
        vector. (..., d), or (..., H, d), in the codebook's dtype.
        """
        bank = self.bank(self.embed.dtype).to(self.embed.dtype)
        if self.num_codebooks == 1:
            return lookup(codes, bank)
        offset = torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size
        return lookup(torch.where(codes >= 0, codes + offset, codes), bank.flatten(0, 1))

    def _spread(self) -> Tensor:
        """Standard deviation of the codebook over that of the rows, per dimension."""
        codes, rows = self.codebook_variance, self.batch_variance
        return codes.clamp_min(_VARIANCE_FLOOR).sqrt() / rows.clamp_min(_VARIANCE_FLOOR).sqrt()

    def usage(self) -> Tensor:
        """Share of the codes that the last training batch used, () or (H,); stays on the device."""
        used = (self.batch_counts > 0).to(torch.float32).mean(-1)
        return used[0] if self.num_codebooks == 1 else used

    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes of the last training batch, () or (H,): its effective number of codes."""
        share = self.batch_counts / self.batch_counts.sum(-1, keepdim=True).clamp_min(1)
        result = torch.special.entr(share).sum(-1).exp()
        return result[0] if self.num_codebooks == 1 else result

    def state(self) -> dict[str, Tensor]:
        """The tensors that decide codes, which a repeated forward reads again as they were."""
        names = ("embed", "codebook_mean", "codebook_variance", "batch_mean", "batch_variance")
        return {name: t for name in names if (t := getattr(self, name, None)) is not None}

    # ---- starting -------------------------------------------------------------------------------------------------

    @property
    def needs_preparation(self) -> bool:
        """Whether `prepare` has something to do."""
        if not self.training:
            return not self._started
        return self.affine_param or not self._started or (not self._shared and self.ranks.several)

    @state_update
    def prepare(self, x: Tensor, mask: Tensor | None) -> None:
        """What comes before a search: ranks agree on a state, k-means starts the codebook, moments follow the rows."""
        if self.ranks.several and not self._shared and self.training:
            self._share()
            self._shared, self._started = True, self._started and torch.compiler.is_compiling()
        if not self._started and not torch.compiler.is_compiling():
            self._started = bool(self.initted)  # loaded, set by hand, or taken from the first rank
        if not self._started and self.ranks.several and not self.training:
            warn(_NOT_STARTED)
        elif not self._started:
            self._start(x.detach(), mask)
        if self.affine_param and self.training:
            self._follow_moments(x.detach(), mask)

    def _share(self) -> None:
        """Every rank takes the first rank's state, whatever its own was built from or has loaded."""
        ranks = self.ranks
        held = (t for name, t in self.named_buffers() if name != "batch_counts")
        ranks.share(*held, *self.parameters())
        if torch.compiler.is_compiling():
            return
        size, total = torch.zeros_like(self.cluster_size), torch.zeros_like(self.embed_avg)
        if self.pending_size is not None and self.pending_sum is not None:
            size, total = self.pending_size, self.pending_sum
        size, total = ranks.first(size), ranks.first(total)  # zeros where nothing waits, which add nothing
        self.pending_size, self.pending_sum = (size, total) if bool(size.any()) else (None, None)

    def _start(self, x: Tensor, mask: Tensor | None) -> None:
        """k-means on these rows (of all ranks, or of the first one); without rows it waits for the next batch."""
        refuse_export("the k-means start of a codebook", "run the module on one batch before the export")
        rows, keep = self._by_codebook(x, mask)
        if not (torch.compiler.is_compiling() or self.ranks.several) and 0 < rows.shape[1] < self.codebook_size:
            warn(f"k-means starts {self.codebook_size} codes from {rows.shape[1]} vectors: some will be the same")
        ranks = self.ranks if self.sync_kmeans else Ranks(False)
        masks = [None] * self.num_codebooks if keep is None else list(keep)
        size, steps = self.codebook_size, self.kmeans_iters
        starts = [
            kmeans_start(own, own_mask, size, steps, self.metric, self.generator, ranks)
            for own, own_mask in zip(rows, masks, strict=True)
        ]
        centroids, counts, drawn = (torch.stack(parts) for parts in zip(*starts, strict=True))
        some = drawn.all()
        if not self.sync_kmeans:  # every rank has other centroids: the codebook takes those of the first rank
            counts, centroids = self.ranks.first(counts), self.ranks.first(centroids)
            some = self.ranks.first(some.float()) > 0
        self.cluster_size.copy_(torch.where(some, counts, self.cluster_size))
        self.embed_avg.copy_(torch.where(some, centroids * counts.unsqueeze(-1), self.embed_avg))
        self.update_ema()
        self.initted.copy_(torch.where(some, 1, self.initted))
        self._started = torch.compiler.is_compiling() or bool(self.initted)

    def _by_codebook(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows (H, R, d) and their mask (H, R)."""
        rows = x.reshape(self.num_codebooks, -1, x.shape[-1])
        return rows, None if mask is None else mask.reshape(self.num_codebooks, -1)

    def _follow_moments(self, x: Tensor, mask: Tensor | None) -> None:
        """Running mean and variance of the codebook and of the rows; a batch without rows changes neither."""
        rows, keep = self._by_codebook(x, mask)
        mean, variance, number = _moments(rows, keep, self.ranks)
        some, unknown = number > 0, ~(self.batch_mean.any() | self.batch_variance.any())
        for name, value in zip(("mean", "variance"), _moments(self.embed.detach(), None, Ranks(False)), strict=False):
            stored, fresh = getattr(self, f"codebook_{name}"), getattr(self, f"codebook_{name}_needs_init")
            moved = torch.lerp(value.to(stored), stored, self.affine_param_codebook_decay)
            stored.copy_(torch.where(some, torch.where(fresh > 0, value.to(stored), moved), stored))
            fresh.copy_(torch.where(some.any(), 0, fresh))
        if self.batch_mean.dtype != mean.dtype:
            refuse_export("moments of another dtype", "train the module on one batch before the export")
            self.batch_mean, self.batch_variance = self.batch_mean.to(mean), self.batch_variance.to(mean)
        decay = torch.where(some, torch.where(unknown, 0.0, self.affine_param_batch_decay), 1.0).to(mean.dtype)
        self.batch_mean.copy_(torch.lerp(mean, self.batch_mean, decay))
        self.batch_variance.copy_(torch.lerp(variance, self.batch_variance, decay))

    @torch.no_grad()
    def assign(self, codes: Tensor) -> None:
        """Starts from codes (H, K, d): they become the codebook, and its averages go on from them."""
        size = max(1.0, _KEPT * self.threshold_ema_dead_code)
        codes = codes.to(self.embed)
        if self.use_cosine_sim:  # codes of unit length stay as they are, bit for bit
            off = (torch.linalg.vector_norm(codes, dim=-1, keepdim=True) - 1).abs() > NORM_FLOOR
            codes = torch.where(off, unit(codes), codes)
        writable(self.embed).copy_(codes)
        self.cluster_size.fill_(size)
        self.embed_avg.copy_(self.embed * size)
        self.initted.fill_(1)
        self._started, self.pending_size, self.pending_sum = True, None, None

    # ---- changing -------------------------------------------------------------------------------------------------

    @state_update
    def update(
        self,
        counts: Tensor,
        sums: Tensor,
        ema_update_weight: UpdateWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> bool:
        """Takes in the counts (K,) and sums (K, d) of a batch's codes ((H, K), (H, K, d) for H codebooks).

        Args:
            ema_update_weight: how much of the step each code takes, (K,) or (H, K), or a function of (sums, counts).
            accum_ema_update: only keep the counts and sums, for the next batch that is taken in. While they wait they
                are in the state_dict, as `pending_size` and `pending_sum`, which the peer does not know.

        Returns:
            Whether the averages were updated, so that codes may have become dead: `expire_codes_` comes next.
        """
        ema_update = self.ema_update if ema_update is None else ema_update
        counts, sums, ranks = counts.view_as(self.cluster_size), sums.view_as(self.embed_avg), self.ranks
        if ranks.several:
            both = ranks.total(torch.cat((counts.unsqueeze(-1), sums), -1))
            counts, sums = both[..., 0], both[..., 1:]
        self.batch_counts.copy_(counts)
        if not ema_update and not self.has_dead_code_replacement:
            return False
        if self.affine_param:  # the sums of the rows in the codebook's own scale: linear in the rows
            size = counts.unsqueeze(-1)
            sums = (sums - size * self.batch_mean) * self._spread() + size * self.codebook_mean
        if self.pending_size is not None and self.pending_sum is not None:
            counts, sums = self.pending_size + counts, self.pending_sum + sums
            self.pending_size = self.pending_sum = None
        if accum_ema_update:
            self.pending_size, self.pending_sum = counts, sums
            return False
        some: Tensor | None = None  # a batch without rows changes nothing; on a CPU that is known at once
        if counts.device.type != "cpu" or torch.compiler.is_compiling():
            some = counts.sum() > 0
        elif not bool(counts.any()):
            return False
        step = self._step_size(ema_update_weight, counts, sums)
        step = step if some is None else step * some.to(self.cluster_size.dtype)
        _lerp(self.cluster_size, counts, step)
        _lerp(self.embed_avg, sums, step.unsqueeze(-1) if isinstance(step, Tensor) and step.dim() > 0 else step)
        if ema_update and not self.manual_ema_update:
            self.update_ema(some)
        return True

    def _step_size(self, weight: UpdateWeight | None, counts: Tensor, sums: Tensor) -> float | Tensor:
        if weight is None:
            return 1 - self.decay
        values = weight(sums, counts) if callable(weight) else weight
        tensor("ema_update_weight", values)
        values = values.unsqueeze(0) if values.dim() == 1 else values
        if values.shape != self.cluster_size.shape:
            raise ValueError(
                f"ema_update_weight must be (K,) or {tuple(self.cluster_size.shape)}, got {tuple(values.shape)}"
            )
        return values * (1 - self.decay)

    @state_update
    def update_ema(self, moved: Tensor | None = None) -> None:
        """Computes the codes from the moving averages, if `moved` () bool. With eps = 0 a code without rows stays."""
        total = self.cluster_size.sum(-1, keepdim=True)
        size = (self.cluster_size + self.eps) / (total + self.codebook_size * self.eps) * total
        mean = self.embed_avg / size.unsqueeze(-1)
        mean = unit(mean) if self.use_cosine_sim else mean
        if self.eps == 0:  # a code whose averages hold no row has no mean
            held = size.unsqueeze(-1) > 0
            moved = held if moved is None else held & moved
        writable(self.embed).copy_(mean if moved is None else torch.where(moved, mean, self.embed.detach()))

    @state_update
    def expire_codes_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Replaces dead codes, which are hardly used, by rows of x; each row at most once while there are enough.

        Where rows are fewer than dead codes, a random few of these wait for the next batch. On a CPU the number of dead
        codes is read first; elsewhere (and in a compiled graph) it is not, so that nothing waits for the device.
        """
        if not self.has_dead_code_replacement or not self.training:
            return
        ranks = self.ranks
        dead = ranks.first((self.cluster_size < self.threshold_ema_dead_code).float()) > 0.5
        reads_number = dead.device.type == "cpu" and not torch.compiler.is_compiling()
        rows, keep = self._by_codebook(x.detach(), mask)
        for h in range(self.num_codebooks):
            dead_here = dead[h]
            most = int(dead_here.sum()) if reads_number else self.codebook_size
            if most == 0:
                continue
            own_mask = None if keep is None else keep[h]
            fresh, available = draw_rows(working(rows[h]), own_mask, most, self.generator, ranks)
            fresh = unit(fresh) if self.use_cosine_sim else fresh
            keys = ranks.first(uniform(self.codebook_size, dead_here, self.generator)) - 2 * dead_here.float()
            count = min(most, int(available)) if reads_number else torch.minimum(available, dead_here.sum())
            reset = fresh.new_full((most, 1), self.reset_cluster_size)
            fresh = fresh.to(self.embed.dtype)  # the dead codes come first, in random order
            write_rows(
                keys.argsort(),
                count,
                (writable(self.embed)[h], fresh),
                (self.embed_avg[h], fresh * self.reset_cluster_size),
                (self.cluster_size[h].unsqueeze(-1), reset),
            )

    @state_update
    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None, **options: Any) -> None:
        """`update` and `expire_codes_` for codes that are given, x.shape[:-1]; -1 counts nowhere."""
        codes = indices if mask is None else torch.where(mask, indices, -1)
        if self.update(*totals(x.detach(), codes, self.bank_shape), **options):
            self.expire_codes_(x, mask)

    update_ema_indices = update_indices

    @property
    def bank_shape(self) -> torch.Size:
        return self.embed.shape[1:] if self.num_codebooks == 1 else self.embed.shape

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "recall" in state:  # pickled by an earlier release
            state["forward_records"] = state.pop("recall")
        super().__setstate__(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        super()._apply(fn, recurse)
        if self.pending_size is not None and self.pending_sum is not None:
            self.pending_size, self.pending_sum = fn(self.pending_size), fn(self.pending_sum)
        return self

    # ---- checkpointing and loading --------------------------------------------------------------------------------

    def record_forward(self, x: Tensor, draws: bool) -> ForwardRecord:
        """A record for a forward on x that may repeat this one; `draws`: this one takes random numbers."""
        record = ForwardRecord(x, self.state(), self.generator, draws)
        self.forward_records.add(record)
        return record

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        moments = state_dict.get(f"{prefix}codebook_mean")
        if self.affine_param and moments is not None:
            known = f"{prefix}batch_mean" in state_dict
            for name in ("codebook_mean", "codebook_variance", "batch_mean", "batch_variance"):
                if not known:  # no rows have been seen there
                    state_dict[prefix + name] = torch.zeros_like(moments)
                if name.startswith("batch") and (value := state_dict.get(prefix + name)) is not None:
                    setattr(self, name, torch.empty_like(value, device=self.embed.device))
        waiting = [state_dict.pop(f"{prefix}pending_{name}", None) for name in ("size", "sum")]
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.pending_size, self.pending_sum = (
            None if t is None else t.detach().to(self.embed.device, copy=True) for t in waiting
        )
        self._started = not self.initted.is_meta and bool(self.initted)
        self.batch_counts.zero_()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        flags = (name for name in self._buffers if name == "initted" or name.endswith("_needs_init"))
        destination.update({prefix + name: destination[prefix + name].bool() for name in flags})  # as the peer has it
        for name in ("pending_size", "pending_sum"):
            if (waiting := getattr(self, name)) is not None:
                destination[prefix + name] = waiting
        if not (self.affine_param and concrete(mean := self.batch_mean)):
            return
        if mean.is_meta or not bool(mean.any() | self.batch_variance.any()):
            del destination[f"{prefix}batch_mean"], destination[f"{prefix}batch_variance"]

    def extra_repr(self) -> str:
        count, size, width = self.embed.shape
        kind = "cosine" if self.use_cosine_sim else "euclidean"
        lead = f"codebooks={count}, " if count > 1 else ""
        return f"{lead}codes={size}, width={width}, {kind}, ema={self.ema_update}, learnable={self.learnable_codebook}"


def _lerp(old: Tensor, new: Tensor, step: float | Tensor) -> None:
    writable(old).lerp_(new.to(old), step.to(old) if isinstance(step, Tensor) else step)


def _moments(x: Tensor, mask: Tensor | None, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (population) variance over rows, (H, 1, d), of x (H, R, d), and their number, over all ranks."""
    x = working(x)
    keep = 1.0 if mask is None else mask.unsqueeze(-1).to(x.dtype)
    number = x.new_full((x.shape[0], 1, 1), x.shape[1]) if mask is None else mask.sum(-1).to(x.dtype).view(-1, 1, 1)
    number = ranks.total(number)
    least = number.clamp_min(1)
    mean = ranks.total((x * keep).sum(1, keepdim=True)) / least
    return mean, ranks.total(((x - mean).square() * keep).sum(1, keepdim=True)) / least, number
