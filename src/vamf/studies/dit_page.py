"""The report of the image study: tables, figures and sentences."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vamf import figures
from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.figures import Curve, Level, Panel
from vamf.report import tables
from vamf.studies import dit_results as found
from vamf.studies import summary
from vamf.studies.dit_results import BANK, CONFOUND, Prediction, plus_minus, signed, swept
from vamf.studies.image_noise import TIMES
from vamf.studies.page import Table, mean_std, words
from vamf.studies.results import Results
from vamf.theory.estimate import Estimate

SHADES = (figures.INK, figures.BLUE, figures.GREEN, figures.RED, figures.ORANGE, "#8a4fa3", "#a08030", "#17a3a8")
COLORS = dict(zip((*map(swept, (0.0, 0.25, 0.5, 1.0)), "beta = 1, p = 0", "beta = 1, anchor", CONFOUND[1][1], BANK),
                  SHADES, strict=True))  # fmt: skip
VIEWS = {"plain": "without class, as the paper measures", "trained": "with classes and guidance, as trained"}
ACCURACY = (
    "Class accuracy: fraction of the samples that the evaluator takes for the class requested (real images: {}). "
    "Gradient variance: trace of the covariance of the batch gradient, mean over the second half; a weight or an "
    "anchor of its own makes it another loss."
)


def content(results: Results, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """What stands in the page.

    Args:
        shown: images of each variant, the real ones first, the same noise and classes throughout.
    """
    members, execution = results.members, results.execution
    config, evaluator, real = execution.base(""), execution.prepared, execution.prepared.baseline
    predicted = found.prediction(found.final_gaps(members))
    return {
        "name": words(execution.dataset("").name), "config": config, "guidance": config.build_objective().guidance,
        "size": ", ".join(f"{name} {getattr(config.network, name, '?')}" for name in ("depth", "width", "patch")),
        "evaluator": evaluator, "evaluator_notes": evaluator.notes, "real": tables.number(real["frechet"]),
        "accuracy_means": (real["accuracy"] and ACCURACY.format(tables.number(real["accuracy"]))) or "",
        "sentences": results.found["sentences"],
        **_stops(results),
        "prediction": predicted and _prediction(predicted),
        "mismatch": predicted and _mismatch(predicted, evaluator.name),
        "confound": _confound(results),
        "bias": _bias(results),
        "distance": _distances(results),
        "predicted-noise": _predicted_noise(members),
        "loss-variance": _loss_variance(members),
        "effective-size": _effective_sizes(members),
        "samples": figures.strips(shown),
    }  # fmt: skip


def _stops(results: Results) -> dict[str, Table]:
    """Distances, gaps and accuracies: a row for each variant, a column for each stop."""
    arms, steps = found.arms(results.members), found.steps(results.members)
    rows = {(row["arm"], row["step"]): row for row in results.found["matched"]}

    def columns(cell: Callable[[dict], str]) -> dict[str, Any]:
        return {"variant": str, **{f"step {step:,}": lambda arm, step=step: cell(rows[arm, step]) for step in steps}}

    values = [np.nan_to_num([rows[arm, step]["frechet"] for arm in arms], nan=np.inf) for step in steps]
    lowest = {(int(np.argmin(column)), 1 + place) for place, column in enumerate(values)}
    noise = {"gradient variance": lambda arm: summary.spread(found.of(results.members, arm), "gradient_variance")}
    gap = columns(lambda row: signed(Estimate(row["gap"], row["gap_error"])))
    return {
        "frechet": Table.of(arms, columns(_spread("frechet")), lowest),
        "gaps": Table.of([arm for arm in arms if arm != swept(0.0)], gap),
        "accuracy": Table.of(arms, columns(_spread("accuracy")) | noise),
    }


def _prediction(predicted: Prediction) -> Table:
    return Table.of(predicted.measured.items(), {
        "beta": lambda row: f"{row[0]:g}", "predicted": lambda row: signed(predicted.at(row[0])),
        "measured": lambda row: signed(row[1]),
        "the paper's prediction": lambda row: f"+{found.PAPER_ANCHOR * row[0]**2:.2f}",
        "the paper's FID": lambda row: f"+{found.PAPER_GAPS[row[0]]:.2f}",
    })  # fmt: skip


def _confound(results: Results) -> Table | None:
    members, last = results.members, found.steps(results.members)[-1]
    if CONFOUND[1][1] not in found.arms(members):
        return None
    rows = {row["arm"]: row for row in results.found["matched"] if row["step"] == last}
    lines = [
        [name, *(_spread("frechet")(rows[arm]) for arm in pair),
         *(signed(found.gap(members, arm, last)) for arm in pair)]
        for name, pair in zip(("p = 1", "p = 0"), CONFOUND, strict=True)
    ]  # fmt: skip
    return Table(["weight", "no anchor", "anchor", "gap to beta = 0", "gap with anchor"], lines)


def _bias(results: Results) -> Table:
    names = ("tracking_gap", "noise", "shrinkage", "bound")
    lines = [[f"{row['step']:,}", *(plus_minus(row[name]) for name in names)] for row in results.found["trail"]]
    for step, bias, shrinkage, _ in found.PAPER_BIAS:
        lines.append([f"the paper's {step:,}", f"{bias}", "8,200", f"{shrinkage}", f"{found.PAPER_BOUND}"])
    return Table(["step", "||b||²", "noise", "shrinkage", "bound of beta*"], lines)


def _spread(key: str) -> Callable[[dict], str]:
    """A cell: mean, and the standard deviation where there are several seeds."""
    return lambda row: mean_std(key)(row) if row["seeds"] > 1 else tables.number(row[key])


# ------------------------------------------------------------------------------------------------------------- figures


def _distances(results: Results) -> bytes:
    groups = {"mixing, and the bank": [*map(swept, found.PAPER_GAPS), BANK],
              "beta = 1: weight and anchor": [arm for pair in CONFOUND for arm in pair]}  # fmt: skip

    def curve(arm: str) -> Curve:
        rows = [row for row in results.found["matched"] if row["arm"] == arm]
        x, y, spread = ([row[key] for row in rows] for key in ("step", "frechet", "frechet_std"))
        return Curve(x, y, spread, arm, COLORS.get(arm, figures.SOFT))

    real, known = results.execution.prepared.baseline, found.arms(results.members)
    level = summary.baseline(real, "frechet", "real images")
    plots = [
        Panel(title, [curve(arm) for arm in (swept(0.0), *chosen) if arm in known], [level])
        for title, chosen in groups.items()
    ]
    return figures.panels(plots, "step", "Fréchet distance", log=True, integers=True)


def _mismatch(predicted: Prediction, name: str) -> bytes:
    betas = np.linspace(0, 1, 41).tolist()
    parabola = _curve(betas, [predicted.at(beta) for beta in betas], "A beta², from beta = 0.5", figures.BLUE, "")
    measured = {0.0: Estimate(0.0, 0.0), **predicted.measured}
    curves = [parabola, _curve(list(measured), list(measured.values()), "measured", figures.RED)]
    return figures.panels([Panel("", curves)], "beta", f"gap in {name}")


def _predicted_noise(members: found.Members) -> bytes:
    curve = _curve(CURVE_BETAS, found.curve(members, "predicted_mse"), "predicted", figures.INK)
    level = Level(1.0, "beta = 0", figures.SOFT, ":")
    return figures.panels([Panel("", [curve], [level])], "beta", "noise in the residual, relative")


def _loss_variance(members: found.Members) -> bytes:
    looks = {"stochastic": ("stochastic tangent", figures.RED), "deterministic": ("deterministic", figures.BLUE)}
    plots = [
        Panel(title, [_curve(TIMES, found.curve(members, "loss_variance", view, key), *look)
                      for key, look in looks.items()])
        for view, title in VIEWS.items()
    ]  # fmt: skip
    return figures.panels(plots, "t", "variance of the loss", log=True)


def _effective_sizes(members: found.Members) -> bytes | None:
    sizes = next((member["effective_sizes"] for member in members if "effective_sizes" in member), None)
    if sizes is None:
        return None
    looks = {"class": ("points of the row's class", figures.BLUE),
             "all": ("as many points of all classes", figures.ORANGE)}  # fmt: skip
    curves = [Curve(sizes["t"], sizes[name], None, *look) for name, look in looks.items()]
    return figures.panels([Panel("", curves)], "t", "effective points", log=True)


def _curve(x: Sequence[float], estimates: Sequence[Estimate], label: str, color: str, marker: str = "o") -> Curve:
    values, errors = [estimate.value for estimate in estimates], [estimate.error for estimate in estimates]
    return Curve(x, values, errors, label, color, marker)
