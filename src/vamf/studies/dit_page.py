"""The report of the image study: tables, figures and sentences."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vamf import figures
from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.figures import Curve, Panel
from vamf.report import tables
from vamf.studies import dit_results, paper, summary
from vamf.studies.dit_results import BANK, CONFOUND, Prediction, plus_minus, signed, variant_name
from vamf.studies.image_noise import TIMES
from vamf.studies.page import Table, columns, mean_std, words
from vamf.studies.results import Results
from vamf.theory.estimate import Estimate

SHADES = (figures.INK, figures.BLUE, figures.GREEN, figures.RED, figures.ORANGE, "#8a4fa3", "#a08030", "#17a3a8")
COLORS = dict(zip((*map(variant_name, (0.0, 0.25, 0.5, 1.0)), "beta = 1, p = 0", "beta = 1, anchor", CONFOUND[1][1],
                   BANK), SHADES, strict=True))  # fmt: skip
VIEWS = {"plain": "without class, as the paper measures", "trained": "with classes and guidance, as trained"}


def content(results: Results, samples: dict[str, np.ndarray]) -> dict[str, Any]:
    """The content of the page.

    Args:
        samples: images of each variant, the real ones first, the same noise and classes throughout.
    """
    members, execution = results.members, results.execution
    config, evaluator, real = execution.base(""), execution.prepared, execution.prepared.baseline
    predicted, accuracy = dit_results.prediction(dit_results.final_gaps(members)), tables.number(real["accuracy"])
    return {
        "name": words(execution.dataset("").name), "config": config, "guidance": config.build_objective().guidance,
        "size": ", ".join(f"{name} {getattr(config.network, name, '?')}" for name in ("depth", "width", "patch")),
        "evaluator": evaluator, "evaluator_notes": evaluator.notes, "real": tables.number(real["frechet"]),
        "accuracy_means": dit_results.SENTENCES["accuracy-means"].format(accuracy=accuracy) if real["accuracy"] else "",
        "sentences": results.findings["sentences"],
        **_stops(results),
        "prediction": predicted and _prediction(predicted),
        "mismatch": predicted and _mismatch(predicted),
        "confound": _confound(results),
        "bias": _bias(results),
        "distance": _distances(results),
        "predicted-noise": _predicted_noise(members),
        "loss-variance": _loss_variance(members),
        "effective-size": _effective_sizes(members),
        "samples": figures.image_rows(samples),
    }  # fmt: skip


def _stops(results: Results) -> dict[str, Table]:
    """Distances, gaps and accuracies: a row for each variant, a column for each stop."""
    variants, steps = summary.variants(results.members), dit_results.steps(results.members)
    rows = {(row["variant"], row["step"]): row for row in results.findings["matched"]}

    def stops(cell: Callable[[dict], Any]) -> dict[str, Any]:
        return columns(steps, lambda variant, step: cell(rows[variant, step]), "step {:,}".format)

    names = {"variant": str}
    noise = {"gradient variance": lambda variant: summary.spread(results.of(variant=variant), "gradient_variance")}
    lowest = stops(lambda row: row["frechet"])
    return {
        "frechet": Table.of(variants, names | stops(mean_std("frechet")), lowest=lowest),
        "gaps": Table.of([variant for variant in variants if variant != variant_name(0.0)], names | stops(_gap)),
        "accuracy": Table.of(variants, names | stops(mean_std("accuracy")) | noise),
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
    members, last = results.members, dit_results.steps(results.members)[-1]
    if CONFOUND[1][1] not in summary.variants(members):
        return None
    rows = {row["variant"]: row for row in summary.of(results.findings["matched"], step=last)}
    pairs = {
        weight: [rows[variant] for variant in pair] for weight, pair in zip(("p = 1", "p = 0"), CONFOUND, strict=True)
    }
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
    return Table.of(results.findings["bias_history"], {"step": "{step:,}", **values}).below(*lines)


# ------------------------------------------------------------------------------------------------------------- figures


def _distances(results: Results) -> bytes:
    groups = {"mixing, and the bank": [*map(variant_name, paper.IMAGES_GAPS), BANK],
              "beta = 1: weight and anchor": [variant for pair in CONFOUND for variant in pair]}  # fmt: skip

    def curve(variant: str) -> Curve:
        rows = summary.of(results.findings["matched"], variant=variant)
        x, y, spread = ([row[key] for row in rows] for key in ("step", "frechet", "frechet_std"))
        return Curve(x, y, spread, variant, COLORS.get(variant, figures.SOFT))

    real, variants = results.execution.prepared.baseline["frechet"], summary.variants(results.members)
    level = figures.HLine(real, "real images", figures.SOFT, ":")
    plots = [
        Panel(title, [curve(variant) for variant in (variant_name(0.0), *chosen) if variant in variants], [level])
        for title, chosen in groups.items()
    ]
    return figures.line_plots(plots, "step", "Fréchet distance", log=True, integers=True)


def _mismatch(predicted: Prediction) -> bytes:
    betas = np.linspace(0, 1, 41).tolist()
    parabola = [predicted.at(beta) for beta in betas]
    measured = {0.0: Estimate(0.0, 0.0), **predicted.measured}
    curves = [
        summary.curve(betas, parabola, "A beta², from beta = 0.5", figures.BLUE, ""),
        summary.curve(list(measured), list(measured.values()), "measured", figures.RED),
    ]
    return figures.line_plots([Panel("", curves)], "beta", "gap to beta = 0")


def _predicted_noise(members: dit_results.Members) -> bytes:
    curve = summary.curve(CURVE_BETAS, dit_results.curve(members, "predicted_mse"), "predicted", figures.INK)
    level = figures.UNITY._replace(label="beta = 0")
    return figures.line_plots([Panel("", [curve], [level])], "beta", "noise in the residual, relative")


def _loss_variance(members: dit_results.Members) -> bytes:
    looks = {"stochastic": ("stochastic tangent", figures.RED), "deterministic": ("deterministic", figures.BLUE)}
    plots = [
        Panel(title, [summary.curve(TIMES, dit_results.curve(members, "loss_variance", view, key), *look)
                      for key, look in looks.items()])
        for view, title in VIEWS.items()
    ]  # fmt: skip
    return figures.line_plots(plots, "t", "variance of the loss", log=True)


def _effective_sizes(members: dit_results.Members) -> bytes | None:
    sizes = next((member["effective_sizes"] for member in members if "effective_sizes" in member), None)
    if sizes is None:
        return None
    curves = [
        Curve(sizes["t"], sizes["class"], None, "points of the row's class", figures.BLUE),
        Curve(sizes["t"], sizes["all"], None, "as many points of all classes", figures.ORANGE),
    ]
    return figures.line_plots([Panel("", curves)], "t", "effective points", log=True)
