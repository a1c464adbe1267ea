"""Metrics that compare mapped rows: correlation, angles, other geometries, learned ones.

Wherever a verb takes the name of a metric, it takes one of these objects too: `topk(x, bank, 10, Poincare(0.5))`,
`Bank(vectors, Mahalanobis(covariance))`. Each maps the rows of both sides, in float64, and compares them by a metric
that has a kernel. Searches rank by the exact float64 score of the mapped rows. A Bank keeps its mapped rows (8 bytes a
coordinate); a plain tensor is mapped at every call.

| metric | rows become | compared by | value |
|---|---|---|---|
| `Pearson()`, "pearson" | x less the mean of its coordinates | "cosine" | -1 to 1, larger is better |
| `Angular()`, "angular" | x / |x| | "l2" | 2 asin(r / 2): 0 to pi, a distance |
| `Poincare(c)`; "poincare" has c = 1 | sqrt(c) x | "poincare" | that distance / sqrt(c) |
| `Mahalanobis(covariance)` | L^-1 x, of L L^T = covariance | "l2" | sqrt((x - b)^T covariance^-1 (x - b)) |
| `Mapped(map, base)` | map(x) | base | that of base |

"hamming" is a metric of packed bits, which have a namespace of their own: `vecbank.bits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._numpy import tensor_of
from ._ops import METRICS, ops

__all__ = ["Angular", "Mahalanobis", "Mapped", "Metric", "Pearson", "Poincare"]


class Metric:
    """The base of the metrics of this module. `Mapped` takes a map of your own; derive from this for more."""

    name: str
    base: str  # the metric of a kernel by which mapped rows are compared
    learned = False  # the map may have changed since the last call, or a gradient goes to it

    def check(self, name: str, rows: Tensor) -> None:
        """Raises what is wrong with rows (..., d), which messages call `name`."""

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        """The mapped rows, (..., d) -> (..., d'), float64; `room`: with what `needs_room` asks for."""
        raise NotImplementedError

    def needs_room(self, x: Tensor) -> bool:
        """Whether rows of x have no image among those of others, so that all need one dimension more."""
        return False

    def narrow(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The mapped rows for products in this dtype, float32 or float64."""
        return self.rows(x).to(dtype)

    def value(self, found: Tensor) -> Tensor:
        """The value, from that of `base`; plus or minus infinity stays."""
        return found

    def radius(self, r: Tensor) -> Tensor | None:
        """The radius by `base`, from that by this metric; None: it is the same."""
        return None

    @property
    def similarity(self) -> bool:
        """Whether larger is better."""
        return self.base in ("dot", "cosine")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Pearson(Metric):
    """Pearson's correlation: the cosine of rows from which the mean of their coordinates was taken; "pearson" by name.

    A row whose coordinates are all equal has the correlation 0 with every other. As for "cosine", a norm (here after
    the mean was taken) counts as 1e-8 at least.

    Example:
        >>> import torch, vecbank
        >>> x, bank = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[30.0, 10.0, 20.0], [11.0, 12.0, 13.0]])
        >>> vecbank.topk(x, bank, 2, "pearson").values.round(decimals=6).tolist()
        [[1.0, -0.5]]
    """

    name, base = "pearson", "cosine"

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        x = x.contiguous()  # torch sums in an order that depends on strides
        return self._centred(x, x.mean(-1, keepdim=True, dtype=torch.float64))

    def narrow(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        wide = x.to(dtype)
        wide = wide - wide.mean(-1, keepdim=True)
        return wide - wide.mean(-1, keepdim=True)  # what rounding has left of the mean

    @staticmethod
    def _centred(x: Tensor, means: Tensor) -> Tensor:
        apart = x - means
        if x.shape[-1] == 0:
            return apart
        least, most = torch.aminmax(x.detach(), dim=-1, keepdim=True)
        same = (least == most) & least.isfinite()  # their mean is rounded, and the rest is not 0
        return torch.where(same, 0.0, apart) if not _checks.readable(same) or bool(same.any()) else apart


class Angular(Metric):
    """The angle between two rows, 0 to pi, a distance; "angular" by name.

    It comes from the distance of the unit rows, so that small angles keep their digits, where arccos of a cosine has
    none left: 1e-7 beside 1e-8 is told. The angle of a zero row with any other row is pi / 2 (the cosine is 0), of
    two zero rows 0. The gradient is 0 at the angles 0 and pi.

    Example:
        >>> import torch, vecbank
        >>> vecbank.topk(torch.tensor([[1.0, 1e-6]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 2, "angular").values
        tensor([[1.0000e-06, 1.5708e+00]])
    """

    name, base = "angular", "l2"

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        x = _of_usual_size(x.contiguous())  # torch sums in an order that depends on strides
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        zero = norms == 0
        unit = x / torch.where(zero, 1.0, norms)
        # In a dimension of its own a zero row lies as far from all unit rows as those at a right angle do.
        return torch.cat([unit, zero.double()], -1) if room else unit

    def needs_room(self, x: Tensor) -> bool:
        return not _checks.readable(x) or bool((x == 0).all(-1).any())

    def value(self, found: Tensor) -> Tensor:
        inside = found < 2
        angle = 2 * torch.asin(torch.where(inside, found, 0.0) / 2)
        angle = torch.where(inside, angle, torch.where(found < torch.inf, math.pi, found.detach()))
        return torch.where(found < 0, found.detach(), angle)

    def radius(self, r: Tensor) -> Tensor:
        return torch.where(r < math.pi, 2 * torch.sin(r.clamp(max=math.pi) / 2), torch.where(r.isnan(), r, torch.inf))


def _of_usual_size(x: Tensor) -> Tensor:
    """Float64 rows whose squares would overflow or underflow, scaled by a power of two."""
    if x.dtype != torch.float64 or x.numel() == 0:
        return x
    most = x.detach().abs().amax(-1, keepdim=True)
    extreme = ((most > 1e140) | (most < 1e-140)) & (most > 0) & most.isfinite()
    if _checks.readable(extreme) and not bool(extreme.any()):
        return x
    half = torch.where(extreme, -(torch.frexp(most).exponent // 2), 0)
    return torch.ldexp(torch.ldexp(x, half), half)


class Poincare(Metric):
    """The geodesic distance in the Poincare ball of curvature -c, whose radius is 1 / sqrt(c).

        d(x, b) = 2 / sqrt(c) asinh(sqrt(c |x - b|^2 / ((1 - c |x|^2) (1 - c |b|^2))))

    It is 2 / sqrt(c) artanh(sqrt(c) |-x (+) b|) with Moebius addition (+), in a form that stays accurate near the
    boundary. "poincare" by name stands for c = 1, and maps nothing. For c towards 0 it tends to 2 |x - b|.

    Points that do not lie inside the ball are a ValueError on the CPU, and score NaN elsewhere. `into_ball` makes
    points of any vectors.

    Args:
        curvature: c, above 0.

    Source: Nickel and Kiela, "Poincaré embeddings for learning hierarchical representations", NeurIPS 2017.

    Example:
        >>> import torch, vecbank
        >>> points = torch.tensor([[0.0, 0.0], [0.9, 0.0], [0.99, 0.0]])
        >>> vecbank.nearest(torch.tensor([[0.95, 0.0]]), points, "poincare").indices.tolist()
        [1]
        >>> vecbank.project(points[:1], points[1:2], vecbank.Poincare(0.25))
        tensor([[1.9388]])
    """

    name, base = "poincare", "poincare"

    def __init__(self, curvature: float = 1.0) -> None:
        _checks.number("curvature", curvature)
        if isinstance(curvature, Tensor) and curvature.requires_grad:
            raise ValueError(
                "curvature must be a number: no gradient goes to it (scale x by sqrt(c), by c = 1, to learn it)"
            )
        self.curvature = float(curvature)
        if not 0 < self.curvature < math.inf:
            raise ValueError(f"curvature must be above 0 and finite, got {curvature}")

    def into_ball(self, x: Tensor) -> Tensor:
        """Points of the ball for vectors (..., d): the exponential map at 0, tanh(sqrt(c) |x|) x / (sqrt(c) |x|), kept
        off the boundary by so much that float32 tells. Differentiable.

        Example:
            >>> import torch, vecbank
            >>> vecbank.Poincare(4.0).into_ball(torch.tensor([[0.0, 0.0], [30.0, 40.0]])).norm(dim=1)
            tensor([0.0000, 0.5000])
        """
        _checks.floating("x", x)
        root = math.sqrt(self.curvature)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        safe = torch.where(norms == 0, 1.0, norms * root)
        most = 1 - 1e-5 if x.dtype in (torch.float32, torch.float64) else 1 - 2.0**-6
        return (x * torch.where(norms == 0, 1.0, safe.tanh().clamp(max=most) / safe)).to(x.dtype)

    def check(self, name: str, rows: Tensor) -> None:
        _checks.inside_ball(name, rows, self.curvature)

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        return x.double() * math.sqrt(self.curvature)

    def value(self, found: Tensor) -> Tensor:
        return found / math.sqrt(self.curvature)

    def radius(self, r: Tensor) -> Tensor:
        return r * math.sqrt(self.curvature)

    def __repr__(self) -> str:
        return f"Poincare({self.curvature!r})"


class Mahalanobis(Metric):
    """sqrt((x - b)^T covariance^-1 (x - b)): the distance of rows that were whitened by the Cholesky factor.

    Args:
        covariance: (d, d), symmetric and positive definite, floating point; it is read in float64. A gradient goes to
            it if it requires one.

    Raises:
        ValueError: a covariance that is not square, not finite, not symmetric, or singular or indefinite: the message
            has its smallest eigenvalue.

    Source: Rippel et al., "Modeling the distribution of normal data in pre-trained deep features for anomaly
    detection", ICPR 2020.

    Example:
        >>> import torch, vecbank
        >>> metric = vecbank.Mahalanobis(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> vecbank.topk(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.5], [2.0, 0.0]]), 2, metric)
        TopK(values=tensor([[1.0000, 1.5000]]), indices=tensor([[1, 0]]))
    """

    name, base = "mahalanobis", "l2"

    def __init__(self, covariance: Tensor) -> None:
        if isinstance(covariance, np.ndarray):
            covariance = tensor_of(covariance, "covariance")
        _checks.floating("covariance", covariance)
        if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
            raise ValueError(f"covariance must be (d, d), got {tuple(covariance.shape)}")
        wide = covariance.double()
        if _checks.readable(wide):
            _check_covariance(wide.detach(), torch.finfo(covariance.dtype).eps)
        self.covariance = covariance
        self.factor = torch.linalg.cholesky(wide)
        one = torch.eye(wide.shape[0], dtype=torch.float64, device=wide.device)
        self.inverse = torch.linalg.solve_triangular(self.factor, one, upper=False)
        self.learned = covariance.requires_grad

    def check(self, name: str, rows: Tensor) -> None:
        if rows.shape[-1] != self.factor.shape[0]:
            raise ValueError(
                f"{name} must be (..., {self.factor.shape[0]}) for a covariance {tuple(self.factor.shape)}, "
                f"got {tuple(rows.shape)}"
            )
        if rows.device != self.factor.device:
            raise ValueError(f"covariance must be on {name}'s device {rows.device}, got {self.factor.device}")

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        # Sums in a fixed order: those of a library's product depend on how many rows there are.
        lead, d = x.shape[:-1], x.shape[-1]
        wide = x.double().reshape(lead.numel(), d)
        mapped: Tensor = ops.exact_scores(wide, self.inverse, METRICS["dot"], torch.float64, None)
        return mapped.reshape(x.shape)

    def __repr__(self) -> str:
        return f"Mahalanobis(covariance {tuple(self.covariance.shape)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        same = isinstance(other, Mahalanobis) and not (self.learned or other.learned)
        return same and torch.equal(self.covariance, other.covariance)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(repr(self))


def _check_covariance(wide: Tensor, eps: float) -> None:
    if not bool(wide.isfinite().all()):
        raise ValueError("covariance must be finite, got NaN or infinity")
    apart = float((wide - wide.mT).abs().max()) if wide.numel() else 0.0
    if apart > 1e-4 * float(wide.abs().max() if wide.numel() else 0.0):
        raise ValueError(f"covariance must be symmetric, got entries that differ by {apart:.3g}")
    if not wide.numel():
        return
    eigenvalues = torch.linalg.eigvalsh(wide)
    least, most = float(eigenvalues[0]), float(eigenvalues[-1])
    if not least > 2 * eps * most:  # no more than its rounding
        kind = "singular" if least > -32 * eps * abs(most) else "indefinite"
        raise ValueError(
            f"covariance must be positive definite, but it is {kind}: its smallest eigenvalue is {least:.6g}, its "
            f"largest {most:.6g} (add a multiple of the identity, or shrink it towards its mean variance)"
        )


class Mapped(Metric):
    """Rows compared after a map of your own, which may be trained: `base` between map(x) and map(b).

    Args:
        map: takes (..., d), returns (..., d') floating point. It is called at every use, on both sides: a Bank does
            not keep what it returns, as it may have changed.
        base: the metric between the mapped rows: one that has a kernel.

    Example:
        >>> import torch, vecbank
        >>> tall = vecbank.Mapped(lambda rows: rows * torch.tensor([1.0, 10.0]), "l1")
        >>> vecbank.nearest(torch.tensor([0.0, 0.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), tall).indices.item()
        0
    """

    name, learned = "mapped", True

    def __init__(self, map: Callable[[Tensor], Tensor], base: str = "l2") -> None:
        if not callable(map):
            raise TypeError(f"map must be callable, got {type(map).__name__}")
        if not isinstance(base, str) or base not in METRICS:
            raise ValueError(f"base must be one of {', '.join(METRICS)}, got {base!r}")
        self.map, self.base = map, base

    def rows(self, x: Tensor, *, room: bool = False) -> Tensor:
        found = self.map(x)
        _checks.floating("what map returned", found)
        if found.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"map must keep all dimensions but the last of {tuple(x.shape)}, got {tuple(found.shape)}")
        return found.double()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


EXACT = ("poincare", "l1")  # bases whose scores are float64 sums, whatever comes
NAMED: dict[str, Metric] = {metric.name: metric for metric in (Pearson(), Angular())}


def mapping(metric: object, bank: object) -> Metric | None:
    """The metric of a call, which it names or else its Bank, if that maps rows; None: it has a kernel, or is none."""
    if metric is None:
        metric = getattr(bank, "_metric", None) if isinstance(bank, torch.nn.Module) else None
    if type(metric) is str:
        return NAMED.get(metric)
    return metric if isinstance(metric, Metric) else None


def named(metric: Metric) -> str | Metric:
    """The metric's name, if that is enough to have it again."""
    return metric.name if NAMED.get(metric.name) is metric else metric


def names() -> str:
    """All that can be named, for messages."""
    return ", ".join([*METRICS, *NAMED, "hamming"]) + " (and Poincare(c), Mahalanobis(covariance), Mapped(map))"
