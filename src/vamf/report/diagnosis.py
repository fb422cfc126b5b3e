"""The report page of a diagnosis: findings first, then the measurements behind them."""

from pathlib import Path

import numpy as np

from vamf import figures
from vamf.diagnosis import BETAS, Diagnosis, Finding
from vamf.diagnosis.advice import with_error
from vamf.diagnosis.run import RunDiagnosis
from vamf.files import write_atomic
from vamf.report.page import Page
from vamf.training.run import Run
from vamf.version import __version__


def write(run: Run, result: RunDiagnosis) -> Path:
    """Write `diagnosis.html` into the run's folder; returns its path."""
    diagnosis = result.diagnosis
    page = Page(f"Diagnosis of {run.folder.name}", f"{run.config.describe()}; measured at step {result.step:,}.")

    if result.quality:
        page.section("Are the samples good?")
        page.points([_line(finding) for finding in result.quality])
    page.section("Summary")
    page.points([_line(finding) for finding in result.advice])
    page.text("From the log:")
    page.points([_line(finding) for finding in result.log])

    page.section("Where mixing helps and where it harms")
    page.text(
        "The noise in the residual is S xi with the tangent v_c (beta = 0) and xi with the deterministic tangent v_hat "
        "(beta = 1), S the Jacobian of the flow map from t to r. Left: the noise at beta = 0 over that at beta = 1; "
        "above 1 (red) full mixing lowers it, below 1 (blue) it raises it. Middle: the best beta of each cell. Right: "
        "the fraction of the noise at beta = 0 that the training pairs (r, t) contribute in each cell."
    )
    page.figure(
        _maps(diagnosis),
        "Each number is measured at the centre of its cell. The lower edge is r = t, the diagonal r = 0; the jump from "
        "noise to data in one step is the upper right corner.",
    )

    page.section("One beta for all times")
    page.text(
        f"Recommended: `{diagnosis.beta:g}`, the smallest beta whose measured variance is within its error of the "
        "lowest. Formulas for the best constant beta over the times of training say (below 0 or above 1, that end is "
        "the best value):"
    )
    optimum = diagnosis.optimum
    page.table(
        ["estimate", "beta*"],
        [
            ["traces on real pairs, no bias (upper bound)", with_error(optimum.bound)],
            ["traces on real pairs, with the lag of v_hat as its bias", with_error(optimum.biased)],
            ["isotropic formula, signed trace", with_error(optimum.signed)],
            ["isotropic formula, Frobenius norm (blind to the sign)", with_error(optimum.unsigned)],
        ],
    )
    x = BETAS
    measured, predicted = diagnosis.measured.relative, diagnosis.predicted.relative
    page.figure(
        figures.line_plots(
            [
                figures.Panel(
                    "",
                    [
                        figures.Curve(x, *_values_and_errors(measured), "measured variance of the gradient"),
                        figures.Curve(x, *_values_and_errors(predicted), "predicted noise", figures.ORANGE, "s"),
                    ],
                    [figures.HLine(1.0, "")],
                )
            ],
            "beta",
            "relative to beta = 0",
        ),
        "Measured: the variance of the loss's gradient over independent batches. Predicted: the noise in the residual, "
        "with the lag of v_hat as its bias, before the network's parameters weigh its directions. Both are relative to "
        "beta = 0, with bands of one standard error. Where they differ, the measured one counts.",
    )

    page.section("The flow map's Jacobian")
    page.text(
        "For jumps that end at data, r = 0. tr S / d and ||S||² / d are 1 for the "
        "identity. The loss varies from sample to sample by the variance in the last two columns, at the same network."
    )
    rows = [
        [
            f"{cell.t:.2f}",
            with_error(cell.trace),
            with_error(cell.frobenius),
            with_error(cell.amplification),
            with_error(cell.stochastic),
            with_error(cell.deterministic),
        ]
        for cell in diagnosis.cells
        if cell.gap == cell.t
    ]
    page.table(
        ["t", "tr S / d", "||S||² / d", "noise amplification", "loss variance, beta = 0", "loss variance, beta = 1"],
        rows,
    )
    page.text(
        f"Over all times of training the noise at beta = 0 is {with_error(diagnosis.amplification)} times that at "
        f"beta = 1. On the diagonal, v_hat and network differ by {with_error(diagnosis.tracking_gap)} (squared), which "
        f"leaves a shrinkage factor of {with_error(diagnosis.shrinkage)}. The curves of the log are in `report.html`."
    )
    path = run.folder / "diagnosis.html"
    write_atomic(path, page.render(f"vamf {__version__}, seed {result.seed}; all numbers are in `diagnosis.json`"))
    return path


def _line(finding: Finding) -> str:
    setting = f" Change: `{finding.setting}`." if finding.setting else ""
    return f"{finding.severity.capitalize()}. {finding.text}{setting}"


def _values_and_errors(estimates) -> tuple[list[float], list[float]]:
    return [estimate.value for estimate in estimates], [estimate.error for estimate in estimates]


def _maps(diagnosis: Diagnosis) -> bytes:
    size = len(diagnosis.lines) - 1
    amplification, beta, fraction = (np.full((size, size), np.nan) for _ in range(3))
    total = sum(cell.weight * cell.noise.value for cell in diagnosis.cells)
    for cell in diagnosis.cells:
        index = int(cell.t * size), int(cell.gap * size)
        amplification[index] = cell.amplification.value
        beta[index] = np.clip(cell.beta.value, 0, 1)
        fraction[index] = 100 * cell.weight * cell.noise.value / total
    return figures.heatmaps(
        [
            figures.Heatmap("noise at beta = 0 / noise at beta = 1", amplification, about_one=True),
            figures.Heatmap("best beta", beta, high=1.0),
            figures.Heatmap("fraction of the noise, %", fraction, decimals=1),
        ],
        diagnosis.lines,
        "t",
        "t - r",
    )
