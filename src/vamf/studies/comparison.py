"""Variants side by side: equal steps, equal time, cost, and one table for each measure.

All variants of a data set train for the same number of steps from the same seeds; those whose step costs more or
less than the first one's are then trained again for the same time (`costs.EqualTime`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vamf.networks import MLPConfig
from vamf.report import tables
from vamf.studies import engine, summary
from vamf.studies.engine import Execution
from vamf.studies.measures import Measures, exact_error_if_known, training_points
from vamf.studies.page import Table, columns, mean_std, words
from vamf.studies.results import Results, findings_table, member_table
from vamf.training.config import TrainConfig

METRICS = {
    "sw1": "SW1",
    "sw2": "SW2",
    "u_error": "u error",
    "jump_error": "jump error",
    "gradient_variance": "gradient variance",
}
"""Measures, and the titles of their columns."""
COLUMNS = ("data", "variant", "equal", "method", "beta", "seed", "steps", "finite", *METRICS)
FILES = {"members.csv": member_table(*COLUMNS), "variants.csv": findings_table("variants")}
MEASURES = Measures(of_network=exact_error_if_known, real=training_points)


def base(execution: Execution, name: str) -> TrainConfig:
    """The base of all variants: the toys' setting; for digits a smaller network than the preset's."""
    config = dataclasses.replace(engine.paper_config(execution, name), objective={})
    return dataclasses.replace(config, network=MLPConfig(width=256)) if name == "digits" else config


def table(results: Results) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds: a row for each data set, variant and way of comparing."""
    rows = []
    for name, variant, equal in dict.fromkeys((row["data"], row["variant"], row["equal"]) for row in results.members):
        group, costs = results.of(data=name, variant=variant, equal=equal), results.costs[name]
        relative = costs[variant]["ms"] / next(iter(costs.values()))["ms"]
        row = {"data": name, "variant": variant, "equal": equal, "seeds": len(group), "steps": group[0]["steps"]}
        rows.append({**row, "cost": relative, **summary.moments(group, **{key: key for key in METRICS})})
    return rows


def row_of(rows: Sequence[dict], name: str, variant: str, equal: str = "steps") -> dict | None:
    """The row of a data set and a variant, where there is one."""
    return next(iter(summary.of(rows, data=name, variant=variant, equal=equal)), None)


def at_equal(rows: Sequence[dict], name: str, variant: str, equal: str) -> dict | None:
    """The row of a comparison; a variant without a run for equal time counts with its equal steps."""
    return row_of(rows, name, variant, equal) or row_of(rows, name, variant)


def _by_sw1(rows: Mapping[str, dict]) -> list[str]:
    """Variants by their SW1, lowest first."""
    return sorted(rows, key=lambda variant: (not np.isfinite(rows[variant]["sw1"]), rows[variant]["sw1"]))


def ranking(rows: Sequence[dict], names: Sequence[str], equal: str) -> list[dict[str, Any]]:
    """Ranks by SW1 on each data set, best mean rank first; `=` marks those within one error of the best."""
    ranks: dict[str, dict[str, int]] = {variant: {} for variant in summary.variants(rows)}
    texts: dict[str, dict[str, str]] = {variant: {} for variant in ranks}
    for name in names:
        by_variant = {variant: row for variant in ranks if (row := at_equal(rows, name, variant, equal)) is not None}
        ranked = _by_sw1(by_variant)
        for place, variant in enumerate(ranked, 1):
            best, row = by_variant[ranked[0]], by_variant[variant]
            error = summary.difference_error(best["sw1_std"], row["sw1_std"], row["seeds"])
            near = place > 1 and row["sw1"] - best["sw1"] <= error
            ranks[variant][name], texts[variant][name] = place, f"{place}{' =' if near else ''}"
    entries = [
        {"variant": variant, "ranks": texts[variant], "mean": float(np.mean(list(ranks[variant].values())))}
        for variant in ranks
    ]
    return sorted(entries, key=lambda row: row["mean"])


def variant_table(
    rows: Sequence[dict],
    variants: Sequence[str],
    names: Sequence[str],
    key: str,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    equal: str = "steps",
    ceiling: str = "oracle",
) -> Table | None:
    """One row for each variant, one column for each data set; the lowest mean is highlighted, the ceiling excluded.

    None where nothing was measured.
    """

    def row(variant: str, name: str) -> dict | None:
        return at_equal(rows, name, variant, equal)

    def mean(variant: str, name: str) -> float:
        return (row(variant, name) or {}).get(key, np.nan)

    measured = [name for name in names if any(np.isfinite(mean(variant, name)) for variant in variants)]
    if not measured:
        return None
    cells = {"variant": words, **columns(measured, lambda variant, name: mean_std(key)(row(variant, name)))}
    ranked = columns(measured, lambda variant, name: np.nan if variant == ceiling else mean(variant, name))
    result = Table.of(
        [variant for variant in variants if any(row(variant, name) for name in measured)], cells, lowest=ranked
    )
    if baselines is None:
        return result
    return result.below(["real data", *(tables.number(baselines[name][key]) for name in measured)])


def measure_tables(
    results: Results, rows: Sequence[dict], variants: Sequence[str], timed: Sequence[dict]
) -> dict[str, Table | None]:
    """A table for each measure, by the names that pages call them; `timed` are the rows of equal time."""
    names, real = results.budget.datasets, results.baselines
    baselines = {key: real if key in real[names[0]] else None for key in METRICS}
    by_measure = {f"{key}-table": variant_table(rows, variants, names, key, real) for key, real in baselines.items()}
    return {**by_measure, "time-table": variant_table(timed, variants, names, "sw1", None, "time")}


def one_table(results: Results, rows: Sequence[dict]) -> Table | None:
    """All that was measured on a single data set, best SW1 first; None where there are several."""
    if len(results.budget.datasets) > 1:
        return None
    name = results.budget.datasets[0]
    costs, real = results.costs[name], results.baselines[name]
    by_variant = {row["variant"]: row for row in rows if row["equal"] == "steps"}
    keys = [key for key in METRICS if any(np.isfinite(row[key]) for row in by_variant.values())]

    def at_equal_time(variant: str) -> str:
        row = at_equal(rows, name, variant, "time") or by_variant[variant]
        return f"{mean_std('sw1')(row)} ({row['steps']:,})"

    cells: dict[str, Any] = {
        "variant": words, **columns(keys, lambda variant, key: mean_std(key)(by_variant[variant]), METRICS.__getitem__),
        "SW1, equal time (steps)": at_equal_time, "ms a step": lambda variant: tables.number(costs[variant]["ms"], 2),
        "MiB": lambda variant: _mib(costs[variant]),
    }  # fmt: skip
    lowest = columns(keys, lambda variant, key: by_variant[variant][key], METRICS.__getitem__)
    last = ["real data", *(tables.number(real.get(key)) for key in keys), *["–"] * (len(cells) - len(keys) - 1)]
    return Table.of(_by_sw1(by_variant), cells, lowest=lowest).below(last)


def rank_table(results: Results, ranks: Sequence[dict]) -> Table | None:
    """A column for each data set, and the mean rank; None for a single data set."""
    names = results.budget.datasets
    ranked = columns(names, lambda row, name: row["ranks"].get(name, "–"))
    cells = {"variant": lambda row: words(row["variant"]), **ranked, "mean rank": "{mean:.1f}"}
    return Table.of(ranks, cells, lowest={"mean rank": "mean"}) if len(names) > 1 else None


def cost_table(results: Results, variants: Sequence[str]) -> Table | None:
    """Milliseconds on each data set, and the most memory; None for a single data set."""
    costs = results.costs

    def time(variant: str, name: str) -> str:
        return tables.number(costs[name].get(variant, {}).get("ms"), 2)

    times = columns(costs, time, lambda name: f"{words(name)}, ms")
    most = {
        variant: max((cost.get(variant, {}) for cost in costs.values()), key=lambda c: c.get("bytes", 0))
        for variant in variants
    }
    cells = {"variant": words, **times, "MiB": lambda variant: _mib(most[variant])}
    return Table.of(variants, cells) if len(costs) > 1 else None


def _mib(cost: Mapping[str, float]) -> str:
    return tables.number(cost.get("bytes", 0) / 2**20, 1)
