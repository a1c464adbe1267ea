"""The verbs of training never look at numbers on a GPU, and never hold an N x M matrix, forwards or backwards.

Meta tensors stand in for tensors on a GPU: they have no numbers, so an operation that needs one raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vecbank

N, M, D, K = 3000, 2500, 8, 5
Call = Callable[[], Any]


def far(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    t = torch.empty(shape, dtype=dtype, device="meta")
    return t.requires_grad_() if dtype.is_floating_point else t


class Largest(TorchDispatchMode):
    """The most elements that a tensor has memory for, among those that operations make."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = (t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor))
        self.most = max(self.most, *held, 0)
        return out


def train(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Tensor, ...]:
    found = vecbank.quantize_train(far(N, D, dtype=dtype), far(M, D), "l2", **options)
    return found.quantized, found.loss


def batched() -> tuple[Tensor, ...]:
    found = vecbank.quantize_train(far(2, N // 2, D), far(2, M, D), "cosine")
    return found.quantized, found.loss


def cascade(**options: Any) -> tuple[Tensor, ...]:
    found = vecbank.residual.quantize(far(N, D), [far(M, D).detach() for _ in range(3)], "l2", **options)
    return found.quantized, found.losses


def encode(bias: bool = True, **options: Any) -> tuple[Tensor]:
    return (vecbank.sparse.encode(far(N, D), far(M, D), far(M) if bias else None, **{"k": K, **options}).values,)


CALLS: dict[str, Call] = {
    "quantize_train": train,
    "quantize_train of 16 bits": lambda: train(torch.bfloat16),
    "quantize_train with rows left out": lambda: train(valid=far(N, dtype=torch.bool)),
    "quantize_train batched": batched,
    "residual.quantize": cascade,
    "residual.quantize with rows left out": lambda: cascade(valid=far(N, dtype=torch.bool)),
    "residual.quantize by beam": lambda: cascade(beam=3),
    "sparse.encode": encode,
    "sparse.encode without bias": lambda: encode(bias=False),
    "sparse.encode of some latents": lambda: encode(allowed=far(M, dtype=torch.bool)),
    "sparse.encode with k of each row": lambda: encode(k=far(N, dtype=torch.int64), max_k=K),
    "sparse.encode_batch": lambda: (vecbank.sparse.encode_batch(far(N, D), far(M, D), far(M), K, max_k=2 * K).values,),
    "sparse.decode": lambda: (vecbank.sparse.decode(far(N, K), far(N, K, dtype=torch.int64), far(M, D)),),
    "topk": lambda: (vecbank.topk(far(N, D), far(M, D), K, "cosine").values,),
}


@pytest.mark.parametrize("name", CALLS)
def test_training_never_waits_for_a_device(name: str) -> None:
    with Largest() as made:
        sum(out.sum() for out in CALLS[name]()).backward()
    assert 0 < made.most < N * M, f"{name} makes a tensor of {made.most} elements"


def test_a_call_that_looks_is_found() -> None:
    """Without `max_k` the numbers of latents are looked at, as the docstring says: the stand-in for a GPU shows it."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        encode(k=far(N, dtype=torch.int64))


def test_a_matrix_of_all_scores_is_found() -> None:
    with Largest() as made:
        vecbank.project(far(N, D), far(M, D))
    assert made.most == N * M
