"""`accelerate(model)` swaps the modules of vector-quantize-pytorch inside a model for those of this package, in place.

Nothing is copied: a swapped module stays the same object with the same parameters and buffers, hooks and training mode,
so every reference to it stays valid, and so does an optimiser that holds its parameters.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ._implicit_codebook import CodeMLP
from ._layout import CosineSimLinear
from ._vq.codebook import Codebook
from .binary_mapper import BinaryMapper
from .fsq import FSQ, GroupedResidualFSQ, ResidualFSQ
from .grouped_vq import GroupedResidualVQ
from .latent_quantize import LatentQuantize
from .lfq import LFQ, GroupedResidualLFQ, ResidualLFQ
from .random_projection import RandomProjectionQuantizer
from .residual_vq import ResidualVQ
from .sim_vq import ResidualSimVQ, SimVQ
from .vector_quantize import VectorQuantize

_PEER = "vector_quantize_pytorch"
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)


@dataclass(frozen=True)
class AccelerateReport:
    """The result of `accelerate`: the names of the swapped modules, and of those that were left, with the reason.

    Attributes:
        swapped: names as in `model.named_modules()`, each with its class.
        left: the reason by such a name.

    Example:
        >>> import vecbank
        >>> print(vecbank.nn.AccelerateReport(swapped=["0 (VectorQuantize)"]))
        swapped 1
          0 (VectorQuantize)
        left 0
    """

    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}", *(f"  {name}" for name in self.swapped)]
        lines += [f"left {len(self.left)}", *(f"  {name}: {reason}" for name, reason in self.left.items())]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> AccelerateReport:
    """Swaps every vector_quantize_pytorch module that has a counterpart here for that counterpart, in place.

    Weights, moving averages, optimisers and hooks stay; outputs, state_dict and arguments stay the same. Random numbers
    come from torch's default generator, as before. Modules of that package without a counterpart keep their type, while
    the modules inside them are swapped: a ResidualVQ of that package then runs on stages of this one.

    Args:
        model: any module; it may itself be one that is swapped.

    Returns:
        AccelerateReport(swapped, left): names as in `model.named_modules()`, with the class; "" is the model itself.

    Raises:
        TypeError: `model` is not a torch.nn.Module.

    Example:
        >>> import torch, vecbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), vecbank.nn.VectorQuantize(dim=8, codebook_size=16))
        >>> report = vecbank.nn.accelerate(model)
        >>> report.swapped, report.left  # no module of the other package is in this model
        ([], {})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    report = AccelerateReport()
    for name, module in list(model.named_modules()):
        kind = type(module)
        label = f"{name or '(model)'} ({kind.__name__})"
        if kind.__module__.partition(".")[0] != _PEER:
            if _derived(kind):
                report.left[label] = "its class is derived from one of that package, and may rely on how that works"
            continue
        convert = _CONVERTERS.get(kind.__name__)
        if convert is None:
            if getattr(sys.modules[_PEER], kind.__name__, None) is kind:  # else it is swapped with what it is a part of
                report.left[label] = "no counterpart here; what it is made of is swapped where there is one"
            continue
        try:
            convert(module)
        except (_CannotSwapError, ValueError) as reason:
            report.left[label] = str(reason)
        else:
            report.swapped.append(label)
    return report


class _CannotSwapError(Exception):
    """A module whose state cannot be represented here."""


def _derived(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == _PEER for base in kind.__mro__[1:])


# ---- Turning one module into another ------------------------------------------------------------------------------


def _fresh(cls: Callable[..., nn.Module], module: nn.Module, **settings: Any) -> nn.Module:
    """A `cls` with `module`'s settings: those given here, else its attributes of the same name, else defaults."""
    for name in inspect.signature(cls).parameters:
        if name not in settings and name in module.__dict__:
            settings[name] = module.__dict__[name]
    with torch.random.fork_rng(devices=[]):  # its start is replaced, and must not take random numbers
        return cls(**settings)


def _become(module: nn.Module, fresh: nn.Module) -> None:
    """Gives `module` the class and settings of `fresh`; parameters, buffers, children, hooks and mode stay."""
    _check_kept(module, fresh)
    old, new = module.__dict__, fresh.__dict__
    like = next(itertools.chain(module.parameters(), module.buffers()), None)
    if like is not None:
        fresh.to(like.device)
    for kind in ("_parameters", "_buffers", "_modules"):
        new[kind].update((name, value) for name, value in old[kind].items() if name in new[kind])
    new |= {name: old[name] for name in (*_HOOKS, "training") if name in old}
    taken = _names(fresh)
    for name, value in old.items():  # attributes that a user has added
        if name not in new and name not in taken and not hasattr(type(fresh), name):
            new[name] = value
    module.__dict__ = new
    module.__class__ = type(fresh)


def _check_kept(module: nn.Module, fresh: nn.Module) -> None:
    """Everything that `module` holds has a place in `fresh`."""
    old = module.__dict__
    persistent = old["_buffers"].keys() - old["_non_persistent_buffers_set"]
    lost = (old["_parameters"].keys() | old["_modules"].keys() | persistent) - _names(fresh)
    if lost:
        raise _CannotSwapError(f"it holds {', '.join(sorted(lost))}, unknown here")


def _names(module: nn.Module) -> set[str]:
    return {name for kind in ("_parameters", "_buffers", "_modules") for name in module.__dict__[kind]}


# ---- VectorQuantize -----------------------------------------------------------------------------------------------


def _check_codebook(b: Any) -> None:
    """A Codebook that can be swapped, of that package or of this one."""
    if isinstance(b, Codebook):
        return
    if type(b).__module__.partition(".")[0] != _PEER or type(b).__name__ != "Codebook":
        raise _CannotSwapError(f"its codebook is a {type(b).__name__}")
    if getattr(getattr(b.gumbel_sample, "func", None), "__module__", "").partition(".")[0] != _PEER:
        raise _CannotSwapError("its codebook samples codes by a function of its own")


def _codebook(codebook: nn.Module) -> None:
    """Swaps a Codebook; once, however many modules share it."""
    if isinstance(codebook, Codebook):
        return
    b: Any = codebook
    fresh = _fresh(
        Codebook, b, dim=b.embed.shape[-1], kmeans_init=False, sync_kmeans=_sync_kmeans(b), vq_bridge=_bridge(b)
    )
    pending = b.cluster_size.grad, b.embed_avg.grad  # where that package keeps what it has accumulated
    _become(b, fresh)
    b.cluster_size.grad = b.embed_avg.grad = None
    b.pending_size, b.pending_sum = pending
    b._started = bool(b.initted)
    if b.affine_param and b.batch_mean is None:  # no rows have been seen
        for name in ("codebook_mean", "codebook_variance", "batch_mean", "batch_variance"):
            setattr(b, name, torch.zeros_like(b.codebook_mean))


def _sync_kmeans(codebook: Any) -> bool:
    return not codebook.use_ddp or getattr(codebook.sample_fn, "__name__", "") == "sample_vectors_distributed"


def _bridge(codebook: nn.Module) -> nn.Module | None:
    return codebook._modules.get("vq_bridge")


def _vq_settings(vq: Any) -> dict[str, Any]:
    """Constructor arguments of a VectorQuantize, of that package or of this one."""
    codebook = vq._codebook
    names = inspect.signature(VectorQuantize).parameters
    settings = {name: value for name, value in {**vars(codebook), **vars(vq)}.items() if name in names}
    settings |= {"kmeans_init": False, "codebook_dim": codebook.embed.shape[-1], "sync_codebook": codebook.use_ddp}
    settings |= {"layernorm_after_project_in": isinstance(vq.project_in, nn.Sequential), "vq_bridge": _bridge(codebook)}
    settings |= {"in_place_codebook_optimizer": None}
    if not isinstance(vq, VectorQuantize):
        sampling = codebook.gumbel_sample.keywords
        settings["stochastic_sample_codes"] = sampling["stochastic"]
        settings["straight_through"] = sampling["straight_through"]
    if not isinstance(codebook, Codebook):
        settings["sync_kmeans"] = _sync_kmeans(codebook)
    return settings


def _vector_quantize(module: nn.Module) -> None:
    m: Any = module
    _check_codebook(m._codebook)
    optimizer, fresh = m.in_place_codebook_optimizer, _fresh(VectorQuantize, m, **_vq_settings(m))
    _check_kept(module, fresh)  # before the codebook is swapped: the module could not work with the new one
    _codebook(m._codebook)
    _become(module, fresh)
    m.in_place_codebook_optimizer = optimizer
    m.zero = m.zero.detach()  # there it requires grad


# ---- The other modules --------------------------------------------------------------------------------------------


def _dim(module: Any, width: int) -> int:
    """Features of a module that projects to `width`, if it does."""
    linear = module.project_in
    return linear.in_features if isinstance(linear, nn.Linear) else width


def _residual_settings(m: Any) -> dict[str, Any]:
    layer, width = m.layers[0], m.codebook_dim
    vq = _vq_settings(layer)
    own = {"dim", "codebook_size", "codebook_dim", "heads", "accept_image_fmap", "layernorm_after_project_in"}
    own |= {"separate_codebook_per_head", "in_place_codebook_optimizer"}
    mlp = m.mlps[0] if m.implicit_neural_codebook and len(m.mlps) else None
    shape = {} if mlp is None else {"depth": len(mlp.layers), "dim_hidden": mlp.layers[0][0].out_features}
    return {
        **{name: value for name, value in vq.items() if name not in own},
        "dim": _dim(m, width),
        "codebook_dim": width,
        "codebook_size": tuple(m.codebook_sizes),
        "mlp_kwargs": shape,
        "beam_score_quantizer_weights": m.beam_score_weights.tolist(),
    }


def _residual_vq(module: nn.Module) -> None:
    m: Any = module
    _become(module, _fresh(ResidualVQ, m, **_residual_settings(m)))
    for layer in m.layers:  # the stages here always get the features last
        layer.accept_image_fmap = layer.accept_3d_fmap = False
        layer.channel_last = True
    for mlp in m.mlps:
        if mlp is not None and not isinstance(mlp, CodeMLP):
            hidden = mlp.layers[0][0].out_features
            _become(mlp, _fresh(CodeMLP, mlp, dim=mlp.proj_in.out_features, dim_hidden=hidden, depth=len(mlp.layers)))


def _grouped(cls: type[nn.Module], settings: Callable[[Any], dict[str, Any]]) -> Callable[[nn.Module], None]:
    def convert(module: nn.Module) -> None:
        m: Any = module
        one = {name: value for name, value in settings(m.rvqs[0]).items() if name not in ("dim", "accept_image_fmap")}
        _become(module, _fresh(cls, m, **one))

    return convert


def _dropout(m: Any) -> dict[str, Any]:
    names = ("num_quantizers", "quantize_dropout", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of")
    return {name: getattr(m, name) for name in names}


def _sim_settings(m: Any) -> dict[str, Any]:
    width, dim = m.frozen_codebook.shape[-1], m.codebook.shape[-1]
    return {"dim": dim, "codebook_transform": m.code_transform, "frozen_codebook_dim": width}


def _residual_sim_settings(m: Any) -> dict[str, Any]:
    layer = m.layers[0]
    sim = {name: value for name, value in _sim_settings(layer).items() if name != "codebook_transform"}
    return {**sim, **_dropout(m), "codebook_size": layer.codebook_size, "rotation_trick": layer.rotation_trick}


def _random_projection_settings(m: Any) -> dict[str, Any]:
    count, dim, width = m.rand_projs.shape
    size, norm = m.vq.codebook_size, isinstance(m.norm, nn.LayerNorm)
    return {"dim": dim, "codebook_dim": width, "num_codebooks": count, "codebook_size": size, "norm": norm}


def _has_bias(m: Any) -> bool:
    return getattr(m.project_out, "bias", None) is not None or not m.has_projections


def _fsq_settings(m: Any) -> dict[str, Any]:
    return {"levels": m._levels.tolist(), "projection_has_bias": _has_bias(m)}


def _residual_fsq_settings(m: Any) -> dict[str, Any]:
    hard = m.layers[0].bound_hard_clamp
    clamp = None if hard else m.soft_clamp_input_value
    dim = _dim(m, len(m.levels))
    own = {"levels": list(m.levels), "dim": dim, "bound_hard_clamp": hard, "soft_clamp_input_value": clamp}
    return {**own, **_dropout(m), "is_channel_first": m.is_channel_first}


def _lfq_settings(m: Any) -> dict[str, Any]:
    cosine = type(m.project_in).__name__ == "CosineSimLinear"
    scale = m.project_in.scale if cosine else None
    own = {"straight_through_activation": m.activation, "projection_has_bias": _has_bias(m)}
    return {**own, "cosine_sim_project_in": cosine, "cosine_sim_project_in_scale": scale}


def _lfq(module: nn.Module) -> None:
    m: Any = module
    _become(module, _fresh(LFQ, m, **_lfq_settings(m)))
    if type(m.project_in).__name__ == "CosineSimLinear" and not isinstance(m.project_in, CosineSimLinear):
        wide, narrow = m.project_in.weight.shape
        _become(m.project_in, _fresh(CosineSimLinear, m.project_in, dim_in=wide, dim_out=narrow))


def _residual_lfq_settings(m: Any) -> dict[str, Any]:
    layer = m.layers[0]
    dim = _dim(m, layer.codebook_dim)
    own = {"dim": dim, "codebook_size": layer.codebook_size, "channel_first": layer.channel_first}
    return {**own, **_dropout(m), "soft_clamp_input_value": layer.soft_clamp_input_value}


def _residual_lfq(module: nn.Module) -> None:
    m: Any = module
    _become(module, _fresh(ResidualLFQ, m, **_residual_lfq_settings(m)))
    for layer in m.layers:
        layer.channel_first = False  # as in _residual_vq


def _latent_settings(m: Any) -> dict[str, Any]:
    return {
        "levels": m._levels.tolist(),
        "codebook_dim": -1,
        "commitment_loss_weight": float(m.commitment_loss_weight),
        "quantization_loss_weight": float(m.quantization_loss_weight),
        "optimize_values": isinstance(m.values_per_latent, nn.ParameterList),
    }


def _plain(cls: type[nn.Module], settings: Callable[[Any], dict[str, Any]]) -> Callable[[nn.Module], None]:
    def convert(module: nn.Module) -> None:
        _become(module, _fresh(cls, module, **settings(module)))

    return convert


_CONVERTERS: dict[str, Callable[[nn.Module], None]] = {
    "VectorQuantize": _vector_quantize,
    "ResidualVQ": _residual_vq,
    "GroupedResidualVQ": _grouped(GroupedResidualVQ, _residual_settings),
    "SimVQ": _plain(SimVQ, _sim_settings),
    "ResidualSimVQ": _plain(ResidualSimVQ, _residual_sim_settings),
    "RandomProjectionQuantizer": _plain(RandomProjectionQuantizer, _random_projection_settings),
    "LatentQuantize": _plain(LatentQuantize, _latent_settings),
    "FSQ": _plain(FSQ, _fsq_settings),
    "ResidualFSQ": _plain(ResidualFSQ, _residual_fsq_settings),
    "GroupedResidualFSQ": _grouped(GroupedResidualFSQ, _residual_fsq_settings),
    "LFQ": _lfq,
    "ResidualLFQ": _residual_lfq,
    "GroupedResidualLFQ": _grouped(GroupedResidualLFQ, _residual_lfq_settings),
    "BinaryMapper": _plain(BinaryMapper, lambda m: {}),
}
