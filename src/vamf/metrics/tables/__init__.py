"""Are samples of a table good? In numbers and in words.

rows.py          the rows that are compared, and the baseline of every score
columns.py       columns one by one
pairs.py         how columns go together
two_sample.py    a classifier that tells samples from data
memorisation.py  copies of training rows
verdict.py       good, usable or poor, and why
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from vamf.data.dataset import Dataset
from vamf.findings import Finding
from vamf.metrics.tables.columns import score_columns, score_directions
from vamf.metrics.tables.memorisation import memorisation
from vamf.metrics.tables.pairs import score_pairs, strongest
from vamf.metrics.tables.rows import Rows
from vamf.metrics.tables.two_sample import two_sample
from vamf.metrics.tables.verdict import Scores, Verdict, as_dicts, judge

__all__ = ["Rows", "Scores", "Verdict", "evaluate", "findings", "judge", "measure", "strongest"]


def measure(rows: Rows) -> Scores:
    """All scores of samples."""
    parts = rows.divisions()
    return Scores(
        score_directions(rows, parts, rows.seed),
        score_columns(rows, parts),
        score_pairs(rows),
        two_sample(rows),
        memorisation(rows),
        rows.unseen,
        rows.held_out,
    )


def evaluate(dataset: Dataset, samples: Float[np.ndarray, "n d"], seed: int = 0) -> dict[str, Any]:
    """Scores of samples of a table against its held-out rows, and the verdict on them; plain values, for JSON.

    Args:
        dataset: a table, or other data whose samples are rows of numbers.
        samples: (n, *sample_shape) in original units, categories as their numbers.
        seed: of the rows that are compared where there are many, and of the tests' random divisions.

    Raises:
        UserError: samples of another shape, or not finite.
    """
    rows = Rows.of(dataset, samples, seed)
    scores = measure(rows)
    verdict = judge(scores)
    return {
        "verdict": verdict.level,
        "findings": as_dicts(verdict.findings),
        "samples": rows.samples,
        "train": rows.train,
        "held_out": rows.held_out,
        "unseen": rows.unseen,
        "seed": seed,
        "sw1": scores.directions._asdict(),
        "columns": [score._asdict() | {"ratio": score.ratio} for score in scores.columns],
        "pairs": {
            **scores.pairs._asdict(),
            "worst": [pair._asdict() | {"ratio": pair.ratio} for pair in scores.pairs.worst],
        },
        "two_sample": None if scores.two_sample is None else scores.two_sample._asdict(),
        "memorisation": None if scores.memorisation is None else scores.memorisation._asdict(),
    }


def findings(result: dict[str, Any]) -> list[Finding]:
    """The findings in what `evaluate` returned, the verdict first."""
    return [Finding(**finding) for finding in result["findings"]]
