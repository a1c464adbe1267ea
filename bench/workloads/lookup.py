"""lookup: rows of a bank by their codes. Timed as one tiny call only."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import vecbank
from bench.cases import Data
from bench.timing import Call
from bench.workload import Tiny, Workload


def _tiny(data: Data, grad: bool) -> Call:
    bank = vecbank.Bank(data.bank, metric="l2", learnable=grad)
    codes = torch.zeros(1, dtype=torch.int64)
    return lambda: bank.lookup(codes)


def _tiny_torch(data: Data) -> Call:
    bank, codes = data.bank, torch.zeros(1, dtype=torch.int64)
    return lambda: F.embedding(codes, bank)


WORKLOAD = Workload(op="lookup", place=50, tiny=Tiny(_tiny, _tiny_torch))
