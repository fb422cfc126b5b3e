"""The paper's 2-D study (arXiv:2605.09235, section 5 and appendix): the effect of beta on six data sets.

For each data set an ensemble of betas and seeds is trained as one program, and the corner recipe (beta = 1, EMA proxy,
anchor) beside it. The results are the gradient variance and the sliced Wasserstein distance against beta, a comparison
of MeanFlow and the corner recipe, and images of samples.
"""

import dataclasses
from typing import Any

from vamf import figures
from vamf.data import toys
from vamf.studies import costs, page, paper, summary, variants
from vamf.studies.engine import Execution, Study, flat_plan
from vamf.studies.page import Table, mean_std, words
from vamf.studies.results import Results, findings_table, member_table
from vamf.studies.variants import Variant, over
from vamf.training import presets
from vamf.training.config import TrainConfig

PAGE = page.read("toys")
VARIANCE_BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALL_BETAS = tuple(sorted({*paper.BETAS, *VARIANCE_BETAS}))
PAPER_STEPS = 200_000
GALLERY = {"beta = 0 (MeanFlow)": "beta = 0"} | {
    variant: variant for variant in ("beta = 0.5", "beta = 1", "corner recipe")
}
"""Variants in the sample gallery: titles and labels."""


@dataclasses.dataclass(frozen=True)
class Budget(variants.Budget):
    """How much of the study to run. The paper measures the gradient variance every 2000 of 200,000 steps."""

    betas: tuple[float, ...] = ALL_BETAS
    """Values of the sweep; 0, 0.5 and 1 among them."""
    NOT_IN_IDENTITY = ("learning_rate",)


QUICK = Budget("quick", ("eight_gaussians",), 8000, (42, 0, 1), 400, betas=VARIANCE_BETAS)
DEFAULT = Budget("default", toys.NAMES, 12_000, (42, 0, 1), 500)
PAPER = Budget("paper", toys.NAMES, PAPER_STEPS, (42, 0, 1), 2000)


@dataclasses.dataclass(frozen=True)
class Options(variants.Options):
    """Options of this study."""

    as_published: bool = False
    """The published code's settings where they differ from the paper's text: gaps up to 0.5 and no anchor."""


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """The sweep of beta, and the recipe."""
    published = execution.options.as_published
    gaps = {"times": {"max_gap": 0.5}} if published else {}
    anchor = {"anchor": {"weight": 0.0}} if published else {}
    corner = Variant("corner recipe", gaps | anchor, {"method": "vamf_corner"}, folder="corner")
    return [Variant("sweep", gaps, points=over(beta=execution.budget.betas), label="beta = {beta:g}"), corner]


def summarise(results: Results) -> dict[str, Any]:
    """A row for each data set, and the cost of a step."""
    base = presets.as_in_paper(results.budget.datasets[0])
    methods = {"MeanFlow (beta = 0)": "meanflow", "VaMF (beta = 0.5)": "vamf", "corner recipe": "vamf_corner"}
    configs: dict[str, TrainConfig] = {label: dataclasses.replace(base, method=name) for label, name in methods.items()}
    cost = costs.step_costs(configs, results.execution.progress)
    return {
        "matched": [matched_row(results, name) for name in results.budget.datasets],
        "cost": [{"method": label, "ms": ms} for label, ms in cost.items()],
    }


def matched_row(results: Results, name: str) -> dict[str, Any]:
    """MeanFlow and the recipe, the best beta, and where the gradient variance is lowest."""
    sweep, corner = results.of(data=name, method="vamf"), results.of(data=name, method="vamf_corner")
    groups = summary.by_beta(sweep)
    best, quietest = summary.best_beta(sweep), summary.best_beta(sweep, "gradient_variance")
    return {
        "data": name,
        "seeds": len(groups[0.0]),
        **summary.moments(groups[0.0], meanflow_sw1="sw1", meanflow_sw2="sw2"),
        **summary.moments(corner, corner_sw1="sw1", corner_sw2="sw2"),
        **{f"baseline_{key}": value for key, value in results.baselines[name].items()},
        "best_beta": best,
        **summary.moments(groups[best], best_sw1="sw1"),
        "variance_meanflow": summary.mean(groups[0.0], "gradient_variance"),
        "variance_lowest": summary.mean(groups[quietest], "gradient_variance"),
        "variance_lowest_beta": quietest,
        "variance_corner": summary.mean(corner, "gradient_variance"),
    }


def content(results: Results) -> dict[str, Any]:
    """The content of the page."""
    matched, costs = results.findings["matched"], results.findings["cost"]
    published, shorter = results.execution.options.as_published, results.budget.steps < PAPER_STEPS
    return {
        "betas": len(results.budget.betas),
        "published": page.sentences(PAGE)["as-published" if published else "not-as-published"],
        "paper_table": " The paper's figures are for 200,000 steps." * shorter,
        "paper_steps": " The paper trains 200,000 steps." * shorter,
        "sentences": [sentence(row) for row in matched],
        "matched": _matched(matched),
        "variance": Table.of(matched, {
            "data": lambda row: words(row["data"]), "beta = 0": "variance_meanflow", "lowest": "variance_lowest",
            "at beta": "{variance_lowest_beta:g}",
            "ratio": lambda row: f"{row['variance_meanflow'] / row['variance_lowest']:.2f}",
            "corner recipe": "variance_corner",
        }),
        "cost": Table.of(costs, {
            "method": "method", "milliseconds a step": "ms",
            "relative to MeanFlow": lambda row: f"{row['ms'] / costs[0]['ms']:.2f}",
        }),
        "sw1-against-beta": _against_beta(results, "sw1", "SW1"),
        "variance-against-beta": _against_beta(results, "gradient_variance", "tr Cov of the gradient", log=True),
        "variance-over-training": _histories(results),
        "samples": results.gallery(GALLERY),
    }  # fmt: skip


def _matched(matched: list[dict]) -> Table:
    def published(place: int):
        table = paper.TOYS
        return lambda row: " → ".join(f"{mean:.3f}" for mean, _ in table.get(row["data"], ())[place : place + 2]) or "–"

    cells = {
        "data": lambda row: words(row["data"]),
        "SW1 MeanFlow": mean_std("meanflow_sw1"), "SW1 corner": mean_std("corner_sw1"),
        "SW2 MeanFlow": mean_std("meanflow_sw2"), "SW2 corner": mean_std("corner_sw2"),
        "baseline SW1": "baseline_sw1", "baseline SW2": "baseline_sw2",
        "the paper's SW1": published(0), "the paper's SW2": published(2),
    }  # fmt: skip
    best = {(line, first + (row[f"meanflow_{key}"] > row[f"corner_{key}"]))
            for line, row in enumerate(matched) for first, key in ((1, "sw1"), (3, "sw2"))}  # fmt: skip
    return Table.of(matched, cells, best)


def sentence(row: dict) -> str:
    """The result on one data set, relative to the spread over seeds."""
    gain = row["meanflow_sw1"] - row["best_sw1"]
    error = summary.difference_error(row["meanflow_sw1_std"], row["best_sw1_std"], row["seeds"])
    quality = "no beta does better than MeanFlow's SW1 of {meanflow_sw1:.3f}"
    if row["best_beta"] != 0:
        quality = "SW1 falls from {meanflow_sw1:.3f} at beta = 0 to {best_sw1:.3f} at beta = {best_beta:g}"
        quality += "" if gain > 2 * error else ", which is within the spread over seeds"
    ratio, quietest = row["variance_meanflow"] / row["variance_lowest"], row["variance_lowest_beta"]
    noise = f"at beta = {quietest:g}, {ratio:.1f} times below MeanFlow's" if quietest else "without mixing"
    return f"{words(row['data'])}: {quality.format(**row)}; gradient variance is lowest {noise}."


# ------------------------------------------------------------------------------------------------------------- figures


def _against_beta(results: Results, key: str, y: str, log: bool = False) -> bytes:
    def plot(name: str):
        sweep, corner = (results.of(data=name, method=method) for method in ("vamf", "vamf_corner"))
        level = figures.HLine(summary.mean(corner, key), "corner recipe", figures.ORANGE, "-.")
        curve = summary.against_beta(sweep, key, "mixed tangent, mean and spread over seeds")
        return [curve], [level, *results.real(name, key)]

    return results.panels(plot, "beta", y, log=log)


def _histories(results: Results) -> bytes:
    looks = {"beta = 0": ("beta = 0 (MeanFlow)", figures.RED), "beta = 1": ("beta = 1", figures.BLUE),
             "corner recipe": ("corner recipe", figures.ORANGE)}  # fmt: skip

    def plot(name: str):
        return [summary.history(results.of(data=name, variant=variant), *look) for variant, look in looks.items()], []

    return results.panels(plot, "step", "tr Cov", log=True, integers=True)


STUDY = Study(
    "toys",
    {"quick": QUICK, "default": DEFAULT, "paper": PAPER},
    variants_of,
    PAGE,
    content,
    summary=summarise,
    files={
        "members.csv": member_table("data", "method", "beta", "seed", "gradient_variance", "finite", "sw1", "sw2"),
        "matched.csv": findings_table("matched"),
    },
    options=Options,
    plan=flat_plan,
)
