"""vecbank.onnx: every op in torch's own ops, every module so decomposed, and ONNX models run by onnxruntime.

`VECBANK_NET=full` takes every module; otherwise each third one is decomposed, and four are run by onnxruntime.
"""

from __future__ import annotations

import io
from typing import Any

import onnxruntime
import pytest
import torch
from cases import METRICS
from export_cases import CASES, DIM, built, tokens
from helpers import FULL, all_ops, assert_same, gauss, op
from op_samples import samples
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import vecbank
from vecbank import onnx as vecbank_onnx

OURS = {
    f.name().removeprefix("vecbank::"): form
    for f, form in vecbank_onnx.decompositions().items()
    if f.name().startswith("vecbank::")
}
WITHOUT = {
    "project_backward_small",
    "pack",
    "repack_",
    "project_backward",
    "topk_backward",
    "quantize_backward",
    "lookup_dot",
    *("topk_among", "radius", "radius_count", "merge_topk"),
    *("sparse_invert", "sparse_scores", "sparse_topk", "sparse_backward"),
    *("attend", "attend_backward"),
    *("maxsim", "maxsim_pairs", "maxsim_topk", "maxsim_pack"),
    *("hamming_topk", "hamming_scores", "hamming_radius", "hamming_radius_count"),
}  # layouts, gradients, and selections that bool masks do not say
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def assert_alike(got: Any, want: Any) -> None:
    """Codes are the same; values, NaN among them, up to the last bits."""
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if not isinstance(w, Tensor):
            continue
        assert g.shape == w.shape and g.dtype == w.dtype
        if w.is_floating_point():
            torch.testing.assert_close(g, w.detach(), rtol=TOLERANCE[w.dtype], atol=TOLERANCE[w.dtype], equal_nan=True)
        else:
            assert_same(g, w)


def test_every_op_has_a_form_or_is_known_to_have_none() -> None:
    assert {*OURS, *WITHOUT} == set(all_ops()) and not WITHOUT & set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_plain_forms_of_the_ops(name: str) -> None:
    """Every metric, mask, dtype, batch and empty axis of the samples."""
    assert samples()[name]
    for arguments in samples()[name]:
        with torch.no_grad():
            assert_alike(OURS[name](*arguments), op(name)(*arguments))


@pytest.mark.parametrize("metric", METRICS)
def test_edges(metric: str) -> None:
    """NaN and infinity on either side, and a k that finds too few."""
    x, bank = gauss(6, DIM), gauss(9, DIM)
    x[1, 2], x[2, 3], bank[4, 1], bank[7, 0] = torch.nan, torch.inf, torch.nan, torch.inf
    code = vecbank.METRICS[metric]
    mask = torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor([2, 5]), True)
    finite = torch.tensor(
        [0, 3, 4, 5]
    )  # the order among infinite scores is one of the things that ONNX does not promise
    for arguments in [(x[finite], bank, None, 3, code), (x[:2], bank[:4], None, 2, code)]:
        assert_alike(OURS["topk"](*arguments), op("topk")(*arguments))
    few = (x[finite], bank, None, 4, code, mask.expand(4, 9))
    assert_alike(OURS["topk"](*few), op("topk")(*few))
    assert op("topk")(*few)[1][:, 2:].eq(-1).all()
    for name in ("nearest", "quantize"):
        assert_alike(OURS[name](x[:2], bank[:7], None, code), op(name)(x[:2], bank[:7], None, code))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES if FULL else list(CASES)[::3])
def test_modules_in_torch_ops_alone(name: str) -> None:
    module, make = built(name, training=False)
    with torch.no_grad():
        program = vecbank_onnx.decomposed(torch.export.export(module, (make(),)))
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not [target for target in called if "vecbank" in target]
        x = make()
        torch.manual_seed(1)
        got = program.module()(x)
        torch.manual_seed(1)
        assert_alike(got, module(x))


def test_forms_of_the_ops_of_torch() -> None:
    """Those that the exporter lacks: the same bits as torch's, at the ends of the range too."""
    form = vecbank_onnx.decompositions()
    t = torch.cat(
        [gauss(500, dtype=torch.float64), torch.tensor([0.0, 1.0, -1.0, 2.0, 5e-324, 1e-310, 1e308, torch.inf])]
    )
    for towards in (torch.full_like(t, -torch.inf), torch.full_like(t, torch.inf), t, torch.zeros_like(t)):
        assert_same(form[torch.ops.aten.nextafter.default](t, towards), torch.nextafter(t, towards))
    edges, values = gauss(3, 9).sort().values, torch.cat([gauss(3, 40), gauss(3, 9).sort().values], 1)
    values[:, 0] = torch.nan
    for right in (False, True):
        got = form[torch.ops.aten.searchsorted.Tensor](edges, values, right=right)
        assert_same(got, torch.searchsorted(edges, values, right=right))
    x, y = gauss(2, 5, DIM), gauss(2, 7, DIM)
    torch.testing.assert_close(form[torch.ops.aten._cdist_forward.default](x, y, 2.0, 2), torch.cdist(x, y))


class Verbs(nn.Module):
    """A prepared Bank, a mask, and codes read back."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = vecbank.Bank(gauss(30, DIM, seed=3), metric="l2")
        self.register_buffer("mask", torch.arange(30) % 3 > 0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values, indices = self.bank.topk(x, 4, allowed=self.mask)
        nearest = vecbank.nearest(x, self.bank.vectors, "cosine")
        codes = torch.where(x[..., 0] > 0, indices[..., 0], -1)
        return values, indices, nearest.values, nearest.indices, self.bank.lookup(codes), self.bank.project(x)


def run(module: nn.Module, example: Tensor, x: Tensor, **options: Any) -> list[Tensor]:
    """What onnxruntime makes of x, by the model that `export` writes."""
    program, file = vecbank_onnx.export(module, (example,), verbose=False, **options), io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(result) for result in results]


ONNX_CASES = ("plain", "cosine", "residual", "beam", "implicit", "sim", "latent", "fsq", "lfq", "product", "features")
ONNX_CASES += ("autoencoder", "relative", "embedding hashed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ONNX_CASES if FULL else ["plain", "residual", "sim", "features"])
def test_onnxruntime_gives_what_the_module_gives(name: str) -> None:
    module, make = built(name, training=False)
    example, x = make(), make()
    if x.is_floating_point() and name not in ("features", "autoencoder"):
        x.select(-1, 0).select(-1, 0).fill_(torch.nan)  # a row of each batch
    want = [t for t in tree_leaves(module(x)) if isinstance(t, Tensor)]
    assert_alike(run(module, example, x), want)


@pytest.mark.filterwarnings("ignore")
def test_verbs_with_any_number_of_rows() -> None:
    module = Verbs().eval()
    rows = torch.export.Dim("rows", min=1, max=100)
    for n in (1, 17):
        x = gauss(n, DIM, seed=n)
        assert_alike(run(module, gauss(5, DIM), x, dynamic_shapes=({0: rows},)), module(x))


class Gradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vecbank.lookup_dot(x, torch.zeros(x.shape[0], dtype=torch.int64), x)
        return out


class Orthogonal(nn.Module):
    """An op of torch's that its exporter does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.geqrf(x)[0]


def test_refusals_name_what_has_no_form() -> None:
    with pytest.raises(ValueError, match=r"call module.eval\(\) first"):
        vecbank_onnx.export(vecbank.nn.VectorQuantize(dim=DIM, codebook_size=4), (tokens(),))
    with pytest.raises(NotImplementedError, match="lookup_dot has no ONNX form"):
        vecbank_onnx.export(Gradient().eval(), (gauss(3, DIM),))
    with pytest.raises(NotImplementedError, match=r"torch.onnx cannot write Orthogonal.*geqrf"):
        vecbank_onnx.export(Orthogonal().eval(), (gauss(3, 4),), verbose=False)
