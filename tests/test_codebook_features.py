"""CodebookFeatures: the definition, codes disabled and forced, gradients, and a snapped network on digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor, nn

from vecbank import nearest, reference
from vecbank.nn.codebook_features import CodebookFeatures

pytestmark = pytest.mark.usefixtures("one_thread")


def made(*sizes: int, **options: Any) -> CodebookFeatures:
    return CodebookFeatures(*sizes, generator=seeded(), **options).double()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_definition(heads: int, metric: str, reduce: str) -> None:
    module = made(12, 20, 4, heads=heads, metric=metric, reduce=reduce)
    h = gauss(2, 7, 12, dtype=torch.float64)
    out = module(h)
    for i, part in enumerate(h.chunk(heads, -1)):
        want = reference.topk(part, module.codebook[i].detach(), 4, metric).indices
        got = out.codes if heads == 1 else out.codes[..., i, :]
        assert torch.equal(got, want)
        rows = getattr(module.codebook[i][want], reduce)(-2)
        torch.testing.assert_close(out.features.chunk(heads, -1)[i], rows)
    torch.testing.assert_close(module.decode(out.codes), out.features)
    torch.testing.assert_close(out.loss, (out.features - h).square().mean())


def test_gradients() -> None:
    probe = gauss(9, 12, dtype=torch.float64, seed=4)
    for task in (True, False):
        module = made(12, 20, 3, heads=2, task_gradient=task, codebook_weight=0.5, commitment_weight=0.25)
        h = gauss(9, 12, dtype=torch.float64).requires_grad_()
        out = module(h)
        ((out.features * probe).sum() + out.loss).backward()
        rest = out.features.detach() - h.detach()
        torch.testing.assert_close(h.grad, probe - 0.25 * 2 * rest / rest.numel())
        pull = 0.5 * 2 * rest / rest.numel() + (probe if task else 0)
        want = torch.zeros_like(module.codebook)
        for i, part in enumerate(pull.chunk(2, -1)):
            for j in range(3):
                want[i].index_add_(0, out.codes[:, i, j], part / 3)
        torch.testing.assert_close(module.codebook.grad, want)


def test_features_are_the_codes_bit_for_bit() -> None:
    module = CodebookFeatures(8, 10, 1, generator=seeded())
    out = module(1e6 * gauss(20, 8))
    assert torch.equal(out.features, module.codebook[0][out.codes[:, 0]])


@pytest.mark.parametrize("heads", [1, 2])
def test_disabled_codes_are_never_used(heads: int) -> None:
    module = made(8, 12, 3, heads=heads)
    h = gauss(200, 8, dtype=torch.float64)
    gone = torch.tensor([0, 5, 7])
    module.disable_(gone, head=heads - 1)
    codes = module(h).codes.view(200, heads, 3)
    assert not torch.isin(codes[:, -1], gone).any()
    allowed = torch.ones(12, dtype=torch.bool)
    allowed[gone] = False
    want = reference.topk(h.chunk(heads, -1)[-1], module.codebook[-1].detach(), 3, "cosine", allowed).indices
    assert torch.equal(codes[:, -1], want)
    # the state says so too
    other = made(8, 12, 3, heads=heads)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(h).codes, module(h).codes)
    # and so does whatever else writes into it: torch's broadcast of buffers, another tensor in its place
    for write in (
        lambda m: m.enabled.copy_(module.enabled),
        lambda m: setattr(m, "enabled", module.enabled.clone()),
        lambda m: setattr(m.enabled, "data", module.enabled.clone()),
    ):
        other = made(8, 12, 3, heads=heads)
        other(h)
        write(other)
        assert torch.equal(other(h).codes, module(h).codes)
    module.enable_(5, head=heads - 1)
    assert torch.isin(module(h).codes.view(200, heads, 3)[:, -1], torch.tensor(5)).any()
    module.enable_()
    assert torch.equal(module(h).codes, made(8, 12, 3, heads=heads)(h).codes)


def test_with_fewer_codes_than_k_left() -> None:
    module = made(8, 4, 3).disable_(torch.tensor([0, 1, 2]))
    out = module(gauss(5, 8, dtype=torch.float64))
    assert out.codes.tolist() == [[3, -1, -1]] * 5
    assert torch.equal(out.features, module.codebook[0, 3].expand(5, 8))


def test_forced_codes_are_always_used() -> None:
    module = made(8, 12, 3)
    h = gauss(50, 8, dtype=torch.float64)
    free = module(h).codes
    out = module(h, force=torch.tensor([4, 9]))
    assert torch.equal(out.codes[:, :2], torch.tensor([4, 9]).expand(50, 2))
    for row, before in zip(out.codes.tolist(), free.tolist(), strict=True):
        assert len(set(row)) == 3
        assert row[2] == next(c for c in before if c not in (4, 9))
    # per input, with -1 for none
    each = torch.full((50, 1), -1)
    each[10] = 7
    out = module(h, force=each)
    assert torch.equal(out.codes[torch.arange(50) != 10], free[torch.arange(50) != 10])
    assert out.codes[10, 0] == 7
    # twice the same is once; disabled is stronger
    assert all(len(set(row)) == 3 for row in module(h, force=torch.tensor([4, 4])).codes.tolist())
    module.disable_(4)
    assert not (module(h, force=torch.tensor([4])).codes == 4).any()
    # nothing to force is no force
    assert torch.equal(module(h, force=torch.zeros(0, dtype=torch.int64)).codes, module(h).codes)


def test_forced_codes_of_each_head() -> None:
    module = made(8, 12, 2, heads=2)
    h = gauss(6, 5, 8, dtype=torch.float64)
    out = module(h, force=torch.tensor([[3], [-1]]))
    assert (out.codes[..., 0, 0] == 3).all()
    assert torch.equal(out.codes[..., 1, :], module(h).codes[..., 1, :])


def test_usage_and_replacement() -> None:
    module = made(8, 30, 2, heads=2)
    h = gauss(40, 8, dtype=torch.float64)
    codes = module(h).codes
    want = torch.stack([torch.bincount(codes[:, i].flatten(), minlength=30) for i in range(2)])
    assert torch.equal(module.counts, want) and module.inputs == 40
    torch.testing.assert_close(module.frequency, want / 40)
    share = want.double() / 80
    torch.testing.assert_close(module.perplexity.double(), torch.special.entr(share).sum(1).exp(), rtol=1e-5, atol=0)
    before = module.codebook.detach().clone()
    replaced = module.replace_rare_(h, 2, generator=seeded())
    assert torch.equal(replaced, want < 2) and module.inputs == 0
    assert torch.equal(module.codebook[~replaced], before[~replaced])
    for i, part in enumerate(h.chunk(2, -1)):
        new = module.codebook[i][replaced[i]]
        assert (nearest(new.detach(), part).values == 0).all()
    module.eval()(h)
    assert module.inputs == 0


def test_k_means_start() -> None:
    centroids = 3 * gauss(6, 10, dtype=torch.float64)
    samples = centroids[torch.arange(600) % 6] + 0.01 * gauss(600, 10, dtype=torch.float64)
    module = made(10, 6, 1).fit_(samples, generator=seeded())
    assert torch.cdist(centroids, module.codebook[0]).min(1).values.max() < 0.05
    assert module(samples).loss < 0.001


def test_digits_network_with_a_snapped_hidden_layer() -> None:
    """Accuracy hardly falls; forcing another class's code changes the prediction to that class."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.from_numpy(digits.data).float() / 16
    y = torch.from_numpy(digits.target).long()
    test = torch.arange(len(y)) % 4 == 0
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(64, 48), nn.ReLU()), nn.Linear(48, 10)
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(150):
        loss = nn.functional.cross_entropy(head(encoder(x[~test])), y[~test])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def accuracy(f: Callable[[Tensor], Tensor]) -> float:
        return float((head(f(encoder(x[test]))).argmax(1) == y[test]).float().mean())

    with torch.no_grad():
        full = accuracy(lambda h: h)
        hidden = encoder(x[~test])
        for codes, k, least in ((64, 1, 0.95), (256, 1, 0.95), (256, 8, 0.92)):
            module = CodebookFeatures(48, codes, k).fit_(hidden, generator=seeded())
            assert accuracy(lambda h, module=module: module(h).features) > least
        assert full > 0.96
        module = CodebookFeatures(48, 64, 1).fit_(hidden, generator=seeded())
        said = head(module.codebook[0]).argmax(1)
        for digit in range(10):
            code = (said == digit).nonzero()[0]
            assert (head(module(encoder(x[test]), force=code).features).argmax(1) == digit).all()
            module.disable_(said == digit)
            assert not (head(module(encoder(x[test])).features).argmax(1) == digit).any()
            module.enable_()


def test_compiles_whole() -> None:
    plain = CodebookFeatures(8, 12, 3, heads=2, generator=seeded()).disable_(4)
    other = copy.deepcopy(plain)
    whole = torch.compile(other, fullgraph=True, backend="aot_eager")
    h, force = gauss(10, 8), torch.tensor([[1], [2]])
    for arguments in ((h,), (h, force)):
        a, b = plain(*arguments), whole(*arguments)
        torch.testing.assert_close(tuple(a), tuple(b))
        (a.features.sum() + a.loss).backward()
        (b.features.sum() + b.loss).backward()
    torch.testing.assert_close(plain.codebook.grad, other.codebook.grad)
    assert torch.equal(plain.counts, other.counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_read_exactly(dtype: torch.dtype) -> None:
    module = CodebookFeatures(8, 12, 3, generator=seeded())
    h = gauss(20, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(h)
    assert torch.equal(out.features, module(h.float()).features) and out.features.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CodebookFeatures(8, 4, 5), ValueError, "k must lie between 1 and num_codes = 4"),
        (lambda: CodebookFeatures(8, 4, heads=3), ValueError, "dim must be a multiple of heads"),
        (lambda: CodebookFeatures(8, 4, metric="hamming"), ValueError, "metric must be one of"),
        (lambda: CodebookFeatures(8, 4, reduce="max"), ValueError, "reduce must be"),
        (lambda: CodebookFeatures(8, 4)(torch.zeros(2, 7)), ValueError, "h must have shape"),
        (lambda: CodebookFeatures(8, 4)(torch.zeros(2, 8), torch.zeros(1)), TypeError, "force must be integers"),
        (
            lambda: CodebookFeatures(8, 4)(torch.zeros(2, 8), torch.tensor([1, 2])),
            ValueError,
            "force must name at most",
        ),
        (
            lambda: CodebookFeatures(8, 4)(torch.zeros(2, 8), torch.ones(3, 1).long()),
            ValueError,
            "force must broadcast",
        ),
        (
            lambda: CodebookFeatures(8, 4)(torch.zeros(2, 8), torch.tensor([4])),
            IndexError,
            "force must lie between -1 and 3",
        ),
    ],
)
def test_refuses_by_name(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
