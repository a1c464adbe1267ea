"""Names as the ops see them: strings would leak through the stable ABI, so ops take numbers."""

from __future__ import annotations

from . import _C

METRICS: dict[str, int] = _C.metrics()  # the names and codes of core/metric.h
REDUCTIONS: dict[str, int] = {"none": 0, "sum": 1, "mean": 2}
ESTIMATORS: dict[str, int] = {"none": 0, "straight": 1, "rotation": 2}
