"""`PreparedDocuments`: documents as sets of vectors, with codes of 8 bits that searches look at first, never stale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._numpy import tensor_of
from ._ops import METRICS, SIMILARITIES, ops
from ._token_sets import TokenSets, token_sets
from ._written import Snapshot, own


def metric_code(metric: object) -> int:
    """The code of a metric between tokens."""
    if metric is None:
        return METRICS["dot"]
    if not isinstance(metric, str) or metric not in METRICS:
        names = ", ".join(f'"{name}"' for name in METRICS)
        raise ValueError(f"metric must be one of {names} for sets of vectors, got {metric!r}")
    return METRICS[metric]


class PreparedDocuments:
    """The tokens, where they lie, and their codes; functions know a DocumentBank by this class."""

    def __init__(self, documents: Any, metric: str | None = None) -> None:
        if type(documents) is np.ndarray:
            documents = tensor_of(documents, "documents")
        self._code = metric_code(metric)
        sets = token_sets("documents", documents)
        if self._code == METRICS["poincare"]:
            _checks.inside_ball("documents", sets.rows)
        # The offsets were looked at and are this object's own; tokens are shared, and looked at for writes.
        self._sets = TokenSets(own(sets.rows), sets.offsets.detach().clone())
        self._codes: tuple[Tensor, Tensor] | None = None
        self._seen: Snapshot | None = None

    @property
    def documents(self) -> TokenSets:
        """The tokens and where each document begins."""
        return self._sets

    @property
    def metric(self) -> str:
        """The metric that `metric=None` stands for."""
        return next(name for name, code in METRICS.items() if code == self._code)

    def __len__(self) -> int:
        return self._sets.count

    def __repr__(self) -> str:
        rows, name = self._sets.rows, type(self).__name__
        packed = "" if self._codes is None else f", {self._codes[0].numel() / 2**20:.1f} MiB of codes"
        return f"{name}({len(self)} documents, {len(rows)} tokens, d={rows.shape[1]}, {self.metric!r}{packed})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codes": None, "_seen": None}  # made again, where it is needed

    def codes_for(self, code: int) -> tuple[Tensor, Tensor] | None:
        """The codes of tokens, and facts of documents, made where there are none or tokens have been written to; None
        where they do not serve.
        """
        rows = self._sets.rows
        if code != self._code or code not in SIMILARITIES or not _checks.readable(rows):
            return None
        if rows.dtype == torch.float64:
            return None
        if self._codes is None or self._seen is None or not self._seen.shows(rows):
            with torch.no_grad():
                self._seen = Snapshot.of(rows)
                self._codes = ops.maxsim_pack(rows, self._sets.offsets, code)
        return self._codes
