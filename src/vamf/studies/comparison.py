"""Several ways to train, side by side: equal steps, equal time, cost, and one table for each measure.

An entry is a name and a training configuration. All entries of a data set train for the same number of steps from the
same seeds; those whose step costs something else than the first entry's are then trained again for the time that the
first one takes: their steps are divided by the relative cost, and so is the length of their schedules.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, data, figures
from vamf.files import write_atomic, write_json
from vamf.progress import Progress
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import runner, summary
from vamf.studies.runner import Training
from vamf.training import presets
from vamf.training.config import TrainConfig

SAMPLES = 4096
MEASURED = ("sw1", "sw2", "u_error", "jump_error", "gradient_variance")
COLUMNS = ("data", "arm", "equal", "method", "beta", "seed", "steps", "finite", *MEASURED)
TITLES = {
    "sw1": "Sample quality: SW1",
    "sw2": "Sample quality: SW2",
    "u_error": "Distance to the exact average velocity",
    "jump_error": "Distance to the exact one-step jump",
    "gradient_variance": "Gradient variance",
}
HEADERS = {
    "sw1": "SW1",
    "sw2": "SW2",
    "u_error": "u error",
    "jump_error": "jump error",
    "gradient_variance": "gradient variance",
}
MEANINGS = (
    "Mean ± standard deviation over seeds, lowest SW1 first; the least of a column stands out. The u error is the root "
    "mean square distance to the exact average velocity over all (r, t), the jump error that of the one jump that "
    "sampling takes; the gradient variance is the trace of the covariance of the batch gradient in the second half of "
    "training."
)
NOTABLE = 0.02
"""Relative difference in cost from which on equal time is another training than equal steps."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison in one folder; a second call continues it."""

    folder: Path
    title: str
    lead: str
    plan: Mapping[str, Any]
    """What was asked, to recognise the folder."""
    datasets: Sequence[str]
    entries: Callable[[str], Mapping[str, TrainConfig]]
    """The configurations of a data set by name; the first is the yardstick of time."""
    seeds: Sequence[int]
    timed: bool = True
    """Whether to train for equal time too."""
    more: Callable[[Page, list[dict]], None] | None = None
    """Adds sections to the page, given the rows of the table."""
    command: str = ""
    """The command that made it."""

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the folder holds something else, or a file cannot be written.
        """
        self.claim()
        members, floors, costs = [], {}, {}
        for name in self.datasets:
            dataset = data.load(name)
            drawn = dataset.draw(dataset.arrays, jax.random.key(2**30), SAMPLES)[0]
            floors[name] = self._measure(name)(dataset.to_original(np.asarray(drawn)))
            configs = self.entries(name)
            costs[name] = measured_costs(self.folder, name, configs, progress)
            for (entry, equal), training in self.trainings(name, configs, costs[name]).items():
                progress.say(f"{training.name}: {training.config.steps:,} steps, {len(training.seeds)} trainings")
                known = {"arm": entry, "equal": equal, "steps": training.config.steps, "data": name}
                members += [{**row, **known} for row in self.complete(training, progress)]
        return self._write(members, floors, costs)

    def claim(self) -> None:
        """Make the folder this comparison's, or recognise it."""
        runner.claim(self.folder, dict(self.plan), [presets.for_data(name) for name in self.datasets])

    def prepare(self, progress: Progress) -> list[Training]:
        """Claim the folder and measure what steps cost; returns all trainings."""
        self.claim()
        found: list[Training] = []
        for name in self.datasets:
            configs = self.entries(name)
            costs = measured_costs(self.folder, name, configs, progress)
            found += self.trainings(name, configs, costs).values()
        return found

    def complete(self, training: Training, progress: Progress) -> list[dict]:
        """The results of one training, trained now as far as it is not yet."""
        name = training.config.data
        mixture = data.load(name).mixture
        inspect = None if mixture is None else runner.exact_error(mixture)
        return runner.complete(training, self.folder, self._measure(name), SAMPLES, progress, inspect)

    def _measure(self, name: str) -> runner.Measure:
        return summary.distances_to(data.load(name).reference(SAMPLES, 0))

    def trainings(
        self, name: str, configs: Mapping[str, TrainConfig], costs: Mapping[str, Any]
    ) -> dict[tuple[str, str], Training]:
        """Every training of a data set by its entry and what is equal."""
        stem = Path(name).stem
        found = {
            (entry, "steps"): Training(f"{stem}-{slug(entry)}", config, self.seeds) for entry, config in configs.items()
        }
        first = next(iter(configs))
        for entry, config in configs.items():
            ratio = costs[entry]["ms"] / costs[first]["ms"]
            steps = max(int(round(config.steps / ratio, -2)), 100)
            if self.timed and abs(ratio - 1) > NOTABLE and steps != config.steps:
                other = dataclasses.replace(config, steps=steps)
                found[entry, "time"] = Training(f"{stem}-{slug(entry)}-time", other, self.seeds)
        return found

    def _write(self, members: list[dict], floors: dict, costs: dict) -> Path:
        rows = table(members, {name: {k: v["ms"] for k, v in found.items()} for name, found in costs.items()})
        flat = [{key: row.get(key) for key in COLUMNS} for row in members]
        write_atomic(self.folder / "members.csv", tables.to_csv(flat))
        write_atomic(self.folder / "arms.csv", tables.to_csv(rows))
        ranks = {equal: ranking(rows, self.datasets, equal) for equal in ("steps", "time")}
        results = {
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "plan": dict(self.plan),
            "samples": SAMPLES,
            "floors": floors,
            "costs": costs,
            "ranks": ranks,
            "arms": rows,
            "members": members,
        }
        write_json(self.folder / "results.json", results)
        flat_names = [name for name in self.datasets if data.load(name).sample_shape == (2,)]
        clouds = {name.replace("_", " "): self._clouds(name, costs[name]) for name in flat_names}
        picture = figures.clouds(clouds) if clouds else None
        if picture is not None:
            write_atomic(self.folder / "figures" / "samples.png", picture)
        report = self.folder / "report.html"
        write_atomic(report, self._page(rows, ranks, floors, costs, picture))
        return report

    def _clouds(self, name: str, costs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        configs = self.entries(name)
        chosen = self.trainings(name, configs, costs)
        clouds = {"data": data.load(name).reference(SAMPLES, 0)}
        for entry in configs:
            clouds[entry.replace("_", " ")] = runner.load_samples(self.folder, chosen[entry, "steps"])[0]
        return clouds

    def _page(self, rows, ranks, floors, costs, picture: bytes | None) -> str:
        names = list(self.datasets)
        order = list(dict.fromkeys(row["arm"] for row in rows))
        page = Page(self.title, self.lead)
        if len(names) == 1:
            self._one_table(page, names[0], rows, floors[names[0]], costs[names[0]])
        else:
            self._many_tables(page, names, order, rows, ranks, floors, costs)
        if self.more is not None:
            self.more(page, rows)
        if picture is not None:
            page.section("Samples")
            page.figure(picture, f"Data and one-step samples, seed {self.seeds[0]}.")
        return page.render(
            f"`{self.command}`, vamf {__version__}, jax {jax.__version__}. "
            "Every number is in `results.json`, `members.csv` and `arms.csv` beside this page."
        )

    def _one_table(self, page: Page, name: str, rows, floor: Mapping[str, float], costs: Mapping[str, Any]) -> None:
        """All that was measured on a single data set, best SW1 first."""
        found = {row["arm"]: row for row in rows if row["equal"] == "steps"}
        order = sorted(found, key=lambda arm: (not np.isfinite(found[arm]["sw1"]), found[arm]["sw1"]))
        keys = [key for key in MEASURED if any(np.isfinite(row[key]) for row in found.values())]
        columns = {HEADERS[key]: [cell(found[arm], key) for arm in order] for key in keys}
        if self.timed:
            again = [at_equal(rows, name, arm, "time") for arm in order]
            columns["SW1, equal time (steps)"] = [f"{cell(row, 'sw1')} ({row['steps']:,})" for row in again if row]
        columns["ms a step"] = [tables.number(costs[arm]["ms"], 2) for arm in order]
        columns["MiB"] = [tables.number(costs[arm]["bytes"] / 2**20, 1) for arm in order]
        lines = [list(line) for line in zip([arm.replace("_", " ") for arm in order], *columns.values(), strict=True)]
        lowest = {(int(np.nanargmin([found[arm][key] for arm in order])), 1 + place) for place, key in enumerate(keys)}
        real = [tables.number(floor[key]) if key in floor else "–" for key in keys]
        lines.append(["real data", *real, *["–"] * (len(columns) - len(keys))])
        page.section("Results")
        page.text(
            f"{MEANINGS} Milliseconds are those of one training alone on this machine, the best of nine rounds in "
            "turn; MiB is what the compiled step needs beside its inputs."
        )
        page.table(["entry", *columns], lines, lowest)

    def _many_tables(self, page: Page, names: list[str], order: list[str], rows, ranks, floors, costs) -> None:
        """A table for each measure, with a column for each data set."""
        page.section("Ranking")
        page.text(
            "Rank by mean SW1 on each data set, 1 is best, and the mean over data sets. Entries whose means differ by "
            "less than one standard error of the difference from the best of their data set are marked with =."
        )
        for equal, words in (("steps", "Equal steps."), ("time", "Equal time.")):
            found = ranks[equal]
            if not found or (equal == "time" and not self.timed):
                continue
            page.text(words)
            page.table(
                ["entry", *(name.replace("_", " ") for name in names), "mean rank"],
                [
                    [row["arm"].replace("_", " "), *(row["ranks"].get(name, "–") for name in names),
                     f"{row['mean']:.1f}"]
                    for row in found
                ],
                {(0, len(names) + 1)},
            )  # fmt: skip
        for key in MEASURED:
            arm_table(page, rows, order, names, key, floors if key in ("sw1", "sw2") else None)
        if self.timed:
            arm_table(page, rows, order, names, "sw1", None, "time", "Equal time: SW1")
        page.section("Cost of a step")
        page.text(
            "Milliseconds of one training alone on this machine, the best of nine rounds in turn, and the memory that "
            "the compiled step needs beside its inputs, in MiB."
        )
        shown = [name for name in names if name in costs]
        page.table(
            ["entry", *(f"{name.replace('_', ' ')}, ms" for name in shown), "MiB"],
            [
                [entry.replace("_", " "),
                 *(tables.number(costs[name].get(entry, {}).get("ms"), 2) for name in shown),
                 tables.number(max(costs[name].get(entry, {}).get("bytes", 0) for name in shown) / 2**20, 1)]
                for entry in order
            ],
        )  # fmt: skip


def slug(entry: str) -> str:
    """An entry's name as part of a folder's."""
    return entry.replace(" ", "").replace("+", "-")


def measured_costs(folder: Path, name: str, configs: Mapping[str, TrainConfig], progress: Progress) -> dict[str, Any]:
    """Milliseconds and bytes of a step of each entry, measured once and kept; 2-D data sets share one measurement."""
    flat = data.load(name).event_shape == (2,)
    place = folder / "costs" / f"{'2-D' if flat else Path(name).stem}.json"
    if not place.exists():
        times = runner.step_costs(dict(configs), progress, steps=100, rounds=9)
        write_json(
            place, {entry: {"ms": ms, "bytes": runner.step_memory(configs[entry])} for entry, ms in times.items()}
        )
    return json.loads(place.read_text())


def table(members: Sequence[dict], costs: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds: a row for each data set, entry and way of comparing.

    Args:
        costs: milliseconds a step by data set and entry; the first entry of a data set is the unit.
    """
    rows = []
    for name, arm, equal in dict.fromkeys((row["data"], row["arm"], row["equal"]) for row in members):
        group = [row for row in members if (row["data"], row["arm"], row["equal"]) == (name, arm, equal)]
        unit = next(iter(costs[name].values()))
        row = {"data": name, "arm": arm, "equal": equal, "seeds": len(group), "steps": group[0]["steps"],
               "cost": costs[name][arm] / unit}  # fmt: skip
        for key in MEASURED:
            row |= {key: summary.mean(group, key), f"{key}_std": summary.std(group, key)}
        rows.append(row)
    return rows


def row_of(rows: Sequence[dict], name: str, arm: str, equal: str = "steps") -> dict | None:
    """The row of a data set and an entry, where there is one."""
    found = [row for row in rows if (row["data"], row["arm"], row["equal"]) == (name, arm, equal)]
    return found[0] if found else None


def cell(row: dict | None, key: str) -> str:
    """Mean ± standard deviation, as text; breaks before the sign, if at all."""
    if row is None or not np.isfinite(row[key]):
        return "–"
    return f"{tables.number(row[key])} ±\u00a0{tables.number(row[f'{key}_std'])}"


def at_equal(rows: Sequence[dict], name: str, arm: str, equal: str) -> dict | None:
    """The row of a comparison; an entry that was not trained anew for equal time counts with its equal steps."""
    return row_of(rows, name, arm, equal) or row_of(rows, name, arm)


def ranking(rows: Sequence[dict], names: Sequence[str], equal: str) -> list[dict[str, Any]]:
    """Ranks by SW1 on each data set, best mean rank first; `=` marks who is within one error of the best."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    ranks: dict[str, dict[str, int]] = {arm: {} for arm in arms}
    words: dict[str, dict[str, str]] = {arm: {} for arm in arms}
    for name in names:
        found = {arm: row for arm in arms if (row := at_equal(rows, name, arm, equal)) is not None}
        order = sorted(found, key=lambda arm: (not np.isfinite(found[arm]["sw1"]), found[arm]["sw1"]))
        for place, arm in enumerate(order, 1):
            best, row = found[order[0]], found[arm]
            error = np.hypot(best["sw1_std"], row["sw1_std"]) / np.sqrt(row["seeds"])
            near = place > 1 and row["sw1"] - best["sw1"] <= error
            ranks[arm][name], words[arm][name] = place, f"{place}{' =' if near else ''}"
    listed = [{"arm": arm, "ranks": words[arm], "mean": float(np.mean(list(ranks[arm].values())))} for arm in arms]
    return sorted(listed, key=lambda row: row["mean"])


def arm_table(
    page: Page,
    rows: Sequence[dict],
    order: Sequence[str],
    names: Sequence[str],
    key: str,
    floors: Mapping[str, Mapping[str, float]] | None = None,
    equal: str = "steps",
    title: str = "",
    ceiling: str = "oracle",
) -> None:
    """One row for each entry, one column for each data set; the lowest mean stands out, the ceiling aside."""
    found = {name: {arm: row for arm in order if (row := at_equal(rows, name, arm, equal))} for name in names}
    shown = [name for name in names if any(np.isfinite(row[key]) for row in found[name].values())]
    arms = [arm for arm in order if any(arm in found[name] for name in shown)]
    if not shown:
        return
    page.section(title or TITLES[key])
    best = set()
    for index, name in enumerate(shown):
        ranked = [arm for arm in found[name] if arm != ceiling and np.isfinite(found[name][arm][key])]
        best.add((arms.index(min(ranked, key=lambda arm: found[name][arm][key])), 1 + index))
    lines = [[arm.replace("_", " "), *(cell(found[name].get(arm), key) for name in shown)] for arm in arms]
    if floors is not None:
        lines.append(["real data", *(tables.number(floors[name][key]) for name in shown)])
    page.table(["entry", *(name.replace("_", " ") for name in shown)], lines, best)
