from ._ops.calls import *  # noqa: F403
