"""Names as the ops see them: strings would leak through the stable ABI, so ops take numbers."""

from __future__ import annotations

METRICS: dict[str, int] = {"dot": 0, "cosine": 1, "l2": 2, "sqeuclidean": 3}
REDUCTIONS: dict[str, int] = {"none": 0, "sum": 1, "mean": 2}
ESTIMATORS: dict[str, int] = {"none": 0, "straight": 1, "rotation": 2}
