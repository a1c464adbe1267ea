"""Scalar and binary codes, whose codebook is implied so that nothing is searched, and the packing of codes in bits.

Each `*_quantize` returns Quantized(quantized, codes); `quantized` is straight-through (its gradient goes to the input
unchanged) and the matching `*_lookup` turns codes back into values, with gradients to a table if there is one.

Sources: tables per dimension, Hsu et al., "Disentanglement via latent quantization" (QLAE), NeurIPS 2023;
intervals, Weber et al., "A quantitative analysis and performance study for similarity-search methods" (VA-file),
VLDB 1998; grids, Mentzer et al., "Finite scalar quantization: VQ-VAE made simple", ICLR 2024; signs, Yu et al.,
"Language model beats diffusion" (lookup-free quantisation), ICLR 2024; Bernoulli bits, Wang et al., "Binary
latent diffusion", CVPR 2023; halving planes, Gan et al., "Binary embedding-based retrieval at Tencent"
(BEBR), KDD 2023; straight-through, Bengio et al., 2013.
"""

from ._binary import (
    bernoulli_quantize,
    residual_binary_lookup,
    residual_binary_quantize,
    sign_lookup,
    sign_quantize,
)
from ._intervals import IntervalCodec, interval_train
from ._packed_signs import pack_signs, unpack_signs
from ._packing import bits_to_index, index_to_bits, pack_bits, packed_bytes, unpack_bits
from ._scalar import fsq_lookup, fsq_quantize, round_quantize, scalar_lookup, scalar_quantize
from ._straight_through import straight_through

__all__ = [
    "IntervalCodec",
    "bernoulli_quantize",
    "bits_to_index",
    "fsq_lookup",
    "fsq_quantize",
    "index_to_bits",
    "interval_train",
    "pack_bits",
    "pack_signs",
    "packed_bytes",
    "residual_binary_lookup",
    "residual_binary_quantize",
    "round_quantize",
    "scalar_lookup",
    "scalar_quantize",
    "sign_lookup",
    "sign_quantize",
    "straight_through",
    "unpack_bits",
    "unpack_signs",
]
