from ._ops.rotation import rotated_gradient as rotated_gradient
