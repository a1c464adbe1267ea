from ._ops.names import *  # noqa: F403
