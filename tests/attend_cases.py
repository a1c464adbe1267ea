"""What the tests of `attend` share: the dense form, and how far from float64 a result may be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers import gauss, seeded
from torch import Tensor

Form = Callable[..., tuple[Tensor, Tensor]]


def signed(x: Tensor, bank: Tensor, metric: str) -> Tensor:
    """Plain torch: scores (N, M), larger is nearer."""
    if metric in ("cosine", "pearson"):
        if metric == "pearson":
            x, bank = x - x.mean(-1, keepdim=True), bank - bank.mean(-1, keepdim=True)
        x, bank = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-8) for t in (x, bank))
    if metric in ("dot", "cosine", "pearson"):
        return x @ bank.mT
    apart = x.unsqueeze(-2) - bank.unsqueeze(-3)
    if metric == "l1":
        return -apart.abs().sum(-1)
    squares = apart.square().sum(-1)
    return -squares if metric == "sqeuclidean" else -squares.sqrt()


def dense(
    x: Tensor, bank: Tensor, values: Tensor, beta: Tensor, mask: Tensor | None = None, metric: str = "dot"
) -> tuple[Tensor, Tensor]:
    z = signed(x, bank, metric) * beta.reshape(*beta.shape, 1)
    if mask is not None:
        z = z.masked_fill(~mask, -torch.inf)
    return z.softmax(-1).nan_to_num(0.0) @ values, z.logsumexp(-1)


def gradients(form: Form, inputs: tuple[Tensor, ...], of_out: Tensor, of_lse: Tensor) -> list[Tensor]:
    own = [t.detach().clone().requires_grad_() for t in inputs]
    out, lse = form(*own)
    total = (out.to(of_out.dtype) * of_out).sum() + (torch.where(lse.isinf(), 0.0, lse) * of_lse).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(total, own)]


def assert_as_good(got: list[Tensor], same: list[Tensor], truth: list[Tensor]) -> None:
    """Each is at most twice as far from the truth as the dense form in the same dtype, and some last bits."""
    for name, g, s, t in zip(("out", "lse", "x", "bank", "values", "beta"), got, same, truth, strict=True):
        assert g.shape == t.shape, name
        finite = t.isfinite()
        assert torch.equal(g.isfinite(), finite), name
        if not finite.any():
            continue
        error, other = ((a.double() - t)[finite].abs().max().item() for a in (g, s))
        bits = torch.finfo(s.dtype).eps * t[finite].abs().max().item()
        assert error <= 2 * other + 4 * bits, (name, error, other)


SIZES = {  # queries, bank rows, width, width of the values
    "small": (9, 40, 16, 6),
    "odd widths": (33, 500, 19, 37),
    "full blocks": (256, 1120, 32, 32),
    "one coordinate": (40, 300, 1, 1),
    "many queries, few rows": (1500, 20, 24, 17),
    "one row": (17, 1, 5, 3),
    "few queries": (3, 2000, 16, 8),
}
MASKS: dict[str, Callable[[int, int], Tensor | None]] = {
    "all": lambda n, m: None,
    "some": lambda n, m: torch.rand(n, m, generator=seeded(3)) > 0.4,
    "none of some": lambda n, m: (torch.rand(n, m, generator=seeded(3)) > 0.4) & (torch.arange(n) % 3 > 0)[:, None],
}


def inputs(n: int, m: int, d: int, e: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    x, bank, values = gauss(n, d), gauss(m, d, seed=1), gauss(m, e, seed=2)
    beta = torch.rand(n, generator=seeded(4)) * 2 / d**0.5
    return tuple(t.to(dtype) for t in (x, bank, values, beta))
