"""Settings with which trainings are known to fail, named before a run and by its diagnosis.

| settings                                                           | what happens                                    |
|--------------------------------------------------------------------|-------------------------------------------------|
| fine-tuning, tangent from the network's own diagonal, nothing else | the tangent follows its own errors: it diverges |
| fine-tuning, adaptive weight p near 1                              | long gaps get a small fraction of the weight    |
| images, semigroup residual, few rows with r = t, nothing else      | jumps that agree with each other, not with data |

"Nothing else" is no velocity head, EMA, anchor, flow-matching term or teacher.
"""

from typing import NamedTuple

from vamf.objectives import Objective
from vamf.objectives.residuals import Eulerian, Semigroup
from vamf.objectives.terms import Anchor, FlowMatching, VelocityHead
from vamf.objectives.velocity import Mix, Online
from vamf.objectives.weighting import Power
from vamf.schedules import is_zero
from vamf.training.config import TrainConfig

STRONG = 0.75
"""Power of the weight from which long gaps lose theirs."""
ENOUGH = 0.8
"""Fraction of the rows with r = t from which a semigroup objective is tied to the data at image size."""


class KnownFailure(NamedTuple):
    """Settings that are known to fail."""

    name: str
    text: str
    """What they are and what happens, in one sentence."""
    setting: str
    """The options to give instead."""


def before_training(config: TrainConfig, event_shape: tuple[int, ...]) -> list[KnownFailure]:
    """The known failures that a configuration has the settings of.

    Args:
        event_shape: of the data.
    """
    objective, found = config.build_objective(), []
    tied = any(isinstance(term, Anchor | FlowMatching | VelocityHead) for term in objective.terms)
    if config.init_from and _has_online_tangent(objective) and not tied:
        text = (
            "fine-tuning with the network's own diagonal as tangent (proxy online), without a velocity head, EMA or "
            "anchor, often diverges"
        )
        found.append(KnownFailure("online tangent", text, "--proxy ema --anchor.weight 0.5"))
    weighting = objective.weighting
    if config.init_from and isinstance(weighting, Power) and float(weighting.power) >= STRONG:
        text = f"with the adaptive weight p = {float(weighting.power):g}, fine-tuning gives long gaps little weight"
        found.append(KnownFailure("adaptive weight", text, "--weighting.power 0"))
    fraction, is_image = objective.times.diagonal_fraction, len(event_shape) == 3
    has_teacher = bool(objective.needs & {"teacher", "oracle"})
    if isinstance(objective.residual, Semigroup) and is_image and fraction < ENOUGH and not (tied or has_teacher):
        text = f"{config.method} on images with {fraction:.0%} of the rows at r = t may find jumps that ignore the data"
        found.append(KnownFailure("few rows with r = t", text, f"--times.flow-matching-ratio {ENOUGH}"))
    return found


def _has_online_tangent(objective: Objective) -> bool:
    """Whether the tangent has a part of the network's own diagonal."""
    residual = objective.residual
    if not isinstance(residual, Eulerian):
        return False
    tangent = residual.tangent
    beta = tangent.beta if isinstance(tangent, Mix) else None
    return isinstance(getattr(tangent, "b", None), Online) and not is_zero(beta)
