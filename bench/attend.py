"""Weighted sums and contrastive losses beside torch: `python -m bench.attend [--out FILE.json]`.

Every row times ours beside what is written today in one interleaved run, and counts the rows of its results that are
more than twice as far from float64 as those of the dense form in float32 are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import vecbank
from bench.selections import OURS, Row, options_of, peak_mib, run

TITLE = "Weighted sums and contrastive losses"
Call = Callable[[], Any]


def _gauss(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _worse(got: Tensor, same: Tensor, truth: Tensor) -> int:
    """Rows that are more than twice as far from the truth as the worst row of the dense form, and some last bits."""
    error, other = ((t.double() - truth).abs().amax(-1) for t in (got, same))
    return int((error > 2 * other.max() + 4e-7 * truth.abs().max()).sum())


def _peaks(calls: dict[str, Call]) -> str:
    return "peak MiB: " + ", ".join(f"{name} {peak_mib(call):,.0f}" for name, call in calls.items())


def _dense(q: Tensor, bank: Tensor, values: Tensor, beta: float) -> Tensor:
    return (beta * q @ bank.T).softmax(-1) @ values


def _sdpa(q: Tensor, bank: Tensor, values: Tensor) -> Tensor:
    return scaled_dot_product_attention(q[None, None], bank[None, None], values[None, None])[0, 0]


def forward(n: int, m: int, d: int, target: float) -> Row:
    q, bank, values = _gauss(n, d, 1), _gauss(m, d, 2), _gauss(m, d, 3)
    beta, some = d**-0.5, slice(0, min(n, 64))

    def written() -> Tensor:
        return _dense(q, bank, values, beta)

    calls: dict[str, Call] = {
        OURS: lambda: vecbank.attend(q, bank, values, beta=beta),
        "torch, sdpa": lambda: _sdpa(q, bank, values),
        "torch, mm + softmax + mm": written,
    }
    return Row(
        f"attend {n:,} x {m:,}, d {d}, forward",
        "torch, sdpa",
        target,
        calls,
        lambda: _worse(
            vecbank.attend(q, bank, values, beta=beta)[some],
            _dense(q[some], bank, values, beta),
            _dense(q[some].double(), bank.double(), values.double(), beta),
        ),
        note=_peaks(calls),
    )


def backward(n: int, m: int, d: int) -> Row:
    q, bank, values = (_gauss(rows, d, i).requires_grad_() for i, rows in enumerate((n, m, m)))
    slope, beta = _gauss(n, d, 4), d**-0.5

    def step(form: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(form(q, bank, values), (q, bank, values), slope)

    def ours(*given: Tensor) -> Tensor:
        return vecbank.attend(*given, beta=beta)  # type: ignore[misc]

    def wrong() -> int:
        own = [t.detach()[:4096].clone().requires_grad_() for t in (q[:64], bank, values)]
        forms = (ours, lambda *t: _dense(*t, beta))
        got, same = (torch.autograd.grad(form(*own), own, slope[:64]) for form in forms)
        wide = [t.detach().double().requires_grad_() for t in own]
        truth = torch.autograd.grad(_dense(*wide, beta), wide, slope[:64].double())
        return sum(_worse(*three) for three in zip(got, same, truth, strict=True))

    calls = {OURS: step(ours), "torch, sdpa": step(_sdpa)}
    return Row(
        f"attend {n:,} x {m:,}, d {d}, forward and backward",
        "torch, sdpa",
        1.0,
        calls,
        wrong,
        note=_peaks(calls),
    )


def best(n: int, m: int, d: int, k: int) -> Row:
    q, bank, values = _gauss(n, d, 1), _gauss(m, d, 2), _gauss(m, d, 3)
    beta, held = d**-0.5, vecbank.Bank(bank, "dot")

    def written(q: Tensor = q, bank: Tensor = bank, values: Tensor = values) -> Tensor:
        scores, indices = (q @ bank.T).topk(k)
        return ((beta * scores).softmax(-1).unsqueeze(1) @ values[indices]).squeeze(1)

    def blocks() -> Tensor:
        return torch.cat([written(part) for part in q.split(128)])

    calls: dict[str, Call] = {
        OURS: lambda: vecbank.attend(q, held, values, beta=beta, k=k),
        "a plain tensor": lambda: vecbank.attend(q, bank, values, beta=beta, k=k),
        "mm + topk + softmax + gather": written,
        "the same, 128 queries at a time": blocks,
    }
    some = slice(0, 64)
    return Row(
        f"attend {n:,} x {m:,}, d {d}, k {k}",
        "mm + topk + softmax + gather",
        0.5,
        calls,
        lambda: _worse(
            vecbank.attend(q, held, values, beta=beta, k=k)[some],
            written(q[some]),
            written(q[some].double(), bank.double(), values.double()),
        ),
        note=_peaks(calls),
    )


def sparsemax(n: int, m: int, d: int) -> Row:
    """The lookup of a dictionary: what is written today sorts all scores."""
    q, bank, values = _gauss(n, d, 1), _gauss(m, d, 2), _gauss(m, d, 3)
    beta = d**-0.5

    def written(q: Tensor = q, bank: Tensor = bank, values: Tensor = values) -> Tensor:
        z = beta * q @ bank.T
        ordered = z.sort(-1, descending=True).values
        sums = ordered.cumsum(-1) - 1
        count = (ordered * torch.arange(1, len(bank) + 1) > sums).sum(-1, keepdim=True)
        return (z - sums.gather(-1, count - 1) / count).clamp_min(0) @ values

    calls: dict[str, Call] = {
        OURS: lambda: vecbank.attend(q, bank, values, beta=beta, weight="sparsemax"),
        "mm + sort + mm": written,
    }
    some = slice(0, 64)
    return Row(
        f"attend {n:,} x {m:,}, d {d}, sparsemax",
        "mm + sort + mm",
        1.0,
        calls,
        lambda: _worse(
            vecbank.attend(q, bank, values, beta=beta, weight="sparsemax")[some],
            written(q[some]),
            written(q[some].double(), bank.double(), values.double()),
        ),
        {"mm + sort + mm": 3},
        note=_peaks(calls),
    )


def info_nce(n: int, d: int) -> Row:
    x, keys = (_gauss(n, d, i).requires_grad_() for i in (1, 2))
    temperature = 0.07

    def written(x: Tensor, keys: Tensor) -> Tensor:
        units = (torch.nn.functional.normalize(t, dim=-1) for t in (x, keys))
        scores = next(units) @ next(units).T / temperature
        return (scores.logsumexp(1) - scores.diagonal()).mean()

    def ours(x: Tensor, keys: Tensor) -> Tensor:
        return vecbank.losses.info_nce(x, keys, temperature=temperature)

    def wrong() -> int:
        got, same = (torch.autograd.grad(form(x, keys), (x, keys)) for form in (ours, written))
        wide = [t.detach().double().requires_grad_() for t in (x, keys)]
        truth = torch.autograd.grad(written(*wide), wide)
        return sum(_worse(*three) for three in zip(got, same, truth, strict=True))

    calls: dict[str, Call] = {
        OURS: lambda: torch.autograd.grad(ours(x, keys), (x, keys)),
        "torch, logsumexp of mm": lambda: torch.autograd.grad(written(x, keys), (x, keys)),
    }
    return Row(
        f"InfoNCE {n:,} x {n:,}, d {d}, forward and backward",
        "torch, logsumexp of mm",
        0.9,
        calls,
        wrong,
        note=_peaks(calls),
    )


def rows_of() -> Iterator[Row]:
    yield forward(1024, 65_536, 128, 0.9)
    yield backward(1024, 65_536, 128)
    yield best(1024, 65_536, 128, 32)
    yield info_nce(4096, 256)
    yield forward(16_384, 512, 64, 1.0)
    yield forward(64, 65_536, 128, 1.0)
    yield forward(1, 65_536, 128, 1.0)
    yield backward(16_384, 512, 64)
    yield sparsemax(1024, 8192, 64)


def main() -> None:
    run("attend", TITLE, rows_of(), 9, options_of("attend", __doc__ or "", budget=8.0).parse_args())


if __name__ == "__main__":
    main()
