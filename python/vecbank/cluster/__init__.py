"""Clustering: k-means with exact assignment, whose answer depends on neither processor nor thread count.

`_kmeans` holds the steps, `_starts` the centroids that they start from, `_samples` what both ask of the samples.
"""

from .._deprecated import old_module
from ..results import KMeans
from ._kmeans import kmeans

__all__ = ["KMeans", "kmeans"]

old_module("vecbank.kmeans", __name__)
