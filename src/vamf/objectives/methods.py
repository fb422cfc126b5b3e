"""The table of named methods: each is one composition of the parts in this package.

A method fixes the options that make it what it is and gives the others a default; `create` refuses to change the
fixed ones, so that a name always means the same loss. Defaults are the published constants; schedules are written for
the published number of steps, and a training stretches them over its own (`TrainConfig.build_objective`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from vamf.errors import UserError
from vamf.objectives.denoising import STEPS, DenoisingDiffusion
from vamf.objectives.eulerian import Eulerian
from vamf.objectives.finite_step import FiniteStep
from vamf.objectives.flow_matching import FlowMatching
from vamf.objectives.lagrangian import Lagrangian
from vamf.objectives.objective import Objective
from vamf.objectives.semigroup import Semigroup
from vamf.objectives.trajectory import Trajectory
from vamf.schedules import Schedule
from vamf.times import TimeLaw


@dataclasses.dataclass(frozen=True)
class Method:
    """A named method: called with options, it builds the objective."""

    summary: str
    """One line: what it is, and where it is from."""
    build: Callable[..., Objective]
    """The objective it is a composition of."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options that define the method."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Documented defaults, free to change."""
    steps: int = 0
    """Published length of training, for which the default schedules are written."""
    ema_target: float | None = None
    """Published decay of the moving average behind v_hat, where it is another than that for samples."""

    def options(self) -> list[str]:
        """Names of the options that may be given."""
        return [field.name for field in dataclasses.fields(self.build) if field.name not in self.fixed]  # pyright: ignore

    def __call__(self, **options) -> Objective:
        for name, value in options.items():
            if name in self.fixed and value != self.fixed[name]:
                raise UserError(f"{name} = {value}: this method has {name} = {self.fixed[name]}; use vamf to change it")
            if name not in self.fixed and name not in self.options():
                raise UserError(f"option {name!r}: allowed are {', '.join(self.options())}")
        return self.build(**{**self.defaults, **options, **self.fixed})

    def stretched(self, steps: int) -> dict[str, Any]:
        """The defaults with their schedules stretched over a training of `steps`."""

        def stretch(value):
            if not isinstance(value, Schedule) or not self.steps:
                return value
            begin, until = (round(at * steps / self.steps) for at in (value.begin, value.until))
            return dataclasses.replace(value, begin=begin, until=max(until, begin + 1))

        return {name: stretch(value) for name, value in self.defaults.items()}


PLAIN = {"beta": 0.0, "gamma": 0.0, "proxy": "none"}
"""v_c in both roles."""
IMAGES = TimeLaw("logit_normal", mean=-0.4, std=1.0, equal_fraction=0.75)
"""MeanFlow's law on ImageNet."""

SCM_MEAN = -1.0 + math.log(2.0)
"""sCM's law of times on data of deviation 1.

On data of deviation s sCM draws the noise level sigma = e^tau, tau ~ N(-1, 1.4^2), for s = 1/2: noise over data is
sigma / s = 2 e^tau. On the straight path with data of deviation 1 it is t / (1 - t), so logit t = tau + ln 2. Data of
another deviation s have logit t = tau + ln 2 s: -1 for pictures in [-1, 1], whose deviation is about 1/2.
"""

METHODS: dict[str, Method] = {
    "flow_matching": Method(
        "flow matching (arXiv:2210.02747): the instantaneous velocity alone; the reference",
        FlowMatching,
        fixed={"gamma": 0.0, "proxy": "none"},
    ),
    "meanflow": Method(
        "MeanFlow (arXiv:2505.13447): v_c in both roles, beta = 0",
        Eulerian,
        fixed=PLAIN,
    ),
    "vamf": Method(
        "VaMF (arXiv:2605.09235, eq. 8): the tangent is mixed with the moving average's diagonal, any beta",
        Eulerian,
        defaults={"beta": 0.5, "proxy": "ema"},
    ),
    "vamf_corner": Method(
        "VaMF's corner recipe (arXiv:2605.09235, eqs. 38 to 40): deterministic tangent and an anchor",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 0.0},
        defaults={"proxy": "ema", "anchor_weight": 0.5, "anchor_range": (1e-4, 1e-2)},
    ),
    "rao_blackwell": Method(
        "Rao-Blackwellised roles (ours): the posterior mean over a bank of data in both roles; unbiased",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 1.0, "proxy": "bank", "rao_blackwell": False},
    ),
    "alphaflow": Method(
        "AlphaFlow (arXiv:2510.20771): a finite step that shrinks to MeanFlow's derivative over training",
        FiniteStep,
        fixed=PLAIN,
        defaults={
            "alpha": Schedule("sigmoid", 1.0, 0.0, 0, 400_000),
            "weight_power": 1.0,
            "weight_constant": 1e-3,
            "reduction": "mean",
            "times": dataclasses.replace(IMAGES, equal_fraction=0.5),
        },
        steps=400_000,
    ),
    "improved_meanflow": Method(
        "Improved MeanFlow (arXiv:2512.02012): the tangent is the network's own velocity, on its diagonal or a head",
        Eulerian,
        fixed={"beta": 1.0},
        defaults={
            "gamma": 0.0,
            "proxy": "online",
            "weight_power": 1.0,
            "weight_constant": 1e-2,
            "times": dataclasses.replace(IMAGES, equal_fraction=0.5),
        },
    ),
    "modular_meanflow": Method(
        "Modular MeanFlow (arXiv:2508.17426): the gradient runs through the derivative, more and more",
        Eulerian,
        fixed=PLAIN,
        defaults={"through": Schedule("linear", 0.0, 1.0, 0, 10_000)},
        steps=20_000,
    ),
    "accelerated_meanflow": Method(
        "Kim et al. (arXiv:2511.19065): short gaps first, and the velocity where it is learnt fastest",
        Eulerian,
        fixed=PLAIN,
        defaults={
            "weight_power": 1.0,
            "weight_constant": 1e-2,
            "weight_gap": Schedule("linear", 1.0, 0.0, 0, 400_000),
            "weight_velocity": "min_snr",
            "times": IMAGES,
        },
        steps=400_000,
    ),
    "terminal_velocity": Method(
        "terminal velocity matching (arXiv:2511.19797): the end of the jump moves with the velocity there",
        Lagrangian,
        defaults={
            "proxy": "ema",
            "reduction": "mean",
            "weight_guidance": 2.0,
            "matching_weight": 1.0,
            "matching_times": TimeLaw("logit_normal", mean=-0.4, std=1.0),
            "times": TimeLaw("terminal", mean=-0.4, std=1.0, gap_mean=-0.8, gap_std=1.0, equal_fraction=0.0),
        },
        ema_target=0.99,
    ),
    "rectified_meanflow": Method(
        "MeanFlow on rectified couplings (arXiv:2511.23342): data in pairs (x, e) that a teacher's flow connects",
        Eulerian,
        fixed=PLAIN,
        defaults={
            "weight_power": 0.5,
            "weight_constant": 1e-2,
            "reduction": "mean",
            "times": TimeLaw("u_shaped", gap_mean=-0.8, gap_std=1.0, equal_fraction=0.75),
        },
    ),
    "decoupled_meanflow": Method(
        "Decoupled MeanFlow's loss (arXiv:2510.24474): a flow-matching term of its own, robust learned weights",
        Eulerian,
        defaults={
            "proxy": "online",
            "weight": "cauchy",
            "weight_constant": 1e-2,
            "reduction": "mean",
            "matching_weight": 1.0,
            "matching_noise": "fresh",
            "matching_times": TimeLaw("logit_normal", mean=0.0, std=1.0),
            "times": TimeLaw("logit_normal", mean=0.4, second_mean=-1.2, std=1.0, equal_fraction=0.0),
        },
    ),
    "split_meanflow": Method(
        "SplitMeanFlow (arXiv:2507.16884): a jump is two jumps, split anywhere; no derivative",
        Semigroup,
        fixed={"split": "uniform"},
        defaults={"proxy": "online", "times": dataclasses.replace(IMAGES, equal_fraction=0.5)},
    ),
    "shortcut": Method(
        "shortcut models (arXiv:2410.12557): a jump is two half jumps of the moving average, on dyadic times",
        Semigroup,
        fixed={"split": "midpoint"},
        defaults={
            "proxy": "ema",
            "instant": 1 / 128,
            "clip": 4.0,
            "reduction": "mean",
            "times": TimeLaw("dyadic", equal_fraction=7 / 8),
        },
    ),
    "progressive_map": Method(
        "progressive self-distillation of flow maps (arXiv:2505.18825, PSD): a jump is two jumps of the network",
        Semigroup,
        defaults={"proxy": "online", "weight": "learned", "times": TimeLaw(eps=0.0, equal_fraction=0.75)},
    ),
    "lagrangian_map": Method(
        "Lagrangian self-distillation of flow maps (arXiv:2505.18825, LSD)",
        Lagrangian,
        defaults={"proxy": "online", "weight": "learned", "times": TimeLaw(eps=0.0, equal_fraction=0.75)},
    ),
    "eulerian_map": Method(
        "Eulerian self-distillation of flow maps (arXiv:2505.18825, ESD): the network's own velocity in both roles",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 1.0, "mix_diagonal": False},
        defaults={"proxy": "online", "weight": "learned", "times": TimeLaw(eps=0.0, equal_fraction=0.75)},
    ),
    "meanflow_rae": Method(
        "MeanFlow distillation (arXiv:2511.13019): a teacher's velocity in both roles, finite differences",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 1.0},
        defaults={
            "proxy": "teacher",
            "difference": 5e-3,
            "weight_power": 1.0,
            "weight_constant": 1e-3,
            "times": TimeLaw("shifted", shift=6.93, equal_fraction=0.75),
        },
    ),
    "mid_training": Method(
        "consistency mid-training (arXiv:2511.13019): jumps along a teacher's trajectories, before distillation",
        Trajectory,
        defaults={"pairs": 64, "times": TimeLaw("grid", points=16, shift=6.93, equal_fraction=0.0)},
    ),
    "flow_consist": Method(
        "FlowConsist (arXiv:2602.06346): the moving average in both roles, diagonal anchored, samples rectified",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 1.0, "mix_diagonal": False},
        defaults={"proxy": "ema", "anchor_weight": 1.0, "anchor_range": (0.0, 0.0), "rectify_weight": 1.0},
    ),
    "consistency": Method(
        "continuous-time consistency (sCM, arXiv:2410.11081) on the straight path: every jump ends at the data",
        Eulerian,
        defaults={
            "beta": 0.0,
            "gamma": 0.0,
            "proxy": "ema",
            "correction": Schedule("linear", 0.0, 1.0, 0, 10_000),
            "weight": "norm",
            "weight_constant": 0.1,
            "times": TimeLaw("to_data", mean=SCM_MEAN, std=1.4, equal_fraction=0.0),
        },
        steps=400_000,
    ),
    "ddpm": Method(
        "DDPM (arXiv:2006.11239): flow matching at the steps of a diffusion, weighted so that the noise's error counts",
        DenoisingDiffusion,
        fixed={"gamma": 0.0, "proxy": "none"},
        defaults={"times": STEPS},
    ),
}


def create(name: str, **options) -> Objective:
    """The objective of a named method, with `options` in place of its defaults.

    Raises:
        UserError: unknown method or option, or a value outside its range.
    """
    if name not in METHODS:
        raise UserError(f"method = {name!r}: allowed are {', '.join(METHODS)}")
    return METHODS[name](**options)
