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
from vamf.training.known_failures import KnownFailure

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
    failures: Sequence[KnownFailure] = (),
    source: Sequence[dict[str, Any]] = (),
) -> list[Finding]:
    """Findings in the log of a single run.

    Args:
        records: the lines of `metrics.jsonl`.
        weight_power: p of the loss weight in use.
        diagnosis: names the region of (r, t) behind a growing derivative.
        failures: the known failures that the run has the settings of.
        source: the lines of the flow model that the run fine-tunes, where its v_loss is of the same times.
    """
    if not records:
        return [Finding("note", "There is no log to read.")]
    divergence = _not_finite(records, config)
    if divergence:
        return [*divergence, *_known(failures, in_trouble=True)]
    problems = [
        *_unfinished(records, config),
        *_spikes(records, config),
        *_growth(records, config, diagnosis, weight_power),
        *_rising(records, config),
        *_lost_velocity(records, config, source),
    ]
    findings = [*(problems or [_healthy(records)]), *_known(failures, bool(problems))]
    return [*findings, *_improving(records, config), *_weight(weight_power)]


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


def _lost_velocity(records, config, source) -> list[Finding]:
    """Fine-tuning starts from a trained velocity, whose loss at r = t it should keep."""
    before, after = _series(source, "v_loss"), _series(records, "v_loss")
    if min(len(before), len(after)) < MIN_RECORDS:
        return []
    before, after = before[-(len(before) // 4) :], after[-(len(after) // 4) :]
    change = after.mean() - before.mean()
    error = np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    if change < max(TREND * before.mean(), CLEAR * error):
        return []
    text = (
        f"The loss at r = t (v_loss) is {change / before.mean():.0%} above that of the run that it started from, at "
        "the ends of both: the velocity has been lost in part."
    )
    return [Finding("warning", text, f"{_slower(config)} --anchor.weight 0.5")]


def _known(failures: Sequence[KnownFailure], in_trouble: bool) -> list[Finding]:
    """What is known to go wrong with the run's settings: a likely cause where something has."""
    severity, end = (
        ("warning", "which is a likely cause") if in_trouble else ("note", "of which this log shows no sign")
    )
    return [Finding(severity, f"Known to fail: {failure.text}, {end}.", failure.setting) for failure in failures]


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
