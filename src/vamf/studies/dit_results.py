"""What the runs of the image study say together: tables, gaps, the quadratic prediction, and sentences.

The paper (arXiv:2605.09235) predicts how much quality beta costs from the gradient's MSE, a parabola: the gap in the
Fréchet distance is A beta^2, with A from the gap at beta = 0.5. At beta = 1 it measures 2.6 times as much.

A gap is the mean over seeds of the difference to beta = 0 of the same seed. Its error is the standard error over seeds,
or what resampling the pictures gives where that is larger: two seeds say little of their own spread.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.report import tables
from vamf.studies import summary
from vamf.studies.image_noise import TIMES
from vamf.theory.estimate import Estimate, mean_of

CLEAR = 2.0
"""Standard errors from which a difference counts."""
CONFOUND = (("beta = 1", "beta = 1, anchor"), ("beta = 1, p = 0", "beta = 1, p = 0, anchor"))
"""The four cells: p = 1 and p = 0, without and with the anchor."""
BANK = "beta = 0, class-wise bank"
PAPER_GAPS = {0.25: 0.39, 0.5: 1.14, 1.0: 11.99}
"""FID after 295,000 steps minus that of beta = 0 (its Table 6)."""
PAPER_ANCHOR, PAPER_RATIO = 4.58, 2.6
PAPER_BIAS = ((20_000, 700, 0.92, 0.46), (40_000, 150, 0.98, 0.49), (80_000, 50, 0.99, 0.50))
"""Step, ||b||^2, shrinkage, and beta* with a factor from which the sign is lost (its Table 7)."""
PAPER_BOUND = 0.94
PAPER_LOSS_RATIO, PAPER_FLATNESS = 70, 3
"""Loss variance: stochastic over deterministic at t = 0.9, and largest over smallest of the deterministic one."""

Members = Sequence[dict[str, Any]]


def swept(beta: float) -> str:
    """The name of a variant of the sweep."""
    return f"beta = {beta:g}"


def arms(members: Members) -> list[str]:
    """The variants in their order."""
    return list(dict.fromkeys(member["arm"] for member in members))


def of(members: Members, arm: str) -> list[dict[str, Any]]:
    """The members of a variant."""
    return [member for member in members if member["arm"] == arm]


def steps(members: Members) -> list[int]:
    """The steps at which variants are compared."""
    return [entry["step"] for entry in members[0]["history"]]


def entries(members: Members, arm: str, step: int) -> list[dict[str, Any]]:
    """The scores of a variant's members at a step, with their seeds."""
    found = [{"seed": member["seed"], **entry} for member in of(members, arm) for entry in member["history"]]
    return [entry for entry in found if entry["step"] == step]


def table(members: Members) -> list[dict[str, Any]]:
    """A row for each variant and step: means and standard deviations over seeds, and the gap to beta = 0."""
    rows = []
    for arm in arms(members):
        for step in steps(members):
            found, away = entries(members, arm, step), gap(members, arm, step)
            scores = summary.moments(found, frechet="frechet", accuracy="accuracy")
            rows.append({"arm": arm, "step": step, "seeds": len(found), **scores, "gap": away.value,
                         "gap_error": away.error})  # fmt: skip
    return rows


def gap(members: Members, arm: str, step: int, base: str = swept(0.0)) -> Estimate:
    """Fréchet distance of a variant minus that of another, seed by seed; NaN where a seed of either has none."""
    ours, theirs = ({entry["seed"]: entry for entry in entries(members, name, step)} for name in (arm, base))
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not pairs or any(entry["frechet"] is None for pair in pairs for entry in pair):
        return Estimate(float("nan"), float("nan"))
    if arm == base:
        return Estimate(0.0, 0.0)
    over_seeds = mean_of(np.array([one["frechet"] - other["frechet"] for one, other in pairs]))
    errors = [entry["frechet_error"] for pair in pairs for entry in pair]
    return Estimate(over_seeds.value, max(over_seeds.error, float(np.linalg.norm(errors)) / len(pairs)))


def final_gaps(members: Members) -> dict[float, Estimate]:
    """The gaps at the end, by beta."""
    known = [beta for beta in PAPER_GAPS if swept(beta) in arms(members)]
    return {beta: gap(members, swept(beta), steps(members)[-1]) for beta in known}


def clear(estimate: Estimate) -> bool:
    """Whether a difference exceeds its error clearly."""
    return abs(estimate.value) > CLEAR * estimate.error


class Prediction(NamedTuple):
    """The gaps that beta = 0.5 predicts, beside those measured."""

    anchor: Estimate
    """A = gap(0.5) / 0.25."""
    measured: dict[float, Estimate]
    """Gap of each beta."""
    ratio: Estimate | None
    """gap(1) / A; None unless A is clearly above 0."""

    def at(self, beta: float) -> Estimate:
        """The predicted gap A beta^2."""
        return Estimate(self.anchor.value * beta**2, self.anchor.error * beta**2)


def prediction(gaps: dict[float, Estimate]) -> Prediction | None:
    """The quadratic prediction from gaps by beta; None without one at 0.5 and at 1."""
    if not {0.5, 1.0} <= set(gaps):
        return None
    half, whole = gaps[0.5], gaps[1.0]
    anchor = Estimate(4 * half.value, 4 * half.error)
    ratio = None
    if half.value > 0 and clear(half):
        value = whole.value / anchor.value
        ratio = Estimate(value, float(np.hypot(whole.error, value * anchor.error)) / anchor.value)
    return Prediction(anchor, gaps, ratio)


def mean_estimate(found: Sequence[Sequence[float]]) -> Estimate:
    """The mean of independent estimates (value, error), one for each seed."""
    values, errors = np.array(found, float).T
    return Estimate(float(values.mean()), float(np.linalg.norm(errors)) / len(values))


def curve(members: Members, *keys: str) -> list[Estimate]:
    """A list of estimates that members have under nested keys, averaged over those that have it."""
    found = []
    for member in members:
        value: Any = member
        for key in keys:
            value = value.get(key) if value is not None else None
        if value is not None:
            found.append(value)
    return [mean_estimate(column) for column in zip(*found, strict=True)]


def bias_history(members: Members) -> list[dict[str, Any]]:
    """Tracking gap, noise, shrinkage and bound of beta* at each step, averaged over the seeds of beta = 0."""
    rows = []
    for step in steps(members):
        found = entries(members, swept(0.0), step)
        names = ("tracking_gap", "noise", "shrinkage", "bound")
        rows.append({"step": step} | {name: mean_estimate([entry[name] for entry in found]) for name in names})
    return rows


# ------------------------------------------------------------------------------------------------------ in sentences


def sentences(members: Members) -> list[str]:
    """What agrees with the paper and what does not, as far as it was run."""
    last, gaps = steps(members)[-1], final_gaps(members)
    found = [of_order(gaps)]
    predicted = prediction(gaps)
    if predicted is not None:
        found.append(of_prediction(predicted))
    found.append(of_network(members))
    if CONFOUND[1][1] in arms(members):
        found.append(of_confound(members, last))
    found += [of_loss_variance(members), of_bias(bias_history(members))]
    if BANK in arms(members):
        found.append(of_bank(members, last))
    return found


def of_order(gaps: dict[float, Estimate]) -> str:
    """How the distance depends on beta."""
    ours = ", ".join(f"{signed(found)} at beta = {beta:g}" for beta, found in gaps.items())
    theirs = ", ".join(f"+{PAPER_GAPS[beta]:g}" for beta in gaps)
    text = f"Against beta = 0 the Fréchet distance at the end changes by {ours} (the paper's FID: {theirs})."
    unclear = [f"{beta:g}" for beta, found in gaps.items() if not clear(found)]
    if unclear:
        text += f" Within two standard errors of no change: beta = {', '.join(unclear)}."
    values = [0.0, *(found.value for found in gaps.values())]
    if len(gaps) > 1:
        rises = all(low < high for low, high in pairwise(values))
        text += " It rises with beta, as in the paper." if rises else " The paper's rises with beta; this does not."
    return text


def of_prediction(found: Prediction) -> str:
    """Whether the loss of quality is quadratic."""
    if found.ratio is None:
        return (
            f"The gap at beta = 0.5 ({signed(found.measured[0.5])}) is not clearly above 0, so that the quadratic "
            f"prediction has no anchor here; the paper has A = {PAPER_ANCHOR} and {PAPER_RATIO} times as much at 1."
        )
    ratio = found.ratio
    size = "more than quadratic" if ratio.value > 1 else "less than quadratic"
    sure = f", {size}" if abs(ratio.value - 1) > CLEAR * ratio.error else ", quadratic to within two standard errors"
    return (
        f"The gap at beta = 0.5 predicts A beta² with A = {tables.number(found.anchor.value)}; at beta = 1 the gap "
        f"is {plus_minus(ratio, 2)} times that{sure} (the paper: {PAPER_RATIO} times)."
    )


def of_network(members: Members) -> str:
    """What the trained network says that beta should be."""
    found = curve(members, "predicted_mse")
    best = int(np.argmin([estimate.value for estimate in found]))
    return (
        f"From the network at beta = 0 the noise in the residual is predicted to be lowest at beta = "
        f"{CURVE_BETAS[best]:g} ({tables.number(found[best].value)} of that at beta = 0) and to be "
        f"{plus_minus(found[-1])} of it at beta = 1."
    )


def of_confound(members: Members, step: int) -> str:
    """What the weight and the anchor do at beta = 1."""
    (plain, anchored), (unweighted, both) = CONFOUND
    effects = {"p = 0": unweighted, "the anchor": anchored, "both, as in the paper's run": both}
    said = "; ".join(f"{name} {signed(gap(members, arm, step, plain))}" for name, arm in effects.items())
    alone, whole = gap(members, plain, step), gap(members, both, step)
    return (
        f"The paper's run at beta = 1 also drops the adaptive weight and adds an anchor. At beta = 1 these change the "
        f"distance by: {said}. Against beta = 0 the tangent alone makes {signed(alone)}, with both changes "
        f"{signed(whole)}."
    )


def of_loss_variance(members: Members) -> str:
    """Which tangent's loss varies how much, and when."""
    parts = []
    for view, words in (("plain", "without class, as the paper measures"), ("trained", "with classes and guidance")):
        stochastic = [estimate.value for estimate in curve(members, "loss_variance", view, "stochastic")]
        deterministic = [estimate.value for estimate in curve(members, "loss_variance", view, "deterministic")]
        ratios = np.array(stochastic) / np.array(deterministic)
        parts.append(
            f"{words}, {tables.number(float(ratios[-1]), 1)} times at t = {TIMES[-1]:g} and "
            f"{tables.number(float(ratios[0]), 1)} times at t = {TIMES[0]:g}, the deterministic one within a factor of "
            f"{tables.number(max(deterministic) / min(deterministic), 1)} over t"
        )
    return (
        f"Variance of the loss with the stochastic tangent over that with the deterministic one: {'; '.join(parts)}. "
        f"The paper: about {PAPER_LOSS_RATIO} times at t = 0.9, about once at 0.1, and a factor of {PAPER_FLATNESS}."
    )


def of_bias(rows: Sequence[dict[str, Any]]) -> str:
    """How the stand-in for the bias develops."""
    first, last = rows[0], rows[-1]
    falls = last["tracking_gap"].value < first["tracking_gap"].value
    return (
        f"The tracking gap {'falls' if falls else 'does not fall'}: {tables.number(first['tracking_gap'].value)} at "
        f"step {first['step']:,}, {tables.number(last['tracking_gap'].value)} at step {last['step']:,} (the paper: "
        f"700, 150, 50). Shrinkage goes from {first['shrinkage'].value:.3f} to {last['shrinkage'].value:.3f} (the "
        f"paper: 0.92 to 0.99). The bound of beta* without the bias is {plus_minus(last['bound'], 2)} at the end (the "
        f"paper: about {PAPER_BOUND})."
    )


def of_bank(members: Members, step: int) -> str:
    """What the class-wise bank brings."""
    sizes = next(member["effective_sizes"] for member in members if "effective_sizes" in member)
    known = [t for t, size in zip(sizes["t"], sizes["class"], strict=True) if size > 2]
    reach = f"exceeds 2 from t = {known[0]:g} on" if known else "never exceeds 2"
    noise = [summary.mean(of(members, arm), "gradient_variance") for arm in (BANK, swept(0.0))]
    return (
        f"The class-wise bank changes the distance by {signed(gap(members, BANK, step))} and the gradient variance by "
        f"a factor of {tables.number(noise[0] / noise[1], 2)}. Of its points, half of the rows see an effective number "
        f"that {reach}. The paper has no such variant."
    )


def plus_minus(estimate: Estimate, digits: int = 3) -> str:
    """Value ± error."""
    return f"{tables.number(estimate.value, digits)} ± {tables.number(estimate.error, digits)}"


def signed(estimate: Estimate, digits: int = 2) -> str:
    """Value ± error of a difference."""
    if not np.isfinite(estimate.value):
        return "–"
    sign = "−" if estimate.value < 0 else "+"
    return f"{sign}{plus_minus(Estimate(abs(estimate.value), estimate.error), digits)}"
