"""Variants side by side: equal steps, equal time, cost, and one table for each measure.

All variants of a data set train for the same number of steps from the same seeds; those whose step costs something else
than the first one's are then trained again for the time that the first one takes (`costs.EqualTime`).
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
from vamf.studies.results import Results, found, member_table
from vamf.training.config import TrainConfig

MEASURED = {
    "sw1": "SW1",
    "sw2": "SW2",
    "u_error": "u error",
    "jump_error": "jump error",
    "gradient_variance": "gradient variance",
}
"""Measures, and what a column of them is called."""
COLUMNS = ("data", "arm", "equal", "method", "beta", "seed", "steps", "finite", *MEASURED)
FILES = {"members.csv": member_table(*COLUMNS), "arms.csv": found("arms")}
MEASURES = Measures(of_network=exact_error_if_known, real=training_points)


def base(execution: Execution, name: str) -> TrainConfig:
    """What variants share: the toys' own setting; for digits a smaller network than the preset's, which takes hours."""
    config = dataclasses.replace(engine.paper_config(execution, name), objective={})
    return dataclasses.replace(config, network=MLPConfig(width=256)) if name == "digits" else config


def table(results: Results) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds: a row for each data set, variant and way of comparing."""
    rows = []
    for name, arm, equal in dict.fromkeys((row["data"], row["arm"], row["equal"]) for row in results.members):
        group, costs = results.of(data=name, arm=arm, equal=equal), results.costs[name]
        relative = costs[arm]["ms"] / next(iter(costs.values()))["ms"]
        row = {"data": name, "arm": arm, "equal": equal, "seeds": len(group), "steps": group[0]["steps"]}
        rows.append({**row, "cost": relative, **summary.moments(group, **{key: key for key in MEASURED})})
    return rows


def row_of(rows: Sequence[dict], name: str, arm: str, equal: str = "steps") -> dict | None:
    """The row of a data set and a variant, where there is one."""
    return next(iter(summary.of(rows, data=name, arm=arm, equal=equal)), None)


def at_equal(rows: Sequence[dict], name: str, arm: str, equal: str) -> dict | None:
    """The row of a comparison; a variant that was not trained anew for equal time counts with its equal steps."""
    return row_of(rows, name, arm, equal) or row_of(rows, name, arm)


def _by_sw1(found: Mapping[str, dict]) -> list[str]:
    """Variants by their SW1, lowest first."""
    return sorted(found, key=lambda arm: (not np.isfinite(found[arm]["sw1"]), found[arm]["sw1"]))


def ranking(rows: Sequence[dict], names: Sequence[str], equal: str) -> list[dict[str, Any]]:
    """Ranks by SW1 on each data set, best mean rank first; `=` marks who is within one error of the best."""
    ranks: dict[str, dict[str, int]] = {arm: {} for arm in summary.arms(rows)}
    said: dict[str, dict[str, str]] = {arm: {} for arm in ranks}
    for name in names:
        found = {arm: row for arm in ranks if (row := at_equal(rows, name, arm, equal)) is not None}
        ranked = _by_sw1(found)
        for place, arm in enumerate(ranked, 1):
            best, row = found[ranked[0]], found[arm]
            error = summary.difference_error(best["sw1_std"], row["sw1_std"], row["seeds"])
            near = place > 1 and row["sw1"] - best["sw1"] <= error
            ranks[arm][name], said[arm][name] = place, f"{place}{' =' if near else ''}"
    listed = [{"arm": arm, "ranks": said[arm], "mean": float(np.mean(list(ranks[arm].values())))} for arm in ranks]
    return sorted(listed, key=lambda row: row["mean"])


def variant_table(
    rows: Sequence[dict],
    arms: Sequence[str],
    names: Sequence[str],
    key: str,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    equal: str = "steps",
    ceiling: str = "oracle",
) -> Table | None:
    """One row for each variant, one column for each data set; the lowest mean stands out, the ceiling aside.

    None where nothing was measured.
    """

    def row(arm: str, name: str) -> dict | None:
        return at_equal(rows, name, arm, equal)

    def mean(arm: str, name: str) -> float:
        return (row(arm, name) or {}).get(key, np.nan)

    shown = [name for name in names if any(np.isfinite(mean(arm, name)) for arm in arms)]
    if not shown:
        return None
    cells = {"variant": words, **columns(shown, lambda arm, name: mean_std(key)(row(arm, name)))}
    ranked = columns(shown, lambda arm, name: np.nan if arm == ceiling else mean(arm, name))
    found = Table.of([arm for arm in arms if any(row(arm, name) for name in shown)], cells, lowest=ranked)
    if baselines is None:
        return found
    return found.below(["real data", *(tables.number(baselines[name][key]) for name in shown)])


def measure_tables(
    results: Results, rows: Sequence[dict], arms: Sequence[str], timed: Sequence[dict]
) -> dict[str, Table | None]:
    """A table for each measure, by the names that pages call them; `timed` are the rows of equal time."""
    names, real = results.budget.datasets, results.baselines
    scored = {key: real if key in real[names[0]] else None for key in MEASURED}
    found = {f"{key}-table": variant_table(rows, arms, names, key, one) for key, one in scored.items()}
    return {**found, "time-table": variant_table(timed, arms, names, "sw1", None, "time")}


def one_table(results: Results, rows: Sequence[dict]) -> Table | None:
    """All that was measured on a single data set, best SW1 first; None where there are several."""
    if len(results.budget.datasets) > 1:
        return None
    name = results.budget.datasets[0]
    costs, real = results.costs[name], results.baselines[name]
    found = {row["arm"]: row for row in rows if row["equal"] == "steps"}
    keys = [key for key in MEASURED if any(np.isfinite(row[key]) for row in found.values())]

    def again(arm: str) -> str:
        row = at_equal(rows, name, arm, "time") or found[arm]
        return f"{mean_std('sw1')(row)} ({row['steps']:,})"

    cells: dict[str, Any] = {
        "variant": words, **columns(keys, lambda arm, key: mean_std(key)(found[arm]), MEASURED.__getitem__),
        "SW1, equal time (steps)": again, "ms a step": lambda arm: tables.number(costs[arm]["ms"], 2),
        "MiB": lambda arm: _mib(costs[arm]),
    }  # fmt: skip
    lowest = columns(keys, lambda arm, key: found[arm][key], MEASURED.__getitem__)
    last = ["real data", *(tables.number(real.get(key)) for key in keys), *["–"] * (len(cells) - len(keys) - 1)]
    return Table.of(_by_sw1(found), cells, lowest=lowest).below(last)


def rank_table(results: Results, ranks: Sequence[dict]) -> Table | None:
    """A column for each data set, and the mean rank; None for a single data set."""
    names = results.budget.datasets
    ranked = columns(names, lambda row, name: row["ranks"].get(name, "–"))
    cells = {"variant": lambda row: words(row["arm"]), **ranked, "mean rank": "{mean:.1f}"}
    return Table.of(ranks, cells, lowest={"mean rank": "mean"}) if len(names) > 1 else None


def cost_table(results: Results, arms: Sequence[str]) -> Table | None:
    """Milliseconds on each data set, and the most memory; None for a single data set."""
    costs = results.costs

    def time(arm: str, name: str) -> str:
        return tables.number(costs[name].get(arm, {}).get("ms"), 2)

    times = columns(costs, time, lambda name: f"{words(name)}, ms")
    most = {arm: max((cost.get(arm, {}) for cost in costs.values()), key=lambda c: c.get("bytes", 0)) for arm in arms}
    cells = {"variant": words, **times, "MiB": lambda arm: _mib(most[arm])}
    return Table.of(arms, cells) if len(costs) > 1 else None


def _mib(cost: Mapping[str, float]) -> str:
    return tables.number(cost.get("bytes", 0) / 2**20, 1)
