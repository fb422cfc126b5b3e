"""A run that gets another number of steps goes on as a run of that length would from there."""

import json

import jax
import numpy as np
import pytest

from vamf import cli
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.config_file import CONFIG
from vamf.training.logs import LOG, read
from vamf.training.run import Run

QUIET = Progress(show=False)


def config(steps, final=1.0, **options):
    return TrainConfig(
        "swiss_roll", options.pop("method", "meanflow"), options, steps=steps, batch_size=8, checkpoint_every=10,
        optimizer=OptimizerConfig(final_learning_rate=final), log=LogConfig(every=10, variance_every=0),
        network=MLPConfig(width=16, depth=1),
    )  # fmt: skip


def trained(folder, config, *lengths):
    run = Run.create(config, folder)
    run.train(QUIET)
    for steps in lengths:
        run = Run.open(folder)
        run.extend(steps)
        run.train(QUIET)
    return run


def weights(run):
    state, step = run.load(QUIET)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state))]


@pytest.mark.slow
@pytest.mark.bits
def test_where_nothing_follows_a_schedule_it_is_the_longer_run(tmp_path):
    """Extended twice, once before its end: to the bit."""
    whole = trained(tmp_path / "whole", config(40))
    parts = trained(tmp_path / "parts", config(10), 30, 40)
    (step, ours), (other, theirs) = weights(whole), weights(parts)
    assert step == other == 40
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)
    losses = [[line["loss"] for line in read(run.folder / LOG)] for run in (whole, parts)]
    assert losses[0] == losses[1]


def test_schedules_are_those_of_the_new_length(tmp_path):
    """The learning rate's cosine, and a coefficient over the run; steps that are named stay."""
    run = trained(tmp_path / "run", config(10, 0.0, method="vamf", beta="linear:0:1", gamma="linear:0:1:0:20"), 40)
    lines = {line["step"]: line for line in read(run.folder / LOG)}
    rate = {
        step: 1e-3 * (1 + np.cos(np.pi * (step - 1) / length)) / 2 for step, length in ((10, 10), (20, 40), (40, 40))
    }
    for step, value in rate.items():
        assert lines[step]["lr"] == pytest.approx(value, rel=1e-4)
    assert [lines[step]["beta"] for step in (10, 20, 40)] == pytest.approx([0.9, 19 / 40, 39 / 40])
    assert run.config.objective["gamma"] == "linear:0:1:0:20"
    written = json.loads((run.folder / CONFIG).read_text())
    assert (written["steps"], written["history"]) == (40, [{"steps": 10, "at": 10}])


def test_earlier_checkpoints_are_read_and_nothing_else_may_differ(tmp_path):
    run = trained(tmp_path / "run", config(20))
    run.extend(30)
    assert [run.load(QUIET, step)[1] for step in (10, "newest")] == [10, 20]
    run.extend(60)
    assert Run.open(run.folder).load(QUIET)[1] == 20
    file = run.folder / CONFIG
    edited = file.read_text().replace('"batch_size": 8', '"batch_size": 9')
    file.write_text(edited)
    with pytest.raises(UserError, match="another configuration"):
        Run.open(run.folder).load(QUIET)
    values = json.loads(edited) | {"batch_size": 8, "history": [{"steps": 20, "at": 10}]}
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"another configuration.*more steps: vamf train --resume .* --steps N"):
        Run.open(run.folder).load(QUIET)  # no checkpoint after step 10 had 20 steps


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Run, "evaluate", lambda *_, **__: FOUND)
    folder = tmp_path / "run"
    options = "--batch-size 8 --steps 10 --checkpoint-every 10 --log.every 10 --log.variance-every 0 --network.width 16"
    cli.main(["train", "two_moons", *options.split(), "--out", str(folder)])
    before = (folder / CONFIG).read_text()
    capsys.readouterr()
    for steps, said in ((5, f"steps = 5: {folder} is at step 10; allowed is more"), (10, "allowed is more")):
        with pytest.raises(SystemExit):
            cli.main(["train", "--resume", str(folder), "--steps", str(steps)])
        assert said in capsys.readouterr().err
        assert (folder / CONFIG).read_text() == before
    cli.main(["train", "--resume", str(folder), "--steps", "20"])
    said = capsys.readouterr().err
    assert f"{folder}: goes on from step 10 to 20; learning rate and schedules are those of 20 steps" in said
    assert Run.open(folder).finished
    page = (folder / "report.html").read_text()
    assert "--steps 10 " in page
    assert "--resume RUN --steps 20" in page


FOUND = {
    "run": "run", "step": 10, "samples": 4, "reference": 4, "unseen": True, "projections": 5, "parameters": "EMA",
    "ema": 0.999, "baselines": 10, "distances": {"1 step": {"sw1": 0.1, "sw2": 0.2}},
}  # fmt: skip


def test_finish_is_the_whole_command(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "evaluate", lambda *_, **__: FOUND)
    run = Run.create(config(10), tmp_path / "run")
    finished = run.finish(QUIET, lambda run, result: run.folder / "page")
    assert (finished.step, finished.report) == (10, run.folder / "page")
    assert json.loads((run.folder / "evaluation.json").read_text()) == finished.evaluation == FOUND
