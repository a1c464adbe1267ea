"""What VectorQuantize is made of: `layout` of rows, `codebook`, its start by `kmeans`, `ops` on rows, and `forward`.

Nothing here knows the module: `forward` is given a Codebook, frozen Settings and what one Call asks for.
"""
