"""Two gloo processes train every case on different data; what they end with must be the same bits.

The processes are started once for all cases. Parameters are shared at the start and gradients averaged, as
DistributedDataParallel does; buffers are left to the module.
"""

from __future__ import annotations

import datetime
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from net_core import Case, build, learn, make_input, state
from torch import Tensor, nn

WORLD, STEPS, WAIT = 2, 3, 15  # WAIT: seconds until a rank that is alone in a collective gives up


def _join(folder: str, rank: int, round_: int) -> Any:
    store: Any = torch._C._distributed_c10d.FileStore(f"{folder}/meet{round_}", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=WAIT))
    return store


def _share(module: nn.Module) -> None:
    """What DistributedDataParallel's constructor does."""
    for t in (*module.parameters(), *module.buffers()):
        whole = t.data.float() if t.dtype == torch.bool else t.data
        dist.broadcast(whole, 0)
        t.data.copy_(whole)


def _train(case: Case, rank: int) -> dict[str, Tensor]:
    module = build(case, seed=1)
    _share(module)
    torch.manual_seed(100 + rank)  # ranks draw different numbers
    parameters = [p for p in module.parameters() if p.requires_grad]
    for i in range(STEPS):
        module.zero_grad()
        shape = list(case.layout.shape(case.width))
        shape[0] += rank  # and see batches of different lengths
        x = make_input(case, 10 * i + rank, shape=tuple(shape))
        x = x if case.entry.ids else x.requires_grad_()
        goal = learn(case, case.entry.call(module, x))
        if goal is not None:
            goal.backward()
        for p in parameters:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad)
            with torch.no_grad():
                p.sub_(grad, alpha=0.02 / WORLD)
    return {name: t.clone() for name, t in state(module).items()}


def _work(rank: int, folder: str, cases: list[str]) -> None:
    from net_tables import find

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    round_ = 0
    store = _join(folder, rank, round_)
    found: dict[str, dict[str, Tensor] | str] = {}
    for i, text in enumerate(cases):
        try:
            found[text] = _train(find(text), rank)
            said = "well"
        except Exception as e:
            found[text] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            said = "ill"
        store.set(f"{i}/{rank}", said)
        others = [store.get(f"{i}/{r}").decode() for r in range(WORLD)]
        if "ill" in others:  # their collectives may no longer match: a new group for the next case
            dist.destroy_process_group()
            round_ += 1
            store = _join(folder, rank, round_)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(cases: list[str], folder: Path, seconds: float) -> dict[str, str]:
    """What is wrong with each case; nothing for those that are well."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_work, args=(rank, str(folder), cases)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * WORLD, f"the ranks ended with {codes}"
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(WORLD))
    return {text: problem for text in cases if (problem := _differ(first[text], second[text]))}


def _differ(one: dict[str, Tensor] | str, two: dict[str, Tensor] | str) -> str:
    if isinstance(one, str) or isinstance(two, str):
        return "; ".join(f"rank {i}: {r}" for i, r in enumerate((one, two)) if isinstance(r, str))
    for name, a in one.items():
        b = two[name]
        if not bool(((a == b) | ((a != a) & (b != b))).all()):
            gap = float((a.double() - b.double()).abs().max())
            return f"{name} of the ranks is apart by {gap:.3g}"
    return ""
