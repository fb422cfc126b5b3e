"""The report of the image study: tables, figures and sentences."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vamf import figures
from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.figures import Curve, Panel
from vamf.report import tables
from vamf.studies import dit_results as found
from vamf.studies import paper, summary
from vamf.studies.dit_results import BANK, CONFOUND, Prediction, plus_minus, signed, swept
from vamf.studies.image_noise import TIMES
from vamf.studies.page import Table, columns, mean_std, words
from vamf.studies.results import Results
from vamf.theory.estimate import Estimate

SHADES = (figures.INK, figures.BLUE, figures.GREEN, figures.RED, figures.ORANGE, "#8a4fa3", "#a08030", "#17a3a8")
COLORS = dict(zip((*map(swept, (0.0, 0.25, 0.5, 1.0)), "beta = 1, p = 0", "beta = 1, anchor", CONFOUND[1][1], BANK),
                  SHADES, strict=True))  # fmt: skip
VIEWS = {"plain": "without class, as the paper measures", "trained": "with classes and guidance, as trained"}


def content(results: Results, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """What stands in the page.

    Args:
        shown: images of each variant, the real ones first, the same noise and classes throughout.
    """
    members, execution = results.members, results.execution
    config, evaluator, real = execution.base(""), execution.prepared, execution.prepared.baseline
    predicted, accuracy = found.prediction(found.final_gaps(members)), tables.number(real["accuracy"])
    return {
        "name": words(execution.dataset("").name), "config": config, "guidance": config.build_objective().guidance,
        "size": ", ".join(f"{name} {getattr(config.network, name, '?')}" for name in ("depth", "width", "patch")),
        "evaluator": evaluator, "evaluator_notes": evaluator.notes, "real": tables.number(real["frechet"]),
        "accuracy_means": found.SENTENCES["accuracy-means"].format(accuracy=accuracy) if real["accuracy"] else "",
        "sentences": results.found["sentences"],
        **_stops(results),
        "prediction": predicted and _prediction(predicted),
        "mismatch": predicted and _mismatch(predicted),
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
    arms, steps = summary.arms(results.members), found.steps(results.members)
    rows = {(row["arm"], row["step"]): row for row in results.found["matched"]}

    def stops(cell: Callable[[dict], Any]) -> dict[str, Any]:
        return columns(steps, lambda arm, step: cell(rows[arm, step]), "step {:,}".format)

    variant = {"variant": str}
    noise = {"gradient variance": lambda arm: summary.spread(results.of(arm=arm), "gradient_variance")}
    lowest = stops(lambda row: row["frechet"])
    return {
        "frechet": Table.of(arms, variant | stops(mean_std("frechet")), lowest=lowest),
        "gaps": Table.of([arm for arm in arms if arm != swept(0.0)], variant | stops(_gap)),
        "accuracy": Table.of(arms, variant | stops(mean_std("accuracy")) | noise),
    }


def _gap(row: dict[str, Any]) -> str:
    return signed(Estimate(row["gap"], row["gap_error"]))


def _prediction(predicted: Prediction) -> Table:
    return Table.of(predicted.measured.items(), {
        "beta": lambda row: f"{row[0]:g}", "predicted": lambda row: signed(predicted.at(row[0])),
        "measured": lambda row: signed(row[1]),
        "the paper's prediction": lambda row: f"+{paper.IMAGES_ANCHOR * row[0]**2:.2f}",
        "the paper's FID": lambda row: f"+{paper.IMAGES_GAPS[row[0]]:.2f}",
    })  # fmt: skip


def _confound(results: Results) -> Table | None:
    members, last = results.members, found.steps(results.members)[-1]
    if CONFOUND[1][1] not in summary.arms(members):
        return None
    rows = {row["arm"]: row for row in summary.of(results.found["matched"], step=last)}
    pairs = {weight: [rows[arm] for arm in pair] for weight, pair in zip(("p = 1", "p = 0"), CONFOUND, strict=True)}
    distance = mean_std("frechet")
    return Table.of(pairs, {
        "weight": str, "no anchor": lambda weight: distance(pairs[weight][0]),
        "anchor": lambda weight: distance(pairs[weight][1]), "gap to beta = 0": lambda weight: _gap(pairs[weight][0]),
        "gap with anchor": lambda weight: _gap(pairs[weight][1]),
    })  # fmt: skip


def _bias(results: Results) -> Table:
    lines = [
        (f"the paper's {step:,}", f"{bias}", "8,200", f"{shrinkage}", f"{paper.IMAGES_BOUND}")
        for step, bias, shrinkage, _ in paper.IMAGES_BIAS
    ]
    names = {"||b||²": "tracking_gap", "noise": "noise", "shrinkage": "shrinkage", "bound of beta*": "bound"}
    values = columns(names, lambda row, name: plus_minus(row[names[name]]))
    return Table.of(results.found["trail"], {"step": "{step:,}", **values}).below(*lines)


# ------------------------------------------------------------------------------------------------------------- figures


def _distances(results: Results) -> bytes:
    groups = {"mixing, and the bank": [*map(swept, paper.IMAGES_GAPS), BANK],
              "beta = 1: weight and anchor": [arm for pair in CONFOUND for arm in pair]}  # fmt: skip

    def curve(arm: str) -> Curve:
        rows = summary.of(results.found["matched"], arm=arm)
        x, y, spread = ([row[key] for row in rows] for key in ("step", "frechet", "frechet_std"))
        return Curve(x, y, spread, arm, COLORS.get(arm, figures.SOFT))

    real, known = results.execution.prepared.baseline["frechet"], summary.arms(results.members)
    level = figures.Level(real, "real images", figures.SOFT, ":")
    plots = [
        Panel(title, [curve(arm) for arm in (swept(0.0), *chosen) if arm in known], [level])
        for title, chosen in groups.items()
    ]
    return figures.panels(plots, "step", "Fréchet distance", log=True, integers=True)


def _mismatch(predicted: Prediction) -> bytes:
    betas = np.linspace(0, 1, 41).tolist()
    parabola = [predicted.at(beta) for beta in betas]
    measured = {0.0: Estimate(0.0, 0.0), **predicted.measured}
    curves = [
        summary.curve(betas, parabola, "A beta², from beta = 0.5", figures.BLUE, ""),
        summary.curve(list(measured), list(measured.values()), "measured", figures.RED),
    ]
    return figures.panels([Panel("", curves)], "beta", "gap to beta = 0")


def _predicted_noise(members: found.Members) -> bytes:
    curve = summary.curve(CURVE_BETAS, found.curve(members, "predicted_mse"), "predicted", figures.INK)
    level = figures.UNITY._replace(label="beta = 0")
    return figures.panels([Panel("", [curve], [level])], "beta", "noise in the residual, relative")


def _loss_variance(members: found.Members) -> bytes:
    looks = {"stochastic": ("stochastic tangent", figures.RED), "deterministic": ("deterministic", figures.BLUE)}
    plots = [
        Panel(title, [summary.curve(TIMES, found.curve(members, "loss_variance", view, key), *look)
                      for key, look in looks.items()])
        for view, title in VIEWS.items()
    ]  # fmt: skip
    return figures.panels(plots, "t", "variance of the loss", log=True)


def _effective_sizes(members: found.Members) -> bytes | None:
    sizes = next((member["effective_sizes"] for member in members if "effective_sizes" in member), None)
    if sizes is None:
        return None
    curves = [
        Curve(sizes["t"], sizes["class"], None, "points of the row's class", figures.BLUE),
        Curve(sizes["t"], sizes["all"], None, "as many points of all classes", figures.ORANGE),
    ]
    return figures.panels([Panel("", curves)], "t", "effective points", log=True)
