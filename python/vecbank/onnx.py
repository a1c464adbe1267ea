"""ONNX: modules in evaluation, and functions of the verbs, with every op of vecbank written out in plain torch.

`export` is all that most need; it wants the packages `onnx` and `onnxscript`. `decomposed` stops one step before: a
program of torch's own ops, for any other consumer of exported programs.

ONNX has no certificate of a search. A nearest row is the best of a float64 product: `x b'` for "dot" and "cosine",
`|b|^2 - 2 x b'` for Euclidean distances; or of the sums of differences themselves for "l1" and "poincare". Equal scores
go to the lower index, by ONNX's rule (`torch.topk` has none). Where two scores lie within float64 rounding of each
other (about 1e-15 of those terms), the code may be another than vecbank's.
The values returned are scored again from the chosen pairs and rounded once; sums may differ in their last bits, and
16-bit results by one rounding. The edges are vecbank's: a row of NaN has code -1 and comes out as NaN, code -1 reads a
zero row. A code out of range, an error in vecbank, is not looked for. The float64 scores of all pairs are in memory,
for "l1" and "poincare" their differences too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._ops import METRICS, REDUCTIONS, ball
from ._ops.names import BALL, POINCARE
from .results import TopK

__all__ = ["decomposed", "export"]

_ops = torch.ops.vecbank
_SHORTEST = 1e-8  # a norm below this counts as this
_DOT, _COSINE, _L2, _L1 = METRICS["dot"], METRICS["cosine"], METRICS["l2"], METRICS["l1"]


def export(
    module: nn.Module, args: tuple[Any, ...], f: str | None = None, *, dynamic_shapes: Any = None, **options: Any
) -> Any:
    """A module that uses vecbank as an ONNX model.

    Args:
        module: any torch module in evaluation mode.
        args: example inputs.
        f: file to write; None writes none.
        dynamic_shapes: which sizes may change, as of `torch.export.export`.
        options: further keywords of `torch.onnx.export` (`input_names`, `opset_version`, ...).

    Returns:
        torch.onnx.ONNXProgram: may be saved, called and looked into.

    Raises:
        ValueError: the module is in training. NotImplementedError: an op without an ONNX form, by name.
        ImportError: onnx or onnxscript are not installed.

    Example:
        >>> import torch, vecbank, vecbank.onnx
        >>> layer = vecbank.nn.RelativeProjection(torch.eye(3)).eval()
        >>> program = vecbank.onnx.export(layer, (torch.ones(2, 3),), verbose=False)
        >>> program.model.graph.outputs[0].shape
        Shape([2, 3])
    """
    if module.training:
        raise ValueError("a module is exported to ONNX in evaluation: call module.eval() first")
    with torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
    try:
        return torch.onnx.export(decomposed(program), (), f, dynamo=True, **options)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise NotImplementedError(
            f"vecbank: torch.onnx cannot write {type(module).__name__} with these options: {cause}"
        ) from error


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The exported program with every op of vecbank replaced by torch's own ops; the input is left as it was.

    Raises:
        NotImplementedError: an op that has no such form, by name.

    Example:
        >>> import torch, vecbank, vecbank.onnx
        >>> layer = vecbank.nn.RelativeProjection(torch.eye(3)).eval()
        >>> program = torch.export.export(layer, (torch.ones(2, 3),))
        >>> any("vecbank" in str(node.target) for node in vecbank.onnx.decomposed(program).graph.nodes)
        False
    """
    plain = program.run_decompositions({**torch.export.default_decompositions(), **decompositions()})
    for graph in plain.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            name = node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""
            if name.startswith("vecbank"):
                raise NotImplementedError(
                    f"vecbank: {name} has no ONNX form: only what evaluation needs has one, not gradients and packs. "
                    "Export a module in evaluation, with torch.no_grad()"
                )
    return plain


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Ops of vecbank in torch's own ops, as `torch.export.ExportedProgram.run_decompositions` takes them.

    Some of torch's ops are among them, which modules use and the ONNX exporter has no form of: a stable sort (ONNX's
    always is), searchsorted, nextafter of float64 and the Euclidean cdist.
    """
    return {
        torch.ops.aten.sort.stable: _sort,
        torch.ops.aten.searchsorted.Tensor: _searchsorted,
        torch.ops.aten.nextafter.default: _nextafter,
        torch.ops.aten._cdist_forward.default: _cdist,
        torch.ops.vecbank_nn.snapshot.default: torch.clone,
        _ops.project.default: _project,
        _ops.exact_scores.default: _exact_scores,
        _ops.topk.default: _topk,
        _ops.nearest.default: _nearest,
        _ops.quantize.default: _quantize,
        _ops.quantize_train.default: _quantize_train,
        _ops.residual_quantize.default: _residual_quantize,
        _ops.product_quantize.default: _product_quantize,
        _ops.lookup.default: _lookup,
        _ops.segment_sum.default: _segment_sum,
    }


# ---- scores -------------------------------------------------------------------------------------------------------


def _squares(t: Tensor) -> Tensor:
    return (t * t).sum(-1)


def _row_squares(bank: Tensor) -> Tensor:
    """(M,), or (B, 1, M): beside scores (..., M) or (B, N, M)."""
    squares = _squares(bank)
    return squares if bank.dim() == 2 else squares.unsqueeze(-2)


def _unit(t: Tensor) -> Tensor:
    return t / _squares(t).sqrt().clamp_min(_SHORTEST).unsqueeze(-1)


def _all_scores(x: Tensor, bank: Tensor, metric: int) -> Tensor:
    """(..., M) float64: similarities, or distances: Euclidean ones squared, and the ratio of those in a ball."""
    x, bank = x.double(), bank.double()
    if metric == _L1 or metric in BALL:
        apart = x.unsqueeze(-2) - (bank if bank.dim() == 2 else bank.unsqueeze(-3))
        if metric == _L1:
            return apart.abs().sum(-1)
        of_bank = ball.factors(bank)
        return _squares(apart) / (
            ball.factors(x).unsqueeze(-1) * (of_bank if bank.dim() == 2 else of_bank.unsqueeze(-2))
        )
    if metric == _COSINE:
        x, bank = _unit(x), _unit(bank)
    products = x @ bank.mT
    if metric in (_DOT, _COSINE):
        return products
    return (_squares(x).unsqueeze(-1) + (_row_squares(bank) - 2 * products)).clamp_min(0)


def _distance(ratio: Tensor) -> Tensor:
    return 2 * torch.asinh(ratio.sqrt())


def _pair_scores(x: Tensor, rows: Tensor, metric: int) -> Tensor:
    """x (..., d) and rows (..., k, d) -> (..., k) float64 values of the metric."""
    x, rows = x.double().unsqueeze(-2), rows.double()
    if metric == _COSINE:
        x, rows = _unit(x), _unit(rows)
    if metric in (_DOT, _COSINE):
        return (x * rows).sum(-1)
    if metric == _L1:
        return (x - rows).abs().sum(-1)
    squares = _squares(x - rows)
    if metric in BALL:
        ratio = squares / (ball.factors(x) * ball.factors(rows))
        return _distance(ratio) if metric == POINCARE else ratio
    return squares.sqrt() if metric == _L2 else squares


def _best(x: Tensor, bank: Tensor, k: int, metric: int, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """(..., k) row numbers, best first; -1 where candidates run out."""
    if bank.shape[-2] == 0:
        return torch.full((*x.shape[:-1], k), -1, device=x.device)
    x, bank = x.double(), bank.double()
    if metric in (_DOT, _COSINE):
        keys = _all_scores(x, bank, metric)
    elif metric == _L1 or metric in BALL:
        keys = -_all_scores(x, bank, metric)
    else:
        keys = 2 * (x @ bank.mT) - _row_squares(bank)
    if bias is not None:
        keys = keys + bias.double()
    # A score of -inf is a candidate, NaN and what the mask leaves out are none: they go below it.
    out = keys.isnan() if mask is None else keys.isnan() | ~mask
    keys = keys.clamp_min(torch.finfo(torch.float64).min).masked_fill(out, -torch.inf)
    codes = keys.argmax(-1, keepdim=True) if k == 1 else keys.topk(k).indices
    return codes.masked_fill(keys.gather(-1, codes) == -torch.inf, -1)


def _rows(bank: Tensor, codes: Tensor) -> Tensor:
    """Rows of (M, d) by codes (...), or of (B, M, d) by codes (B, ...); -1 reads some row."""
    if bank.shape[-2] == 0:
        return bank.new_zeros((*codes.shape, bank.shape[-1]))
    codes = codes.clamp_min(0)
    if bank.dim() == 3:
        first = torch.arange(bank.shape[0], device=codes.device) * bank.shape[1]
        codes = codes + first.reshape(-1, *[1] * (codes.dim() - 1))
    return nn.functional.embedding(codes, bank.flatten(0, -2))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _sort(t: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = t.sort(dim=dim, descending=descending)
    return values, indices


def _searchsorted(
    ordered: Tensor, values: Tensor, *, out_int32: bool = False, right: bool = False, side: str | None = None, **_: Any
) -> Tensor:
    ordered = ordered if ordered.dim() == 1 else ordered.unsqueeze(-2)
    values = values.unsqueeze(-1)
    before = ~(ordered > values) if right or side == "right" else ~(ordered >= values)  # NaN comes last
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _nextafter(t: Tensor, towards: Tensor) -> Tensor:
    if t.dtype != torch.float64:
        raise NotImplementedError(f"vecbank: nextafter of {t.dtype} has no ONNX form, only of float64")
    limits = torch.finfo(t.dtype)
    # Just over half a unit in the last place: the sum rounds to the neighbour.
    step = t.abs() * (limits.eps / 2 * (1 + 2 * limits.eps)) + limits.smallest_normal * limits.eps
    moved = torch.where(towards < t, t - step, t + step)
    moved = torch.where(t.isinf(), t.sign() * limits.max, moved)
    return torch.where(towards == t, t, moved)


def _cdist(x: Tensor, y: Tensor, p: float, compute_mode: int | None) -> Tensor:
    if p != 2:
        raise NotImplementedError(f"vecbank: cdist with p = {p} has no ONNX form, only with p = 2")
    return _squares(x.unsqueeze(-2) - y.unsqueeze(-3)).sqrt()


# ---- the ops, by their schemas ------------------------------------------------------------------------------------


def _project(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, out_dtype: torch.dtype | None = None) -> Tensor:
    return _exact_scores(x, bank, metric, out_dtype)


def _exact_scores(
    x: Tensor, bank: Tensor, metric: int, out_dtype: torch.dtype | None = None, indices: Tensor | None = None
) -> Tensor:
    if indices is not None:
        scores = _pair_scores(x, _rows(bank, indices), metric).masked_fill(indices < 0, 0.0)
    else:
        scores = _all_scores(x, bank, metric)
        scores = scores.sqrt() if metric == _L2 else _distance(scores) if metric == POINCARE else scores
    return scores.to(out_dtype or x.dtype)


def _topk(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> TopK:
    codes = _best(x, bank, k, metric, mask, bias)
    values = _pair_scores(x, _rows(bank, codes), metric)
    if bias is not None:
        values = values + bias.double()[codes.clamp_min(0)]
    worst = -torch.inf if metric in (_DOT, _COSINE) else torch.inf
    return TopK(values.masked_fill(codes < 0, worst).to(_wide(x)), codes)


def _nearest(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    values, codes = _topk(x, bank, pack, 1, metric)
    return values.squeeze(-1), codes.squeeze(-1)


def _quantize(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int) -> tuple[Tensor, Tensor]:
    codes = _best(x, bank, 1, metric, None, None).squeeze(-1)
    return _rows(bank, codes).masked_fill((codes < 0).unsqueeze(-1), torch.nan), codes


def _loss(gap: Tensor, codes: Tensor) -> Tensor:
    """The mean square of the rows that have a code."""
    squares = gap.double().square().masked_fill((codes < 0).unsqueeze(-1), 0.0)
    return (squares.sum() / ((codes >= 0).sum() * gap.shape[-1]).clamp_min(1)).to(_wide(gap))


def _quantize_train(
    x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    quantized, codes = _quantize(x, bank, pack, metric)
    if mask is not None:
        quantized = torch.where(mask.unsqueeze(-1), quantized, x.to(bank.dtype))
        codes = codes.masked_fill(~mask, -1)
    loss = _loss(quantized.to(_wide(bank)) - x.to(_wide(bank)), codes)
    rows = bank.flatten(0, -2).shape[0]
    places = codes
    if bank.dim() == 3:  # one long bank, whose part b begins at row b M
        places = codes + bank.shape[1] * torch.arange(bank.shape[0], device=codes.device).unsqueeze(-1)
        places = places.masked_fill(codes < 0, -1)
    counts = _segment_sum(torch.ones_like(places, dtype=torch.float32).unsqueeze(-1), places, rows, None)
    sums = _segment_sum(x.to(_wide(bank)), places, rows, None)
    return quantized, codes, loss, counts.reshape(bank.shape[:-1]), sums.reshape(bank.shape)


def _residual_quantize(
    x: Tensor, codebooks: Sequence[Tensor], packs: Sequence[Tensor], metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    residual, rows, codes, losses = x.to(codebooks[0].dtype), [], [], []
    for codebook in codebooks:
        row, code = _quantize(residual, codebook, None, metric)
        residual = residual - row
        rows.append(row)
        codes.append(code)
        losses.append(_loss(residual, code))
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total, torch.stack(codes, -1), torch.stack(losses)


def _product_quantize(x: Tensor, codebooks: Tensor, pack: Tensor | None) -> Tensor:
    parts = x.reshape(-1, codebooks.shape[0], codebooks.shape[2]).transpose(0, 1)
    codes = _best(parts, codebooks, 1, METRICS["sqeuclidean"], None, None)
    return codes.squeeze(-1).transpose(0, 1).reshape(*x.shape[:-1], codebooks.shape[0])


def _lookup(codes: Tensor, bank: Tensor, weights: Tensor | None, reduce: int) -> Tensor:
    rows, missing = _rows(bank, codes), (codes < 0).unsqueeze(-1)
    if weights is None and reduce == REDUCTIONS["none"]:
        return rows.masked_fill(missing, 0.0)
    rows = rows.double() if weights is None else rows.double() * weights.double().unsqueeze(-1)
    rows = rows.masked_fill(missing, 0.0)
    if reduce != REDUCTIONS["none"]:
        rows = rows.sum(-2)
    if reduce == REDUCTIONS["mean"]:
        rows = rows / (codes >= 0).sum(-1, keepdim=True).clamp_min(1)
    return rows.to(bank.dtype)


def _segment_sum(src: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None) -> Tensor:
    if codes.dim() == src.dim():
        src = src.unsqueeze(-2).expand(*codes.shape, src.shape[-1])
    width = src.shape[-1]
    rows = src.double() if weights is None else src.double() * weights.double().unsqueeze(-1)
    # Rows without a code go to one more sum, which is cut off.
    places = torch.where(codes < 0, num_codes, codes).reshape(-1, 1).expand(-1, width)
    sums = torch.zeros(num_codes + 1, width, dtype=torch.float64, device=src.device)
    return sums.scatter_add(0, places, rows.reshape(-1, width))[:num_codes].to(src.dtype)
