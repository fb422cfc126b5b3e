"""Checks of the log of a run.

A healthy run has gradient norms of one size, a Jacobian-vector product that stops growing, and a residual that falls
and then levels off: not at 0, since it contains the variance of the conditional velocity around its mean.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vamf.diagnosis.advice import Finding
from vamf.diagnosis.results import CLEAR, Diagnosis
from vamf.training.config import TrainConfig

SPIKE = 10.0
"""A gradient norm this many times the median is a spike."""
GROWTH = 2.0
"""Growth of the Jacobian-vector product over the second half of a run that is worth a warning."""
TREND = 0.02
"""Relative change of the residual over the last quarter that counts as a trend."""
MIN_RECORDS = 8
"""Lines of the log from which trends are estimated."""
ALWAYS = ("loss", "residual", "grad_norm")
"""Keys that are finite in every line; others may be null."""


def read(
    records: Sequence[dict[str, Any]],
    config: TrainConfig,
    weight_power: float = 0.0,
    diagnosis: Diagnosis | None = None,
) -> list[Finding]:
    """Findings in the log of a single run.

    Args:
        records: the lines of `metrics.jsonl`.
        weight_power: p of the loss weight in use.
        diagnosis: names the region of (r, t) behind a growing derivative.
    """
    if not records:
        return [Finding("note", "There is no log to read.")]
    divergence = _not_finite(records, config)
    if divergence:
        return divergence
    problems = [
        *_unfinished(records, config),
        *_spikes(records, config),
        *_growth(records, config, diagnosis, weight_power),
        *_rising(records, config),
    ]
    return [*(problems or [_healthy(records)]), *_improving(records, config), *_weight(weight_power)]


def _not_finite(records, config) -> list[Finding]:
    for record in records:
        for name in ALWAYS:
            if record.get(name) is None or not math.isfinite(record[name]):
                return [
                    Finding(
                        "problem",
                        f"{name} is not finite in the steps before {record['step']:,}: the run has diverged.",
                        f"{_slower(config)} --optimizer.clip-norm 1",
                    )
                ]
    return []


def _unfinished(records, config) -> list[Finding]:
    step = records[-1]["step"]
    if step >= config.steps:
        return []
    text = (
        f"The log ends at step {step:,} of {config.steps:,}: the run was interrupted, and can be resumed, or it "
        "stopped at a loss or gradient that was not finite, and needs smaller steps."
    )
    return [Finding("warning", text, _slower(config))]


def _spikes(records, config) -> list[Finding]:
    settled = records[len(records) // 10 :]
    median = float(np.median([record["grad_norm"] for record in settled]))
    worst = max(settled, key=lambda record: record["grad_norm_max"])
    ratio = worst["grad_norm_max"] / max(median, 1e-300)
    clip = config.optimizer.clip_norm
    if ratio < SPIKE:
        return []
    text = f"The gradient norm spikes: {ratio:.0f} times its median of {median:.3g} before step {worst['step']:,}."
    if 0 < clip <= SPIKE * median:
        return [Finding("note", f"{text} Clipping at {clip:g} keeps it from the parameters.")]
    return [Finding("warning", text, f"--optimizer.clip-norm {3 * median:.2g}")]


def _growth(records, config, diagnosis, weight_power) -> list[Finding]:
    values = _series(records, "jvp_norm")
    if len(values) < MIN_RECORDS:
        return []
    quarter = len(values) // 4
    early, late = np.median(values[quarter : 2 * quarter]), np.median(values[-quarter:])
    if late < GROWTH * early:
        return []
    text = f"The Jacobian-vector product keeps growing: {late / early:.1f} times over the second half of the run."
    if diagnosis is not None:
        cell = max(diagnosis.cells, key=lambda cell: cell.weight * cell.derivative.value)
        text += f" It is largest at t = {cell.t:.2f}, t - r = {cell.gap:.2f}."
    remedy = "--weighting power --weighting.power 1" if weight_power < 1 else _slower(config)
    return [Finding("warning", text, remedy)]


def _rising(records, config) -> list[Finding]:
    change = _trend(records)
    if change is None or change < TREND:
        return []
    text = f"The residual has risen by {change:.0%} over the last quarter of the log."
    return [Finding("warning", text, _slower(config))]


def _improving(records, config) -> list[Finding]:
    change = _trend(records)
    if change is None or change > -TREND:
        return []
    text = f"The residual still falls, by {-change:.0%} over the last quarter of the log: more steps would help."
    return [Finding("advice", text, f"--steps {2 * config.steps}")]


def _weight(weight_power: float) -> list[Finding]:
    if weight_power < 0.9:
        return []
    text = (
        f"With the loss weight's power {weight_power:g} the printed loss is near 1 whatever happens, which is no "
        "sign of trouble: watch the residual."
    )
    return [Finding("note", text)]


def _healthy(records) -> Finding:
    settled = records[len(records) // 10 :]
    median = max(float(np.median(_series(settled, "grad_norm"))), 1e-300)
    ratio = max(record["grad_norm_max"] for record in settled) / median
    text = f"The log is healthy: the largest gradient norm is {ratio:.1f} times the median"
    if len(records) < MIN_RECORDS:
        return Finding("good", f"{text}. Its {len(records)} lines are too few to read trends from.")
    return Finding("good", f"{text}, the derivative does not grow and the residual does not rise.")


def _slower(config) -> str:
    return f"--learning-rate {config.learning_rate / 3:.1g}"


def _trend(records) -> float | None:
    """Relative change of the residual from the third to the last quarter; None where it is not clear."""
    values = _series(records, "residual")
    quarter = len(values) // 4
    if len(values) < MIN_RECORDS:
        return None
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    change = after.mean() - before.mean()
    error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / quarter)
    return float(change / before.mean()) if abs(change) > CLEAR * error else None


def _series(records, name: str) -> np.ndarray:
    return np.array([record[name] for record in records if record.get(name) is not None], np.float64)
