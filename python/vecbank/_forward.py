from ._ops.tangents import Function as Function
from ._ops.tangents import refuse_tangents as refuse_tangents
