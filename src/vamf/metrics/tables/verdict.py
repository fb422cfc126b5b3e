"""A verdict in words on samples of a table.

    poor     a significant difference above MAJOR, or an area under the ROC curve clearly above RECOGNISED
    usable   a significant difference above MINOR, an area clearly above NOTICED, or copies of training rows
    good     neither

A difference is a column's (in standard deviations, or total variation), a pair's (length of the difference of the
associations) or the sliced distance (in standard deviations), each less its baseline. The first two are significant
from `critical` times their baselines (`rows.py`), the last from SPREADS standard deviations above the mean of real
rows. Clearly is by CLEAR standard errors. The limits are this package's own: 0.1 standard deviations can hardly be seen
in a histogram, 0.3 are plain to see.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vamf.findings import Finding
from vamf.metrics.tables.columns import Directions, Score
from vamf.metrics.tables.memorisation import Memorisation
from vamf.metrics.tables.pairs import PairScore, PairScores
from vamf.metrics.tables.two_sample import TwoSample

MINOR, MAJOR = 0.1, 0.3
"""Differences above which samples are no longer good, and poor."""
NOTICED, RECOGNISED = 0.65, 0.85
"""Areas under the ROC curve above which samples are no longer good, and poor."""
CLEAR = 2.0
"""Standard errors of the area."""
SPREADS = 4.0
"""Standard deviations of the sliced distance of real rows above their mean."""
MEMORISED = 0.05
"""Fraction of copied samples from which on there is a warning; of exact copies a fifth of it."""
CROWDED = 0.55
"""Chance that a sample is nearer to training rows than held-out rows are, from which on it is reported."""
SIGNIFICANT = 3.5
"""Standard errors of these from which on they are."""
SHOWN = 3
"""Columns and pairs that are named."""

Level = Literal["good", "usable", "poor"]
LEVELS: tuple[Level, ...] = ("good", "usable", "poor")
SEVERITIES: dict[str, Literal["good", "warning", "problem"]] = {"good": "good", "usable": "warning", "poor": "problem"}


class Scores(NamedTuple):
    """All scores of samples of a table."""

    directions: Directions
    columns: list[Score]
    pairs: PairScores
    two_sample: TwoSample | None
    memorisation: Memorisation | None
    unseen: bool
    held_out: int


class Verdict(NamedTuple):
    """The verdict, and the findings behind it."""

    level: Level
    findings: list[Finding]
    """The verdict in a sentence first."""


def judge(scores: Scores) -> Verdict:
    """The verdict on samples from their scores."""
    sliced = scores.directions
    differences = [sliced.distance - sliced.baseline]
    if differences[0] <= SPREADS * sliced.spread:
        differences = [0.0]
    named: list[str] = []
    groups: tuple[Sequence[Score | PairScore], ...] = (scores.columns, scores.pairs.worst)
    for group in groups:
        clear = [score for score in group if score.distance > score.critical * score.baseline]
        clear = sorted(clear, key=lambda score: score.baseline - score.distance)
        differences += [score.distance - score.baseline for score in clear]
        named += [score.in_words() for score in clear[:SHOWN] if score.distance - score.baseline > MINOR]
    test = scores.two_sample
    area = 0.0 if test is None else test.auc - CLEAR * test.error
    copies = _copies(scores.memorisation)
    repeats = any(finding.severity == "warning" for finding in copies)
    level = LEVELS[max(_rank(max(differences), MINOR, MAJOR), _rank(area, NOTICED, RECOGNISED), int(repeats))]
    rest = ["no column and no pair of columns differs clearly"] * (not named) + ["they repeat training rows"] * repeats
    if not named and level != "good" and not repeats:
        named = _suspects(scores)
    findings = [Finding(SEVERITIES[level], _summary(level, scores, differences[0] > 0, rest))]
    findings += [Finding("warning" if level == "poor" else "note", text) for text in named]
    return Verdict(level, [*findings, *copies, *_limits(scores)])


def _rank(value: float, minor: float, major: float) -> int:
    return (value > minor) + (value > major)


def _summary(level: Level, scores: Scores, farther: bool, rest: Sequence[str]) -> str:
    """The verdict with the measures behind it."""
    test, sliced = scores.two_sample, scores.directions
    real, parts = "held-out rows" if scores.unseen else "training rows", []
    if test is not None:
        area = f"(AUC {test.auc:.2f} ± {test.error:.2f}, by chance 0.5)"
        if test.auc - CLEAR * test.error <= 0.5:
            parts.append(f"a classifier cannot tell them from {real} {area}")
        else:
            parts.append(f"a classifier that tells them from {real} is right in {test.accuracy:.0%} of cases {area}")
    distance = f"SW1 is {sliced.distance:.3f}, that of real rows {sliced.baseline:.3f} ± {sliced.spread:.3f}"
    parts.append(distance + ("" if farther else ": no clear difference"))
    return f"Samples are {level}: {'; '.join([*parts, *rest])}."


def _suspects(scores: Scores) -> list[str]:
    """The column and the pair that differ most, where neither does clearly."""
    columns = [f"of column {score.column} ({score.ratio:.1f} times that of real rows)" for score in scores.columns[:1]]
    pairs = [
        f"of the pair {' and '.join(pair.columns)} ({pair.ratio:.1f} times that of real rows)"
        for pair in scores.pairs.worst[:1]
    ]
    return [f"The largest differences, none of them clear, are those {' and '.join(columns + pairs)}."]


def _copies(result: Memorisation | None) -> list[Finding]:
    """Warnings of copied training rows."""
    if result is None:
        return []
    copied, error, m, h = result.copied, result.copied_error, result.samples, result.held_out
    fraction = f"{min(max(copied, 0), 1):.0%} ± {error:.0%}"
    pooled = (result.exact * m + result.exact_held_out * h) / (m + h)
    exact_error = math.sqrt(pooled * (1 - pooled) * (1 / m + 1 / h))
    if copied > max(MEMORISED, SIGNIFICANT * error) or (
        result.exact - result.exact_held_out > max(MEMORISED / 5, SIGNIFICANT * exact_error)
    ):
        text = (
            f"Samples repeat training rows: {fraction} of them sit at one, beyond those that sit at held-out rows; "
            f"{result.exact:.1%} equal one, of the held-out rows {result.exact_held_out:.1%}. Train for fewer steps, "
            "with a smaller network, or on more rows."
        )
        return [Finding("warning", text)]
    if result.nearer > max(CROWDED, 0.5 + SIGNIFICANT * result.nearer_error):
        text = (
            f"Samples crowd where training rows are dense: {result.nearer:.0%} of the time they lie nearer to one than "
            f"held-out rows do, by chance 50 %. They are no copies: {fraction} sit at a training row, beyond chance."
        )
        return [Finding("note", text)]
    return []


def _limits(scores: Scores) -> list[Finding]:
    """What these scores cannot see."""
    findings = []
    if not scores.unseen:
        text = "No rows were held out: scores compare with training rows, and repeating those would be best."
        findings.append(Finding("note", text, "--holdout 0.1"))
    limits = sorted(score.critical * score.baseline for score in scores.columns)
    visible = limits[len(limits) // 2] if limits else 0.0
    if visible > MAJOR:
        text = (
            f"With {scores.held_out} rows to compare with, differences of a column below about {visible:.1f} standard "
            "deviations cannot be told from chance."
        )
        findings.append(Finding("note", text))
    return findings


def as_dicts(findings: Sequence[Finding]) -> list[dict]:
    """Findings for JSON."""
    return [finding._asdict() for finding in findings]
