"""Ready-made `torch.nn` modules on top of a bank. One file per idea; re-export new modules here."""

import sys as _sys

from .. import anchors
from .._deprecated import old_module as _old_module
from .accelerate import AccelerateReport, accelerate
from .binary_mapper import BinaryMapper
from .codebook_features import CodebookFeatures
from .embeddings import CompressedEmbedding, HashedEmbedding
from .fsq import FSQ, GroupedResidualFSQ, ResidualFSQ
from .grouped_vq import GroupedResidualVQ
from .latent_quantize import LatentQuantize
from .lfq import LFQ, GroupedResidualLFQ, ResidualLFQ
from .product_quantizer import ProductQuantizer
from .random_projection import RandomProjectionQuantizer
from .relative import RelativeProjection
from .residual_vq import ResidualVQ
from .sim_vq import ResidualSimVQ, SimVQ
from .sparse_autoencoder import SparseAutoencoder
from .vector_quantize import VectorQuantize

# Modules that earlier releases have pickled name these.
_old_module(f"{__name__}._codebook", f"{__name__}._vq.codebook")
_old_module(f"{__name__}._recall", f"{__name__}._checkpointing", Recall="ForwardRecords")

__all__ = [
    "FSQ",
    "LFQ",
    "AccelerateReport",
    "BinaryMapper",
    "CodebookFeatures",
    "CompressedEmbedding",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "HashedEmbedding",
    "LatentQuantize",
    "ProductQuantizer",
    "RandomProjectionQuantizer",
    "RelativeProjection",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "SimVQ",
    "SparseAutoencoder",
    "VectorQuantize",
    "accelerate",
    "anchors",
]

_sys.modules[f"{__name__}.anchors"] = anchors  # `from vecbank.nn.anchors import ...` finds the one module too
