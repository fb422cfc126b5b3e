"""The results of the image study: tables, gaps, the quadratic prediction, and sentences.

The paper (arXiv:2605.09235) predicts how much quality beta costs from the gradient's MSE, a parabola: the gap in the
Fréchet distance is A beta^2, with A from the gap at beta = 0.5. At beta = 1 it measures 2.6 times as much.

A gap is the mean over seeds of the difference to beta = 0 of the same seed. Its error is the standard error over seeds,
or what resampling the images gives where that is larger: two seeds estimate their spread poorly.
"""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.report import tables
from vamf.studies import page, paper, summary
from vamf.studies.image_noise import TIMES
from vamf.studies.summary import of, variants
from vamf.theory.estimate import Estimate, mean_of

CLEAR = 2.0
"""Standard errors from which a difference counts."""
CONFOUND = (("beta = 1", "beta = 1, anchor"), ("beta = 1, p = 0", "beta = 1, p = 0, anchor"))
"""The four cells: p = 1 and p = 0, without and with the anchor."""
BANK = "beta = 0, class-wise bank"
PAGE = page.read("dit")
SENTENCES = page.sentences(PAGE)

Members = Sequence[dict[str, Any]]


def variant_name(beta: float) -> str:
    """The name of a variant of the sweep."""
    return f"beta = {beta:g}"


def steps(members: Members) -> list[int]:
    """The steps at which variants are compared."""
    return [entry["step"] for entry in members[0]["history"]]


def entries(members: Members, variant: str, step: int) -> list[dict[str, Any]]:
    """The scores of a variant's members at a step, with their seeds."""
    rows = [{"seed": member["seed"], **entry} for member in of(members, variant=variant) for entry in member["history"]]
    return of(rows, step=step)


def table(members: Members) -> list[dict[str, Any]]:
    """A row for each variant and step: means and standard deviations over seeds, and the gap to beta = 0."""
    rows = []
    for variant in variants(members):
        for step in steps(members):
            scored, difference = entries(members, variant, step), gap(members, variant, step)
            scores = summary.moments(scored, frechet="frechet", accuracy="accuracy")
            rows.append({"variant": variant, "step": step, "seeds": len(scored), **scores, "gap": difference.value,
                         "gap_error": difference.error})  # fmt: skip
    return rows


def gap(members: Members, variant: str, step: int, base: str = variant_name(0.0)) -> Estimate:
    """Fréchet distance of a variant minus that of another, seed by seed; NaN where a seed of either has none."""
    ours, theirs = ({entry["seed"]: entry for entry in entries(members, name, step)} for name in (variant, base))
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not pairs or any(entry["frechet"] is None for pair in pairs for entry in pair):
        return Estimate(float("nan"), float("nan"))
    if variant == base:
        return Estimate(0.0, 0.0)
    over_seeds = mean_of(np.array([one["frechet"] - other["frechet"] for one, other in pairs]))
    errors = [entry["frechet_error"] for pair in pairs for entry in pair]
    return Estimate(over_seeds.value, max(over_seeds.error, float(np.linalg.norm(errors)) / len(pairs)))


def final_gaps(members: Members) -> dict[float, Estimate]:
    """The gaps at the end, by beta."""
    betas = [beta for beta in paper.IMAGES_GAPS if variant_name(beta) in variants(members)]
    return {beta: gap(members, variant_name(beta), steps(members)[-1]) for beta in betas}


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
    half, full = gaps[0.5], gaps[1.0]
    anchor = Estimate(4 * half.value, 4 * half.error)
    ratio = None
    if half.value > 0 and clear(half):
        value = full.value / anchor.value
        ratio = Estimate(value, float(np.hypot(full.error, value * anchor.error)) / anchor.value)
    return Prediction(anchor, gaps, ratio)


def mean_estimate(estimates: Sequence[Sequence[float]]) -> Estimate:
    """The mean of independent estimates (value, error), one for each seed."""
    values, errors = np.array(estimates, float).T
    return Estimate(float(values.mean()), float(np.linalg.norm(errors)) / len(values))


def curve(members: Members, *keys: str) -> list[Estimate]:
    """A list of estimates that members have under nested keys, averaged over those that have it."""
    estimates = [functools.reduce(lambda value, key: (value or {}).get(key), keys, member) for member in members]
    return [mean_estimate(column) for column in zip(*filter(None, estimates), strict=True)]


def bias_history(members: Members) -> list[dict[str, Any]]:
    """Tracking gap, noise, shrinkage and bound of beta* at each step, averaged over the seeds of beta = 0."""
    rows = []
    for step in steps(members):
        scored = entries(members, variant_name(0.0), step)
        names = ("tracking_gap", "noise", "shrinkage", "bound")
        rows.append({"step": step} | {name: mean_estimate([entry[name] for entry in scored]) for name in names})
    return rows


# ------------------------------------------------------------------------------------------------------ in sentences


def sentences(members: Members) -> list[str]:
    """What agrees with the paper and what does not, for the variants that were run."""
    last, gaps = steps(members)[-1], final_gaps(members)
    predicted = prediction(gaps)
    return [
        of_order(gaps),
        *([of_prediction(predicted)] if predicted is not None else []),
        of_network(members),
        *([of_confound(members, last)] if CONFOUND[1][1] in variants(members) else []),
        of_loss_variance(members),
        of_bias(bias_history(members)),
        *([of_bank(members, last)] if BANK in variants(members) else []),
    ]


def of_order(gaps: dict[float, Estimate]) -> str:
    """How the distance depends on beta."""
    ours = ", ".join(f"{signed(estimate)} at beta = {beta:g}" for beta, estimate in gaps.items())
    theirs = ", ".join(f"+{paper.IMAGES_GAPS[beta]:g}" for beta in gaps)
    parts = [SENTENCES["order"].format(ours=ours, theirs=theirs)]
    if unclear := [f"{beta:g}" for beta, estimate in gaps.items() if not clear(estimate)]:
        parts.append(SENTENCES["order-unclear"].format(betas=", ".join(unclear)))
    if len(gaps) > 1:
        values = [0.0, *(estimate.value for estimate in gaps.values())]
        rises = all(low < high for low, high in pairwise(values))
        parts.append(SENTENCES["order-rises" if rises else "order-does-not-rise"])
    return " ".join(parts)


def of_prediction(predicted: Prediction) -> str:
    """Whether the loss of quality is quadratic."""
    theirs = {"paper_anchor": paper.IMAGES_ANCHOR, "paper_ratio": paper.IMAGES_RATIO}
    if predicted.ratio is None:
        return SENTENCES["no-anchor"].format(half=signed(predicted.measured[0.5]), **theirs)
    ratio = predicted.ratio
    size = "more than quadratic" if ratio.value > 1 else "less than quadratic"
    size = size if abs(ratio.value - 1) > CLEAR * ratio.error else "quadratic to within two standard errors"
    anchor, times = tables.number(predicted.anchor.value), plus_minus(ratio, 2)
    return SENTENCES["quadratic"].format(anchor=anchor, times=times, size=size, **theirs)


def of_network(members: Members) -> str:
    """The best beta that the trained network predicts."""
    mse = curve(members, "predicted_mse")
    best = int(np.argmin([estimate.value for estimate in mse]))
    lowest, last = tables.number(mse[best].value), plus_minus(mse[-1])
    return SENTENCES["network"].format(beta=CURVE_BETAS[best], lowest=lowest, last=last)


def of_confound(members: Members, step: int) -> str:
    """The effect of the weight and the anchor at beta = 1."""
    (plain, anchored), (unweighted, both) = CONFOUND
    effects = {"weight": unweighted, "anchor": anchored, "both": both}
    changes = {name: signed(gap(members, variant, step, plain)) for name, variant in effects.items()}
    tangent, total = signed(gap(members, plain, step)), signed(gap(members, both, step))
    return SENTENCES["changes-at-one"].format(**changes, tangent=tangent, total=total)


def of_loss_variance(members: Members) -> str:
    """Which tangent's loss varies how much, and when."""
    parts = []
    for view in ("plain", "trained"):
        stochastic, deterministic = (
            np.array([estimate.value for estimate in curve(members, "loss_variance", view, kind)])
            for kind in ("stochastic", "deterministic")
        )
        early, *_, late = (stochastic / deterministic).tolist()
        values = {"late": late, "early": early, "flatness": float(deterministic.max() / deterministic.min())}
        texts = {name: tables.number(value, 1) for name, value in values.items()}
        parts.append(SENTENCES[f"loss-variance-{view}"].format(first=TIMES[0], last=TIMES[-1], **texts))
    return SENTENCES["loss-variance-ratio"].format("; ".join(parts))


def of_bias(rows: Sequence[dict[str, Any]]) -> str:
    """How the tracking gap develops over training."""
    first, last = rows[0], rows[-1]
    falls = last["tracking_gap"].value < first["tracking_gap"].value
    gaps = [tables.number(row["tracking_gap"].value) for row in (first, last)]
    texts = {"falls": "falls" if falls else "does not fall", "gaps": gaps, "bound": plus_minus(last["bound"], 2)}
    return SENTENCES["bias-over-training"].format(first=first, last=last, paper_bound=paper.IMAGES_BOUND, **texts)


def of_bank(members: Members, step: int) -> str:
    """The effect of the class-wise bank."""
    sizes = next(member["effective_sizes"] for member in members if "effective_sizes" in member)
    times = [t for t, size in zip(sizes["t"], sizes["class"], strict=True) if size > 2]
    noise = [summary.mean(of(members, variant=variant), "gradient_variance") for variant in (BANK, variant_name(0.0))]
    return SENTENCES["bank"].format(
        gap=signed(gap(members, BANK, step)),
        factor=tables.number(noise[0] / noise[1], 2),
        reach=f"exceeds 2 from t = {times[0]:g} on" if times else "never exceeds 2",
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
