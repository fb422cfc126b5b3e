"""The report of the study of dense mixtures: figures, tables and sentences, with the paper's numbers beside ours."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vamf import figures
from vamf.figures import Curve, Field, FieldRow, Level, Panel
from vamf.report import tables
from vamf.studies import exact_noise, summary
from vamf.studies.page import Table, mean_std, words
from vamf.studies.results import Results

MAP_TIMES, MAP_REACH = (0.2, 0.4, 0.6, 0.8, 1.0), 3.0
SHADES = ("#440154", "#3b528b", "#21918c", "#4cad4c", "#c0a818", "#e07b39")
"""Dimensions from the lowest to the highest."""

PAPER_BETAS = tuple(round(0.1 * index, 1) for index in range(11))
PAPER_SWEEP = {
    2: (0.152, 0.151, 0.149, 0.148, 0.149, 0.150, 0.150, 0.148, 0.148, 0.148, 0.146),
    4: (0.083, 0.083, 0.083, 0.083, 0.083, 0.084, 0.083, 0.083, 0.083, 0.083, 0.083),
    8: (0.062,) * 11,
    16: (0.044,) * 11,
    32: (0.034, 0.034, 0.037, 0.038, 0.041, 0.041, 0.035, 0.034, 0.036, 0.037, 0.036),
    64: (0.028, 0.027, 0.028, 0.028, 0.025, 0.026, 0.026, 0.026, 0.027, 0.027, 0.028),
}
"""The paper's Table 5: SW1 at `PAPER_BETAS`, after 200,000 steps."""
PAPER_BEST = {
    2: ("0.152 ± 0.022", "0.146 ± 0.015", "about 4 %", "1"),
    4: ("0.083", "0.083", "below 1 %", "0.8"),
    8: ("0.062", "0.062", "about 1 %", "1"),
    16: ("0.044", "0.044", "below 1 %", "1"),
    32: ("0.034", "0.033", "below 1 %", "0.1"),
    64: ("0.028 ± 0.003", "0.025 ± 0.001", "about 9 %", "0.4"),
}
"""The paper's Table 2: SW1 at beta = 0 and at its best beta, the gain, and that beta."""


def content(results: Results) -> dict[str, Any]:
    """What stands in the page."""
    found, dims = results.found, results.budget.dims
    exact, growth = found["exact_noise"], found["loss_variance"]
    line = growth["t"]
    ratios = np.array(line["stochastic"]) / np.array(line["deterministic"])
    return {
        "first": min(dims), "last": max(dims), "dims": ", ".join(map(str, dims)), "betas": len(results.budget.betas),
        "gap": exact_noise.GAP, "late": growth["late"], "wide": words(growth["data"]),
        "short": _times(ratios[0]), "long": _times(ratios[-1]), "least": line["at"][0],
        "sentences": [sentence(row) for row in found["matched"]],
        **{name: Table.of(found["matched"], cells) for name, cells in TABLES.items()},
        "sweep": _sweep_table(results),
        "variance-maps": _maps(),
        "sw1-against-beta": _panels(results, _sw1, "SW1"),
        "error-against-beta": _panels(results, _errors, "RMS error of u"),
        "variance-against-beta": _panels(results, _variances, "relative to beta = 0"),
        "amplification": figures.panels(_over_time(exact, "amplification", "error"), "t",
                                        "noise, beta = 0 over beta = 1", log=True),
        "best-beta": figures.panels(_over_time(exact, "beta"), "t", "best beta"),
        "loss-variance": figures.panels(_loss_panels(growth), "t, or t − r", "variance of the loss", log=True),
    }  # fmt: skip


def _percent(key: str) -> Callable[[dict], str]:
    return lambda row: f"{100 * row[f'{key}_change']:+.1f} ± {100 * row[f'{key}_change_error']:.1f} %"


def _bias(end: str) -> Callable[[dict], str]:
    return lambda row: f"{100 * row[f'proxy_bias_{end}']:.2g} %"


def _paper(place: int) -> Callable[[dict], str]:
    return lambda row: PAPER_BEST.get(row["dim"], "––––")[place]


TABLES: dict[str, dict[str, Any]] = {
    "sw1": {
        "d": "dim", "SW1 at beta = 0": mean_std("sw1_zero"), "SW1 at best": mean_std("sw1_best"),
        "best beta": "{best_beta:g}",
        "change": lambda row: _percent("sw1_best")(row) if row["best_beta"] else "–", "baseline": "floor_sw1",
        "paper, at 0": _paper(0), "paper, at best": _paper(1), "paper's best": _paper(3),
        "paper's gain": _paper(2),
    },
    "sw2": {
        "d": "dim", "SW2 at beta = 0": mean_std("sw2_zero"), "SW2 at beta = 1": mean_std("sw2_one"),
        "SW2 at the best beta in SW1": mean_std("sw2_best"), "baseline": "floor_sw2",
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
        "points with beta* > 1/2": lambda row: f"{100 * row['exact_share']:.0f} %",
    },
}  # fmt: skip


def _sweep_table(results: Results) -> Table:
    lines = []
    for dim in results.budget.dims:
        groups = summary.by_beta(_sweep(results, dim))
        lines.append([str(dim), *(summary.spread(group, "sw1") for group in groups.values())])
        if dim in PAPER_SWEEP:
            paper = dict(zip(PAPER_BETAS, PAPER_SWEEP[dim], strict=True))
            lines.append(["paper", *(tables.number(paper.get(beta)) for beta in groups)])
    return Table(["d", *(f"{beta:g}" for beta in results.budget.betas)], lines)


# ----------------------------------------------------------------------------------------------------------- sentences


def sentence(row: dict) -> str:
    """What one dimension says, hedged by the spread over seeds."""
    clear = row["sw1_best_change_clear"]
    if row["best_beta"] == 0:
        quality = f"no beta does better than MeanFlow's SW1 of {row['sw1_zero']:.3f}"
    else:
        quality = (
            f"SW1 is {row['sw1_zero']:.3f} at beta = 0 and lowest at beta = {row['best_beta']:g}, {row['sw1_best']:.3f}"
        ) + ("" if clear else ", which is within the spread over seeds")
    names = {"sw1": "SW1", "jump_error": "the error of the jump", "gradient_variance": "the gradient variance"}
    changes = [f"{name} {_direction(row, key)}" for key, name in names.items()]
    expected = (
        f"the closed form expects {row['exact_ratio']:.2f} times the noise, its best constant beta is "
        f"{row['exact_best_beta']:.2f}, and beta* exceeds 1/2 at {100 * row['exact_share']:.0f} % of the points"
    )
    text = f"d = {row['dim']}: {quality}. From beta = 0 to 1 {changes[0]}, {changes[1]} and {changes[2]}; {expected}."
    if row["dim"] not in PAPER_BEST:
        return text
    *_, gain, beta = PAPER_BEST[row["dim"]]
    seen = "is not seen here" if row["best_beta"] == 0 else "is seen here" if clear else "is within the spread here"
    return f"{text} The paper's gain in SW1, {gain} at beta = {beta}, {seen}."


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


def _sweep(results: Results, dim: int) -> list[dict]:
    return results.of(data=f"dgmm{dim}")


def _panels(results: Results, of: Callable[[Results, int], tuple[Sequence, Sequence]], label: str) -> bytes:
    return figures.panels([Panel(f"d = {dim}", *of(results, dim)) for dim in results.budget.dims], "beta", label)


def _sw1(results: Results, dim: int) -> tuple[Sequence, Sequence]:
    curve = summary.against_beta(_sweep(results, dim), "sw1", "mean and spread over seeds")
    return [curve], [summary.baseline(results.found["floors"][dim])]


def _errors(results: Results, dim: int) -> tuple[Sequence, Sequence]:
    sweep = _sweep(results, dim)
    everywhere = summary.against_beta(sweep, "u_error", "over all r < t")
    return [everywhere, summary.against_beta(sweep, "jump_error", "jump from t = 1 to r = 0", figures.ORANGE)], []


def _variances(results: Results, dim: int) -> tuple[Sequence, Sequence]:
    sweep = _sweep(results, dim)
    betas = list(summary.by_beta(sweep))
    changes = [summary.paired_change(sweep, "gradient_variance", beta)[0] for beta in betas]
    ratios, errors = [1 + change.value for change in changes], [change.error for change in changes]
    measured = Curve(betas, ratios, errors, "measured: tr Cov of the gradient", figures.BLUE)
    curve, label = results.found["exact_noise"][dim]["training"]["curve"], "closed form: noise of the residual"
    expected = Curve(curve["beta"], curve["ratio"], curve["error"], label, figures.ORANGE, "")
    return [measured, expected], [Level(1.0, "", figures.SOFT, ":")]


def _over_time(exact: dict, key: str, spread: str | None = None) -> list[Panel]:
    """The closed form against t, a curve for each dimension: jumps to 0, and over a fixed gap."""
    panels = []
    for line, title in {"r = 0": "jumps from t to 0", "gap": f"gaps t − r = {exact_noise.GAP:g}"}.items():
        found = {dim: entry["time"][line] for dim, entry in exact.items()}
        curves = [
            Curve(entry["t"], entry[key], entry[spread] if spread else None, f"d = {dim}", shade)
            for (dim, entry), shade in zip(found.items(), SHADES, strict=False)
        ]
        panels.append(Panel(title, curves, [Level(1.0, "", figures.SOFT, ":")] if spread else []))
    return panels


def _loss_panels(growth: dict[str, Any]) -> list[Panel]:
    looks = {"stochastic": ("tangent v_c", figures.RED), "deterministic": ("tangent of the EMA", figures.BLUE)}
    titles = {"r = 0": "against t, r = 0", "gap": f"against t, t − r = {exact_noise.GAP:g}",
              "t": f"against t − r, t = {growth['late']:g}"}  # fmt: skip
    return [
        Panel(title, [Curve(growth[line]["at"], growth[line][kind], growth[line][f"{kind}_error"], *look)
                      for kind, look in looks.items()])
        for line, title in titles.items()
    ]  # fmt: skip


def _maps() -> bytes:
    mixture = exact_noise.three_modes()
    planes = {t: exact_noise.plane(mixture, t, MAP_REACH) for t in MAP_TIMES}

    def row(label: str, value: Callable[[exact_noise.Plane], Any], about_one: bool = False) -> FieldRow:
        shown = [Field(f"t = {t:g}", value(plane), plane.log_density) for t, plane in planes.items()]
        return FieldRow(label, shown, about_one)

    return figures.fields(
        [
            row("tr Σ", lambda plane: plane.variance),
            row("tr SΣSᵀ,  t → 0", lambda plane: plane.amplified),
            row("ratio", lambda plane: plane.amplified / plane.variance, about_one=True),
        ],
        MAP_REACH,
    )
