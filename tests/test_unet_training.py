"""Dropout and augmentation in training: who is told, who is not, and that a step's randomness is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import quick, random_parameters
from vamf import cli, networks
from vamf.conditioning import NULL_LABEL, Conditioning
from vamf.data.augment import Augmentation
from vamf.errors import UserError
from vamf.networks import DiTConfig, Network, UNetConfig
from vamf.objectives import create
from vamf.progress import Progress
from vamf.times import LogitNormal, LogitNormalMin
from vamf.training import loop, presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.config_file import identity
from vamf.training.ensemble import Ensemble
from vamf.training.reflow import ReflowConfig
from vamf.training.run import Run
from vamf.training.step import State, SweepPoint, TrainStep, optimizer, rng_streams

QUIET = Progress(show=False)
TINY = UNetConfig("ddpm", 4, (1,), 1, (), 4, "velocity", augment_features=6, dropout=0.5)
HALF = Augmentation(0.5)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A file of 40 smooth colour images of 8x8 in 3 classes."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 3, 8)[:, None, None] + rng.uniform(0, 6, (40, 1, 8, 3)))
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=(127 * (1 + waves)).astype(np.uint8), labels=np.arange(40) % 3)
    return str(path)


def small(data, **changes) -> TrainConfig:
    """A flow-matching U-Net with dropout and augmentation."""
    config = TrainConfig(data, "flow_matching", steps=4, batch_size=8, checkpoint_every=2, network=TINY, augment=HALF)
    return dataclasses.replace(config, log=LogConfig(every=2, variance_every=0), **changes)


def key_bits(key):
    return jax.random.key_data(key).tolist()


def watched_step(config, step=3, seed=1):
    """The batch of a step, and the key and label of each call that its training step makes of a network u = w z."""
    calls = []

    def bind(params, key=None):
        def u(z, r, t, label):
            calls.append((key, label))
            return params["w"] * z

        return u

    network = Network(lambda key: {"w": jnp.ones(())}, bind)
    dataset = config.load_data()
    train_step = TrainStep(config, dataset, network, config.build_objective(), optimizer(config))
    member = SweepPoint(np.uint32(seed))
    batch = quick(train_step.batch)(dataset.arrays, member, step)
    train_step.step(batch, member, train_step.init(member))
    return batch, calls


# ------------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.slow
def test_all_calls_of_a_step_share_a_key_and_the_moving_average_has_none(image_folder):
    vamf = small(image_folder, method="vamf", network=dataclasses.replace(TINY, predicts="average_velocity"))
    batch, calls = watched_step(vamf)
    keys = [None if key is None else key_bits(key) for key, _ in calls]
    assert keys.count(None) == 1  # v_hat of the EMA
    assert keys.count(key_bits(batch.dropout)) == len(keys) - 1 >= 2


@pytest.mark.slow
def test_every_step_and_every_seed_has_a_key_of_its_own(image_folder):
    config = small(image_folder)
    found = [key_bits(watched_step(config, *at)[0].dropout) for at in ((3, 1), (3, 1), (4, 1), (3, 2))]
    assert found[0] == found[1]
    assert len({tuple(key) for key in found}) == 3
    without = dataclasses.replace(config, network=dataclasses.replace(TINY, dropout=0.0))
    assert watched_step(without)[0].dropout is None


def test_keys_reach_both_networks_of_a_rectified_training():
    network = networks.build(TINY, (8, 8, 3), 0, ("fake",))
    params, key = random_parameters(network), jax.random.key(1)
    both = network.bind(params, key)
    assert both.main.key is both.fake_network.key is key
    assert network.bind(params).main.key is None


@pytest.mark.slow
def test_masks_differ_between_steps_and_not_within_one(image_folder):
    """Of a real network: the key decides what is dropped, whatever else is the same."""
    network = networks.build(TINY, (8, 8, 3))
    params, z, t = random_parameters(network), jnp.ones((2, 8, 8, 3)), jnp.full(2, 0.5)
    u = quick(lambda key: network.bind(params, key)(z, t, t, None))
    keys = [watched_step(small(image_folder), step)[0].dropout for step in (0, 0, 1)]
    first, again, later = (np.asarray(u(key)) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - later)) > 1e-3


# -------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.slow
def test_images_are_moved_and_the_network_is_told(image_folder):
    config = small(image_folder, batch_size=32)
    untold = dataclasses.replace(TINY, augment_features=0)
    batch, calls = watched_step(config)
    still, others = watched_step(dataclasses.replace(config, augment=Augmentation(0.0), network=untold))
    np.testing.assert_array_equal(batch.label.label, still.label)
    told = np.asarray(batch.label.augment)
    assert told.shape == (32, 6)
    alone = np.all(told == 0, axis=1)
    mirrored = (told[:, 0] == 1) & np.all(told[:, 1:] == 0, axis=1)
    assert min(alone.sum(), mirrored.sum()) >= 1
    np.testing.assert_allclose(batch.x[alone], still.x[alone], atol=1e-5)
    np.testing.assert_allclose(batch.x[mirrored], still.x[mirrored][:, :, ::-1], atol=1e-5)
    other = ~alone & ~mirrored
    assert np.min(np.max(np.abs(batch.x - still.x)[other], axis=(1, 2, 3))) > 1e-3
    assert all(isinstance(label, Conditioning) for _, label in calls)
    assert not any(isinstance(label, Conditioning) for _, label in others)


@pytest.mark.parametrize(
    "method", ["vamf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("meanflow", "split_meanflow"))]
)
def test_each_row_is_told_of_its_own_image(image_folder, method):
    """The rows on and off the diagonal, of the network and of its EMA."""
    average = dataclasses.replace(TINY, predicts="average_velocity")
    times = {"times.flow_matching_ratio": 0.25}
    batch, calls = watched_step(small(image_folder, method=method, network=average, batch_size=16, objective=times))
    told, label = (np.asarray(part) for part in (batch.label.augment, batch.label.label))
    parts = {len(given.label): given for _, given in calls}
    assert sum(parts) == 16
    assert len(parts) == 2
    for _, given in calls:
        rows = slice(0, len(given.label)) if len(given.label) == min(parts) else slice(min(parts), None)
        np.testing.assert_array_equal(given.augment, told[rows])
        np.testing.assert_array_equal(given.label, label[rows])


@pytest.mark.slow
def test_guidance_hides_the_class_and_keeps_the_augmentation():
    """v_null is that of the moved image too; a dropped row is not guided and stays told of its move."""
    seen = []

    def u(z, r, t, label):
        seen.append(label)
        return z

    x = jnp.ones((6, 8, 8, 1))
    condition = Conditioning(jnp.arange(6) % 3, jnp.arange(36.0).reshape(6, 6))
    objective = create("flow_matching", guidance={"scale": 2.0, "dropout": 0.5})
    loss, _ = objective(u, x, condition, jax.random.key(0), 0)
    null = next(told for told in seen if len(told.label) == 6)  # rows on and off the diagonal are two other calls
    shown = [told for told in seen if told is not null]
    assert loss.shape == (6,)
    np.testing.assert_array_equal(np.concatenate([part.augment for part in shown]), condition.augment)
    labels = np.concatenate([part.label for part in shown])
    np.testing.assert_array_equal(null.label, np.full(6, NULL_LABEL))
    np.testing.assert_array_equal(null.augment, condition.augment)
    assert np.all((labels == NULL_LABEL) | (labels == condition.label))
    assert 0 < np.sum(labels == NULL_LABEL) < 6


# -------------------------------------------------------------------------------------------------------- both in runs


@pytest.mark.slow
def test_a_step_is_the_same_whenever_it_is_taken(image_folder):
    """From a state that has been on the host, as a resumed run has it: masks and moves follow from seed and step."""
    config = small(image_folder)
    ensemble = Ensemble(config, config.load_data(), [1])
    state, _ = ensemble.advance(ensemble.init(), 2)
    kept = ensemble.collect(state)
    straight, metrics = ensemble.advance(state, 2)
    straight = ensemble.collect(straight)
    resumed, again = ensemble.advance(ensemble.place(kept), 2)
    np.testing.assert_array_equal(metrics.loss, again.loss)
    for ours, theirs in zip(jax.tree.leaves(ensemble.collect(resumed)), jax.tree.leaves(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.all(metrics.loss[0, 0] != metrics.loss[0, 1])


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vamf.training.run.SHOWN", 1)
    config = small(image_folder)
    whole = Run.create(config, tmp_path / "whole").train(QUIET).state
    cut = Run.create(config, tmp_path / "cut")

    class Killed(BaseException):
        pass

    def kill(step, _):
        raise Killed

    with pytest.raises(Killed):
        loop.train(cut.ensemble, cut.folder, QUIET, kill)
    resumed = Run.open(cut.folder)
    assert resumed.config == cut.config
    for ours, theirs in zip(*(jax.tree.leaves(state) for state in (resumed.train(QUIET).state, whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_samples_know_of_neither(image_folder):
    """They are those of the same parameters in a network without dropout, told that nothing was moved."""
    config = small(image_folder)
    ensemble = Ensemble(config, config.load_data(), [1])
    params = random_parameters(ensemble.network)
    state = State((), jax.tree.map(lambda leaf: leaf[None], params), (), jnp.zeros(1, jnp.int32))
    label = np.array([0, 1, 2, 2])
    drawn = ensemble.sample(state, 4, 1, seed=5, label=label)
    still = networks.build(dataclasses.replace(TINY, dropout=0.0), (8, 8, 3), 3)
    noise = jax.random.normal(jax.random.split(rng_streams(5).sample)[0], (4, 8, 8, 3))
    told = Conditioning(jnp.asarray(label), jnp.zeros((4, 6)))
    u = quick(still.bind(params))(noise, jnp.zeros(4), jnp.ones(4), told)
    np.testing.assert_allclose(drawn[0], ensemble.dataset.to_original(np.asarray(noise - u)), rtol=1e-3, atol=0.1)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"network": UNetConfig()}, "gives the network 6 numbers about each image, but .* = 0"),
        ({"network": DiTConfig()}, "always 0 where the network is no U-Net"),
        ({"augment": Augmentation(0.0)}, "gives the network 0 numbers about each image, but .* = 6"),
        ({"augment": Augmentation(0.1, rotate=True)}, "gives the network 8 numbers"),
        ({"whitening": 0.1}, "augment: not with whiten"),
        ({"reflow": ReflowConfig(64), "teacher": "nowhere"}, "augment: not with reflow"),
        ({"objective": {"rao_blackwell": True}}, "augment: not with a bank"),
        (
            {"method": "meanflow_rae", "network": dataclasses.replace(TINY, predicts="average_velocity")},
            "augment: not with a teacher",
        ),
    ],
)
def test_what_does_not_know_of_the_augmentation_is_refused(changes, line):
    with pytest.raises(UserError, match=line):
        small("images.npz", **changes)


def test_only_images_are_moved():
    with pytest.raises(UserError, match=r"augment: moves images; samples of digits have shape \(64,\)"):
        small("digits").load_data()


def test_another_network_comes_without_the_augmentation(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["train", "cifar10_unet", "--network", "dit"])
    assert "data/cifar10: no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "cifar10_unet", "--network", "dit", "--augment.probability", "0.1"])
    assert "augment: gives the network 6 numbers" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- configurations


def test_the_preset_has_the_published_augmentation_and_dropout():
    config = presets.PRESETS["cifar10_unet"]
    assert config.network.dropout == 0.2
    assert config.augment.probability == 0.12
    assert config.augment.kinds == ["mirror", "scale", "stretch", "shift"]
    assert config.augment.features == config.network.augment_features == 6


def test_the_recipes_of_meanflow_have_their_published_constants():
    """cifar10_v0.sh and cifar10_v1.sh of the official code; an epoch is 50,000 // (8 * 128) = 48 steps."""
    paper, better = (presets.PRESETS[name] for name in ("cifar10_unet", "cifar10_unet_v1"))
    assert (better.steps, better.optimizer.warmup) == (16_000 * 48, 200 * 48) == (768_000, 9600)
    assert (better.batch_size, better.learning_rate) == (1024, 6e-4)
    assert (better.optimizer.b1, better.optimizer.b2) == (0.9, 0.999)
    assert (better.optimizer.ema_decay, better.optimizer.final_learning_rate) == (0.99995, 1.0)
    law, earlier = (config.build_objective().times for config in (better, paper))
    assert (type(law), law.mean, law.r_mean, law.std) == (LogitNormalMin, -0.6, -4.0, 1.6)
    assert (type(earlier), earlier.mean, earlier.r_mean, earlier.std) == (LogitNormal, -2.0, None, 2.0)
    assert law.flow_matching_ratio == earlier.flow_matching_ratio == 0.25
    assert law.num_diagonal(1024) == 307
    same = {"steps": 1, "optimizer": paper.optimizer}
    as_paper = better.objective | {"times": paper.objective["times"]}
    assert dataclasses.replace(better, **same, objective=as_paper) == dataclasses.replace(paper, **same)


def test_the_augmentation_tells_trainings_apart():
    one, other = (identity(small("x.npz", augment=Augmentation(share))) for share in (0.1, 0.2))
    assert one != other
