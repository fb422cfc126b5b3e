"""The report of the image study: tables, figures, sentences and files from the trainings' results."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, figures
from vamf.diagnosis.results import BETAS as CURVE_BETAS
from vamf.files import write_atomic, write_json
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import dit_results as results
from vamf.studies import runner, summary
from vamf.studies.dit_results import plus_minus, signed, swept
from vamf.studies.image_noise import TIMES
from vamf.studies.judge import Judge
from vamf.theory.estimate import Estimate
from vamf.training.config import TrainConfig

COLORS = {
    swept(0.0): figures.INK,
    swept(0.25): figures.BLUE,
    swept(0.5): figures.GREEN,
    swept(1.0): figures.RED,
    "beta = 1, p = 0": figures.ORANGE,
    "beta = 1, anchor": "#8a4fa3",
    "beta = 1, p = 0, anchor": "#a08030",
    results.BANK: "#17a3a8",
}
VIEWS = {"plain": "without class, as the paper measures", "trained": "with classes and guidance, as trained"}


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the report is made of."""

    folder: Path
    command: str
    title: str
    plan: dict[str, Any]
    config: TrainConfig
    """What all arms share."""
    classes: int
    judge: Judge
    members: list[dict[str, Any]]
    shown: dict[str, np.ndarray]
    """Pictures of each arm, the real ones first, the same noise and classes throughout."""

    def write(self) -> Path:
        """Write every file beside the report; returns the report's path."""
        rows = results.table(self.members)
        flat = [
            {"arm": member["arm"], "tangent_mix": member["beta"], "seed": member["seed"],
             **{key: entry[key] for key in ("step", "frechet", "frechet_error", "accuracy")},
             "gradient_variance": member["gradient_variance"]}
            for member in self.members for entry in member["history"]
        ]  # fmt: skip
        write_atomic(self.folder / "members.csv", tables.to_csv(flat))
        write_atomic(self.folder / "matched.csv", tables.to_csv(rows))
        said = results.sentences(self.members)
        write_json(
            self.folder / "results.json",
            {
                **self.plan,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "judge": {"score": self.judge.name, "notes": self.judge.notes, "floor": self.judge.floor},
                "matched": rows,
                "trail": results.trail(self.members),
                "sentences": said,
                "members": self.members,
            },
        )
        drawings = self._figures()
        runner.write_figures(self.folder, drawings)
        report = self.folder / "report.html"
        write_atomic(report, self._page(rows, said, drawings))
        return report

    @property
    def _arms(self) -> list[str]:
        return results.arms(self.members)

    @property
    def _last(self) -> int:
        return results.steps(self.members)[-1]

    # -------------------------------------------------------------------------------------------------------- figures

    def _figures(self) -> dict[str, bytes]:
        found = {
            "distance": self._distances(),
            "loss-variance": self._loss_variance(),
            "predicted-noise": self._predicted_noise(),
            "samples": figures.strips(self.shown),
        }
        predicted = self._prediction()
        if predicted is not None:
            found["mismatch"] = _mismatch(predicted, self.judge.name)
        sizes = [member["effective_sizes"] for member in self.members if "effective_sizes" in member]
        if sizes:
            found["effective-size"] = _effective_sizes(sizes[0])
        return found

    def _distances(self) -> bytes:
        groups = {"mixing, and the bank": [*map(swept, results.PAPER_GAPS), results.BANK],
                  "beta = 1: weight and anchor": [arm for pair in results.CONFOUND for arm in pair]}  # fmt: skip
        plots = []
        for title, chosen in groups.items():
            kept = [arm for arm in (swept(0.0), *chosen) if arm in self._arms]
            floor = figures.Level(self.judge.floor["frechet"], "real pictures", figures.SOFT, ":")
            plots.append(figures.Panel(title, [self._over_steps(arm) for arm in kept], [floor]))
        return figures.panels(plots, "step", "Fréchet distance", log=True, integers=True)

    def _over_steps(self, arm: str) -> figures.Curve:
        rows = [row for row in results.table(results.of(self.members, arm) + results.of(self.members, swept(0.0)))
                if row["arm"] == arm]  # fmt: skip
        x, y, spread = ([row[key] for row in rows] for key in ("step", "frechet", "frechet_std"))
        return figures.Curve(x, y, spread, arm, COLORS.get(arm, figures.SOFT))

    def _loss_variance(self) -> bytes:
        looks = (("stochastic", "stochastic tangent", figures.RED), ("deterministic", "deterministic", figures.BLUE))
        plots = [
            figures.Panel(
                title,
                [_curve(TIMES, results.curve(self.members, "loss_variance", view, key), label, color)
                 for key, label, color in looks],
            )
            for view, title in VIEWS.items()
        ]  # fmt: skip
        return figures.panels(plots, "t", "variance of the loss", log=True)

    def _predicted_noise(self) -> bytes:
        found = _curve(CURVE_BETAS, results.curve(self.members, "predicted_mse"), "predicted", figures.INK)
        level = figures.Level(1.0, "beta = 0", figures.SOFT, ":")
        return figures.panels([figures.Panel("", [found], [level])], "beta", "noise in the residual, relative")

    def _prediction(self) -> results.Prediction | None:
        gaps = {beta: results.gap(self.members, swept(beta), self._last) for beta in results.PAPER_GAPS
                if swept(beta) in self._arms}  # fmt: skip
        return results.prediction(gaps)

    # ----------------------------------------------------------------------------------------------------------- page

    def _page(self, rows: list[dict], said: list[str], drawings: dict[str, bytes]) -> str:
        config, network = self.config, self.config.network
        seeds = ", ".join(map(str, self.plan["budget"]["seeds"]))
        size = ", ".join(f"{name} {getattr(network, name, '?')}" for name in ("depth", "width", "patch"))
        page = Page(
            f"Mixing the tangent of a guided transformer: {self.title}",
            f"DiT ({size}), {config.steps:,} steps of {config.batch_size}, seeds {seeds}, guidance of scale "
            f"{config.build_objective().guidance.scale:g} mixed by {config.build_objective().guidance.mix:g}.",
        )
        page.text(
            "MeanFlow with classes puts the guided target, which holds the noise of a random pair of picture and "
            "noise, in the tangent of its Jacobian-vector product too. The coefficient `beta` mixes the moving "
            "average's velocity into that tangent: `beta = 0` is MeanFlow with guidance, at `beta = 1` the tangent has "
            "no noise. The target is the same for all. Equal seeds see equal batches.",
        )
        page.section("What agrees with the paper, and what does not")
        page.points(said)
        self._matched(page, rows, drawings["distance"])
        predicted = self._prediction()
        if predicted is not None:
            self._mismatch(page, predicted, drawings["mismatch"])
        page.section("Noise predicted from the network")
        page.text(
            "E||A xi||² − 2 beta E<A xi, M xi> + beta² (E||M xi||² + E||M b||²) over the training law, at the end of "
            "beta = 0, in units of its value there: what mixing makes of the noise in the residual."
        )
        page.figure(drawings["predicted-noise"], "The band is one standard error.")
        if results.CONFOUND[1][1] in self._arms:
            self._confound(page)
        page.section("Variance of the loss")
        page.text(
            "Over pairs of picture and noise at a fixed time t and r = max(t − 0.25, 0), of the network at the end of "
            "beta = 0, with the stochastic tangent and with the moving average's."
        )
        page.figure(drawings["loss-variance"], "Logarithmic scale; the band is one standard error.")
        self._trail(page)
        if "effective-size" in drawings:
            page.section("What the bank knows")
            page.text(
                "Median effective number of points, 1 / sum of squared posterior weights, in the memory that the "
                "bank's training ended with. At 1 the bank knows the row's own picture only, and nothing is averaged."
            )
            page.figure(drawings["effective-size"], "Logarithmic scale.")
        page.section("Samples")
        page.figure(
            drawings["samples"],
            f"Real pictures, and one-step samples of every arm at step {config.steps:,}: a pair for each class, the "
            "same noise and classes in each row, the first seed.",
        )
        page.section("The judge")
        page.points(self.judge.notes)
        return page.render(
            f"`{self.command}`, vamf {__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}. "
            "Every number is in `results.json`, `matched.csv` and `members.csv` beside this page."
        )

    def _matched(self, page: Page, rows: list[dict], picture: bytes) -> None:
        stops = results.steps(self.members)
        header = ["arm", *(f"step {step:,}" for step in stops)]
        found = {(row["arm"], row["step"]): row for row in rows}
        floor = self.judge.floor
        page.section("At equal steps")
        page.text(
            f"{self.judge.name}: {self.plan['budget']['samples']:,} one-step samples, equally many of each class, "
            f"against {self.judge.reference.count:,} held-out pictures; mean ± standard deviation over seeds. Real "
            f"pictures ({floor['n']:,} of them) have {tables.number(floor['frechet'])}."
        )
        cells = {arm: [_spread(found[arm, step], "frechet") for step in stops] for arm in self._arms}
        best = {(self._lowest(found, step), 1 + index) for index, step in enumerate(stops)}
        page.table(header, [[arm, *cells[arm]] for arm in self._arms], best)
        page.figure(picture, "Logarithmic scale; the band is one standard deviation over seeds.")
        page.text(
            "Gap to beta = 0, seed by seed: mean ± its standard error over seeds, or that of resampled pictures where "
            "it is larger."
        )
        others = [arm for arm in self._arms if arm != swept(0.0)]
        gaps = {arm: [signed(Estimate(found[arm, step]["gap"], found[arm, step]["gap_error"])) for step in stops]
                for arm in others}  # fmt: skip
        page.table(header, [[arm, *gaps[arm]] for arm in others])
        noise = {arm: summary.spread(results.of(self.members, arm), "gradient_variance") for arm in self._arms}
        lines = [[arm, *(_spread(found[arm, step], "accuracy") for step in stops), noise[arm]] for arm in self._arms]
        if floor["accuracy"] is not None:
            page.text(
                "Class accuracy: share of the samples that the judge takes for the class asked for "
                f"(real pictures: {tables.number(floor['accuracy'])}). Gradient variance: trace of the covariance of "
                "the batch gradient, mean over the second half; a weight or an anchor of its own makes it another loss."
            )
        page.table([*header, "gradient variance"], lines)

    def _lowest(self, found: dict[tuple[str, int], dict], step: int) -> int:
        values = [found[arm, step]["frechet"] for arm in self._arms]
        return int(np.argmin(np.nan_to_num(values, nan=np.inf)))

    def _mismatch(self, page: Page, found: results.Prediction, picture: bytes) -> None:
        page.section("Is the loss of quality quadratic?")
        page.text("If quality followed the gradient's MSE, the gap would be A beta², A that at beta = 0.5 times 4.")
        page.figure(picture, f"Gap to beta = 0 in {self.judge.name}; the bands are one standard error.")
        page.table(
            ["beta", "predicted", "measured", "the paper's prediction", "the paper's FID"],
            [
                [f"{beta:g}", signed(found.at(beta)), signed(measured), f"+{results.PAPER_ANCHOR * beta**2:.2f}",
                 f"+{results.PAPER_GAPS[beta]:.2f}"]
                for beta, measured in found.measured.items()
            ],
        )  # fmt: skip

    def _confound(self, page: Page) -> None:
        page.section("The confound at beta = 1")
        page.text(
            "The paper's run at beta = 1 differs from the others in three things: the tangent, the adaptive weight (p "
            "= 0 for p = 1) and an anchor of weight 0.1. Here each stands alone, at the end of training."
        )
        found = {row["arm"]: row for row in results.table(self.members) if row["step"] == self._last}
        lines = []
        for name, cells in zip(("p = 1", "p = 0"), results.CONFOUND, strict=True):
            lines.append([name, *(_spread(found[arm], "frechet") for arm in cells),
                          *(signed(results.gap(self.members, arm, self._last)) for arm in cells)])  # fmt: skip
        page.table(["weight", "no anchor", "anchor", "gap to beta = 0", "gap with anchor"], lines)

    def _trail(self, page: Page) -> None:
        page.section("Bias over training")
        page.text(
            "Of the network at beta = 0, without class, at t = 0.5: the tracking gap ||b||² of the moving average, a "
            "stand-in for its bias; the noise E||v_c − v_hat||²; the shrinkage factor noise / (noise + ||b||²); and "
            "the bound of beta* without the bias over t = 0.1, 0.3, 0.5, 0.7, 0.9. The paper's networks are larger and "
            "train 150 times longer: compare directions, not sizes."
        )
        lines = [
            [f"{row['step']:,}", *(plus_minus(row[name]) for name in ("tracking_gap", "noise", "shrinkage", "bound"))]
            for row in results.trail(self.members)
        ]
        for step, bias, shrinkage, _ in results.PAPER_TRAIL:
            lines.append([f"the paper's {step:,}", f"{bias}", "8,200", f"{shrinkage}", f"{results.PAPER_BOUND}"])
        page.table(["step", "||b||²", "noise", "shrinkage", "bound of beta*"], lines)


def _spread(row: dict[str, Any], key: str) -> str:
    if not np.isfinite(row[key]):
        return "–"
    text = tables.number(row[key])
    return text if row["seeds"] < 2 else f"{text} ±\u00a0{tables.number(row[f'{key}_std'])}"


def _curve(x: Sequence[float], found: Sequence[Estimate], label: str, color: str, marker: str = "o") -> figures.Curve:
    values, errors = [estimate.value for estimate in found], [estimate.error for estimate in found]
    return figures.Curve(x, values, errors, label, color, marker)


def _mismatch(found: results.Prediction, name: str) -> bytes:
    betas = np.linspace(0, 1, 41).tolist()
    predicted = _curve(betas, [found.at(beta) for beta in betas], "A beta², from beta = 0.5", figures.BLUE, "")
    measured = {0.0: Estimate(0.0, 0.0), **found.measured}
    drawn = _curve(list(measured), list(measured.values()), "measured", figures.RED)
    return figures.panels([figures.Panel("", [predicted, drawn])], "beta", f"gap in {name}")


def _effective_sizes(found: dict[str, list[float]]) -> bytes:
    curves = [
        figures.Curve(found["t"], found[name], None, label, color)
        for name, label, color in (("class", "points of the row's class", figures.BLUE),
                                   ("all", "as many points of all classes", figures.ORANGE))
    ]  # fmt: skip
    return figures.panels([figures.Panel("", curves)], "t", "effective points", log=True)
