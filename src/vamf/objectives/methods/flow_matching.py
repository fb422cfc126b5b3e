"""Methods that train a velocity alone: flow matching and DDPM."""

from vamf.errors import UserError
from vamf.objectives.compose import Common, compose, roles
from vamf.objectives.objective import Objective
from vamf.objectives.residuals import (
    FlowMatchingResidual,
)  # fmt: skip
from vamf.objectives.weighting import NoiseLevel
from vamf.times import (
    DiffusionSteps,
)  # fmt: skip


def flow_matching(common: Common = Common()) -> Objective:
    """flow matching (arXiv:2210.02747): the instantaneous velocity alone; the reference"""
    return compose(FlowMatchingResidual(), common, roles(common), sampler="heun")


def ddpm(common: Common = Common(times=DiffusionSteps(), reduction="mean")) -> Objective:
    """DDPM (arXiv:2006.11239): flow matching at the steps of a diffusion, weighted so that the noise's error counts"""
    # Eq. 14: E ||e - e_hat(z_k, k)||^2, k uniform; on the straight path (`vamf.diffusion`) e_hat - e = (1 - t) R.
    if not isinstance(common.times, DiffusionSteps):
        raise UserError("times: the method ddpm draws the steps of its diffusion uniformly and has no other")
    return compose(FlowMatchingResidual(), common, roles(common), (NoiseLevel(),), sampler="ddim")
