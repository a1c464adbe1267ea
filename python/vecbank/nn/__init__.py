"""Ready-made ``torch.nn`` modules on top of a bank. One file per idea; re-export new modules here."""

from . import anchors
from .relative import RelativeProjection

__all__ = ["RelativeProjection", "anchors"]
