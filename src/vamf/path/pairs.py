"""Data in pairs: a start y for each x, with noise around it. The prior is that of the starts.

    e = y + noise eps,  eps ~ N(0, I)          z_t = (1 - t) x + t e          v_c = e - x

With `noise` = 0 and y = x's own endpoint of a teacher's flow this is reflow; with y a degraded x it is restoration.
"""

import dataclasses

import jax

from vamf.errors import UserError, check_range
from vamf.path.straight_line import StraightLine


@dataclasses.dataclass(frozen=True)
class Pairs(StraightLine):
    """The straight line from x to a start of its own."""

    uses_start = True
    noise: float = 0.0
    """Standard deviation of the noise around each start, in the units of the standardised data."""

    def __post_init__(self):
        check_range("noise", self.noise)

    def prior(self, key, x, start=None):
        if start is None:
            raise UserError("path = pairs: the data have no start for each row")
        return start + self.noise * jax.random.normal(key, x.shape, x.dtype) if self.noise else start

    def log_kernel(self, z, x, t):
        return None  # the law of a start given x is not known
