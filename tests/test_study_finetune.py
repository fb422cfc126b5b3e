"""The study of fine-tuning: variants are what they are called, and a tiny one is complete and resumable."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from test_study_dit import write_images
from vamf.networks import DiTConfig
from vamf.studies import evaluator, finetune
from vamf.studies.finetune import STUDY, Budget
from vamf.training import loop, presets
from vamf.training.config import TrainConfig

NETWORK = DiTConfig(depth=1, width=16, heads=2, patch=4)
TINY = Budget(name="tiny", flow_steps=6, steps=4, seeds=(4, 5), network=NETWORK, samples=36, epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study, of images made up."""
    folder = tmp_path_factory.mktemp("studies")
    write_images(folder / "shapes.npz")
    with pytest.MonkeyPatch.context() as patch:
        base = TrainConfig(data=str(folder / "shapes.npz"), batch_size=8, network=NETWORK)
        patch.setitem(presets.PRESETS, "fashion_mnist", base)
        study = STUDY.at(folder / "tiny", TINY)
        study.run()
        yield study


def test_variants_differ_in_what_they_are_called_after(tmp_path):
    study = STUDY.at(tmp_path / "study", "default", data=Path("fashion"))
    base = study.base("")
    configs = {(variant.name, variant.seeds): variant.configure(base) for variant in study.variants("")}
    short, long = (configs[f"from scratch, {steps:,} steps", None] for steps in (1500, 4500))
    assert (short.method, short.steps, long.steps) == ("meanflow", 1500, 4500)
    assert short.build_objective() == long.build_objective()
    assert short.build_objective().weighting.power == 1
    for seed in (0, 1):
        tuned, slower, naive = (
            configs[name, (seed,)] for name in (finetune.FINETUNED, finetune.SLOWER, finetune.NAIVE)
        )
        assert {one.init_from for one in (tuned, slower, naive)} == {str(tmp_path / "study" / "flows" / str(seed))}
        assert {one.steps for one in (tuned, slower, naive)} == {1500}
        assert slower.learning_rate == pytest.approx(base.learning_rate / 3)
        assert tuned.learning_rate == naive.learning_rate == base.learning_rate
        assert dataclasses.replace(tuned, learning_rate=slower.learning_rate) == slower
        assert "ema" in tuned.build_objective().needs
        objective = naive.build_objective()
        assert (objective.weighting.power, objective.terms, objective.times.max_gap) == (1, (), 1)
        assert "ema" not in objective.needs
        flow = finetune.flow_config(study, seed)
        assert (flow.method, flow.steps, flow.seed, flow.network) == ("flow_matching", 3000, seed, tuned.network)
        assert flow.build_objective().weighting.power == 0


@pytest.mark.slow
def test_every_variant_and_the_flow_model_are_scored(finished, monkeypatch):
    with (finished.folder / "variants.csv").open() as handle:
        rows = {row["variant"]: row for row in csv.DictReader(handle)}
    names = [finetune.FLOW, finetune.FINETUNED, finetune.SLOWER, finetune.NAIVE]
    assert list(rows) == [*names, "from scratch, 4 steps", "from scratch, 10 steps"]
    assert {row["seeds"] for row in rows.values()} == {"2"}
    assert all(float(row[f"frechet_{calls}"]) > 0 for row in rows.values() for calls in ("one", "two"))
    assert float(rows[finetune.FLOW]["frechet_fifty"]) > 0
    flows = [json.loads((finished.folder / "flows" / seed / "scores.json").read_text()) for seed in ("4", "5")]
    mean = np.mean([flow["frechet_one"] for flow in flows])
    assert float(rows[finetune.FLOW]["frechet_one"]) == pytest.approx(mean)
    page = (finished.folder / "report.html").read_text()
    assert page.count("<figure>") == 1
    assert "method vamf, beta 1.0, proxy ema, p 0.0, anchor 0.5" in page
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(evaluator.classifier, "train", lambda *_: pytest.fail("evaluator trained again"))
    finished.run()
    assert (finished.folder / "report.html").read_text() == page
