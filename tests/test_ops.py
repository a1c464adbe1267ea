"""torch.ops.vecbank.*: what torch asks of an op, checked for every one there is."""

from __future__ import annotations

import pytest
import torch
from helpers import CODE, all_ops, gauss, op, same
from op_samples import samples
from torch import Tensor

import vecbank


@pytest.mark.parametrize("name", all_ops())
def test_opcheck(name: str) -> None:
    """Schema, autograd registration, fake kernel and AOT dispatch, as torch itself judges them."""
    rows = samples()[name]
    assert rows, f"vecbank::{name} has no sample: add one"
    overload = op(name).default
    for i, row in enumerate(rows):
        # AOT dispatch traces and compiles: on a few rows only, the cheap checks on all.
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if i % 7 == 0 or any(isinstance(a, Tensor) and a.requires_grad for a in row) and i < 12:
            checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(overload, row, test_utils=tuple(checks))


def test_schemas_only_grow_at_the_end() -> None:
    """What earlier callers, saved programs included, have written down. Add to the end, with defaults."""
    want = {
        "pack": "Tensor bank, int metric, Tensor? bias=None, bool stamp=False",
        "repack_": "Tensor(a!) pack, Tensor bank, int metric, Tensor rows, Tensor? bias=None, bool stamp=False",
        "project": "Tensor x, Tensor bank, Tensor? pack, int metric, ScalarType? out_dtype=None",
        "exact_scores": "Tensor x, Tensor bank, int metric, ScalarType? out_dtype=None, Tensor? indices=None",
        "topk": "Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor? mask=None, bool exact=True, "
        "Tensor? bias=None",
        "nearest": "Tensor x, Tensor bank, Tensor? pack, int metric, bool exact=True",
        "quantize": "Tensor x, Tensor bank, Tensor? pack, int metric",
        "quantize_train": "Tensor x, Tensor bank, Tensor? pack, int metric, Tensor? mask=None",
        "lookup": "Tensor codes, Tensor bank, Tensor? weights, int reduce",
        "segment_sum": "Tensor src, Tensor codes, int num_codes, Tensor? weights",
    }
    for name, arguments in want.items():
        assert f"vecbank::{name}({arguments}" in str(op(name).default._schema)


@pytest.mark.parametrize("name", ["pack", "project_backward", "topk_backward", "lookup_dot"])
def test_ops_without_a_formula_raise_in_backward(name: str) -> None:
    row = samples()[name][0]
    row = tuple(a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in row)
    out = op(name)(*row)
    out = out[0] if isinstance(out, (tuple, list)) else out
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


def test_no_op_writes_to_its_inputs() -> None:
    """As the schemas promise: no alias marks (`repack_` alone has one), and the same bits and version afterwards."""
    for name, rows in samples().items():
        if name == "repack_":
            continue
        assert "!" not in str(op(name).default._schema)
        for row in rows:
            before = [(a, a.detach().clone(), a._version) for a in row if isinstance(a, Tensor)]
            op(name)(*row)
            assert all(same(a, saved) and a._version == version for a, saved, version in before)


def test_named_tuples_are_registered_for_export() -> None:
    for kind in (vecbank.TopK, vecbank.Nearest, vecbank.Quantized):
        leaves, spec = torch.utils._pytree.tree_flatten(kind(X, BANK))
        text = torch.utils._pytree.treespec_dumps(spec)
        assert torch.utils._pytree.tree_unflatten(leaves, torch.utils._pytree.treespec_loads(text))[1] is BANK
