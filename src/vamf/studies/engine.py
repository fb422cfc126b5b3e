"""The engine of studies. A study is a record: variants, budgets, measures, and what its page says of the results.

    Study                 what is trained, measured and said, for any folder and budget
    Execution             a study in a folder, with a budget and options: plans, trains what is missing, reports
    Results               what all runs say together; the page and the files are functions of it

A folder is continued by whoever executes the same study there. Every run is a unit of its own, so that a launcher may
hand them to other machines (`launcher.py`).
"""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from vamf import __version__
from vamf.data import Dataset
from vamf.errors import UserError
from vamf.files import write_atomic, write_json
from vamf.progress import Progress
from vamf.report import tables
from vamf.studies import costs, page, runner
from vamf.studies.costs import EqualTime
from vamf.studies.measures import PROJECTIONS, Measures
from vamf.studies.results import Results, member_table
from vamf.studies.runner import RunSpec
from vamf.studies.variants import Options, Variant
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.guards import Diverged
from vamf.training.suitability import check_classes, check_objective


def paper_config(execution: "Execution", name: str) -> TrainConfig:
    """What the paper's 2-D study trains with on a data set, for the steps of a budget.

    The EMA's decay is the paper's constant one where the run is as long as the paper's; below it warms up, since a
    constant decay would keep the initial weights.
    """
    budget, base = execution.budget, presets.as_in_paper(name)
    return dataclasses.replace(
        base,
        optimiser=dataclasses.replace(base.optimiser, ema_warmup=budget.name != "paper"),
        steps=budget.steps,
        learning_rate=budget.learning_rate,
        checkpoint_every=max(budget.variance_every, 2000),
        log=LogConfig(every=budget.variance_every, variance_every=budget.variance_every),
    )


def plan(execution: "Execution") -> dict[str, Any]:
    """The key to continuing a folder: study, version, budget and options."""
    options = dataclasses.asdict(execution.options.here)
    return {"study": execution.study.name, "version": __version__, "budget": execution.budget.as_dict(), **options}


def flat_plan(execution: "Execution") -> dict[str, Any]:
    """The same, the budget's fields beside the others."""
    whole = plan(execution)
    return whole | whole.pop("budget")


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study is, for any folder and budget."""

    name: str
    budgets: Mapping[str, Any]
    """Budgets by name; `default` among them."""
    variants: Sequence[Variant] | Callable[["Execution", str], Sequence[Variant]]
    """What is trained on every data set, or a function of the execution and a data set's name."""
    page: str
    """The report, as `page.py` reads it."""
    content: Callable[[Results], dict[str, Any]]
    """What stands in the report: values, tables and figures by name."""
    base: Callable[["Execution", str], TrainConfig] = paper_config
    """The configuration that all variants of a data set share."""
    measures: Measures = Measures()
    """What is measured of every run."""
    summary: Callable[[Results], dict[str, Any]] = lambda results: {}
    """More entries of `results.json`, from all runs."""
    files: Mapping[str, Callable[[Results], list[dict[str, Any]]]] = dataclasses.field(
        default_factory=lambda: {"members.csv": member_table()}
    )
    """Tables to write beside the page."""
    equal_time: EqualTime | None = None
    """Which variants are trained again for equal time."""
    options: type[Options] = Options
    """Options of the command line that this study has."""
    plan: Callable[["Execution"], dict[str, Any]] = plan
    """What a folder has to agree in to be continued."""
    check: Callable[["Execution"], None] = lambda execution: None
    """Refuses what cannot be studied, before anything is written."""
    goes_on: bool = False
    """Whether a run alone that diverges is counted as such, and does not end the study."""
    prepare: Callable[["Execution"], Any] = lambda execution: None
    """What has to be there before the first run, such as a teacher; a second call finds it."""

    def at(
        self, folder: Path, budget: Any = "default", progress: Progress | None = None, command: str = "", **options: Any
    ) -> "Execution":
        """The study in a folder, with a budget or the name of one."""
        chosen = self.budgets[budget] if isinstance(budget, str) else budget
        return Execution(self, folder, chosen, self.options(**options), progress or Progress(show=False), command)


@dataclasses.dataclass(frozen=True)
class Execution:
    """A study in a folder. A second one with the same study, budget and options continues it."""

    study: Study
    folder: Path
    budget: Any
    options: Any
    progress: Progress
    command: str = ""
    """The command that made it, where it is not `vamf study`."""

    def run(self) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the folder holds something else, data cannot be studied, or a file cannot be written.
        """
        start, members = time.perf_counter(), []
        specs = self.prepare()
        for number, spec in enumerate(specs, 1):
            many = f", {len(spec.seeds)} runs at once" if len(spec.seeds) > 1 else ""
            self.progress.say(f"[{number}/{len(specs)}] {spec.name}: {spec.config.steps:,} steps{many}")
            members += self.complete(spec)
        self.progress.say(f"all runs done after {time.perf_counter() - start:,.0f} s; writing the report")
        return self._write(members)

    def prepare(self) -> list[RunSpec]:
        """Make the folder this study's and do what comes before all runs; returns the runs."""
        self.study.check(self)
        self._check_names()
        self._check_objectives()
        runner.create_or_resume(self.folder, self.study.plan(self), [self.base(name) for name in self.budget.datasets])
        _ = self.prepared
        return [spec for name in self.budget.datasets for spec in self.specs(name)]

    def _check_names(self) -> None:
        """Refuse data sets and variants whose files would be the same."""
        pairs = [(name, variant) for name in self.budget.datasets for variant in self.variants(name)]
        runs = [_run_name(*pair, equal) for pair in pairs for equal in ("steps", "time")]
        for kind, names in {"data sets": [Path(name).stem for name in self.budget.datasets], "runs": runs}.items():
            if twice := [name for index, name in enumerate(names) if name in names[:index]]:
                raise UserError(f"study {self.study.name}: two {kind} are called {twice[0]}; give them different names")

    def _check_objectives(self) -> None:
        """Refuse variants that do not suit their data; these are only loaded where that may be."""
        for name in self.budget.datasets:
            objectives = [variant.configure(self.base(name)).build_objective() for variant in self.variants(name)]
            for objective in (one for one in objectives if one.needs & {"bank", "labels", "oracle"}):
                check_objective(self.dataset(name), objective)
                check_classes(self.dataset(name), objective)

    def complete(self, spec: RunSpec) -> list[dict[str, Any]]:
        """The results of a run, trained now as far as it is not yet."""
        measurement = self.study.measures.measurement(self, spec)
        try:
            rows = runner.run_or_load(spec, self.folder, measurement, self.progress)
        except Diverged as error:  # a run alone; of several in a program the others go on
            if not self.study.goes_on:
                raise
            self.progress.say(str(error))
            rows = [{"seed": seed, "finite": False, "gradient_variance": None} for seed in spec.seeds]
        return [{**row, **label} for row, label in zip(rows, spec.labels, strict=True)]

    @cached_property
    def prepared(self) -> Any:
        """What the study's `prepare` returned."""
        return self.study.prepare(self)

    def base(self, name: str) -> TrainConfig:
        """The configuration that all variants of a data set share."""
        return self.study.base(self, name)

    def dataset(self, name: str) -> Dataset:
        """A data set as it is trained on."""
        config = self.base(name)
        if config.data not in self._datasets:
            self._datasets[config.data] = config.load_data()
        return self._datasets[config.data]

    @cached_property
    def _datasets(self) -> dict[str, Dataset]:
        return {}

    def variants(self, name: str) -> list[Variant]:
        """The variants of a data set."""
        variants = self.study.variants
        found = variants(self, name) if callable(variants) else variants
        return [one for one in found if one.fits is None or one.fits(self.dataset(name))]

    def specs(self, name: str) -> list[RunSpec]:
        """The runs of a data set: all variants for equal steps, then for equal time."""
        variants, base, equal = self.variants(name), self.base(name), self.study.equal_time
        configs = [variant.configure(base) for variant in variants]
        specs = [self._spec(name, *pair) for pair in zip(variants, configs, strict=True)]
        if equal is not None:
            costs = self.costs(name)
            unit = next(iter(costs.values()))["ms"]
            for variant, config in zip(variants, configs, strict=True):
                steps = equal.steps(variant.name, config.steps, costs[variant.labels()[-1]]["ms"] / unit)
                if steps is not None:
                    specs.append(self._spec(name, variant, dataclasses.replace(config, steps=steps), "time"))
        return specs

    def _spec(self, name: str, variant: Variant, config: TrainConfig, equal: str = "steps") -> RunSpec:
        seeds = self.budget.seeds if variant.seeds is None else variant.seeds
        labels = list(zip(variant.labels(), variant.points, strict=True))
        members = [(label, point, seed) for label, point in labels for seed in seeds]
        return RunSpec(
            _run_name(name, variant, equal),
            config,
            [seed for *_, seed in members],
            {option: [point[option] for _, point, _ in members] for option in variant.points[0]},
            variant.strategy,
            [
                {
                    "data": name or config.data,
                    "arm": label,
                    "equal": equal,
                    "steps": config.steps,
                    **variant.facts(point),
                }
                for label, point, _ in members
            ],
        )

    def costs(self, name: str) -> dict[str, dict[str, float]]:
        """Cost of a step by label, the first being the unit; measured once. 2-D data sets share a measurement.

        Of a swept variant the first and the middle point are measured, the others taken to cost what the middle does.
        """
        assert self.study.equal_time is not None
        timed, alike = {}, {}
        for variant in self.variants(name):
            labels, middle = variant.labels(), len(variant.points) // 2
            timed |= {labels[i]: variant.configure(self.base(name), variant.points[i]) for i in (0, middle)}
            alike |= {label: labels[min(i, 1) * middle] for i, label in enumerate(labels)}
        shared = self.dataset(name).event_shape == (2,)
        path = self.folder / "costs" / f"{'2-D' if shared else Path(name).stem}.json"
        costed = costs.measured(path, timed, self.study.equal_time.memory, self.progress)
        return {label: costed[same] for label, same in alike.items()}

    # --------------------------------------------------------------------------------------------------- the report

    @property
    def words(self) -> list[str]:
        """The command line that makes this study, wherever it runs."""
        flags = {"quick": ["--quick"], "paper": ["--paper"]}.get(self.budget.name, [])
        return ["study", self.study.name, *flags, *self.options.words]

    def _write(self, members: list[dict[str, Any]]) -> Path:
        names = self.budget.datasets
        baselines = {name: self.study.measures.baseline(self.dataset(name)) for name in names}
        costed = {name: self.costs(name) for name in names} if self.study.equal_time else {}
        results = Results(self, members, baselines, costed)
        results = dataclasses.replace(results, found=self.study.summary(results))
        scored = {"samples": self.study.measures.samples, "projections": PROJECTIONS, "floors": baselines}
        everything = {
            "study": self.study.name,
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "budget": self.budget.as_dict(),
            **dataclasses.asdict(self.options.here),
            **(scored if any(baselines.values()) else {}),
            **({"costs": costed} if costed else {}),
            "members": members,
        }
        write_json(self.folder / "results.json", everything | results.found)
        for name, rows in self.study.files.items():
            write_atomic(self.folder / name, tables.to_csv(rows(results)))
        listed = [f"`{name}`" for name in ("results.json", *self.study.files)]
        command = self.command or " ".join(["vamf", *dataclasses.replace(self, options=self.options.here).words])
        footer = f"`{command}`, vamf {__version__}, jax {jax.__version__}, {everything['device']}. "
        footer += f"Every number is in {', '.join(listed[:-1])} and {listed[-1]} beside this page."
        content = results.standard() | {"device": everything["device"]} | self.study.content(results)
        return page.write(self.study.page, content, self.folder, footer)


def _run_name(name: str, variant: Variant, equal: str) -> str:
    """The folder of a variant's runs on a data set."""
    slug = variant.folder or re.sub(r"[^\w.=-]", "_", variant.name.replace(" ", "").replace("+", "-"))
    return "-".join(filter(None, [Path(name).stem, slug, "time" if equal == "time" else ""]))
