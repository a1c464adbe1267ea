"""The optimiser that a codebook may have of its own, whose step is taken inside of the forward."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from .codebook import Codebook


def take_step(optimizer: Optimizer, codebook: Codebook) -> None:
    """One step on the codebook's parameters, by the mean of all ranks' gradients; these are cleared."""
    _adopt(optimizer, list(codebook.parameters()))
    ranks = codebook.ranks
    if ranks.several:
        for parameter in codebook.parameters():
            if parameter.grad is not None:
                parameter.grad = ranks.mean(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()


def _adopt(optimizer: Optimizer, own: list[nn.Parameter]) -> None:
    """Gives an optimiser the parameters that have replaced those it holds (`to_empty`, a state that was assigned)."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if len(held) != len(own) or {id(p) for p in held} == {id(p) for p in own}:
        return
    new = dict(zip(map(id, held), own, strict=True))
    for group in optimizer.param_groups:
        group["params"] = [new[id(p)] for p in group["params"]]
    for p in held:
        if p in optimizer.state:
            optimizer.state[new[id(p)]] = optimizer.state.pop(p)
