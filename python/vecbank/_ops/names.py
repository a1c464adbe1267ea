"""Names as the ops see them: strings would leak through the stable ABI, so ops take numbers."""

from __future__ import annotations

from .. import _C

METRICS: dict[str, int] = _C.metrics()  # the names and codes of core/metric.h
REDUCTIONS: dict[str, int] = {"none": 0, "sum": 1, "mean": 2}
ESTIMATORS: dict[str, int] = {"none": 0, "straight": 1, "rotation": 2}

SIMILARITIES = (METRICS["dot"], METRICS["cosine"])  # larger is better; every other metric is a distance


def metric_name(code: int) -> str:
    """The name of a metric's code."""
    return next(name for name, number in METRICS.items() if number == code)
