"""EMAs of the parameters: warm-up, several at once, and what is said of them."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from vamf import data
from vamf.errors import UserError
from vamf.studies import adaptive, methods, mixtures, toys
from vamf.training import ema_weights, presets
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.cost import estimate, synthetic_dataset
from vamf.training.ensemble import Ensemble

STEPS = 30
ALL = {"ema_decay": 0.75, "ema_decays": (0.9, 0.05), "ema_target": 0.5}


def config(**options) -> TrainConfig:
    log = LogConfig(every=10, variance_every=0)
    shared = {"data": "swiss_roll", "batch_size": 8, "steps": STEPS, "objective": {"beta": 1.0}, "log": log}
    return TrainConfig(**shared, optimizer=OptimizerConfig(**options))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def trained():
    """A run with four averages, and its parameters after every step, the initial ones first."""
    ensemble = Ensemble(config(**ALL), data.load("swiss_roll"), [1])
    state = ensemble.init()
    path = [flat(state.params)]
    for _ in range(STEPS):
        state, _ = ensemble.advance(state, 1)
        path.append(flat(state.params))
    return ensemble, state, path


def test_averages_are_those_of_tensorflows_rule(trained):
    """Against the published definition in float64: min(decay, (1 + num_updates) / (10 + num_updates))."""
    ensemble, state, path = trained
    assert ensemble.config.all_ema_decays == (0.75, 0.9, 0.05, 0.5)
    for decay, kept in zip(ensemble.config.all_ema_decays, (state.ema_params, *state.other_emas), strict=True):
        expected = path[0]
        for num_updates, params in enumerate(path[1:], 1):
            rising = min(decay, (1 + num_updates) / (10 + num_updates))
            expected = rising * expected + (1 - rising) * params
        np.testing.assert_allclose(flat(kept), expected, rtol=2e-5, atol=2e-6)


def test_targets_ask_their_own_average(trained):
    """The loss depends on the average of `ema_target` and on no other."""
    ensemble, state, _ = trained
    host = ensemble.collect(state)

    def loss(**changed):
        return ensemble.advance(ensemble.place(host._replace(**changed)), 1)[1].loss[0, 0]

    def moved(tree):
        return jax.tree.map(lambda leaf: leaf + 0.1, tree)

    others = tuple(moved(tree) for tree in host.other_emas[:-1])
    assert loss(ema_params=moved(host.ema_params), other_emas=(*others, host.other_emas[-1])) == loss()
    assert loss(other_emas=(*host.other_emas[:-1], moved(host.other_emas[-1]))) != loss()


def test_samples_come_from_the_weights_that_are_named(trained):
    ensemble, state, _ = trained
    weights = {None: state.ema_params, 0.9: state.other_emas[0], 0.05: state.other_emas[1], "none": state.params}
    drawn = {}
    for name, params in weights.items():
        drawn[name] = ensemble.sample(ensemble.select_ema(state, name), 5, seed=0)[0]
        np.testing.assert_array_equal(drawn[name], ensemble.sample(state._replace(ema_params=params), 5, seed=0)[0])
    assert len({samples.tobytes() for samples in drawn.values()}) == len(drawn)
    with pytest.raises(
        UserError, match=r"ema = 0.8: this run has the EMAs 0.75, 0.9, 0.05, 0.5; none is the parameters"
    ):
        ensemble.select_ema(state, 0.8)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.1, 0.5, 0.9, 0.999])
def test_the_share_of_the_initial_weights(decay, warmup):
    """Against the product of the decays; those of a tenth that round are met on either side."""
    for steps in (1, 7, 80, 2000):
        decays = [min(decay, (1 + k) / (10 + k)) if warmup else decay for k in range(1, steps + 1)]
        expected = math.prod(decays)
        assert ema_weights.initial_fraction(decay, warmup, steps) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_training_too_short_for_its_average_is_told_so():
    """A constant 0.999 keeps 13.5 % of the initial weights for 2,000 steps, e^-20 for 20,000; warm-up keeps none."""

    def said(steps, **options):
        return ema_weights.caution(TrainConfig(data="two_moons", steps=steps, optimizer=OptimizerConfig(**options)))

    line = said(2000, ema_warmup=False)
    assert line is not None
    assert "after 2,000 steps 14 % of it will still be the initial weights" in line
    assert "--optimizer.ema-warmup, or --optimizer.ema-decay 0.985" in line
    assert said(2000, ema_warmup=False, ema_decay=0.985) is said(2000) is said(20_000, ema_warmup=False) is None
    assert "--optimizer.ema-decays" in (said(20_000, ema_warmup=False, ema_decays=(0.9999,)) or "")


def test_averages_that_warm_up_alike_are_told_so():
    """In 500 steps warm-up lets no decay above 501/510 = .982 be reached: 0.999 and 0.9999 are then one average."""

    def said(steps, *decays):
        options = OptimizerConfig(ema_decays=decays)
        return ema_weights.caution(TrainConfig(data="two_moons", steps=steps, optimizer=options))

    assert "0.999, 0.9999: the same in 500 steps" in (said(500, 0.9999) or "")
    assert said(500, 0.9) is said(20_000, 0.9999) is said(500) is None


def test_one_average_is_one(trained):
    """The state of a run with one average has no more arrays than before; more of them count in an estimate."""
    one = config()
    state = jax.eval_shape(Ensemble(one, data.load("swiss_roll"), [1]).init)
    assert state.other_emas == ()
    found = [estimate(chosen, synthetic_dataset(chosen)).memory["EMA"] for chosen in (one, trained[0].config)]
    assert found[1] == 4 * found[0]


def test_published_averages():
    """Constant as in the official codes: MeanFlow's three on CIFAR-10, of which 0.99995 has the paper's number."""
    unet = presets.PRESETS["cifar10_unet"]
    assert unet.all_ema_decays == presets.PRESETS["cifar10_unet_v1"].all_ema_decays == (0.99995, 0.9999, 0.9996)
    for name in (
        "cifar10_unet",
        "cifar10_unet_v1",
        "ddpm_cifar10",
        "imagenet_dit_b4",
        "imagenet_dit_xl2",
        "imagenet_in_context_b2",
    ):
        assert not presets.PRESETS[name].optimizer.ema_warmup
    assert presets.PRESETS["two_moons"].optimizer.ema_warmup
    matching = TrainConfig(data="swiss_roll", method="terminal_velocity", optimizer=OptimizerConfig(ema_decay=0.9999))
    assert (matching.all_ema_decays, matching.target_decay) == ((0.9999, 0.99), 0.99)  # arXiv:2511.19797
    assert TrainConfig(data="swiss_roll", method="meanflow").all_ema_decays == (0.999,)


STUDIES = {toys: "swiss_roll", mixtures: "dgmm2", adaptive: "swiss_roll", methods: "swiss_roll"}
"""Studies, and a data set of each."""


@pytest.mark.parametrize("module", STUDIES, ids=lambda module: module.__name__)
def test_studies_repeat_the_papers_constant_decay_at_its_length_only(module):
    for budget in (module.QUICK, module.DEFAULT, module.PAPER):
        chosen = module.STUDY.at(Path("none"), budget).base(STUDIES[module])
        assert chosen.optimizer.ema_warmup == (chosen.steps < 200_000)
    assert not chosen.optimizer.ema_warmup
