"""The results of all runs of a study, for its page and its files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vamf import figures
from vamf.studies import summary
from vamf.studies.measures import PROJECTIONS
from vamf.studies.page import words
from vamf.studies.runner import has_samples, load_samples


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of all runs of a study."""

    execution: Any
    """The `engine.Execution` whose runs they are."""
    members: list[dict[str, Any]]
    """A result for each run: its numbers, and `data`, `variant` (the label), `seed`, `equal`, `steps`."""
    baselines: dict[str, dict[str, float]]
    """Scores of real data, by data set."""
    costs: dict[str, dict[str, dict[str, float]]]
    """Cost of a step by data set and label, where equal time is compared."""
    findings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the study's `summary` returned."""

    @property
    def budget(self) -> Any:
        """The study's budget."""
        return self.execution.budget

    def standard(self) -> dict[str, Any]:
        """Values that every page may name."""
        return {
            "budget": self.budget,
            "datasets": ", ".join(map(words, self.budget.datasets)),
            "seeds": ", ".join(map(str, self.budget.seeds)),
            "first_seed": self.budget.seeds[0],
            "count": self.execution.study.measures.samples,
            "projections": PROJECTIONS,
        }

    def of(self, **labels: Any) -> list[dict[str, Any]]:
        """The members with certain values, such as `data` and `variant`."""
        return summary.of(self.members, **labels)

    def samples(self, name: str) -> dict[str, np.ndarray]:
        """The samples (n, *event) of every variant's first seed, by its label."""
        by_variant: dict[str, np.ndarray] = {}
        for spec in reversed(self.execution.specs(name)):  # those of equal steps last
            if not has_samples(self.execution.folder, spec):  # it diverged
                continue
            samples = load_samples(self.execution.folder, spec)
            by_variant |= {label["variant"]: samples[index] for index, label in reversed(list(enumerate(spec.labels)))}
        return by_variant

    def gallery(self, variants: Mapping[str, str] | None = None) -> bytes | None:
        """Samples beside the data, a row for each data set in two dimensions; None where there is none.

        Args:
            variants: column titles and labels of the variants to plot; all of them if left out.
        """
        variants = variants or {words(row["variant"]): row["variant"] for row in self.members}
        rows = {}
        for name in self.budget.datasets:
            dataset = self.execution.dataset(name)
            if dataset.sample_shape == (2,):
                data, samples = dataset.reference(self.execution.study.measures.samples, 0), self.samples(name)
                rows[words(name)] = {"data": data} | {
                    title: samples[variant] for title, variant in variants.items() if variant in samples
                }
        return figures.scatter_grid(rows) if rows else None

    def panels(
        self,
        of: Callable[[str], tuple[Sequence[figures.Curve], Sequence[figures.HLine]]],
        x: str,
        y: str,
        titles: Mapping[str, str] | None = None,
        **options: Any,
    ) -> bytes:
        """A plot for each data set, side by side: `of` makes its curves and levels.

        Args:
            titles: data sets and the titles of their plots; all of them by their names if left out.
        """
        titles = titles or {name: words(name) for name in self.budget.datasets}
        plots = [figures.Panel(title, *of(name)) for name, title in titles.items()]
        return figures.line_plots(plots, x, y, **options)

    def real(self, name: str, key: str, label: str = "two samples of the data") -> list[figures.HLine]:
        """The score of real data as a horizontal line; none where it is not measured."""
        score = self.baselines[name]
        return [figures.HLine(score[key], label, figures.SOFT, ":")] if key in score else []


def member_table(*columns: str) -> Callable[[Results], list[dict[str, Any]]]:
    """A row for each run: those columns, or all that are single values."""

    def rows(results: Results) -> list[dict[str, Any]]:
        single = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in results.members]
        names = columns or tuple(dict.fromkeys(name for row in single for name in row))
        return [{name: row.get(name) for name in names} for row in single]

    return rows


def findings_table(name: str) -> Callable[[Results], list[dict[str, Any]]]:
    """The rows that a study's summary has under a name."""
    return lambda results: results.findings[name]
