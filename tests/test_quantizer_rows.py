"""What every quantiser of the VectorQuantize family owes to odd rows, to its own codes, and to a resumed run."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from quantizer_cases import CODES, DIM, DRAWS, MODULES, adam, batch, first, tensors, train
from torch import Tensor, nn

import vecbank.nn as ours


def made(name: str, steps: int = 0) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name]()
    optimizer = adam(module)
    for step in range(steps):
        train(name, module, batch(name, step), optimizer)
    module.zero_grad()
    return module


def decode(module: Any, codes: Tensor) -> Tensor:
    if isinstance(module, ours.SimVQ):
        return module.indices_to_codes(codes)
    if isinstance(module, ours.ProductQuantizer):
        return module.decode(codes)
    return module.get_output_from_indices(codes)


def pickled(module: nn.Module) -> nn.Module:
    held = getattr(module, "in_place_codebook_optimizer", None)
    return copy.deepcopy(module) if held is not None else pickle.loads(pickle.dumps(module))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


# ---- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_codes_decode_to_what_forward_returned(name: str) -> None:
    """In evaluation, which moves nothing: so codes of a batch mean the same after the next one."""
    module = made(name, 3).eval()
    before = {key: value.clone() for key, value in tensors(module).items()}
    quantized, codes, *_ = module(batch(name, 7))
    module(3 * batch(name, 8) + 1)
    same(tensors(module), before)
    found = decode(module, codes)
    if first(name) and name.startswith(("rvq", "grouped")):  # these put features last, as the peer's do
        quantized = quantized.movedim(1, -1)
    torch.testing.assert_close(found, quantized, rtol=1e-5, atol=1e-5)
    if not name.startswith(("rvq", "grouped")):
        return
    *_, every = module(batch(name, 7), return_all_codes=True)
    again = module.get_codes_from_indices(codes)
    every = torch.stack(every) if isinstance(every, tuple) else every
    torch.testing.assert_close(every, again, rtol=0, atol=0)
    if "projected" not in name:
        whole = every.sum(0) if name.startswith("rvq") else torch.cat([*every.sum(1)], -1)
        torch.testing.assert_close(whole, quantized, rtol=1e-5, atol=1e-5)


INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("name", MODULES)
def test_codes_of_every_integer_dtype(name: str) -> None:
    module = made(name).eval()
    codes = module(batch(name, 0))[1]
    want = decode(module, codes)
    for dtype in INTEGERS:
        assert torch.equal(decode(module, codes.to(dtype)), want), dtype
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=r"^(indices|codes) must be integers, got"):
            decode(module, codes.to(dtype))


def test_scored_codes_of_every_integer_dtype() -> None:
    for name in ("vq, default", "vq, heads", "rvq, default", "rvq, implicit"):
        module = made(name).eval()
        codes = module(batch(name, 0))[1]
        want = module(batch(name, 0), indices=codes)[1]
        for dtype in INTEGERS:
            assert torch.equal(module(batch(name, 0), indices=codes.to(dtype))[1], want), (name, dtype)


# ---- rows ---------------------------------------------------------------------------------------------------------

BROKEN = 5


def spoiled(name: str, x: Tensor, value: float, features: slice = slice(None, 1)) -> Tensor:
    """x with `value` in some features of one row."""
    x = x.clone()
    (x[0, features, BROKEN] if first(name) else x[0, BROKEN, features]).fill_(value)
    return x


def without(name: str, x: Tensor) -> Tensor:
    keep = torch.arange(x.shape[2 if first(name) else 1]) != BROKEN
    return x[:, :, keep] if first(name) else x[:, keep]


def rows_of(name: str, t: Tensor) -> Tensor:
    """Codes with the positions on the first axis."""
    return t.movedim(2 if name.startswith("grouped") else 1, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_row_that_is_not_finite_moves_nothing(name: str, value: float) -> None:
    """In any of three steps, the first included: everything is as if the row had not been there."""
    torch.manual_seed(0)
    broken = made(name)
    clean, other = copy.deepcopy(broken), copy.deepcopy(broken)
    for step in range(3):
        x = batch(name, step)
        torch.manual_seed(step)
        out, grad = train(name, broken, spoiled(name, x, value))
        row = out[0][:, :, BROKEN] if first(name) else out[0][:, BROKEN]
        gone = grad[:, :, BROKEN] if first(name) else grad[:, BROKEN]
        assert bool(row.isnan().all()) and bool((gone == 0).all())
        assert bool((rows_of(name, out[1])[BROKEN] == -1).all())
        assert all(bool(t.isfinite().all()) for key, t in tensors(broken).items() if t.is_floating_point())
        torch.manual_seed(step)  # what the row holds besides does not matter
        again, other_grad = train(name, other, spoiled(name, x + 0, torch.nan, slice(None)))
        assert torch.equal(again[1], out[1]) and torch.equal(other_grad, grad)
        same(tensors(other), tensors(broken))
        if not any(draw in name for draw in DRAWS):
            want, want_grad = train(name, clean, without(name, x))
            torch.testing.assert_close(without(name, out[0]), want[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out[2], want[2], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(without(name, grad), want_grad, rtol=1e-3, atol=1e-5)
            same(tensors(broken), tensors(clean), 1e-4)
    broken.eval()
    x = batch(name, 9)
    quantized, codes, *_ = broken(spoiled(name, x, value))
    assert bool((rows_of(name, codes)[BROKEN] == -1).all())
    want = broken(without(name, x))
    torch.testing.assert_close(without(name, quantized), want[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vq, default", "vq, head codebooks", "rvq, default", "rvq, beam", "rvq, implicit"])
def test_a_row_that_is_not_finite_beside_a_mask(name: str) -> None:
    """Padding may hold anything; what is inside and not finite is left out as well."""
    module, clean = made(name), made(name)
    x, mask = batch(name, 1), torch.arange(24).unsqueeze(0) < 20
    bad = x.clone()
    bad[0, 22], bad[0, BROKEN] = torch.inf, torch.nan
    keep = mask.clone()
    keep[0, BROKEN] = False
    quantized, codes, loss = module(bad, mask=mask)[:3]
    want, want_codes, want_loss = clean(x, mask=keep)[:3]
    assert torch.equal(codes, want_codes) and bool(quantized[0, BROKEN].isnan().all())
    assert bool((quantized[0, 20:] == 0).all())
    torch.testing.assert_close(loss, want_loss)
    same(tensors(module), tensors(clean), 1e-6)


def test_scores_leave_out_rows_that_are_not_finite() -> None:
    for name in ("vq, default", "vq, head codebooks", "vq, cosine", "rvq, default", "rvq, implicit"):
        module = made(name).eval()
        x = batch(name, 0)
        codes = module(x)[1]
        broken = spoiled(name, x, torch.inf)
        found = module(broken, indices=codes)[1]
        keep = torch.arange(24) != BROKEN
        torch.testing.assert_close(found, module(x[:, keep], indices=codes[:, keep])[1])
    projections = ours.RandomProjectionQuantizer(dim=DIM, codebook_size=CODES, codebook_dim=4, num_codebooks=2)
    x = batch("", 0)
    codes = projections(x)
    for value in (torch.nan, torch.inf):
        broken = spoiled("", x, value)
        assert bool((projections(broken)[0, BROKEN] == -1).all())
        found = projections(broken, indices=codes)
        torch.testing.assert_close(found, projections(x[:, keep], indices=codes[:, keep]))


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_of_broken_rows_moves_nothing(name: str) -> None:
    """Nor does one without rows: averages do not fade, moments do not slide."""
    module = made(name, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for x in (torch.full_like(batch(name, 0), torch.nan), batch(name, 0, 0)):
        out, grad = train(name, module, x)
        assert bool((grad == 0).all()) and bool(out[2].isfinite().all())
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in grads)
    if "in place" not in name and "orthogonal" not in name:
        same(module.state_dict(), before)


@pytest.mark.parametrize("kind", ["one", "equal", "zero"])
@pytest.mark.parametrize("name", MODULES)
def test_one_row_and_equal_rows(name: str, kind: str) -> None:
    module = made(name)
    module.train()
    for step in range(4):
        x = batch(name, step, 1)
        if kind != "one":
            x = x.expand(-1, -1, 24, *x.shape[3:]) if first(name) else x.expand(-1, 24, -1)
            x = x * (kind == "equal")
        out, grad = train(name, module, x)
        scale = 100 * (1 + x.square().mean())
        for t in (out[0], out[2], grad, *tensors(module).values()):
            assert not t.is_floating_point() or bool(t.isfinite().all())
        assert bool((out[2].abs() <= scale).all())
    with torch.no_grad():
        quantized, _, loss = module.eval()(x)[:3]
    assert bool(quantized.isfinite().all()) and bool((loss.abs() <= scale).all())


# ---- runs that are taken up again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_resumed_run_is_the_run(name: str) -> None:
    module = made(name)
    optimizer = adam(module)
    for step in range(3):
        train(name, module, batch(name, step), optimizer)
    state, moments = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    torch.manual_seed(99)
    resumed = MODULES[name]()
    resumed.load_state_dict(state)
    again = adam(resumed)
    again.load_state_dict(moments)
    for step in range(3, 5):
        torch.manual_seed(step)
        out = train(name, module, batch(name, step), optimizer)
        torch.manual_seed(step)
        found = train(name, resumed, batch(name, step), again)
        assert all(torch.equal(a, b) for a, b in zip(out[0][:3], found[0][:3], strict=True))
    same(resumed.state_dict(), module.state_dict())


@pytest.mark.parametrize("name", MODULES)
def test_built_on_the_meta_device(name: str) -> None:
    source = made(name, 2)
    with torch.device("meta"):
        module = MODULES[name]()
    torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
    try:
        module.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    module.load_state_dict(source.state_dict())
    with torch.device("meta"):
        assigned = MODULES[name]()
    assigned.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    for each in (module, assigned, pickled(source)):
        torch.manual_seed(3)
        found = train(name, each, batch(name, 3))[0]
        torch.manual_seed(3)
        want = train(name, copy.deepcopy(source), batch(name, 3))[0]
        assert all(torch.equal(a, b) for a, b in zip(found[:3], want[:3], strict=True))
