"""Advice from measurements: what to change, the expected gain, and its error.

Every sentence rests on differences of at least two standard errors; smaller ones are reported as not clear. The
recommended constant beta comes from the measured curve, never from a formula.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vamf.diagnosis.results import BETAS, CLEAR, Cell, Diagnosis, above, below
from vamf.findings import Finding
from vamf.objectives import METHODS
from vamf.theory.estimate import Estimate

WORTHWHILE = 0.95
"""A variance ratio above this value does not justify a change of settings."""


class Current(NamedTuple):
    """The settings of the diagnosed run."""

    method: str
    """Name of its method."""
    beta: float | str | None
    """Its tangent mix: a number, the name of an adaptive one, or None without a mix."""
    ema_target: float
    """Decay of the EMA behind v_hat."""
    proxy: str = "ema"
    """The source of its v_hat."""


def advise(diagnosis: Diagnosis, current: Current | None = None) -> list[Finding]:
    """Findings from the measurements, the largest gain first, then the explanations."""
    options = [
        _constant(diagnosis, current),
        *_adaptive(diagnosis, current),
        *_bank(diagnosis, current),
    ]
    ranked = sorted(options, key=lambda option: option[0])
    rest = [
        *_run_gradient(diagnosis, current),
        _mixing_map(diagnosis),
        _noise_source(diagnosis),
        *_proxy(diagnosis, current),
    ]
    return [finding for _, finding in ranked] + rest


def _constant(diagnosis: Diagnosis, current: Current | None) -> tuple[float, Finding]:
    """The recommended constant beta, and how it compares with the present one."""
    curve, beta = diagnosis.measured, diagnosis.beta
    name = "gradient variance" if diagnosis.of_gradient else "squared residual"
    ratio = curve.relative[curve.recommended]
    at_one = f"at beta = 1 it is {_lower(curve.relative[-1])}"
    if beta == 0:
        text = f"No constant beta clearly lowers the measured {name}: {at_one} than at beta = 0."
    else:
        text = f"At beta = {beta:g} the measured {name} is {_lower(ratio)} than at beta = 0"
        text += "." if beta == BETAS[-1] else f"; {at_one}."
    if current is None:
        return ratio.value, Finding("advice" if beta else "note", text, f"--beta {beta:g}" if beta else "")
    beta_now = current.beta
    if not isinstance(beta_now, float):
        return ratio.value, Finding("note", text)

    def interpolate(estimates, part):
        return float(np.interp(beta_now, BETAS, [getattr(estimate, part) for estimate in estimates]))

    current_ratio = interpolate(curve.relative, "value")
    not_worse = interpolate(curve.excess, "value") <= CLEAR * interpolate(curve.excess, "error")
    if not_worse or ratio.value > WORTHWHILE * current_ratio:
        text += f" The run's beta = {beta_now:g} is no worse, within 5 % or the error."
        return ratio.value, Finding("good", text)
    text += (
        f" The run's beta = {beta_now:g} has {current_ratio / ratio.value:.2f} times the variance of beta = {beta:g}."
    )
    return ratio.value, Finding("advice", text, _setting(current, f"{beta:g}"))


def _adaptive(diagnosis: Diagnosis, current: Current | None) -> list[tuple[float, Finding]]:
    """An adaptive beta for each (r, t), where it beats a constant."""
    best, adaptive = diagnosis.predicted.relative[diagnosis.predicted.best], diagnosis.by_time
    clear = best.value - adaptive.value > CLEAR * float(np.hypot(best.error, adaptive.error))
    if not clear or adaptive.value > WORTHWHILE * best.value:
        return []
    text = (
        f"One number is a compromise: with a beta for each (r, t) the noise is predicted to be {_lower(adaptive)} than "
        f"at beta = 0, with the best constant {_lower(best)}."
    )
    if current is not None and isinstance(current.beta, str):
        return [(adaptive.value, Finding("good", f"{text} The run's beta, {current.beta}, adapts."))]
    if current is not None and current.beta is None:
        return [(adaptive.value, Finding("note", text))]
    return [(adaptive.value, Finding("advice", text, _setting(current, "binned")))]


def _bank(diagnosis: Diagnosis, current: Current | None) -> list[tuple[float, Finding]]:
    """The bank's posterior mean in both roles."""
    ratio = diagnosis.rao_blackwell
    if ratio is None:
        return []
    if current is not None and current.method == "rao_blackwell":
        text = f"With a bank of one batch the measured gradient variance is {_lower(ratio)} than MeanFlow's."
        return [(ratio.value, Finding("good" if below(ratio, 1.0) else "note", text))]
    if not below(ratio, 1.0) or ratio.value > WORTHWHILE:
        text = "A bank of one batch in both roles would lower the gradient variance by less than 5 % or the error."
        return [(ratio.value, Finding("note", text))]
    text = (
        f"With a bank of one batch in both roles the measured gradient variance is {_lower(ratio)} than at beta = 0, "
        "without a proxy and its bias."
    )
    return [(ratio.value, Finding("advice", text, "--method rao_blackwell"))]


def _run_gradient(diagnosis: Diagnosis, current: Current | None) -> list[Finding]:
    """The gradient variance of the run's own loss, where the curve of beta does not contain it."""
    if diagnosis.run_gradient is None or current is None:
        return []
    text = (
        f"The loss that this run trains, {current.method}, has a gradient variance {_lower(diagnosis.run_gradient)} "
        "than MeanFlow's tangent (beta = 0) would have on this network. The curve of beta is of that tangent and its "
        "mixes, with the run's times, weight, guidance and further terms."
    )
    return [Finding("note", text)]


def _mixing_map(diagnosis: Diagnosis) -> Finding:
    """The (r, t) where mixing lowers the noise and where it raises it."""
    sampled = [cell for cell in diagnosis.cells if cell.weight > 0]
    better = [cell for cell in sampled if above(cell.amplification, 1.0)]
    worse = [cell for cell in sampled if below(cell.amplification, 1.0)]
    # A ratio that prints as 1.00 is significant with these samples, and no difference to anybody.
    better = better if better and _total(better) >= 1.005 else []
    worse = worse if worse and 1 / _total(worse) >= 1.005 else []
    parts = []
    if better:
        parts.append(f"lower the noise {_total(better):.2f} times on {diagnosis.helps:.0%}")
    if worse:
        parts.append(f"raise {'it' if better else 'the noise'} {1 / _total(worse):.2f} times on {diagnosis.harms:.0%}")
    if not parts:
        return Finding("note", "Full mixing (beta = 1) would make no clear difference to the noise at any (r, t).")
    undecided = max(0.0, 1 - diagnosis.helps * bool(better) - diagnosis.harms * bool(worse))
    rest = f"; on {undecided:.0%} there is no clear difference" if undecided > 0.005 else ""
    return Finding("note", f"Full mixing (beta = 1) would {' and '.join(parts)} of the pairs (r, t) of training{rest}.")


def _noise_source(diagnosis: Diagnosis) -> Finding:
    """The times that cause most of the noise at beta = 0."""
    total = sum(cell.weight * cell.noise.value for cell in diagnosis.cells)
    ranked = sorted(diagnosis.cells, key=lambda cell: -cell.weight * cell.noise.value)
    largest, fraction = [], 0.0
    for cell in ranked:
        largest.append(cell)
        fraction += cell.weight * cell.noise.value / max(total, 1e-300)
        if fraction >= 0.5:
            break
    half = 0.5 / (len(diagnosis.lines) - 1)
    low, high = min(cell.t for cell in largest) - half, max(cell.t for cell in largest) + half
    pairs = sum(cell.weight for cell in largest)
    return Finding(
        "note",
        f"At beta = 0, {fraction:.0%} of the noise comes from {pairs:.0%} of the pairs (r, t), with t from {low:.2f} "
        f"to {high:.2f}; the largest part from around t = {ranked[0].t:.2f}, t - r = {ranked[0].gap:.2f}.",
    )


def _proxy(diagnosis: Diagnosis, current: Current | None) -> list[Finding]:
    """The lag of v_hat behind the network."""
    shrinkage = diagnosis.shrinkage
    if diagnosis.tracking_gap.value == 0:
        return []
    ema_lag = 1 - shrinkage.value
    if current is not None and current.proxy in ("head", "teacher", "oracle"):
        source = f"v_hat, from the run's {current.proxy},"
        text = f"{source} and the network's own velocity differ by {ema_lag:.1%} of the noise."
        return [Finding("note", text)]
    if above(shrinkage, 0.95):
        return [Finding("good", f"v_hat trails the network by little: {ema_lag:.1%} of the noise.")]
    text = f"v_hat trails the network: the gap is {ema_lag:.0%} of the noise, so a beta near 1 brings bias with it."
    setting = "" if current is None else f"--optimizer.ema-target {max(0.0, 3 * current.ema_target - 2):.6g}"
    return [Finding("warning" if shrinkage.value < 0.8 else "note", text, setting)]


def _total(cells: Sequence[Cell]) -> float:
    """Amplification over several cells together."""
    floor = sum(cell.weight * cell.floor.value for cell in cells)
    return sum(cell.weight * cell.noise.value for cell in cells) / max(floor, 1e-300)


def _setting(current: Current | None, beta: str) -> str:
    has_beta = current is None or (current.method in METHODS and "beta" in METHODS[current.method].options)
    return f"--beta {beta}" if has_beta else f"--method vamf --beta {beta}"


def _times(ratio: Estimate) -> str:
    return f"{with_error(ratio)} times"


def _lower(ratio: Estimate) -> str:
    """A ratio to something as how many times lower or higher, with its error."""
    if ratio.value >= 1:
        return f"{_times(ratio)} higher"
    return f"{_times(Estimate(1 / ratio.value, ratio.error / ratio.value**2))} lower"


def with_error(estimate: Estimate) -> str:
    """`value ± error`, with as many decimals as the error justifies: two of its digits, at most five decimals."""
    if not math.isfinite(estimate.error):
        return "not measurable"
    decimals = 3 if estimate.error == 0 else min(5, max(0, 1 - math.floor(math.log10(estimate.error))))
    return f"{estimate.value:.{decimals}f} ± {estimate.error:.{decimals}f}"
