"""Threads and processes: several callers at once, the GIL, forked workers, torch's thread count."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import assert_same, gauss
from torch.utils.data import DataLoader, Dataset

import vecbank


@pytest.mark.parametrize("threads", [1, 2])
def test_several_threads_at_once(threads: int) -> None:
    torch.set_num_threads(threads)
    bank = {metric: vecbank.Bank(gauss(3000, 24), metric=metric) for metric in METRICS}
    codes = torch.randint(-1, 3000, (500,))

    def job(i: int) -> tuple[torch.Tensor, ...]:
        torch.set_num_threads(threads)  # torch keeps this per thread
        x, own = gauss(60, 24, seed=i), bank[METRICS[i % len(METRICS)]]
        summed = vecbank.segment_sum(gauss(500, 24, seed=i), codes, 3000)
        return (*own.topk(x, 12), *own.nearest(x), *vecbank.quantize(x, own.vectors), own.project(x), summed)

    want = [job(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, expect in zip(pool.map(job, range(8)), want, strict=True):
                assert_same(got, expect)


def test_gradients_from_several_threads() -> None:
    bank = gauss(300, 16)

    def job(i: int) -> torch.Tensor:
        x = gauss(20, 16, seed=i).requires_grad_()
        vecbank.topk(x, bank, 5, "l2").values.sum().backward()
        return x.grad

    want = [job(i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for got, expect in zip(pool.map(job, range(6)), want, strict=True):
            assert_same(got, expect)


@pytest.mark.parametrize("name", ["project", "topk", "nearest", "quantize"])
def test_the_gil_is_released(name: str) -> None:
    """While one long call runs, another Python thread goes on: it would get no turn with the GIL held."""
    torch.set_num_threads(1)
    x, bank = gauss(3000, 128), gauss(12000, 128)
    calls: dict[str, Any] = {
        "project": lambda: vecbank.project(x, bank),
        "topk": lambda: vecbank.topk(x, bank, 5),
        "nearest": lambda: vecbank.nearest(x, bank),
        "quantize": lambda: vecbank.quantize(x, bank),
    }
    ticks, stop, started = 0, threading.Event(), threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            time.sleep(0.001)
            ticks += 1
            started.set()

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    before = ticks
    calls[name]()
    during = ticks - before
    stop.set()
    thread.join()
    assert during >= 5


class Neighbours(Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.bank = vecbank.Bank(gauss(500, 8), metric="l2")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.bank.topk(gauss(30, 8, seed=i), 4).indices


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_inside_dataloader_workers(start: str) -> None:
    data = Neighbours()
    torch.set_num_threads(2)
    want = torch.stack([data[i] for i in range(len(data))])  # the parent has started its threads by now
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=start, timeout=120)
    assert torch.equal(torch.cat(list(loader)), want)


SCRIPT = """
import os, torch, vecbank
torch.set_num_threads({threads})
x, bank = torch.randn(400, 32), torch.randn(6000, 32)
torch.mm(torch.randn(900, 900), torch.randn(900, 900))  # torch's own pool, if it makes one
before = len(os.listdir("/proc/self/task"))
prepared = vecbank.Bank(bank)
for isa in vecbank._C.available_isas():
    vecbank._C.set_isa(isa)
    prepared.topk(x, 10), prepared.nearest(x[:1]), prepared.project(x), prepared.quantize(x)
    vecbank.segment_sum(x, torch.zeros(400, dtype=torch.int64), 3)
after = len(os.listdir("/proc/self/task"))
maps = {{line.split()[-1].rsplit("/", 1)[-1] for line in open("/proc/self/maps") if "/" in line}}
print(before, after, sorted(m for m in maps if "gomp" in m or "iomp" in m or "libomp" in m))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_set_num_threads_is_obeyed(threads: int) -> None:
    """No thread of our own, and no second OpenMP beside torch's."""
    script = SCRIPT.format(threads=threads)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after, *runtimes = done.stdout.split(maxsplit=2)
    assert int(after) <= max(int(before), threads) if threads == 1 else int(after) <= int(before) + threads - 1
    plain = "import torch\ntorch.mm(torch.randn(900, 900), torch.randn(900, 900))\n"
    plain += SCRIPT[SCRIPT.index("maps =") :].format().replace("before, after, ", "0, 0, ")
    alone = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert runtimes == alone.stdout.split(maxsplit=2)[2:]


def test_thread_count_is_left_alone() -> None:
    torch.set_num_threads(3)
    vecbank.topk(gauss(100, 8), gauss(5000, 8), 5)
    assert torch.get_num_threads() == 3


def test_denormals_setting_is_left_alone_and_not_obeyed() -> None:
    """A caller that flushes denormals gets the same bits, and still flushes them afterwards."""
    x, bank = gauss(9, 6) * 1e-40, gauss(200, 6) * 1e-40
    double = gauss(9, 6, dtype=torch.float64) * 1e-200, gauss(200, 6, dtype=torch.float64) * 1e-120
    want = [(*vecbank.topk(x, bank, 9, m), *vecbank.topk(*double, 9, m)) for m in METRICS]
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no such setting")
    try:
        got = [(*vecbank.topk(x, bank, 9, m), *vecbank.topk(*double, 9, m)) for m in METRICS]
        flushed = (torch.tensor([1e-40]) * 1.0).item()
    finally:
        torch.set_flush_denormal(False)
    for g, w in zip(got, want, strict=True):
        assert_same(g, w)
    assert flushed == 0.0


FORKED = """
import os, signal, time, torch, vecbank
torch.set_num_threads(2)
x, bank = torch.randn(2000, 64), torch.randn(4000, 64)
vecbank.nearest(x, bank)  # starts the parent's threads, which no child has
{parent}
child = os.fork()
if child == 0:
    {child}
    os._exit(0 if vecbank.nearest(x, bank).indices.shape == (2000,) else 1)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        os._exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, signal.SIGKILL)
os._exit(2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("where", ["parent", "child"])
def test_one_thread_is_the_remedy_for_a_fork(where: str) -> None:
    """As docs/deployment.md says; without it the child waits for ever, in torch's own ops too."""
    lines = {"parent": "pass", "child": "pass", where: "torch.set_num_threads(1)"}
    done = subprocess.run([sys.executable, "-c", FORKED.format(**lines)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr)
