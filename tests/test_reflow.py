"""Pairs made by a teacher's flow, and the methods that learn from a teacher."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import cli, data
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.reflow import ReflowConfig, reflow_pairs
from vamf.training.run import Run

GAUSSIAN = oracles.Gaussian(2.0)


def exact(z, r, t, label=None):
    return GAUSSIAN.velocity(z, t)


def coupled(**options):
    return reflow_pairs(data.load("two_moons"), exact, ReflowConfig(**{"pairs": 500, **options}))


def test_pairs_are_the_two_ends_of_the_flow():
    dataset = coupled(steps=64)
    key = jax.random.key(3)
    x, label = dataset.draw(dataset.arrays, key, 40)
    noise = dataset.start(dataset.arrays, key, 40)
    assert label is None
    np.testing.assert_allclose(x, 2.0 * noise, rtol=2e-3)  # the flow of N(0, 4 I) from t = 1 to 0 is z -> 2 z
    assert len({float(value) for value in noise[:, 0]}) > 30


def test_more_steps_come_closer():
    errors = []
    for steps in (8, 16):
        arrays = coupled(steps=steps).arrays
        errors.append(np.max(np.abs(arrays["x"] - 2.0 * arrays["start"])))
    assert errors[0] / errors[1] > 3  # Heun's method is of order 2


def test_distant_pairs_are_dropped():
    arrays = coupled(distance=0.5).arrays
    apart = np.mean(np.asarray(arrays["start"] - arrays["x"]) ** 2, axis=1)
    assert np.all(apart < 0.5)
    assert 32 < len(apart) < 500
    with pytest.raises(UserError, match=r"reflow.distance = 1e-06: keeps \d+ of 500"):
        coupled(distance=1e-6)


def test_classes_keep_their_noise():
    seen = []

    def teacher(z, r, t, label):
        seen.append(label)
        return jnp.zeros_like(z) + label[:, None]

    arrays = reflow_pairs(data.load("digits"), teacher, ReflowConfig(pairs=64, steps=4)).arrays
    # dz/dt = label from t = 1 to 0 moves every number by -label.
    np.testing.assert_allclose(arrays["start"] - arrays["x"], np.tile(arrays["cond"][:, None], (1, 64)), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"pairs": 3}, {"pairs": -1}, {"pairs": 100, "steps": 0}, {"pairs": 100, "distance": -1.0}]
)
def test_bad_couplings_are_named(options):
    with pytest.raises(UserError, match="reflow"):
        ReflowConfig(**options)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A short run of flow matching."""
    config = TrainConfig(
        data="two_moons",
        method="flow_matching",
        steps=60,
        batch_size=64,
        checkpoint_every=60,
        network=MLPConfig(width=32, depth=2),
        log=LogConfig(every=30, variance_every=0),
    )
    run = Run.create(config, tmp_path_factory.mktemp("teacher") / "run")
    run.train(Progress(show=False))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rectified_meanflow", "meanflow_rae"])
def test_students_train_and_resume_to_the_same_end(method, teacher, tmp_path):
    pairs = 200 if method == "rectified_meanflow" else 0
    config = dataclasses.replace(
        teacher.config,
        method=method,
        teacher=str(teacher.folder),
        reflow=ReflowConfig(pairs, steps=4),
        steps=20,
        checkpoint_every=10,
    )
    ends = []
    for name, stop in (("whole", None), ("cut", 10)):
        run = Run.create(config, tmp_path / name)
        if stop:
            state, _ = run.ensemble.advance(run.ensemble.init(), stop)
            state, _ = run.ensemble.advance(state, 10)
            ends.append(jax.tree.map(np.asarray, state.params))
        else:
            run.train(Progress(show=False))
            ends.append(jax.tree.map(np.asarray, Run.open(run.folder).load(Progress(show=False))[0].params))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    if pairs:
        assert run.ensemble.dataset.arrays["x"].shape == (200, 2)


@pytest.mark.slow
def test_a_teacher_of_other_data_is_refused(teacher, tmp_path):
    config = TrainConfig(data="digits", network=MLPConfig(), method="meanflow_rae", teacher=str(teacher.folder))
    with pytest.raises(UserError, match=r"shape \(2,\), those of digits \(64,\)"):
        Run.create(config, tmp_path / "run").train(Progress(show=False))


def test_a_bank_of_pairs_is_refused():
    options = {"data": "two_moons", "teacher": "runs/x", "reflow": ReflowConfig(100)}
    for objective in ({"rao_blackwell": True}, {"proxy": "bank"}):
        with pytest.raises(UserError, match="not with a bank"):
            TrainConfig(method="vamf", objective=objective, **options)


# ------------------------------------------------------------------------------------- a start from another run


def small(**options):
    options = {"data": "two_moons", "method": "flow_matching", "steps": 30, "batch_size": 32, **options}
    return TrainConfig(**{"network": MLPConfig(width=16, depth=2), "log": LogConfig(variance_every=0), **options})


def finished(tmp_path, name, **options):
    run = Run.create(small(**options), tmp_path / name)
    run.train(Progress(show=False))
    return run


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def without_gap(name, leaf):
    """A tensor of the velocity model, whose last rows of inputs, of the gap, are untrained: they start at 0."""
    if name != "['first']['kernel']":
        return leaf
    return np.concatenate([leaf[:, :-32], np.zeros_like(leaf[:, -32:])], axis=1)


@pytest.mark.slow
def test_a_training_starts_from_the_average_of_another(tmp_path):
    first = finished(tmp_path, "first")
    average = flat(first.load(Progress(show=False))[0].ema_params)
    second = Run.create(small(method="meanflow", init_from=str(first.folder), seed=7), tmp_path / "second")
    state = second.ensemble.init()
    for part in (state.params, state.ema_params):
        for name, leaf in flat(part).items():
            np.testing.assert_array_equal(leaf, without_gap(name, average[name]))
    assert int(state.step[0]) == 0
    second.train(Progress(show=False))
    shutil.rmtree(first.folder)  # once begun, a run stands on its own
    assert Run.open(second.folder).load(Progress(show=False))[1] == 30


@pytest.mark.slow
def test_what_the_other_training_lacks_starts_afresh(tmp_path):
    first = finished(tmp_path, "first")
    average = flat(first.load(Progress(show=False))[0].ema_params)
    for method, options in (("improved_meanflow", {"proxy": "head"}), ("flow_consist", {})):
        run = Run.create(small(method=method, init_from=str(first.folder), objective=options), tmp_path / method)
        params = flat(run.ensemble.init().params)
        taken = {name.replace("['network']", ""): leaf for name, leaf in params.items() if "fake" not in name}
        assert len(params) > len(average)
        for name, leaf in average.items():
            np.testing.assert_array_equal(taken[name], without_gap(name, leaf))


def test_a_command_resumes_with_the_first_run_elsewhere(tmp_path, capsys):
    """Until there is a checkpoint the first run is needed, wherever it has gone."""
    first = finished(tmp_path, "first")
    second = Run.create(small(method="meanflow", init_from=str(first.folder)), tmp_path / "second")
    first.folder.rename(tmp_path / "moved")
    cli.main(["train", "--resume", str(second.folder), "--init-from", str(tmp_path / "moved")])
    assert Run.open(second.folder).finished
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(second.folder), "--init-form", str(tmp_path / "moved")])
    assert "--init-from" in capsys.readouterr().err


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    first = finished(tmp_path, "first")
    wide = {"network": MLPConfig(width=24, depth=2), "init_from": str(first.folder)}
    with pytest.raises(UserError, match=r"init-from: its \S+ has shape"):
        Run.create(small(**wide), tmp_path / "wide")
    with pytest.raises(UserError, match="holds no run"):
        Run.create(small(init_from=str(tmp_path / "nowhere")), tmp_path / "second")
    with pytest.raises(UserError, match=r"init-from = .*: its samples have shape"):
        Run.create(small(data="dgmm4", init_from=str(first.folder)), tmp_path / "other")
    assert not (tmp_path / "wide").exists()


@pytest.mark.slow
def test_mid_training_then_distillation(tmp_path):
    """The three stages of MeanFlow with representation autoencoders, from one run to the next."""
    teacher = finished(tmp_path, "teacher")
    middle = finished(tmp_path, "middle", method="mid_training", teacher=str(teacher.folder))
    last = finished(
        tmp_path, "last", method="meanflow_rae", teacher=str(teacher.folder), init_from=str(middle.folder), steps=40
    )
    assert np.isfinite(last.sample(last.load(Progress(show=False))[0], 100)).all()


def test_distribution_matching_trains_two_networks(tmp_path):
    run = finished(tmp_path, "run", method="flow_consist")
    before, after = flat(run.ensemble.init().params), flat(run.load(Progress(show=False))[0].params)
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert any("fake" in name for name in moved)
    assert any("network" in name for name in moved)
    assert np.isfinite(run.sample(run.load(Progress(show=False))[0], 100)).all()
