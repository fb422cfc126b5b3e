"""The engine of studies. A study is a record: variants, budgets, measures, and the content of its report.

    Study                 what is trained, measured and reported, for any folder and budget
    Execution             a study in a folder, with a budget and options: plans, trains what is missing, reports
    Results               the results of all runs; the page and the files are functions of it

A folder is continued by whoever executes the same study there. Every run is independent, so that a launcher may
submit it to other machines (`launcher.py`).
"""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

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
from vamf.training.divergence import Diverged
from vamf.training.suitability import check_classes, check_objective
from vamf.version import __version__


def paper_config(execution: "Execution", name: str) -> TrainConfig:
    """What the paper's 2-D study trains with on a data set, for the steps of a budget.

    The EMA's decay is the paper's constant one where the run is as long as the paper's; below it warms up, since a
    constant decay would keep the initial weights.
    """
    budget, base = execution.budget, presets.as_in_paper(name)
    return dataclasses.replace(
        base,
        optimizer=dataclasses.replace(base.optimizer, ema_warmup=budget.name != "paper"),
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
    """The same, with the budget's fields at the top level."""
    fields = plan(execution)
    return fields | fields.pop("budget")


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
    """The content of the report: values, tables and figures by name."""
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
    allow_divergence: bool = False
    """Whether a run that diverges is counted as such and does not end the study."""
    prepare: Callable[["Execution"], Any] = lambda execution: None
    """Prepares what runs need, such as a teacher; a second call loads it."""

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
    """The command line, where it is not `vamf study`."""

    def run(self) -> Path:
        """Run what is missing and write the report; returns its path.

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
        """Create or resume the folder and prepare the study; returns the runs."""
        self.study.check(self)
        self._check_names()
        self._check_objectives()
        runner.create_or_resume(self.folder, self.study.plan(self), [self.base(name) for name in self.budget.datasets])
        _ = self.prepared
        return [spec for name in self.budget.datasets for spec in self.specs(name)]

    def run_names(self) -> list[str]:
        """The names of all runs, those at equal time included, which only a measurement of costs decides about."""
        pairs = [(name, variant) for name in self.budget.datasets for variant in self.variants(name)]
        equal = ("steps", "time") if self.study.equal_time else ("steps",)
        return [_run_name(*pair, one) for pair in pairs for one in equal]

    def _check_names(self) -> None:
        """Refuse data sets and variants whose files would be the same."""
        stems = [Path(name).stem for name in self.budget.datasets]
        for kind, names in {"data sets": stems, "runs": self.run_names()}.items():
            if twice := [name for index, name in enumerate(names) if name in names[:index]]:
                raise UserError(f"study {self.study.name}: two {kind} are called {twice[0]}; give them different names")

    def _check_objectives(self) -> None:
        """Refuse variants that do not suit their data, which are loaded only where that is possible."""
        for name in self.budget.datasets:
            objectives = [variant.configure(self.base(name)).build_objective() for variant in self.variants(name)]
            for objective in (one for one in objectives if one.needs & {"bank", "labels", "oracle"}):
                check_objective(self.dataset(name), objective)
                check_classes(self.dataset(name), objective)

    def complete(self, spec: RunSpec) -> list[dict[str, Any]]:
        """The results of a run, which is trained if it is not finished."""
        measurement = self.study.measures.measurement(self, spec)
        try:
            rows = runner.run_or_load(spec, self.folder, measurement, self.progress)
        except Diverged as error:  # only single runs raise; in an ensemble the others continue
            if not self.study.allow_divergence:
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
        """A data set, loaded once."""
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
        chosen = variants(self, name) if callable(variants) else variants
        return [variant for variant in chosen if variant.fits is None or variant.fits(self.dataset(name))]

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
                    "variant": label,
                    "equal": equal,
                    "steps": config.steps,
                    **variant.facts(point),
                }
                for label, point, _ in members
            ],
        )

    def costs(self, name: str) -> dict[str, dict[str, float]]:
        """Cost of a step by label, the first being the unit; measured once. 2-D data sets share a measurement.

        Of a sweep the first and the middle point are measured; the others are assigned the cost of the middle one.
        """
        assert self.study.equal_time is not None
        configs, measured_label = {}, {}
        for variant in self.variants(name):
            labels, middle = variant.labels(), len(variant.points) // 2
            configs |= {labels[i]: variant.configure(self.base(name), variant.points[i]) for i in (0, middle)}
            measured_label |= {label: labels[min(i, 1) * middle] for i, label in enumerate(labels)}
        shared = self.dataset(name).event_shape == (2,)
        path = self.folder / "costs" / f"{'2-D' if shared else Path(name).stem}.json"
        measured_costs = costs.measure_costs(path, configs, self.study.equal_time.memory, self.progress)
        return {label: measured_costs[measured] for label, measured in measured_label.items()}

    # --------------------------------------------------------------------------------------------------- the report

    @property
    def words(self) -> list[str]:
        """The command line of this study, with absolute paths."""
        flags = {"quick": ["--quick"], "paper": ["--paper"]}.get(self.budget.name, [])
        return ["study", self.study.name, *flags, *self.options.words]

    def _write(self, members: list[dict[str, Any]]) -> Path:
        names = self.budget.datasets
        baselines = {name: self.study.measures.baseline(self.dataset(name)) for name in names}
        costs = {name: self.costs(name) for name in names} if self.study.equal_time else {}
        results = Results(self, members, baselines, costs)
        results = dataclasses.replace(results, findings=self.study.summary(results))
        scored = {"samples": self.study.measures.samples, "projections": PROJECTIONS, "baselines": baselines}
        everything = {
            "study": self.study.name,
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "budget": self.budget.as_dict(),
            **dataclasses.asdict(self.options.here),
            **(scored if any(baselines.values()) else {}),
            **({"costs": costs} if costs else {}),
            "members": members,
        }
        write_json(self.folder / "results.json", everything | results.findings)
        for name, rows in self.study.files.items():
            write_atomic(self.folder / name, tables.to_csv(rows(results)))
        file_names = [f"`{name}`" for name in ("results.json", *self.study.files)]
        command = self.command or " ".join(["vamf", *dataclasses.replace(self, options=self.options.here).words])
        footer = f"`{command}`, vamf {__version__}, jax {jax.__version__}, {everything['device']}. "
        footer += f"Every number is in {', '.join(file_names[:-1])} and {file_names[-1]} beside this page."
        content = results.standard() | {"device": everything["device"]} | self.study.content(results)
        return page.write(self.study.page, content, self.folder, footer)


def _run_name(name: str, variant: Variant, equal: str) -> str:
    """The folder of a variant's runs on a data set."""
    slug = variant.folder or re.sub(r"[^\w.=-]", "_", variant.name.replace(" ", "").replace("+", "-"))
    return "-".join(filter(None, [Path(name).stem, slug, "time" if equal == "time" else ""]))
