"""A pack belongs to one tensor, its storage and its version; and which metric a Bank that names none searches by."""

from __future__ import annotations

import copy
import datetime
import io
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import METRICS
from helpers import assert_same, gauss
from test_bank import D, M, assert_fresh, other
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

import vecbank
from vecbank import Bank, reference

X = gauss(11, D, seed=3)


class Doubled(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return 2 * t


def two_banks(bank: Bank) -> None:
    Bank(bank.vectors, "dot").update_(torch.arange(M), other())


def averaged(bank: Bank) -> Bank:
    """What an exponential average makes of a Bank: another one, written into by torch."""
    average = torch.optim.swa_utils.AveragedModel(bank, use_buffers=True)
    for seed in (1, 2):
        bank.vectors.copy_(gauss(M, D, seed=seed))
        average.update_parameters(bank)
    inner: Bank = average.module
    return inner


def assigned(bank: Bank) -> None:
    bank.vectors = other()


def given_data(bank: Bank) -> None:
    bank.vectors.data = other()


def reloaded(bank: Bank) -> None:
    """Its memory given back, and other vectors put where it was, as often as it takes for the address to be one."""
    for seed in range(20):
        before = bank.vectors.data_ptr()
        bank.vectors.data = torch.empty(0)
        bank.vectors.data = gauss(M, D, seed=seed)
        assert_fresh(bank, bank.metric or "", f"reloaded at {bank.vectors.data_ptr()}, before at {before}")


def cast(bank: Bank) -> None:
    bank.vectors.data = bank.vectors.data.double()


def an_alias(bank: Bank) -> None:
    bank.vectors.neg_()
    bank.vectors = bank.vectors.data  # its version begins at 0 again


def an_array(bank: Bank) -> None:
    array = other().numpy()
    bank.vectors = torch.from_numpy(array)
    bank.topk(X, 2)
    array *= -1


def a_loaded_array(bank: Bank) -> None:
    array = other().numpy()
    bank.load_state_dict({"vectors": torch.from_numpy(array)}, assign=True)
    array *= -1


def square(bank: Bank) -> None:
    """The same memory and shape, read in another order."""
    bank.vectors = gauss(D, D)
    bank.topk(X, 2)
    bank.vectors.data = bank.vectors.data.t()


CHANGES: dict[str, Callable[[Bank], object]] = {
    "copy_": lambda bank: bank.vectors.copy_(other()),
    "one row": lambda bank: bank.vectors[3].fill_(7),
    "through a view": lambda bank: bank.vectors.view(-1)[5:50].neg_(),
    "detached": lambda bank: bank.vectors.detach().mul_(-1),
    "assigned": assigned,
    "data assigned": given_data,
    "fewer rows": lambda bank: setattr(bank.vectors, "data", bank.vectors.data[:9]),
    "cast": cast,
    "reloaded": reloaded,
    "an alias": an_alias,
    "an array": an_array,
    "a loaded array": a_loaded_array,
    "its own rows": lambda bank: bank.update_(torch.arange(M - 1), bank.vectors[1:]) and None,
    "transposed in place": square,
    "two Banks on one tensor": two_banks,
    "averaged": averaged,
    "parametrized": lambda bank: parametrize.register_parametrization(bank, "vectors", Doubled()),
    "parametrized and back": lambda bank: parametrize.remove_parametrizations(
        parametrize.register_parametrization(bank, "vectors", Doubled()), "vectors"
    ),
    "repack after a write that torch does not count": lambda bank: (bank.vectors.data.neg_(), bank.repack()),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_pack_belongs_to_a_tensor_and_a_version(change: str, metric: str) -> None:
    bank = Bank(gauss(M, D), metric)
    bank.topk(X, 3)
    with torch.no_grad():
        changed = CHANGES[change](bank)
    assert_fresh(changed if isinstance(changed, Bank) else bank, metric, change)


def test_bias_is_part_of_what_the_pack_was_made_of() -> None:
    rows, bias = gauss(M, D), gauss(M)
    bank = Bank(rows, "dot", bias=bias)
    bank.topk(X, 3)
    bias.add_(100 * gauss(M, seed=9))
    assert_same(tuple(bank.topk(X, 3)), tuple(vecbank.topk(X, rows, 3, bias=bias)))
    bank.bias = gauss(M, seed=4)
    assert_same(tuple(bank.topk(X, 3)), tuple(vecbank.topk(X, rows, 3, bias=gauss(M, seed=4))))


@pytest.mark.parametrize("metric", METRICS)
def test_functional_call(metric: str) -> None:
    bank = Bank(gauss(M, D), metric)
    holder = nn.Module()
    holder.bank = bank
    holder.forward = lambda x: bank.topk(x, 4)  # type: ignore[method-assign]
    for seed in (0, 5):
        rows = gauss(M, D, seed=seed) - seed
        got = torch.func.functional_call(holder, {"bank.vectors": rows}, (X,))
        assert_same(tuple(got), tuple(reference.topk(X, rows, 4, metric)))
        assert_fresh(bank, metric, "afterwards")
    learned = gauss(M, D).requires_grad_()
    torch.func.functional_call(holder, {"bank.vectors": learned}, (X,)).values.sum().backward()
    assert learned.grad is not None and bool(learned.grad.any())
    stack = torch.stack([gauss(M, D, seed=s) for s in (1, 2)])
    each = torch.func.vmap(lambda rows: torch.func.functional_call(holder, {"bank.vectors": rows}, (X,)).indices)(stack)
    assert torch.equal(each, torch.stack([reference.topk(X, rows, 4, metric).indices for rows in stack]))
    assert_fresh(bank, metric, "after vmap")


@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_memory_of_numpy_is_copied(layout: str) -> None:
    """torch counts no writes through an array, so a Bank may not look at its memory; nor may `update_` write there."""
    array = gauss(2 * M, D).numpy()
    array = {"F": np.asfortranarray(array[:M]), "strided": array[::2]}.get(layout, array[:M])
    if layout == "read-only":
        array.flags.writeable = False
    before = array.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch on arrays that it cannot write to
        bank = Bank(torch.from_numpy(array), "l2")
    bank.update_(torch.tensor([1]), gauss(1, D))
    assert np.array_equal(array, before)
    bank.update_(torch.tensor([1]), torch.from_numpy(before[1:2].copy()))
    if layout != "read-only":
        array[:] = 0
    assert torch.equal(bank.vectors, torch.from_numpy(before))
    assert_fresh(bank, "l2")


def test_a_tensor_of_torch_is_shared() -> None:
    rows = gauss(M, D)
    assert Bank(rows).vectors.data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("metric", METRICS)
def test_inference_mode(metric: str) -> None:
    """Tensors made in inference mode have no version (reading it raises), so the Bank makes copies that have one."""
    with torch.inference_mode():
        rows = gauss(M, D)
        assert rows.is_inference()
        bank = Bank(rows, metric)
        assert_fresh(bank, metric, "made inside")
        rows.zero_()
        assert_fresh(bank, metric, "its own copy")
        assert bool(bank.vectors.any())
        bank.vectors.copy_(other())
        assert_fresh(bank, metric, "written inside")
        bank.update_(torch.arange(3), gauss(3, D))
        assert_fresh(bank, metric, "updated inside")
        bank.double().float()
        assert_fresh(bank, metric, "cast inside")
        bank.vectors.neg_()
        assert_fresh(bank, metric, "written after the cast")
        bank.vectors = gauss(M, D, seed=8)
        assert_fresh(bank, metric, "assigned inside: packed at each call")
        bank.vectors.neg_()
        assert_fresh(bank, metric, "and so never stale")
        twin = copy.deepcopy(bank)
    assert_fresh(bank, metric, "outside")
    assert_fresh(twin, metric, "copied inside")
    loaded = Bank(torch.zeros(M, D), metric)
    with torch.inference_mode():
        loaded.load_state_dict({"vectors": other()}, assign=True)
    loaded.vectors.add_(1)
    assert_fresh(loaded, metric, "loaded inside")


class Searcher(nn.Module):
    def __init__(self, metric: str) -> None:
        super().__init__()
        self.bank = Bank(gauss(M, D), metric)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes = self.bank.quantize(x).codes
        return (
            *self.bank.topk(x, 4),
            codes,
            vecbank.residual_quantize(x, [self.bank, self.bank], self.bank.metric).codes,
        )


def assert_searches(call: Callable[[Tensor], Any], rows: Tensor, metric: str, note: str) -> None:
    want = reference.topk(X, rows, 4, metric)
    codes = reference.quantize(X, rows, metric).codes
    both = vecbank.residual_quantize(X, [rows.clone()] * 2, metric).codes
    assert_same(tuple(call(X)), (*want, codes, both), note)


@pytest.mark.parametrize("metric", METRICS)
def test_a_compiled_program_notices(metric: str) -> None:
    torch._dynamo.reset()  # each metric compiles anew, and the number of programs is limited
    module = Searcher(metric)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    bank = module.bank
    with torch.no_grad():
        assert_searches(compiled, bank.vectors, metric, "at first")
        bank.vectors.copy_(other())
        assert_searches(compiled, bank.vectors, metric, "written into")
        bank.update_(torch.arange(5), gauss(5, D))
        assert_searches(compiled, bank.vectors, metric, "updated")
        bank.vectors = gauss(M, D, seed=6)
        assert_searches(compiled, bank.vectors, metric, "assigned")
        bank.repack()
        bank.vectors.neg_()
        bank.vectors = bank.vectors.data
        assert_searches(compiled, bank.vectors, metric, "an alias whose version begins again")


def test_a_compiled_program_uses_the_pack() -> None:
    """Seen by a write that torch does not count: a pack of the rows in another order misleads the screen."""
    bank = Bank(gauss(4000, D), "dot").prepare("search")
    compiled = torch.compile(lambda x: bank.topk(x, 4), fullgraph=True, backend="aot_eager")
    assert_same(tuple(compiled(X)), tuple(reference.topk(X, bank.vectors, 4, "dot")))
    bank.vectors.data.copy_(bank.vectors.flip(0))
    assert not torch.equal(compiled(X).indices, reference.topk(X, bank.vectors, 4, "dot").indices)
    bank.repack()
    assert_same(tuple(compiled(X)), tuple(reference.topk(X, bank.vectors, 4, "dot")))


def test_a_tracer_leaves_nothing_behind() -> None:
    bank = Bank(gauss(M, D), "dot")
    bank.vectors.mul_(2)
    make_fx(lambda x: bank.topk(x, 3).indices, tracing_mode="fake", _allow_non_fake_inputs=True)(X)
    assert_fresh(bank, "dot", "traced with fake tensors")
    bank.vectors.mul_(2)
    torch.func.jvp(lambda x: bank.topk(x, 3).values, (X,), (X,))
    assert_fresh(bank, "dot", "within a transform")


def test_a_write_inside_a_compiled_program() -> None:
    bank = Bank(gauss(M, D), "l2")

    def step(x: Tensor, rows: Tensor) -> Any:
        bank.vectors.copy_(rows)
        return bank.topk(x, 4)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        rows = gauss(M, D, seed=seed)
        assert_same(tuple(compiled(X, rows)), tuple(reference.topk(X, rows, 4, "l2")))
        assert_fresh(bank, "l2", "outside")


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_follows_its_state(strict: bool) -> None:
    module = Searcher("l2").eval()
    program = torch.export.export(module, (X,), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    assert not any(t.dtype == torch.uint8 for t in program.constants.values() if isinstance(t, Tensor)), "a pack inside"
    file.seek(0)
    for loaded in (program.module(), torch.export.load(file).module()):
        assert_searches(loaded, gauss(M, D), "l2", "as saved")
        loaded.load_state_dict({"bank.vectors": other()})
        assert_searches(loaded, other(), "l2", "another state")


def test_the_metric_is_read_only() -> None:
    bank = Bank(gauss(M, D), "dot")
    with pytest.raises(AttributeError, match="fixed at 'dot'.*Bank\\(bank.vectors, 'l2'\\)"):
        bank.metric = "l2"
    assert bank.metric == "dot"
    assert_fresh(bank, "dot")


VERBS: dict[str, tuple[str, Callable[..., Any]]] = {
    "project": ("cosine", vecbank.project),
    "topk": ("dot", lambda x, bank, metric=None: vecbank.topk(x, bank, 5, metric)),
    "nearest": ("l2", vecbank.nearest),
    "quantize": ("l2", vecbank.quantize),
    "quantize_train": ("l2", vecbank.quantize_train),
    "residual_quantize": ("l2", lambda x, bank, metric=None: vecbank.residual_quantize(x, [bank, bank], metric)),
}


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@pytest.mark.filterwarnings("ignore:.*metric.*:FutureWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_one_rule_for_the_metric(verb: str) -> None:
    """Named in the call, else by the Bank, else the verb's own: for tensors and Banks alike."""
    default, call = VERBS[verb]
    rows, every = gauss(M, D) + 0.3, Bank(gauss(M, D) + 0.3)
    assert every.metric is None
    assert_same(as_tuple(call(X, rows)), as_tuple(call(X, rows, default)), "tensor")
    for _ in range(2):
        assert_same(as_tuple(call(X, every)), as_tuple(call(X, Bank(rows, default))), "Bank without a metric")
    for named in METRICS:
        bank, want = Bank(rows, named), as_tuple(call(X, rows, named))
        if verb != "project":  # a tolerance there, and the bank's own frame
            assert_same(as_tuple(call(X, bank)), want, f"Bank for {named}")
        assert_same(as_tuple(call(X, bank)), as_tuple(call(X, bank, named)), f"Bank for {named}, named again")
        method = getattr(bank, verb, None)
        for asked in METRICS:
            if method is not None:
                more = {"k": 5} if verb == "topk" else {}
                assert_same(
                    as_tuple(method(X, **more, metric=asked)), as_tuple(call(X, bank, asked)), f"method, {asked}"
                )
            if verb != "project":
                assert_same(as_tuple(call(X, bank, asked)), as_tuple(call(X, rows, asked)), f"{asked} of {named}")
        assert bank.metric == named


def test_a_change_of_results_is_announced_once() -> None:
    def said(call: Callable[[], Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
        assert all(w.category is FutureWarning and w.filename == __file__ for w in found)
        return [str(w.message) for w in found]

    rows = gauss(M, D)
    bank = Bank(rows)
    assert not said(lambda: bank.project(X)), "cosine, as before"
    (first,) = said(lambda: bank.topk(X, 3))
    assert 'topk scores by "dot"' in first and "name the metric" in first
    assert not said(lambda: bank.nearest(X)), "once a Bank"
    (first,) = said(lambda: vecbank.nearest(X, Bank(rows)))
    assert 'nearest scores by "l2"' in first
    assert not said(lambda: (Bank(rows, "l2").topk(X, 2), Bank(rows).topk, vecbank.topk(X, Bank(rows), 2, "l2")))
    assert not said(lambda: vecbank.residual_quantize(X, [Bank(rows)])), "l2, as before"
    (first,) = said(lambda: vecbank.residual_quantize(X, [Bank(rows, "cosine")]))
    assert '"cosine", the metric of its Banks' in first
    with pytest.raises(ValueError, match="share a metric, got Banks for cosine, dot"):
        vecbank.residual_quantize(X, [Bank(rows, "cosine"), Bank(rows, "dot")])


def test_a_bank_without_a_metric_prepares_at_first_use() -> None:
    bank = Bank(gauss(M, D))
    assert "packed at first use" in repr(bank)
    bank.project(X)
    size = torch.ops.vecbank.pack(bank.vectors, METRICS.index("cosine")).numel()
    assert f"+ {size / 1024:.1f} KiB packed as float32" in repr(bank)
    assert Bank(gauss(M, D), bias=gauss(M)).metric == "dot"


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_row_named_twice_keeps_the_last(threads: int) -> None:
    torch.set_num_threads(threads)
    rows = torch.randint(M, (5000,), generator=torch.Generator().manual_seed(threads))
    vectors = gauss(5000, D)
    want = gauss(M, D)
    for row, vector in zip(rows.tolist(), vectors, strict=True):
        want[row] = vector
    bank = Bank(gauss(M, D), "l2").update_(rows, vectors)
    assert torch.equal(bank.vectors, want)
    assert_fresh(bank, "l2")


class Holder(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.bank, self.line = Bank(gauss(M, D, seed=rank), "cosine"), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.bank.topk(self.line(x), 4).values


def ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    module = Holder(rank)
    wrapped = nn.parallel.DistributedDataParallel(module)
    with torch.no_grad():
        torch.save((tuple(module.bank.topk(X, 4)), module.bank.vectors.clone()), f"{folder}/{rank}")
        wrapped(X)
    dist.barrier()
    del wrapped  # it waits for the group
    dist.destroy_process_group()


def test_buffers_that_ddp_broadcasts(tmp_path: Path) -> None:
    """Every rank searches the rows of rank 0, whatever its own seed gave it."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ranks, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]
    for rank in range(2):
        found, rows = torch.load(tmp_path / str(rank))
        assert torch.equal(rows, gauss(M, D, seed=0))
        assert_same(found, tuple(reference.topk(X, rows, 4, "cosine")), f"rank {rank}")
