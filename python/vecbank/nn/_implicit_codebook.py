"""The network of a neural implicit codebook: a stage's codes as a function of what the stages before it decoded.

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
    """A codebook for every position: c <- W @ [so far, c], c <- c + f(c), ..., where "so far" is the decoded sum.

    Args:
        dim: features d.
        dim_hidden: width of f; dim by default.
        depth: how many f there are.
        l2norm_output: divide the results by their norms.
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
        """The codes at every position, in the dtype of `codes`, which is float32 where the network is 16-bit.

        Args:
            codes: (h, K, d), a codebook, or (b, n, d), one code for each position.
            condition: (b, n, d), what was decoded so far, of the same dtype.

        Returns:
            (h, b, n, K, d), or (b, n, d) for one code for each position.
        """
        weight, bias = self.proj_in.weight.to(codes.dtype), self.proj_in.bias.to(codes.dtype)
        width = condition.shape[-1]  # W [so far, c] = W1 so far + W2 c: nothing of both sizes is concatenated
        so_far, own = F.linear(condition, weight[:, :width]), F.linear(codes, weight[:, width:], bias)
        if codes.shape == condition.shape:
            x = so_far + own
        else:
            x = so_far.unsqueeze(-2) + own.view(own.shape[0], 1, 1, *own.shape[1:])
        for layer in self.layers:
            change = x
            for part in layer:
                change = _linear(part, change) if isinstance(part, nn.Linear) else part(change)
            x = change + x
        return F.normalize(x, dim=-1) if self.l2norm_output else x
