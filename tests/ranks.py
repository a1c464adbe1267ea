"""One function in several gloo processes, and what each of them returns."""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 240  # for all of a world; a rank that waits for ever fails the test instead


def _meet(rank: int, world: int, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )


def _rank(work: Callable[..., Any], rank: int, world: int, folder: str, met: bool, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if met:
        _meet(rank, world, folder)
        found = work(rank, world, *args)
    else:
        found = work(rank, world, lambda: _meet(rank, world, folder), *args)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(work: Callable[..., Any], world: int, folder: Path, *args: Any, met: bool = True) -> list[Any]:
    """`work(rank, world, *args)` in every rank, its results by rank.

    met=False leaves the process group to it: `work(rank, world, meet, *args)` calls `meet()`.
    """
    context = multiprocessing.get_context("spawn")
    settings = [(work, rank, world, str(folder), met, args) for rank in range(world)]
    ranks = [context.Process(target=_rank, args=one) for one in settings]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
    hanging = [process for process in ranks if process.is_alive()]
    for process in hanging:
        process.terminate()
    assert not hanging, "a rank was still waiting"
    assert [process.exitcode for process in ranks] == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
