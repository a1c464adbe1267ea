"""The dispatcher ops `torch.ops.vecbank.*`: one file a group, an op's fake kernel, gradient and tangent side by side.

Importing this registers them; `ops` calls them.
"""

from . import attend as attend
from . import ball as ball
from . import bits as bits
from . import codebook as codebook
from . import gather as gather
from . import maxsim as maxsim
from . import pack as pack
from . import project as project
from . import search as search
from . import selection as selection
from . import sparse as sparse
from .calls import ops as ops
from .names import ESTIMATORS as ESTIMATORS
from .names import METRICS as METRICS
from .names import REDUCTIONS as REDUCTIONS
from .names import SIMILARITIES as SIMILARITIES
