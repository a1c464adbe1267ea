"""The network that bends a stage's codes to what the stages before it have said (neural implicit codebooks).

Source: Huijben et al., "Residual Quantization with Implicit Neural Codebooks" (QINCo), ICML 2024.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` in x's dtype."""
    if layer.weight.dtype != x.dtype:
        return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
    out: Tensor = layer(x)
    return out


class CodeMLP(nn.Module):
    """codes (K, d) and what was decoded so far (b, n, d) to one book per position: c <- W [so far, c], c <- c
    + f(c), ...

    Args:
        dim: d. dim_hidden: width of f, dim by default. depth: how many f. l2norm_output: unit vectors.
    """

    def __init__(self, dim: int, dim_hidden: int | None = None, depth: int = 4, l2norm_output: bool = False) -> None:
        super().__init__()
        hidden = dim if dim_hidden is None else dim_hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers: Any = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(depth)
        )
        self.l2norm_output = l2norm_output

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """codes (h, K, d) with condition (b, n, d) to (h, b, n, K, d); codes (b, n, d) of that one to (b, n,
        d). In the dtype of both, which is float32 where the network is 16-bit, as its books are then.
        """
        weight, bias = self.proj_in.weight.to(codes.dtype), self.proj_in.bias.to(codes.dtype)
        width = condition.shape[-1]  # the concatenation, taken apart: each half is as small as it can be
        said, own = F.linear(condition, weight[:, :width]), F.linear(codes, weight[:, width:], bias)
        if codes.shape == condition.shape:
            x = said + own
        else:
            x = said.unsqueeze(-2) + own.view(own.shape[0], 1, 1, *own.shape[1:])
        for layer in self.layers:
            bent = x
            for part in layer:
                bent = _linear(part, bent) if isinstance(part, nn.Linear) else part(bent)
            x = bent + x
        return F.normalize(x, dim=-1) if self.l2norm_output else x
