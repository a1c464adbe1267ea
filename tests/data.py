"""The kinds of data the table draws from: plain ones, and those that break a careless kernel."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = (
    "ints",  # small integers: every sum is exact, many ties
    "gauss",
    "ties",  # few distinct rows, queries among them
    "sparse",  # mostly zeros, some of them negative
    "offset",  # 1000 +- 0.01: cancellation
    "near",  # rows a few units in the last place apart
    "cancel",  # large terms that cancel in the product
    "tiny",  # denormal
    "small",  # products that underflow
    "huge",  # squares that overflow
    "wide",  # magnitudes over the whole range
    "outlier",  # one enormous row
    "nonfinite",  # NaN and infinity in queries and rows
    "same",  # all rows equal
    "zeros",  # zero rows, zero queries, norms around 1e-8
    "ascending",  # best row last: the threshold moves with every row
    "descending",
    "clustered",
    "shifted",  # mean 1: nothing cancels in a sum
    "level",  # rows far apart whose scores agree to the last bits: only a true bound keeps the right ones
    "abyss",  # rows that underflow beside two opposite enormous ones
    "faint",  # products that underflow one by one, and would not together
    "swamped",  # every step of a float32 sum errs by half a unit, for some rows up, for others down
)


def fill(
    kind: str,
    n: int,
    m: int,
    d: int,
    metric: str,
    x_dtype: torch.dtype,
    bank_dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Queries ``(n, d)`` and a bank ``(m, d)``; drawn in float64, then rounded to their dtypes."""

    def gauss(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def pick(count: int, limit: int) -> Tensor:
        return torch.randint(max(1, limit), (count,), generator=generator)

    # The narrower of the two ranges decides how large and how small "huge" and "tiny" are.
    half = torch.float16 in (x_dtype, bank_dtype)
    double = x_dtype == torch.float64
    huge = 3e4 if half else 1e200 if double else 1e30
    tiny = 1.5e-7 if half else 3e-310 if double else 1e-40
    small = 1e-4 if half else 1e-170 if double else 1e-25
    step = {torch.float64: 2.0**-50, torch.float32: 2.0**-22, torch.float16: 2.0**-9}.get(bank_dtype, 2.0**-6)

    x, bank = gauss(n, d), gauss(m, d)
    if kind == "ints":
        x, bank = (3 * x).round(), (3 * bank).round()
    elif kind == "ties":
        pool = gauss(max(1, m // 5), d)
        bank = pool[pick(m, len(pool))]
        x = torch.where(uniform(n, 1) < 0.5, pool[pick(n, len(pool))], x)
    elif kind == "sparse":
        x, bank = (t.round() * (uniform(*t.shape) < 0.2) * -1.0 for t in (x, bank))
    elif kind == "offset":
        x, bank = 1000 + 0.01 * x, 1000 + 0.01 * bank
    elif kind == "near":
        base = gauss(1, d)
        bank = base * (1 + step * (3 * bank).round())
        x = torch.where(uniform(n, 1) < 0.5, base + step * x, x)
    elif kind == "cancel":
        sign = torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0).to(torch.float64)
        x, bank = 100 + x, sign * (100 + bank)
    elif kind in ("tiny", "small", "huge"):
        scale = {"tiny": tiny, "small": small, "huge": huge}[kind]
        x, bank = scale * x, scale * bank
    elif kind == "wide":
        span = 3.0 if half else 150.0 if double else 18.0
        x, bank = x * 10 ** (span * (2 * uniform(n, 1) - 1)), bank * 10 ** (span * (2 * uniform(m, 1) - 1))
    elif kind == "outlier":
        bank[pick(1, m) if m else []] *= 1e4 if half else 1e12
    elif kind == "nonfinite":
        for t, share in ((x, 0.15), (bank, 0.2)):
            hit = uniform(*t.shape) < share / max(1, d) * 3
            values = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
            t[hit] = values[pick(int(hit.sum()), 3)]
    elif kind == "same":
        bank = gauss(1, d).expand(m, d)
    elif kind == "zeros":
        x = x * torch.tensor([0.0, 1.0, 1e-8, 3e-9], dtype=torch.float64)[pick(n, 4)].unsqueeze(-1)
        bank = bank * torch.tensor([0.0, 1.0, 1e-8, 3e-9], dtype=torch.float64)[pick(m, 4)].unsqueeze(-1)
    elif kind in ("ascending", "descending"):
        x = gauss(1, d) + 0.01 * x
        target = x[:1] if n else gauss(1, d)
        score = bank @ target[0]
        if metric == "cosine":
            score = score / bank.norm(dim=-1)
        elif metric == "l1":
            score = -(bank - target).abs().sum(-1)
        elif metric != "dot":
            score = -(bank - target).square().sum(-1)
        bank = bank[torch.sort(score, descending=kind == "descending", stable=True).indices]
    elif kind == "clustered":
        centres = 10 * gauss(5, d)
        x, bank = centres[pick(n, 5)] + 0.05 * x, centres[pick(m, 5)] + 0.05 * bank
    elif kind == "level":
        point = gauss(1, d).to(x_dtype).to(torch.float64)
        length = point.norm().clamp(min=1e-3)
        x = torch.where(uniform(n, 1) < 0.7, point, x)
        if metric in ("l2", "sqeuclidean"):  # on a sphere around the query
            bank = point + 3 * bank / bank.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        elif metric == "l1":
            bank = point + 3 * bank / bank.abs().sum(-1, keepdim=True).clamp(min=1e-3)
        else:  # on a plane across it, on a cone around it
            across = bank - (bank @ point.T) / length**2 * point
            along = point / length
            if metric == "cosine":
                across = across / across.norm(dim=-1, keepdim=True).clamp(min=1e-3)
                bank = (0.6 * along + 0.8 * across) * 2 ** (3 * uniform(m, 1))
            else:
                bank = along + across
    elif kind == "swamped":
        # A first term makes the running sum about 1 (a half, for distances: their sum starts at -|b|^2 / 2). The
        # others add 0.49 of its last bit (and are lost) or 0.51 (and count double). The true order is the other way
        # round; the screen's bound is nearly used up.
        distance = metric in ("l2", "sqeuclidean", "l1")
        rest = 2.0**-8 if distance else 0.25 / max(1, d) ** 0.5
        first, bit = (1.01, 2.0**-24) if distance else (1.0, 2.0**-23)
        query = torch.full((d,), rest, dtype=torch.float64)
        query[:1] = 0.0 if distance else 1.0
        x = query * (1.0 if distance else 2.0 ** pick(n, 5).unsqueeze(1)) * torch.ones(n, 1, dtype=torch.float64)
        bank = torch.zeros(m, d, dtype=torch.float64)
        for j in range(0, m - 3, 4):
            bank[j, 1:] = (0.49 - 1e-4 * j) * bit / rest
            bank[j + 2, 1 : 1 + round((0.95 - 1e-3 * j) * (d - 1))] = 0.51 * bit / rest
            bank[[j, j + 2], :1] = first
            bank[[j + 1, j + 3]] = -bank[[j, j + 2]]  # the mean is zero: nothing to centre
    elif kind == "faint":
        # Most rows are large and at right angles to the query; the others compete far below: one row in a single
        # term, the next, which is better, in many terms that each vanish beside the large rows' scale.
        x = torch.full((n, d), 2.0**-10, dtype=torch.float64)
        x[:, :1], x[:, 1:2] = 0.0, 1.0
        unit = 2.0**-14 if half else 2.0**-500 if double else 2.0**60
        bank = torch.zeros(m, d, dtype=torch.float64)
        bank[0::2, :1], bank[1::2, :1] = unit, -unit
        for j in range(3, m, 4):
            bank[j] = 0.0
            if j % 8 == 3:
                bank[j, 1:2] = unit * 2.0**-144 * (1 + 1e-3 * j)
            else:
                bank[j, 2:] = unit * 2.0**-141 * (1 + 1e-3 * j)
    elif kind == "abyss":  # two opposite rows set the scale, the others vanish beside them
        top = 1e4 if half else 1e150 if double else 1e30
        span = (-6.0, -2.0) if half else (-200.0, -100.0) if double else (-20.0, -8.0)
        bank = bank * 10 ** (span[0] + (span[1] - span[0]) * uniform(m, 1))
        if m >= 2:
            large = top * gauss(1, d)
            bank[pick(1, m // 2)], bank[m // 2 + pick(1, m - m // 2)] = large, -large
    elif kind == "shifted":
        x, bank = x + 1, bank + 1
    elif kind != "gauss":
        raise AssertionError(kind)
    return x.to(x_dtype), bank.to(bank_dtype)
