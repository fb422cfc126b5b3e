"""The report of the study of dense mixtures: figures, tables and sentences, with the paper's numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vamf import figures
from vamf.figures import UNITY, Curve, Field, FieldRow, Panel
from vamf.report import tables
from vamf.studies import exact_noise, paper, summary
from vamf.studies.page import Table, mean_std, read, sentences, words
from vamf.studies.results import Results
from vamf.theory.estimate import Estimate

PAGE = read("mixtures")
SENTENCES = sentences(PAGE)
MAP_TIMES, MAP_REACH = (0.2, 0.4, 0.6, 0.8, 1.0), 3.0
SHADES = ("#440154", "#3b528b", "#21918c", "#4cad4c", "#c0a818", "#e07b39")
"""Dimensions from the lowest to the highest."""


def content(results: Results) -> dict[str, Any]:
    """The content of the page."""
    findings, dims = results.findings, results.budget.dims
    exact, growth = findings["exact_noise"], findings["loss_variance"]
    line = growth["t"]
    ratios = np.array(line["stochastic"]) / np.array(line["deterministic"])
    return {
        "first": min(dims), "last": max(dims), "dims": ", ".join(map(str, dims)), "betas": len(results.budget.betas),
        "gap": exact_noise.GAP, "late": growth["late"], "wide": words(growth["data"]),
        "short": _times(ratios[0]), "long": _times(ratios[-1]), "least": line["at"][0],
        "sentences": [sentence(row) for row in findings["matched"]],
        **{name: Table.of(findings["matched"], cells) for name, cells in TABLES.items()},
        "sweep": _sweep_table(results),
        "variance-maps": _maps(),
        **_against_beta(results, {f"dgmm{dim}": f"d = {dim}" for dim in dims}),
        "amplification": _over_time(exact, "amplification", "noise, beta = 0 over beta = 1", "error", log=True),
        "best-beta": _over_time(exact, "beta", "best beta"),
        "loss-variance": _loss_variance(growth),
    }  # fmt: skip


def _percent(key: str) -> Callable[[dict], str]:
    return lambda row: f"{100 * row[f'{key}_change']:+.1f} ± {100 * row[f'{key}_change_error']:.1f} %"


def _bias(end: str) -> Callable[[dict], str]:
    return lambda row: f"{100 * row[f'proxy_bias_{end}']:.2g} %"


def _paper(place: int) -> Callable[[dict], str]:
    return lambda row: paper.MIXTURES_BEST.get(row["dim"], "––––")[place]


TABLES: dict[str, dict[str, Any]] = {
    "sw1": {
        "d": "dim", "SW1 at beta = 0": mean_std("sw1_zero"), "SW1 at best": mean_std("sw1_best"),
        "best beta": "{best_beta:g}",
        "change": lambda row: _percent("sw1_best")(row) if row["best_beta"] else "–", "baseline": "baseline_sw1",
        "paper, at 0": _paper(0), "paper, at best": _paper(1), "paper's best": _paper(3),
        "paper's gain": _paper(2),
    },
    "sw2": {
        "d": "dim", "SW2 at beta = 0": mean_std("sw2_zero"), "SW2 at beta = 1": mean_std("sw2_one"),
        "SW2 at the best beta in SW1": mean_std("sw2_best"), "baseline": "baseline_sw2",
    },
    "errors": {
        "d": "dim", "error at beta = 0": "u_error_zero", "error at 1": "u_error_one", "change": _percent("u_error"),
        "jump error at 0": "jump_error_zero", "at 1": "jump_error_one", "its change": _percent("jump_error"),
        "proxy bias over noise at 0": _bias("zero"), "bias at 1": _bias("one"),
    },
    "closed-form": {
        "d": "dim", "gradient variance at beta = 0": "gradient_variance_zero",
        "1 over 0": lambda row: "{:.2f} ± {:.2f}".format(
            1 + row["gradient_variance_change"], row["gradient_variance_change_error"]),
        "closed form, 1 over 0": "{exact_ratio:.2f} ± {exact_ratio_error:.2f}",
        "best constant beta": "{exact_best_beta:.2f}", "its noise over 0": "{exact_best_ratio:.2f}",
        "best beta at each point, over 0": "{exact_pointwise_ratio:.2f}",
        "points with beta* > 1/2": lambda row: f"{100 * row['exact_fraction']:.0f} %",
    },
}  # fmt: skip


def _sweep_table(results: Results) -> Table:
    lines = []
    for dim in results.budget.dims:
        groups = summary.by_beta(results.of(data=f"dgmm{dim}"))
        lines.append([str(dim), *(summary.spread(group, "sw1") for group in groups.values())])
        if dim in paper.MIXTURES:
            published = dict(zip(paper.BETAS, paper.MIXTURES[dim], strict=True))
            lines.append(["paper", *(tables.number(published.get(beta)) for beta in groups)])
    return Table(["d", *(f"{beta:g}" for beta in results.budget.betas)], lines)


# ----------------------------------------------------------------------------------------------------------- sentences


def sentence(row: dict) -> str:
    """The result in one dimension, relative to the spread over seeds."""
    best, clear = row["best_beta"], row["sw1_best_change_clear"]
    quality = "no beta does better than MeanFlow's SW1 of {sw1_zero:.3f}"
    if best != 0:
        quality = "SW1 is {sw1_zero:.3f} at beta = 0 and lowest at beta = {best_beta:g}, {sw1_best:.3f}"
        quality += "" if clear else ", which is within the spread over seeds"
    texts = {f"{key}_direction": _direction(row, key) for key in ("sw1", "jump_error", "gradient_variance")}
    texts |= {"quality": quality.format(**row), "fraction": f"{100 * row['exact_fraction']:.0f}"}
    text = SENTENCES["dimension"].format(**row, **texts)
    if row["dim"] not in paper.MIXTURES_BEST:
        return text
    *_, gain, beta = paper.MIXTURES_BEST[row["dim"]]
    outcome = "is not seen here" if best == 0 else "is seen here" if clear else "is within the spread here"
    return f"{text} The paper's gain in SW1, {gain} at beta = {beta}, {outcome}."


def _direction(row: dict, key: str) -> str:
    change, error = 100 * row[f"{key}_change"], 100 * row[f"{key}_change_error"]
    if not np.isfinite(change):
        return "is not known"
    if not row[f"{key}_change_clear"]:
        return f"stays within the spread ({change:+.1f} ± {error:.1f} %)"
    return f"{'grows' if change > 0 else 'falls'} by {abs(change):.1f} ± {error:.1f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


# ------------------------------------------------------------------------------------------------------------- figures


def _against_beta(results: Results, titles: dict[str, str]) -> dict[str, bytes]:
    """Quality, distance to the exact velocity, and gradient variance, a plot for each dimension."""

    def sweep(name: str) -> list[dict]:
        return results.of(data=name)

    def quality(name: str):
        return [summary.against_beta(sweep(name), "sw1", "mean and spread over seeds")], results.real(name, "sw1")

    def errors(name: str):
        everywhere = summary.against_beta(sweep(name), "u_error", "over all r < t")
        jump = summary.against_beta(sweep(name), "jump_error", "jump from t = 1 to r = 0", figures.ORANGE)
        return [everywhere, jump], []

    def variances(name: str):
        betas = list(summary.by_beta(sweep(name)))
        changes = [summary.paired_change(sweep(name), "gradient_variance", beta)[0] for beta in betas]
        ratios = [Estimate(1 + change.value, change.error) for change in changes]
        measured = summary.curve(betas, ratios, "measured: tr Cov of the gradient", figures.BLUE)
        exact = results.findings["exact_noise"][int(name.removeprefix("dgmm"))]["training"]["curve"]
        expected = Curve(exact["beta"], exact["ratio"], exact["error"], "closed form: noise of the residual",
                         figures.ORANGE, "")  # fmt: skip
        return [measured, expected], [UNITY]

    return {
        "sw1-against-beta": results.panels(quality, "beta", "SW1", titles),
        "error-against-beta": results.panels(errors, "beta", "RMS error of u", titles),
        "variance-against-beta": results.panels(variances, "beta", "relative to beta = 0", titles),
    }


def _over_time(exact: dict, key: str, y: str, spread: str = "", **options: Any) -> bytes:
    """The closed form against t, a curve for each dimension: jumps to 0, and over a fixed gap."""
    panels = []
    for line, title in {"r = 0": "jumps from t to 0", "gap": f"gaps t − r = {exact_noise.GAP:g}"}.items():
        entries = {f"d = {dim}": entry["time"][line] for dim, entry in exact.items()}
        curves = [
            Curve(entry["t"], entry[key], entry.get(spread), label, shade)
            for (label, entry), shade in zip(entries.items(), SHADES, strict=False)
        ]
        panels.append(Panel(title, curves, [UNITY] if spread else []))
    return figures.line_plots(panels, "t", y, **options)


def _loss_variance(growth: dict[str, Any]) -> bytes:
    looks = {"stochastic": ("tangent v_c", figures.RED), "deterministic": ("tangent of the EMA", figures.BLUE)}
    titles = {"r = 0": "against t, r = 0", "gap": f"against t, t − r = {exact_noise.GAP:g}",
              "t": f"against t − r, t = {growth['late']:g}"}  # fmt: skip
    panels = [
        Panel(title, [Curve(growth[line]["at"], growth[line][kind], growth[line][f"{kind}_error"], *look)
                      for kind, look in looks.items()])
        for line, title in titles.items()
    ]  # fmt: skip
    return figures.line_plots(panels, "t, or t − r", "variance of the loss", log=True)


def _maps() -> bytes:
    mixture = exact_noise.three_modes()
    planes = {t: exact_noise.plane(mixture, t, MAP_REACH) for t in MAP_TIMES}

    def row(label: str, value: Callable[[exact_noise.Plane], Any], about_one: bool = False) -> FieldRow:
        fields = [Field(f"t = {t:g}", value(plane), plane.log_density) for t, plane in planes.items()]
        return FieldRow(label, fields, about_one)

    return figures.fields(
        [
            row("tr Σ", lambda plane: plane.variance),
            row("tr SΣSᵀ,  t → 0", lambda plane: plane.amplified),
            row("ratio", lambda plane: plane.amplified / plane.variance, about_one=True),
        ],
        MAP_REACH,
    )
