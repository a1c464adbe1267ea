"""torch.ops.vecbank.*: what torch asks of an op, checked for every one there is."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from cases import BALL
from helpers import CODE, all_ops, gauss, op, same
from op_samples import samples
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import vecbank


def holds_nan(out: Any) -> bool:
    parts = out if isinstance(out, (tuple, list)) else (out,)
    return any(isinstance(part, Tensor) and part.is_floating_point() and bool(part.isnan().any()) for part in parts)


@pytest.mark.parametrize("name", all_ops())
def test_opcheck(name: str) -> None:
    """Schema, autograd registration, fake kernel and AOT dispatch, as torch itself judges them."""
    rows = samples()[name]
    assert rows, f"vecbank::{name} has no sample: add one"
    overload = op(name).default
    for i, row in enumerate(rows):
        # AOT dispatch traces and compiles: on a few rows only, the cheap checks on all.
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        recorded = any(isinstance(a, Tensor) and a.requires_grad for a in row)
        if recorded and name == "radius":  # has no gradient, and torch would add its floats to its integers in place
            pass
        elif i % 7 == 0 or recorded and i < 12:
            if not holds_nan(overload(*row)):  # torch compares by value, and NaN equals nothing
                checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(overload, row, test_utils=tuple(checks))


def test_schemas_only_grow_at_the_end() -> None:
    """What earlier callers, saved programs included, have written down. Add to the end, with defaults."""
    want = {
        "pack": "Tensor bank, int metric, Tensor? bias=None, bool stamp=False",
        "repack_": "Tensor(a!) pack, Tensor bank, int metric, Tensor rows, Tensor? bias=None, bool stamp=False",
        "project": "Tensor x, Tensor bank, Tensor? pack, int metric, ScalarType? out_dtype=None",
        "exact_scores": "Tensor x, Tensor bank, int metric, ScalarType? out_dtype=None, Tensor? indices=None",
        "project_backward_small": "Tensor grad, Tensor x, Tensor bank, int metric, bool need_x=True, "
        "bool need_bank=True",
        "topk": "Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor? mask=None, bool exact=True, "
        "Tensor? bias=None",
        "nearest": "Tensor x, Tensor bank, Tensor? pack, int metric, bool exact=True",
        "quantize": "Tensor x, Tensor bank, Tensor? pack, int metric",
        "quantize_train": "Tensor x, Tensor bank, Tensor? pack, int metric, Tensor? mask=None",
        "lookup": "Tensor codes, Tensor bank, Tensor? weights, int reduce",
        "segment_sum": "Tensor src, Tensor codes, int num_codes, Tensor? weights",
        "topk_among": "Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor[] sets, int[] program, "
        "Tensor? bias=None, bool keys=False, bool worst=False",
        "radius": "Tensor x, Tensor bank, Tensor? pack, Tensor radii, int metric, Tensor[] sets, int[] program, "
        "Tensor? bias=None",
        "radius_count": "Tensor x, Tensor bank, Tensor? pack, Tensor radii, int metric, Tensor[] sets, int[] program, "
        "Tensor? bias=None",
        "attend": "Tensor x, Tensor bank, Tensor? values, Tensor beta, Tensor[] sets, int[] program",
        "attend_backward": "Tensor? grad, Tensor along, Tensor x, Tensor bank, Tensor? values, Tensor beta, "
        "Tensor lse, Tensor[] sets, int[] program, bool need_x, bool need_bank, bool need_values, bool need_beta",
        "hamming_topk": "Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, int k, Tensor[] sets, "
        "int[] program",
        "hamming_scores": "Tensor x, Tensor bank, int bits, int x_planes, int bank_planes",
        "hamming_radius": "Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, Tensor radii, "
        "Tensor[] sets, int[] program",
        "hamming_radius_count": "Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, Tensor radii, "
        "Tensor[] sets, int[] program",
        "merge_topk": "Tensor keys, Tensor indices, int k, int metric, bool wide",
        "sparse_invert": "Tensor offsets, Tensor ids, int width",
        "sparse_scores": "Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, Tensor weights, int count",
        "sparse_topk": "Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, Tensor weights, int count, "
        "int k, Tensor[] sets, int[] program",
        "sparse_backward": "Tensor grad, Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, "
        "Tensor weights, int count, Tensor? indices, bool need_queries, bool need_lists",
        "maxsim": "Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, int metric, bool best=False",
        "maxsim_pairs": "Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, Tensor indices, "
        "int metric, bool best=False",
        "maxsim_topk": "Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, int k, int metric, "
        "Tensor[] sets, int[] program, Tensor? codes=None, Tensor? facts=None",
        "maxsim_pack": "Tensor documents, Tensor offsets, int metric",
    }
    for name, arguments in want.items():
        assert f"vecbank::{name}({arguments}" in str(op(name).default._schema)


@pytest.mark.parametrize(
    "name",
    [
        "pack",
        "project_backward",
        "project_backward_small",
        "topk_backward",
        "lookup_dot",
        "radius",
        "radius_count",
        "sparse_backward",
        "maxsim_topk",
        "maxsim_pack",
    ],
)
def test_ops_without_a_formula_raise_in_backward(name: str) -> None:
    row = samples()[name][0]
    row = tuple(a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in row)
    out = op(name)(*row)
    out = (out[2] if name == "radius" else out[0]) if isinstance(out, (tuple, list)) else out
    if out.requires_grad:
        with pytest.raises((RuntimeError, NotImplementedError)):
            out.sum().backward()
    else:
        assert not out.is_floating_point()  # bytes: no gradient to speak of


X, BANK = gauss(4, 3), gauss(5, 3)


def test_a_pack_changes_no_bit() -> None:
    x, bank = gauss(30, 17), gauss(300, 17)
    for code in CODE.values():
        packed = op("pack")(bank, code)
        for name in ("topk", "nearest", "quantize"):
            extra = (7,) if name == "topk" else ()
            with_pack, without = (op(name)(x, bank, p, *extra, code) for p in (packed, None))
            assert all(same(a, b) for a, b in zip(with_pack, without, strict=True))


def test_the_metrics_are_those_of_the_table() -> None:
    assert vecbank.METRICS == {**CODE, BALL: len(CODE)}  # by name and code, as C++ has them


def test_a_fake_pack_is_as_long_as_the_real_one() -> None:
    for rows, width, (metric, code), biased in product((0, 1, 16, 17, 64, 65), (0, 1, 8, 9), CODE.items(), (0, 1)):
        if biased and metric != "dot":
            continue
        bank, bias = gauss(rows, width), gauss(rows) if biased else None
        with FakeTensorMode() as mode:
            fake = op("pack")(mode.from_tensor(bank), code, None if bias is None else mode.from_tensor(bias))
        assert fake.shape == op("pack")(bank, code, bias).shape


class PackAndSearch(torch.nn.Module):
    def forward(self, bank: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        packed = op("pack")(bank, CODE["cosine"])
        return packed, op("topk")(x, bank, packed, 2, CODE["cosine"])[1]


@pytest.mark.parametrize("how", ["compile", "export"])
def test_one_program_packs_banks_of_any_shape(how: str) -> None:
    """The size of the pack is a formula of the bank's shape in the program, not a number."""
    program: torch.nn.Module = PackAndSearch()
    if how == "export":
        rows, width = torch.export.Dim("rows", min=2), torch.export.Dim("width", min=2)
        shapes = ({0: rows, 1: width}, {1: width})
        program = torch.export.export(program, (gauss(40, 8), gauss(4, 8)), dynamic_shapes=shapes).module()
    else:
        program.compile(fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for rows_now, width_now in ((5, 3), (133, 9), (64, 64)):
        bank, x = gauss(rows_now, width_now), gauss(4, width_now)
        packed, indices = program(bank, x)
        assert packed.shape == op("pack")(bank, CODE["cosine"]).shape
        assert same(indices, op("topk")(x, bank, None, 2, CODE["cosine"])[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (how == "compile")


def test_no_op_writes_to_its_inputs() -> None:
    """As the schemas promise: no alias marks (`repack_` alone has one), and the same bits and version afterwards."""
    for name, rows in samples().items():
        if name == "repack_":
            continue
        assert "!" not in str(op(name).default._schema)
        for row in rows:
            before = [(a, a.detach().clone(), a._version) for a in tree_leaves(row) if isinstance(a, Tensor)]
            op(name)(*row)
            assert all(same(a, saved) and a._version == version for a, saved, version in before)


def test_named_tuples_are_registered_for_export() -> None:
    for kind in (vecbank.TopK, vecbank.Nearest, vecbank.Quantized, partial(vecbank.RadiusHits, X)):
        leaves, spec = torch.utils._pytree.tree_flatten(kind(X, BANK))
        text = torch.utils._pytree.treespec_dumps(spec)
        assert torch.utils._pytree.tree_unflatten(leaves, torch.utils._pytree.treespec_loads(text))[-1] is BANK
