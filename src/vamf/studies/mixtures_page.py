"""The report of the study of dense mixtures: figures, tables and sentences, with the paper's numbers beside ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, figures
from vamf.figures import Curve, Field, FieldRow, Level, Panel
from vamf.files import write_atomic
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import exact_noise, runner, summary

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
    2: ("0.152 ± 0.022", "0.146 ± 0.015", "about 4 %", 1.0),
    4: ("0.083", "0.083", "below 1 %", 0.8),
    8: ("0.062", "0.062", "about 1 %", 1.0),
    16: ("0.044", "0.044", "below 1 %", 1.0),
    32: ("0.034", "0.033", "below 1 %", 0.1),
    64: ("0.028 ± 0.003", "0.025 ± 0.001", "about 9 %", 0.4),
}
"""The paper's Table 2: SW1 at beta = 0 and at its best beta, the gain, and that beta."""


def write(folder: Path, results: dict[str, Any]) -> Path:
    """Write the figures and `report.html` of a finished study; returns the path of the latter.

    Args:
        results: what `results.json` holds, with dimensions as integers.
    """
    exact, growth = results["exact_noise"], results["loss_variance"]
    drawings = {
        "variance-maps": _maps(),
        **_against_beta(results),
        "amplification": figures.panels(
            _over_time(exact, "amplification", "error"), "t", "noise, beta = 0 over beta = 1", log=True
        ),
        "best-beta": figures.panels(_over_time(exact, "beta"), "t", "best beta"),
        "loss-variance": figures.panels(_loss_panels(growth), "t, or t − r", "variance of the loss", log=True),
    }
    runner.write_figures(folder, drawings)
    path = folder / "report.html"
    write_atomic(path, _page(results, drawings))
    return path


def _page(results: dict[str, Any], drawings: dict[str, bytes]) -> str:
    budget, matched, growth = results["budget"], results["matched"], results["loss_variance"]
    dims, steps, seeds = budget["dims"], budget["steps"], ", ".join(map(str, budget["seeds"]))
    page = Page(
        f"What the tangent mix does from {min(dims)} to {max(dims)} dimensions",
        f"Dense Gaussian mixtures in {', '.join(map(str, dims))} dimensions; {steps:,} steps of 256 samples at "
        f"a learning rate of {budget['learning_rate']:g}, "
        f"{len(budget['betas'])} values of beta, seeds {seeds}. One-step samples of the moving average, which is the "
        "proxy too.",
    )
    page.text(
        "The data are 64 Gaussians of std 0.5, their centres on a sphere of radius 1.5. Everything is known about "
        "them: the marginal velocity `v`, the covariance `Σ` of the conditional velocity about it, the average "
        "velocity `u` and the Jacobian `S` of the flow map.",
        "The centres are fixed. The paper's published code draws them anew for every batch, so its data are another "
        "distribution, a blurred sphere, and its numbers stand here for orientation.",
    )
    page.section("In short")
    page.points([sentence(row) for row in matched])
    page.text(
        "Changes are taken seed by seed, since with one seed all betas see the same batches; ± is their standard error "
        "over seeds. A change is called clear where it has one sign in every seed and exceeds two standard errors. The "
        f"best of {len(budget['betas'])} betas is chosen by the seeds that are reported, so it flatters."
    )
    page.section("Where noise is, and where it is amplified")
    page.figure(
        drawings["variance-maps"],
        "Exact noise on a mixture of three modes in the plane, with contours of the density (each a factor of 10). "
        "Top: `tr Σ`, the noise of the target, and of the whole residual with a deterministic tangent. Middle: "
        "`tr SΣSᵀ`, what the stochastic tangent makes of it in the jump from t to 0, in the same colours. Bottom: "
        "their ratio, red where the deterministic tangent is quieter. Between modes the flow map tears neighbours "
        "apart and amplifies; towards a mode it contracts and damps, and there mixing adds noise.",
    )
    _quality(page, results, drawings)
    _closed_form(page, results, drawings)
    page.section("Growth of the loss variance with t and gap")
    page.figure(
        drawings["loss-variance"],
        f"Variance over samples of the loss of one network, MeanFlow on {growth['data'].replace('_', ' ')} (modes far "
        f"apart) after {steps:,} steps: with its own tangent `v_c`, and with the moving average's velocity in its "
        f"place; the target is `v_c` in both. Left: jumps from t to 0; middle: gaps of {exact_noise.GAP:g}; right: all "
        f"gaps at t = {growth['late']:g}. Bands are one standard error.",
    )
    line = growth["t"]
    ratios = np.array(line["stochastic"]) / np.array(line["deterministic"])
    page.text(
        f"At t = {growth['late']:g} the stochastic tangent's variance is {_times(ratios[0])} times the deterministic "
        f"one's for a gap of {line['at'][0]:g}, and {_times(ratios[-1])} times for the jump to 0."
    )
    flags = runner.flags(budget["name"])
    return page.render(
        f"`vamf study mixtures{flags}`, vamf {__version__}, jax {jax.__version__}. "
        "Every number is in `results.json`, `members.csv` and `matched.csv` beside this page."
    )


def _quality(page: Page, results: dict[str, Any], drawings: dict[str, bytes]) -> None:
    matched, budget = results["matched"], results["budget"]
    page.section("Sample quality against beta")
    page.figure(drawings["sw1-against-beta"], "SW1 of one-step samples; the band is one standard deviation.")
    page.text(
        f"Sliced Wasserstein distances to {results['samples']:,} fresh points, {results['projections']} fixed "
        "directions, mean ± standard deviation over seeds. The floor is the distance between two samples of the data. "
        "On the right the paper's Table 2 (200,000 steps)."
    )
    header = ["d", "SW1 at beta = 0", "SW1 at best", "best beta", "change", "floor", "paper, at 0", "paper, at best",
              "paper's best", "paper's gain"]  # fmt: skip
    rows = []
    for row in matched:
        zero, best, gain, beta = PAPER_BEST.get(row["dim"], ("–", "–", "–", None))
        ours = [
            _pm(row, "sw1_zero"),
            _pm(row, "sw1_best"),
            f"{row['best_beta']:g}",
            _percent(row, "sw1_best") if row["best_beta"] else "–",
        ]
        paper = [zero, best, "–" if beta is None else f"{beta:g}", gain]
        rows.append([str(row["dim"]), *ours, tables.number(row["floor_sw1"]), *paper])
    page.table(header, rows)
    page.table(
        ["d", "SW2 at beta = 0", "SW2 at beta = 1", "SW2 at the best beta in SW1", "floor"],
        [
            [str(row["dim"]), *(_pm(row, f"sw2_{name}") for name in ("zero", "one", "best")),
             tables.number(row["floor_sw2"])]
            for row in matched
        ],
    )  # fmt: skip
    page.text("SW1 against beta; below each row the paper's Table 5 (200,000 steps).")
    rows = []
    for dim in budget["dims"]:
        groups = summary.by_beta(_sweep(results, dim))
        rows.append([str(dim), *(summary.spread(group, "sw1") for group in groups.values())])
        if dim in PAPER_SWEEP:
            paper = dict(zip(PAPER_BETAS, PAPER_SWEEP[dim], strict=True))
            rows.append(["paper", *(tables.number(paper.get(beta)) for beta in groups)])
    page.table(["d", *(f"{beta:g}" for beta in budget["betas"])], rows)
    page.section("Distance to the exact average velocity")
    page.figure(
        drawings["error-against-beta"],
        "Root mean square per dimension of the moving average's `u` minus the exact one: over the uniform law of (r, "
        "t), and for the one jump that one-step sampling takes.",
    )
    header = ["d", "error at beta = 0", "at beta = 1", "change", "jump error at 0", "at 1", "change",
              "proxy bias over noise at 0", "at 1"]  # fmt: skip
    rows = [
        [
            str(row["dim"]),
            *(tables.number(row[f"u_error_{end}"]) for end in ("zero", "one")), _percent(row, "u_error"),
            *(tables.number(row[f"jump_error_{end}"]) for end in ("zero", "one")), _percent(row, "jump_error"),
            *(f"{100 * row[f'proxy_bias_{end}']:.2g} %" for end in ("zero", "one")),
        ]
        for row in matched
    ]  # fmt: skip
    page.table(header, rows)
    page.text(
        "Proxy bias over noise is `E‖b‖² / E tr Σ`, `b` the moving average's error at r = t, at the end of training. "
        "Early it is larger: the moving average remembers about 1,000 steps and stays behind the network for a good "
        "part of a short training. So beta can raise the error while it lowers the variance."
    )


def _closed_form(page: Page, results: dict[str, Any], drawings: dict[str, bytes]) -> None:
    page.section("Gradient variance against beta, and what the closed form expects")
    page.figure(
        drawings["variance-against-beta"],
        "Blue: trace of the covariance of the batch gradient relative to beta = 0, from 8 batches at a frozen state "
        f"every {results['budget']['variance_every']} steps, averaged over the second half of training. Orange: noise "
        "`E‖(1 − β) Sξ + βξ‖²` of the residual at the exact average velocity, over the training law of (r, t); no "
        "training goes into it, and it leaves out how the outputs share parameters. Bands are one standard error.",
    )
    header = ["d", "gradient variance at beta = 0", "1 over 0", "closed form, 1 over 0", "best constant beta",
              "its noise over 0", "best beta at each point, over 0", "points with beta* > 1/2"]  # fmt: skip
    rows = [
        [
            str(row["dim"]), tables.number(row["gradient_variance_zero"]),
            f"{1 + row['gradient_variance_change']:.2f} ± {row['gradient_variance_change_error']:.2f}",
            f"{row['exact_ratio']:.2f} ± {row['exact_ratio_error']:.2f}", f"{row['exact_best_beta']:.2f}",
            f"{row['exact_best_ratio']:.2f}", f"{row['exact_pointwise_ratio']:.2f}",
            f"{100 * row['exact_share']:.0f} %",
        ]
        for row in results["matched"]
    ]  # fmt: skip
    page.table(header, rows)
    page.figure(
        drawings["amplification"],
        "`tr SΣSᵀ / tr Σ` in the closed form, means over z, with one standard error. Above 1 the stochastic tangent is "
        "the noisier one, below 1 the deterministic.",
    )
    page.figure(
        drawings["best-beta"],
        "The beta in [0, 1] of least noise at each t in the closed form, for a proxy without bias.",
    )


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
    return f"{text} The paper's gain in SW1, {gain} at beta = {beta:g}, {seen}."


def _direction(row: dict, key: str) -> str:
    change, error = 100 * row[f"{key}_change"], 100 * row[f"{key}_change_error"]
    if not np.isfinite(change):
        return "is not known"
    if not row[f"{key}_change_clear"]:
        return f"stays within the spread ({change:+.1f} ± {error:.1f} %)"
    return f"{'grows' if change > 0 else 'falls'} by {abs(change):.1f} ± {error:.1f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


def _pm(row: dict, key: str) -> str:
    return f"{tables.number(row[key])} ± {tables.number(row[f'{key}_std'])}"


def _percent(row: dict, key: str) -> str:
    return f"{100 * row[f'{key}_change']:+.1f} ± {100 * row[f'{key}_change_error']:.1f} %"


def _sweep(results: dict[str, Any], dim: int) -> list[dict]:
    return summary.of(results["members"], f"dgmm{dim}", "vamf")


def _against_beta(results: dict[str, Any]) -> dict[str, bytes]:
    quality, error, variance = [], [], []
    for dim in results["budget"]["dims"]:
        sweep, title = _sweep(results, dim), f"d = {dim}"
        sw1 = summary.against_beta(sweep, "sw1", "mean and spread over seeds", figures.BLUE)
        floor = Level(results["floors"][dim]["sw1"], "two samples of the data", figures.SOFT, ":")
        quality.append(Panel(title, [sw1], [floor]))
        everywhere = summary.against_beta(sweep, "u_error", "over all r < t", figures.BLUE)
        jump = summary.against_beta(sweep, "jump_error", "jump from t = 1 to r = 0", figures.ORANGE)
        error.append(Panel(title, [everywhere, jump]))
        betas = list(summary.by_beta(sweep))
        changes = [summary.paired_change(sweep, "gradient_variance", beta)[0] for beta in betas]
        ratios, errors = [1 + change.value for change in changes], [change.error for change in changes]
        measured = Curve(betas, ratios, errors, "measured: tr Cov of the gradient", figures.BLUE)
        curve = results["exact_noise"][dim]["training"]["curve"]
        label = "closed form: noise of the residual"
        expected = Curve(curve["beta"], curve["ratio"], curve["error"], label, figures.ORANGE, "")
        variance.append(Panel(title, [measured, expected], [Level(1.0, "", figures.SOFT, ":")]))
    return {
        "sw1-against-beta": figures.panels(quality, "beta", "SW1"),
        "error-against-beta": figures.panels(error, "beta", "RMS error of u"),
        "variance-against-beta": figures.panels(variance, "beta", "relative to beta = 0"),
    }


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


def _loss_panels(growth: dict[str, Any]) -> list[Panel]:
    looks = {
        "stochastic": ("tangent v_c", figures.RED),
        "deterministic": ("tangent of the moving average", figures.BLUE),
    }
    titles = {"r = 0": "against t, r = 0", "gap": f"against t, t − r = {exact_noise.GAP:g}",
              "t": f"against t − r, t = {growth['late']:g}"}  # fmt: skip
    return [
        Panel(title, [
            Curve(growth[line]["at"], growth[line][kind], growth[line][f"{kind}_error"], *look)
            for kind, look in looks.items()
        ])
        for line, title in titles.items()
    ]  # fmt: skip
