"""Names as the ops see them: strings would leak through the stable ABI, so ops take numbers."""

from __future__ import annotations

from .. import _C

CODES: dict[str, int] = _C.metrics()  # the names and codes of core/metric.h
# Those that users may name. The ratio is what ranks by the Poincare distance.
METRICS: dict[str, int] = {name: code for name, code in CODES.items() if name != "poincare_ratio"}
REDUCTIONS: dict[str, int] = {"none": 0, "sum": 1, "mean": 2}
ESTIMATORS: dict[str, int] = {"none": 0, "straight": 1, "rotation": 2}

SIMILARITIES = (METRICS["dot"], METRICS["cosine"])  # larger is better; every other metric is a distance
POINCARE, POINCARE_RATIO = METRICS["poincare"], CODES["poincare_ratio"]
BALL = (POINCARE, POINCARE_RATIO)  # of points inside the unit ball
# Metrics that are screened: their packs hold more than a header.
SCREENED = tuple(
    code for code in METRICS.values() if _C.pack_bytes(1, 1, code, False) > _C.pack_bytes(0, 0, code, False)
)


def metric_name(code: int) -> str:
    """The name of a metric's code."""
    return next(name for name, number in CODES.items() if number == code)
