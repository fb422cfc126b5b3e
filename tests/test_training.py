"""The engine: ensembles, resumption, what is logged, and what happens when numbers stop being numbers."""

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from vamf import data
from vamf.data import images
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein
from vamf.networks import DiTConfig, MLPConfig
from vamf.progress import Progress
from vamf.training import loop, presets
from vamf.training.config import GuardConfig, LogConfig, OptimizerConfig, TrainConfig
from vamf.training.config_file import read_json, to_json  # fmt: skip
from vamf.training.divergence import Diverged
from vamf.training.ensemble import Ensemble
from vamf.training.logs import NOT_REPEATED, MetricsLog, read
from vamf.training.run import Run
from vamf.training.step import SweepPoint, learning_rate, optimizer, rng_streams

PRESETS = tuple(presets.PRESETS)
QUIET = Progress(show=False)


def small(**changes) -> TrainConfig:
    config = TrainConfig(
        data="swiss_roll",
        steps=40,
        batch_size=32,
        checkpoint_every=10,
        log=LogConfig(every=10, variance_every=20, variance_replicas=4),
    )
    return dataclasses.replace(config, **changes)


def make_ensemble(config=None, seeds=(1,), betas=None, **options) -> Ensemble:
    config = config or small()
    values = None if betas is None else {"beta": betas}
    return Ensemble(config, data.load(config.data), seeds, values, **options)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_ensemble_members_are_the_single_trainings():
    """Each member of a swept ensemble follows the run that its seed and beta give alone."""
    pairs = [(3, 0.0), (3, 0.6), (5, 1.0)]
    ensemble = make_ensemble(seeds=[seed for seed, _ in pairs], betas=[beta for _, beta in pairs])
    together, metrics = ensemble.advance(ensemble.init(), 20)
    for index, (seed, beta) in enumerate(pairs):
        single = make_ensemble(small(objective={"beta": beta}), seeds=[seed])
        alone, alone_metrics = single.advance(single.init(), 20)
        np.testing.assert_allclose(metrics.loss[index], alone_metrics.loss[0], rtol=1e-4)
        # Adam's first steps turn rounding in a vanishing gradient into a step's length: compare as a whole.
        ours, theirs = (
            np.concatenate([leaf.ravel() for leaf in tree])
            for tree in ([leaf[index] for leaf in leaves(together.params)], leaves(alone.params))
        )
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.slow
def test_strategies_agree():
    results = []
    for strategy in ("loop", "vmap"):
        ensemble = make_ensemble(seeds=[1, 2], betas=[0.2, 0.9], strategy=strategy)
        state, metrics = ensemble.advance(ensemble.init(), 10)
        results.append((metrics.residual, ensemble.gradient_variance(state)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-3)


@pytest.mark.bits
def test_chunks_do_not_change_the_result():
    """Twice 15 steps, in blocks of another length, give the very bits of 30 steps."""
    whole = make_ensemble()
    state, metrics = whole.advance(whole.init(), 30)
    parts = make_ensemble()
    first, first_metrics = parts.advance(parts.init(), 15)
    second, second_metrics = parts.advance(first, 15)
    joined = np.concatenate([first_metrics.loss, second_metrics.loss], axis=1)
    np.testing.assert_array_equal(metrics.loss, joined)
    for ours, theirs in zip(leaves(state), leaves(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_chunk_of_a_transformer_can_be_left():
    """It is made of pieces; what is done when it is left is what as many steps do."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    config = TrainConfig("noise.npy", batch_size=4, network=DiTConfig(depth=1, width=8, heads=1, patch=4))
    ensemble = Ensemble(config, images.from_pixels("noise", pixels), [0])
    asked = []

    def stops(done):
        asked.append(done)
        return done >= 20

    state, metrics = ensemble.advance(ensemble.init(), 40, stops)
    assert (asked, metrics.loss.shape, int(state.step[0])) == ([20], (1, 20), 20)
    expected, _ = ensemble.advance(ensemble.init(), 20)  # the same program
    for ours, theirs in zip(leaves(state), leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_members_are_padded_over_devices():
    """Three runs on two devices: a subprocess, since devices are counted once."""
    code = """
import dataclasses, jax, numpy as np
from vamf import data
from vamf.data import images
from vamf.training.config import TrainConfig
from vamf.training.ensemble import Ensemble
jax.config.update("jax_num_cpu_devices", 2)
config = TrainConfig(data="pinwheel", steps=10, batch_size=16)
ensemble = Ensemble(config, data.load("pinwheel"), [1, 2, 3], {"beta": [0.0, 0.5, 1.0]})
assert len(ensemble.devices) == 2
state, metrics = ensemble.advance(ensemble.init(), 10)
assert metrics.loss.shape == (3, 10) and ensemble.sample(state, 7).shape == (3, 7, 2)
alone = Ensemble(dataclasses.replace(config, objective={"beta": 1.0}), data.load("pinwheel"), [3])
_, expected = alone.advance(alone.init(), 10)
np.testing.assert_allclose(metrics.loss[2], expected.loss[0], rtol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_gradient_variance_is_the_trace_of_the_sample_covariance():
    """Against numpy's covariance of gradients taken one by one."""
    ensemble = make_ensemble(small(log=LogConfig(variance_replicas=5)))
    state, _ = ensemble.advance(ensemble.init(), 20)
    measured = ensemble.gradient_variance(state)[0]
    one = jax.tree.map(lambda leaf: leaf[0], state)
    train_step, seed = ensemble.train_step, np.uint32(1)
    gradients = []
    for key in jax.random.split(jax.random.fold_in(rng_streams(seed).variance, one.step), 5):
        batch_key, loss_key = jax.random.split(key)
        x, _ = ensemble.dataset.draw((), batch_key, 32)

        def mean_loss(params, x=x, key=loss_key):
            proxy = ensemble.network.bind(one.ema_params)
            return train_step.objective(ensemble.network.bind(params), x, None, key, 20, proxy)[0].mean()

        gradient = jax.grad(mean_loss)(one.params)
        gradients.append(np.concatenate([leaf.ravel() for leaf in leaves(gradient)]))
    np.testing.assert_allclose(measured, np.var(gradients, axis=0, ddof=1).sum(), rtol=1e-3)


@pytest.mark.slow
def test_gradient_variance_falls_as_one_over_the_batch():
    """Sixteen times the batch, a sixteenth of the variance: within 35 %, for 256 replicas."""
    values = []
    for size in (16, 256):
        ensemble = make_ensemble(small(batch_size=size, log=LogConfig(variance_replicas=256)))
        values.append(ensemble.gradient_variance(ensemble.init())[0])
    assert values[0] / values[1] == pytest.approx(16, rel=0.35)


def test_learning_rate_is_a_cosine_to_the_final_fraction():
    config = small(steps=100, learning_rate=0.2, optimizer=OptimizerConfig(final_learning_rate=0.1))
    rate = learning_rate(config)
    middle = 0.2 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [0.2, middle, 0.02], rtol=1e-5)


def test_clipping_bounds_the_gradient():
    """Adam forgets scale, so the clipped first moment is looked at itself."""
    config = small(optimizer=OptimizerConfig(clip_norm=0.5, b1=0.0))
    transform = optimizer(config)
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    gradient = {"a": np.full(3, 4.0, np.float32), "b": np.full(2, -4.0, np.float32)}
    _, state = transform.update(gradient, transform.init(params), params)
    moments = [leaf for leaf in leaves(state) if leaf.shape == (5,)]
    assert np.linalg.norm(moments[0]) == pytest.approx(0.5, rel=1e-5)


def test_moving_average():
    ensemble = make_ensemble(small(optimizer=OptimizerConfig(ema_decay=0.75, ema_warmup=False)))
    before = leaves(ensemble.init().params)
    state, _ = ensemble.advance(ensemble.init(), 1)
    for start, now, average in zip(before, leaves(state.params), leaves(state.ema_params), strict=True):
        np.testing.assert_allclose(average, 0.75 * start + 0.25 * now, atol=1e-6)


def test_training_learns():
    """300 steps bring the flow-matching loss on the diagonal from that of u = 0 to near the data's floor."""
    ensemble = make_ensemble(small(steps=600, batch_size=256))
    _, metrics = ensemble.advance(ensemble.init(), 600)
    assert metrics.v_loss[0, -50:].mean() < 0.93 * metrics.v_loss[0, :5].mean()
    assert metrics.jvp_norm[0, -50:].mean() > 0.1


def test_run_folder_and_log(tmp_path, capsys):
    weighted = {"weighting.power": 1.0}  # the loss is not the residual
    run = Run.create(small(objective=weighted), tmp_path / "run")
    outcome = run.train(Progress(every_seconds=0.0))
    records = read(run.folder / "metrics.jsonl")
    told = "loss {loss:.4g}, residual {residual:.4g}".format(**records[-1])  # under the names of the log
    assert capsys.readouterr().err.splitlines()[-1].endswith(told)
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert {"loss", "residual", "v_loss", "grad_norm", "jvp_norm", "lr", "beta", "steps_per_second"} <= set(records[0])
    assert [record["step"] for record in records if "gradient_variance" in record] == [20, 40]
    assert len(list((run.folder / "samples").iterdir())) == 4
    state, step = Run.open(run.folder).load(QUIET)
    assert step == 40
    for ours, theirs in zip(leaves(state), leaves(outcome.state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    result = run.evaluate(state, step)
    assert result["unseen"]
    baseline = result["distances"]["baseline"]
    assert 0 < baseline["sw1"] < result["distances"]["1 step"]["sw1"]
    # Fresh points are spread about the reference as the draws behind the baseline are.
    reference = run.dataset.reference(4096, 0)
    fresh = [sliced_wasserstein(run.dataset.reference(4096, seed), reference) for seed in range(1, 9)]
    assert abs(np.mean(fresh) - baseline["sw1"]) < baseline["sw1_std"]
    assert 1 / 3 < baseline["sw1_std"] / np.std(fresh, ddof=1) < 3
    assert min(fresh) < baseline["sw1"]


@pytest.mark.slow
def test_weighted_loss_is_near_one_and_the_residual_is_not(tmp_path):
    """With p = 1 the printed loss says nothing; the log has the residual beside it."""
    config = small(objective={"weighting.power": 1.0})
    run = Run.create(config, tmp_path / "run")
    run.train(QUIET)
    last = read(run.folder / "metrics.jsonl")[-1]
    assert last["loss"] == pytest.approx(1, abs=0.05)
    assert last["residual"] > 1.5


def interrupted(config: TrainConfig, folder: Path, at: int) -> Run:
    """A run whose process ended after the checkpoint of step `at` and lost its memory."""
    run = Run.create(config, folder)

    class Killed(BaseException):
        pass

    def kill(step, _):
        if step > at:
            raise Killed

    with pytest.raises(Killed):
        loop.train(run.ensemble, run.folder, QUIET, kill)
    return Run.open(folder)


def test_resume_is_bit_identical(tmp_path):
    config = small(optimizer=OptimizerConfig(ema_decays=(0.9,)))
    whole = Run.create(config, tmp_path / "whole")
    expected = whole.train(QUIET).state
    resumed = interrupted(config, tmp_path / "cut", at=20)
    with (resumed.folder / "metrics.jsonl").open("a") as handle:  # a later line, and one cut off by the kill
        handle.write('{"step": 30, "loss": 0}\n{"step": 4')
    state = resumed.train(QUIET).state
    for ours, theirs in zip(leaves(state), leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    logs = [
        [
            {key: value for key, value in record.items() if key not in NOT_REPEATED}
            for record in read(run.folder / "metrics.jsonl")
        ]
        for run in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def newest(run: Run) -> Path:
    return max((run.folder / "checkpoints").iterdir(), key=lambda path: int(path.name))


@pytest.mark.parametrize(
    "damage", ["truncate", pytest.param("flip", marks=pytest.mark.slow), pytest.param("empty", marks=pytest.mark.slow)]
)
def test_damaged_checkpoint_falls_back_and_says_so(tmp_path, damage):
    run = interrupted(small(), tmp_path / "run", at=30)
    expected = Run.create(small(), tmp_path / "whole").train(QUIET).state
    payload = max((path for path in newest(run).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "flip":
        # The arrays themselves, wherever orbax put them: every large file gets a flipped byte.
        for path in newest(run).rglob("*"):
            if path.is_file() and path.stat().st_size > 10_000:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 0xFF
                path.write_bytes(content)
    else:
        os.truncate(payload, payload.stat().st_size // 2 if damage == "truncate" else 0)
    lines = []
    progress = Progress(show=False)
    progress.say = lines.append
    state, step = run.load(progress)
    assert step == 20
    assert len(lines) == 1
    assert "30 cannot be read" in lines[0]
    assert "using step 20" in lines[0]
    for ours, theirs in zip(leaves(run.train(QUIET).state), leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    del state


def test_all_checkpoints_damaged(tmp_path):
    run = interrupted(small(), tmp_path / "run", at=10)
    for path in newest(run).rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            os.truncate(path, 10)
    with pytest.raises(UserError, match="no checkpoint can be read"):
        run.load(QUIET)


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
    run = interrupted(small(), tmp_path / "run", at=10)
    edited = dataclasses.replace(run.config, learning_rate=0.5)
    (run.folder / "config.json").write_text(to_json(edited))
    with pytest.raises(UserError, match=r"another configuration .* undo what was changed in .* --init-from") as caught:
        Run.open(run.folder).train(QUIET)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_other_data_is_refused(tmp_path):
    rows = np.random.default_rng(0).normal(size=(64, 2))
    np.save(tmp_path / "points.npy", rows)
    config = small(data=str(tmp_path / "points.npy"), network=MLPConfig(width=16))
    run = interrupted(config, tmp_path / "run", at=10)
    rows[5, 1] += 1
    np.save(tmp_path / "points.npy", rows)
    with pytest.raises(UserError, match="other data than those of the run: column 2 has mean"):
        run.train(QUIET)
    np.save(tmp_path / "points.npy", np.concatenate([rows, np.ones((64, 1))], 1))
    (run.folder / "inputs.npz").unlink()  # as of an earlier version
    with pytest.raises(UserError, match="earlier versions read the same data otherwise: constant columns were learnt"):
        Run.open(run.folder).train(QUIET)


@pytest.mark.slow
def test_non_finite_loss_stops_at_once_and_names_the_last_good_checkpoint(tmp_path):
    run = interrupted(small(guard=GuardConfig(patience=0)), tmp_path / "run", at=20)
    # The same run with a poisoned state: parameters overflow from step 20 on.
    state, _ = run.load(QUIET)
    poisoned = state._replace(params=jax.tree.map(lambda leaf: leaf + np.float32(np.inf), state.params))
    with loop.open_checkpoints(run.ensemble, run.folder) as checkpoints:
        checkpoints.save(21, run.ensemble.collect(poisoned))
    with pytest.raises(Diverged, match=r"not finite at step 22, in rows .*; last good checkpoint: .*checkpoints.21"):
        run.train(QUIET)
    assert max(record["step"] for record in read(run.folder / "metrics.jsonl")) <= 21


def test_divergence_before_any_checkpoint(tmp_path):
    run = Run.create(small(learning_rate=1e30), tmp_path / "run")
    with pytest.raises(Diverged, match=r"not finite at step 2 and the 9 after it, .*; no checkpoint yet"):
        run.train(QUIET)


@pytest.mark.slow
def test_diverged_member_leaves_the_ensemble_running(tmp_path):
    ensemble = make_ensemble(seeds=[1, 2], betas=[0.0, 1.0])
    state = ensemble.init()
    broken = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), ensemble.collect(state))
    broken.params["first"]["bias"][1] = np.nan
    with loop.open_checkpoints(ensemble, tmp_path) as checkpoints:
        checkpoints.save(10, broken._replace(step=np.full(2, 10, np.int32)))
    outcome = loop.train(ensemble, tmp_path, QUIET)
    drawn = ensemble.sample(outcome.state, 5)
    assert np.isfinite(drawn[0]).all()
    assert np.isnan(drawn[1]).all()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"][0] is not None
    assert last["loss"][1] is None


@pytest.mark.filterwarnings("error")
def test_a_line_of_progress_is_of_the_members_that_have_a_number():
    record = {"loss": [float("nan"), 2.0], "residual": [float("nan")] * 2}
    assert loop._progress_note(record) == "loss 2, residual nan"
    assert loop._progress_note({"loss": 1.5, "residual": float("nan")}) == "loss 1.5, residual nan"


def test_config_round_trip(tmp_path):
    config = dataclasses.replace(presets.for_data("digits"), objective={"beta": "linear:1:0"}, method="vamf")
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_json(TrainConfig, tmp_path / "config.json") == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_their_file(name, tmp_path):
    config = presets.PRESETS[name]
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_json(TrainConfig, tmp_path / "config.json") == config
    assert config.build_objective().times.num_diagonal(config.batch_size) > 0


def unwatched(kind, /, **given):
    """A configuration as users make it: here what tests watch over every call with would be first to refuse."""
    made = object.__new__(kind)
    inspect.unwrap(kind.__init__)(made, **given)
    return made


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (TrainConfig, {"steps": "ten"}, "steps = 'ten': allowed is a whole number"),
        (TrainConfig, {"steps": 2.5}, "steps = 2.5: allowed is a whole number"),
        (TrainConfig, {"data": np.zeros((200, 4))}, "data = an array of shape (200, 4): allowed is a data set's name"),
        (TrainConfig, {"objective": {"beta": True}}, "beta = True: allowed is a number or"),
        (TrainConfig, {"conditional": 1}, "conditional = 1: allowed is true or false"),
        (TrainConfig, {"optimizer": {"b1": 0.5}}, "optimizer = {'b1': 0.5}: allowed is OptimizerConfig"),
        (TrainConfig, {"jvp_dtype": "float16"}, "jvp-dtype = 'float16': allowed is float32, network"),
        (OptimizerConfig, {"warmup": None}, "optimizer.warmup = None: allowed is a whole number"),
        (LogConfig, {"to": "wandb"}, "log.to = 'wandb': allowed is several of: tensorboard, wandb"),
        (
            TrainConfig,
            {"objective": {"guidance.interval": (0.1,)}},
            "guidance.interval = [0.1]: allowed is 2 of: a number",
        ),
        (MLPConfig, {"width": "wide"}, "network.width = 'wide': allowed is a whole number"),
    ],
)
def test_a_field_of_another_type_is_one_line(kind, given, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        unwatched(kind, **({"data": "swiss_roll"} if kind is TrainConfig else {}) | given)


def test_every_configuration_checks_its_fields():
    """All that a run's configuration is made of, each field of them: an object of no type is refused."""

    def parts(config):
        yield config
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from parts(value)

    kinds = {type(part): part for config in presets.PRESETS.values() for part in parts(config)}
    assert len(kinds) >= 13
    for part in kinds.values():
        for field in dataclasses.fields(part):
            with pytest.raises(UserError, match=rf"\b{field.name.replace('_', '-')} = .*: allowed is"):
                unwatched(type(part), **vars(part) | {field.name: object()})


def test_what_is_meant_beyond_doubt_is_taken(tmp_path):
    """Numbers of numpy's, whole numbers for floats, paths, lists; and what is taken can be written down."""
    log = unwatched(LogConfig, to=["wandb"], every=np.int64(3))
    given = {"steps": np.int64(7), "learning_rate": 1, "objective": {"beta": np.float32(0.25)}, "log": log}
    config = unwatched(TrainConfig, data=Path("swiss_roll"), **given)
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_json(TrainConfig, tmp_path / "config.json") == config
    assert (config.data, config.steps, config.objective["beta"], config.log.to) == ("swiss_roll", 7, 0.25, ("wandb",))


def test_an_unknown_kind_of_network(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 3, "data": "digits", "network": {"type": "tree"}}')
    with pytest.raises(UserError, match="network type = 'tree': allowed are mlp, dit"):
        read_json(TrainConfig, tmp_path / "config.json")


def test_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 3, "data": "digits", "speed": 3}')
    with pytest.raises(UserError, match="unknown field 'speed'"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(UserError, match="not a readable configuration"):
        Run.open(tmp_path)


def test_folders_in_use_are_refused(tmp_path):
    Run.create(small(), tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        Run.create(small(), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        Run.create(small(), tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_log_forgets_steps_that_are_taken_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": float("nan")})
    MetricsLog(path, resume_at=20)
    assert read(path) == [{"step": 10, "loss": None}, {"step": 20, "loss": None}]


@pytest.mark.slow
def test_labels_choose_the_class(tmp_path):
    config = dataclasses.replace(presets.for_data("digits"), steps=10, batch_size=16, checkpoint_every=10)
    run = Run.create(config, tmp_path / "run")
    state = run.train(QUIET).state
    kernel = state.ema_params["classes"]["embedding"]
    assert kernel.shape[1:] == (11, 512)
    for bad in (-1, 10):
        with pytest.raises(UserError, match="0 to 9"):
            run.sample(state, 2, label=bad)
    threes, again, fives = (run.sample(state, 4, seed=1, label=label) for label in (3, 3, 5))
    np.testing.assert_array_equal(threes, again)
    assert not np.allclose(threes, fives)
    unlabelled = dataclasses.replace(config, conditional=False)
    plain = Run.create(unlabelled, tmp_path / "plain")
    with pytest.raises(UserError, match="no classes"):
        plain.sample(plain.ensemble.init(), 2, label=3)


def test_optimiser_is_adam():
    """The flattened optimizer takes the steps of optax.adam on the tree."""
    config = small(steps=1000)
    params = {"a": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.float32)}
    ours, theirs = optimizer(config), optax.adam(learning_rate(config))
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        gradient = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(np.float32), params)
        ours_update, ours_state = ours.update(gradient, ours_state, params)
        theirs_update, theirs_state = theirs.update(gradient, theirs_state, params)
        for mine, other in zip(leaves(ours_update), leaves(theirs_update), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_members_share_batches_across_beta():
    """Common random numbers: two betas with one seed see the same data, so their difference is beta's doing."""
    ensemble = make_ensemble(seeds=[7, 7], betas=[0.0, 1.0])
    batches = [
        ensemble.train_step.batch((), SweepPoint(np.uint32(7), {"beta": beta}), 3)
        for beta in (np.float32(0), np.float32(1))
    ]
    for ours, theirs in zip(leaves(batches[0]), leaves(batches[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["swiss_roll", "digits", "table.csv"])
def test_kill_minus_nine(tmp_path, source):
    """SIGKILL at arbitrary moments, resumption, and the parameters of the run that was left alone."""
    if source.endswith(".csv"):
        rows = np.random.default_rng(1).normal(size=(300, 3)) @ np.array([[1, 0.5, 0], [0, 2, 1], [0, 0, 0.3]])
        path = tmp_path / source
        path.write_text("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in rows))
        source = str(path)
    vamf = [sys.executable, "-m", "vamf", "train"]
    options = ["--steps", "600", "--batch-size", "64", "--checkpoint-every", "50", "--log.every", "25"]
    options += ["--network.width", "128"]  # those of digits and tables take longer and show no more
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*vamf, source, *options, "--out", str(whole)], check=True, capture_output=True)
    rng = np.random.default_rng(5)
    command = [*vamf, source, *options, "--out", str(cut)]
    for _ in range(3):
        before = len(list((cut / "checkpoints").glob("*"))) if cut.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (cut / "checkpoints").exists() and len(list((cut / "checkpoints").glob("*"))) > before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [*vamf, "--resume", str(cut)]
    subprocess.run(command, check=True, capture_output=True)
    states = [Run.open(folder).load(QUIET) for folder in (whole, cut)]
    assert states[0][1] == states[1][1] == 600
    for ours, theirs in zip(leaves(states[0][0]), leaves(states[1][0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX resource limits")
def test_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A limit on file size stands in for a full disk: writes fail with an OS error in the middle of a run."""
    run = interrupted(small(steps=60), tmp_path / "run", at=30)
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from vamf import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
cli.main(["train", "--resume", {str(run.folder)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert Run.open(run.folder).load(QUIET)[1] == 30


def test_the_learning_rate_rises_then_falls():
    config = small(steps=100, learning_rate=2e-3, optimizer=OptimizerConfig(warmup=10, final_learning_rate=0.5))
    rate = learning_rate(config)
    np.testing.assert_allclose([rate(i) for i in (0, 4)], [2e-4, 1e-3], rtol=0.02)  # times the cosine, still near 1
    np.testing.assert_allclose([rate(10), rate(100)], [2e-3, 1e-3], rtol=0.03)
    rates = [float(rate(i)) for i in range(101)]
    assert rates.index(max(rates)) in (9, 10)
