"""Adaptive coefficients, and Rao-Blackwellised roles, against every fixed beta.

The paper (arXiv:2605.09235) leaves open how the tangent mix should depend on (r, t), sample and direction. Here every
answer of this package is trained beside the fixed coefficients, from the same seeds and batches. All are trained for
the same number of steps; those of `EQUAL_TIME` that cost more than MeanFlow are then trained again for equal time.

The first learning rate is the paper's 1e-3 for 200,000 steps; in 6,000 runs do not converge with it, least of all in 64
dimensions.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf import data, figures
from vamf.conditioning import label_of
from vamf.data import Dataset, toys
from vamf.objectives.posterior_mean import posterior_mean
from vamf.report import tables
from vamf.studies import comparison, summary
from vamf.studies.comparison import row_of
from vamf.studies.costs import EqualTime
from vamf.studies.engine import Study
from vamf.studies.page import Table, columns, read, words
from vamf.studies.results import Results
from vamf.studies.variants import Budget, Variant, over

BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
EQUAL_TIME = ("binned", "per_sample", "rao_blackwell", "rao_blackwell_2048")
"""Variants that are trained for equal time as well."""
BANK = 2048


def _plane(dataset: Dataset) -> bool:
    return dataset.event_shape == (2,)


def _space(dataset: Dataset) -> bool:
    return not _plane(dataset)


def _has_mixture(dataset: Dataset) -> bool:
    return dataset.mixture is not None


RAO_BLACKWELL, LARGE = {"method": "rao_blackwell"}, {"bank": {"size": BANK}}
REST = {"bank_ema_fraction": 1.0}
"""The EMA replaces the remainder of the bank in the tangent."""
VARIANTS = (
    Variant("sweep", {"beta": 0.5}, {"method": "vamf"}, over(beta=BETAS), "beta_{beta:g}"),
    Variant("corner", {}, {"method": "vamf_corner"}),  # the paper's recipe: beta = 1 and an anchor
    Variant("linear", {"beta": "linear:1:0"}, {"method": "vamf"}),
    Variant("binned", {"beta": "binned"}, {"method": "vamf"}),
    Variant("per_sample", {"beta": "per_sample"}, {"method": "vamf"}),
    Variant("per_direction", {"beta": "per_direction"}, {"method": "vamf"}, fits=_plane),
    Variant("rao_blackwell", {}, RAO_BLACKWELL),  # both roles are the posterior mean over the batch
    Variant("rao_blackwell_rest", REST, RAO_BLACKWELL, fits=_space),
    Variant("rao_blackwell_2048", LARGE, RAO_BLACKWELL),
    Variant("rao_blackwell_2048_rest", LARGE | REST, RAO_BLACKWELL, fits=_space),
    Variant("oracle", {"beta": 1.0, "gamma": 1.0, "proxy": "oracle"}, {"method": "vamf"}, fits=_has_mixture),
)
FIXED_BETAS = tuple(f"beta_{beta:g}" for beta in BETAS)
OURS = tuple(one.name for one in VARIANTS if one.name not in ("sweep", "corner", "linear", "oracle"))
"""Variants with nothing to tune."""
GALLERY = {"MeanFlow": "beta_0", "beta = 1": "beta_1"}
GALLERY |= {words(variant): variant for variant in ("rao_blackwell", "rao_blackwell_2048", "oracle")}
"""Variants in the sample gallery: titles and labels."""
LEVELS = (
    ("binned", "binned beta(r, t)", figures.GREEN, "--"),
    ("rao_blackwell", "Rao-Blackwell, batch", figures.ORANGE, "-."),
    ("rao_blackwell_2048", "Rao-Blackwell, 2,048 points", figures.RED, "-"),
    ("oracle", "oracle in both roles", figures.INK, ":"),
)

QUICK = Budget("quick", ("swiss_roll",), 1500, (0, 1), 150, 3e-3)
DEFAULT = Budget("default", (*toys.NAMES, "dgmm2", "dgmm16", "dgmm64", "digits"), 6000, (0, 1, 2, 3, 42), 500, 3e-3)
PAPER = Budget("paper", (*toys.NAMES, *(f"dgmm{d}" for d in (2, 4, 8, 16, 32, 64)), "digits"), 200_000,
               (0, 1, 2, 3, 42), 2000)  # fmt: skip


def summarise(results: Results) -> dict[str, Any]:
    """A row for each variant, verdicts, and the effective sizes of a bank."""
    rows, names = comparison.table(results), results.budget.datasets
    return {
        "variants": rows,
        "costs": {
            name: {variant: cost["ms"] for variant, cost in costs.items()} for name, costs in results.costs.items()
        },
        "verdicts": [verdict(name, rows) for name in names],
        "effective_sizes": {name: effective_sizes(name) for name in names},
    }


def verdict(name: str, rows: Sequence[dict]) -> dict[str, Any]:
    """How every variant with nothing to tune compares with the best fixed beta of a data set, in SW1."""
    fixed = [row for row in rows if row["data"] == name and row["variant"] in FIXED_BETAS]
    best, quietest = (min(fixed, key=lambda row: row[key]) for key in ("sw1", "gradient_variance"))
    compared = {}
    for variant, equal in itertools.product(OURS, ("steps", "time")):
        if row := row_of(rows, name, variant, equal):
            gain = best["sw1"] - row["sw1"]
            error = summary.difference_error(row["sw1_std"], best["sw1_std"], row["seeds"])
            compared[variant if equal == "steps" else f"{variant}, equal time"] = {
                "gain": gain,
                "error": error,
                "outcome": "wins" if gain > error else "loses" if gain < -error else "ties",
                "variance_ratio": quietest["gradient_variance"] / row["gradient_variance"],
            }
    return {"data": name, "best_variant": best["variant"], "best_sw1": best["sw1"], "best_sw1_std": best["sw1_std"],
            "quietest_variant": quietest["variant"], "compared": compared}  # fmt: skip


def sentence(verdict: dict) -> str:
    """A verdict in words."""
    groups: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
    for variant, result in verdict["compared"].items():
        if "equal time" not in variant:
            change = round(-100 * result["gain"] / verdict["best_sw1"])
            groups[result["outcome"]].append(f"{words(variant)} ({change:+d} %)")
    outcomes = "; ".join(f"{outcome}: {', '.join(variants)}" for outcome, variants in groups.items() if variants)
    text = (
        f"{words(verdict['data'])}: against the best fixed beta ({verdict['best_variant'][5:]}, SW1 "
        f"{verdict['best_sw1']:.3f}) {outcomes}."
    )
    bank_ratio = verdict["compared"].get("rao_blackwell", {}).get("variance_ratio")
    if bank_ratio:
        text += f" The batch as bank has {bank_ratio:.1f} times less gradient variance than the quietest fixed beta."
    return text


def effective_sizes(name: str, count: int = 256) -> dict[str, list[float]]:
    """Median effective number of points against t, for the batch and for `BANK` points."""
    dataset = data.load(name)
    keys = jax.random.split(jax.random.key(7), 3)
    draws = [dataset.draw(dataset.arrays, *one) for one in ((keys[0], count), (keys[1], BANK - count))]
    first, more = ((points, label_of(cond) if dataset.num_classes else None) for points, cond in draws)
    (x, label), e = first, jax.random.normal(keys[2], first[0].shape)
    times = np.round(np.concatenate([[0.02], np.linspace(0.05, 1, 20)]), 2)
    banks = {str(count): first, str(BANK): jax.tree.map(lambda *parts: jnp.concatenate(parts), first, more)}

    @jax.jit
    def median(points, point_label, t):
        return jnp.median(posterior_mean(x, e, jnp.full(count, t), points, label, point_label).effective_size)

    medians = {size: [float(median(*points, t)) for t in times] for size, points in banks.items()}
    return {"t": times.tolist(), **medians}


def content(results: Results) -> dict[str, Any]:
    """The content of the page."""
    rows, names = results.findings["variants"], results.budget.datasets
    variants = [variant for one in VARIANTS for variant in one.labels() if variant in summary.variants(rows)]
    timed = [row for row in rows if row["equal"] == "time" or row["variant"] in FIXED_BETAS]
    cost = columns(names, lambda variant, name: tables.number((row_of(rows, name, variant) or {}).get("cost"), 2))
    return {
        "number": len(names),
        "sentences": [sentence(row) for row in results.findings["verdicts"]],
        **comparison.measure_tables(results, rows, variants, timed),
        "cost": Table.of(variants, {"variant": words, **cost}),
        "sw1": _against_beta(results, "sw1", "SW1"),
        "variance": _against_beta(results, "gradient_variance", "tr Cov of the gradient", log=True),
        "effective-size": _effective_sizes(results),
        "samples": results.gallery(GALLERY),
    }


def _against_beta(results: Results, key: str, y: str, log: bool = False) -> bytes:
    def plot(name: str):
        baselines = [(row_of(results.findings["variants"], name, variant), *look) for variant, *look in LEVELS]
        levels = [figures.HLine(row[key], *look) for row, *look in baselines if row is not None]
        fixed = [row for row in results.of(data=name) if row["variant"] in FIXED_BETAS]
        return [summary.against_beta(fixed, key, "fixed beta")], [*levels, *results.real(name, key, "real data")]

    return results.panels(plot, "beta", y, log=log)


def _effective_sizes(results: Results) -> bytes:
    def plot(name: str):
        by_size = results.findings["effective_sizes"][name]
        times, colors = by_size["t"], (figures.BLUE, figures.ORANGE)
        sizes = zip((key for key in by_size if key != "t"), colors, strict=False)
        return [figures.Curve(times, by_size[n], None, f"{int(n):,} points", color, "") for n, color in sizes], []

    return results.panels(plot, "t", "effective points", log=True)


STUDY = Study(
    "adaptive",
    {"quick": QUICK, "default": DEFAULT, "paper": PAPER},
    VARIANTS,
    read("adaptive"),
    content,
    comparison.base,
    measures=comparison.MEASURES,
    summary=summarise,
    files=comparison.FILES,
    equal_time=EqualTime(EQUAL_TIME, faster=False, memory=False),
)
