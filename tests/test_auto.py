"""Defaults that the data and a budget decide: valid for every shape, more with more time, and never against a flag."""

import dataclasses
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf import cli, networks
from vamf.conditioning import CondShape
from vamf.data import load
from vamf.errors import UserError
from vamf.networks import DiTConfig, MLPConfig
from vamf.training import auto, presets
from vamf.training.auto import Choice, Facts
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.run import Run

SHAPES = {
    "short": Facts((4,), 150),
    "usual": Facts((10,), 20_000),
    "many columns": Facts((500,), 1000),
    "very many columns": Facts((5000,), 1000),
    "tiny": Facts((3,), 60),
    "classes": Facts((12,), 800, num_classes=4),
    "vectors": Facts((6,), 2000, has_conditions=True),
    "pairs": Facts((6,), 2000, has_start=True, has_conditions=True),
    "drawn afresh": Facts((2,)),
    "8 x 8": Facts((8, 8, 1), 1797, num_classes=10),
    "28 x 28": Facts((28, 28, 1), 60_000, num_classes=10),
    "64 x 64": Facts((64, 64, 3), 5000),
    "odd": Facts((31, 31, 3), 5000),
    "wide": Facts((32, 48, 3), 5000, has_conditions=True),
    "image pairs": Facts((16, 16, 3), 5000, has_start=True),
    "on disk": Facts((64, 64, 3), None, num_classes=3),
}
BUDGETS = (0.05, 1, 5, 30, 120, 600)


def chosen(facts: Facts, minutes: float = 5.0, seconds: float = 2e-3) -> Choice:
    return auto.with_steps(auto.recipe(TrainConfig("table.csv"), facts, minutes), minutes, seconds)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gets_a_network_and_an_objective_that_take_it(name):
    facts = SHAPES[name]
    choice = chosen(facts)
    config, objective = choice.config, choice.config.build_objective()
    assert ("bank" in objective.needs) <= (not facts.has_conditions and not facts.has_start)
    assert objective.path.uses_start == facts.has_start
    assert objective.sampler == "flow_map"
    assert ("labels" in objective.needs) <= (facts.num_classes > 0)
    assert isinstance(config.network, DiTConfig if facts.is_image else MLPConfig)
    cond, label = CondShape(facts.num_classes), jnp.zeros(2, jnp.int32) if facts.num_classes else None
    network = networks.build(config.network, facts.event_shape, cond, objective.heads, "float32", config.prediction)
    z, t = jax.ShapeDtypeStruct((2, *facts.event_shape), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)

    def velocity(z, t):
        return network.bind(network.init(jax.random.key(0)))(z, t, t, label)

    assert jax.eval_shape(velocity, z, t).shape == z.shape
    assert choice.reasons[0].startswith(config.method)
    assert f"{config.steps:,} steps" in choice.reasons[-1]
    assert all(len(reason) < 200 for reason in choice.reasons)


@pytest.mark.parametrize("name", SHAPES)
def test_more_time_is_never_less_training(name):
    def work(config: TrainConfig) -> tuple[int, int]:
        network = config.network
        assert isinstance(network, MLPConfig | DiTConfig)
        return network.depth * network.width**2, config.steps

    configs = [chosen(SHAPES[name], minutes).config for minutes in BUDGETS]
    for less, more in itertools.pairwise(map(work, configs)):
        assert less[0] <= more[0]
        assert less[0] < more[0] or less[1] <= more[1]


def test_a_short_table_is_trained_for_fewer_steps():
    steps = [auto.recipe(TrainConfig("x"), Facts((4,), rows)).config.steps for rows in (40, 150, 600, 20_000)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_the_steps_fill_the_budget_by_the_measured_time():
    base = TrainConfig("x", steps=20_000, optimizer=OptimizerConfig(warmup=300))
    choice = auto.with_steps(Choice(base, ()), 2.0, seconds=0.05, spent=8)
    # 0.9 of 120 s less 8 s of compiling, 0.05 s a step: 2,000 steps.
    assert choice.config.steps == 2000
    assert choice.config.checkpoint_every % choice.config.log.every == 0  # chunks of one length: one compilation
    assert choice.config.steps % choice.config.log.every == 0
    assert choice.reasons == ("2,000 steps at 50 ms each, measured here: what 2 minutes allow (--minutes)",)
    kept = auto.with_steps(Choice(base, ()), 2.0, 0.05, fixed={"checkpoint-every", "optimizer.warmup"}).config
    assert (kept.checkpoint_every, kept.optimizer.warmup) == (base.checkpoint_every, 300)
    assert choice.config.optimizer.warmup == 200  # a tenth of the steps at most
    fast = auto.with_steps(Choice(base, ()), 2.0, seconds=1e-3)
    assert fast.config.steps == 20_000
    assert fast.reasons[0].endswith("the most for these data, 0.33 of the 2 minutes")
    slow = auto.with_steps(Choice(base, ()), 0.1, seconds=3.0)
    assert slow.config.steps == auto.MIN_STEPS
    assert "3 s each, measured here: the fewest; 0.1 minutes are too short" in slow.reasons[0]


def test_the_time_of_a_step_is_that_of_the_second_call():
    times = iter([100.0, 107.0, 107.4])
    config = TrainConfig("x", batch_size=16, network=MLPConfig(width=8, depth=1))
    dataset = load(np.random.default_rng(0).normal(size=(64, 2)))
    seconds, spent = auto.measure(config, dataset, lambda: next(times))
    assert (seconds, spent) == pytest.approx((0.4 / auto.MEASURED_STEPS, 7.0))


def test_from_python_what_is_given_is_not_chosen(monkeypatch):
    monkeypatch.setattr(auto, "measure", lambda config, dataset: (1.0 if config.batch_size == 64 else 0.1, 5.0))
    dataset, base = load(np.random.default_rng(0).normal(size=(500, 3))), TrainConfig("array", holdout=0.2)
    free = auto.for_data(base, dataset, 1.0)
    assert (free.config.steps, free.config.holdout) == (440, 0.2)  # (54 - 2 * 5) / 0.1
    slow = auto.for_data(base, dataset, 10.0, {"batch_size": 64, "network": {"width": 32}, "log": {"every": 100}})
    assert (slow.config.steps, slow.config.batch_size, slow.config.log.every) == (500, 64, 100)
    assert slow.config.network == dataclasses.replace(free.config.network, width=32)
    fixed = auto.for_data(base, dataset, 1.0, {"steps": 7, "method": "meanflow"})
    assert (fixed.config.steps, fixed.config.method) == (7, "meanflow")
    with pytest.raises(UserError, match="no such field"):
        auto.for_data(base, dataset, changes={"stepz": 7})


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused(minutes):
    with pytest.raises(UserError, match=r"minutes = .*: allowed is any number above 0"):
        auto.recipe(TrainConfig("x"), Facts((2,)), minutes)


def test_what_is_read_off_a_data_set():
    rng = np.random.default_rng(0)
    x, label, vector = rng.normal(size=(200, 3)), np.arange(200) % 4, rng.normal(size=(200, 2))
    assert Facts.of(load({"x": x, "label": label})) == Facts((3,), 180, 4)
    assert Facts.of(load({"x": x, "label": label}).unconditional()) == Facts((3,), 180)
    assert Facts.of(load({"x": x, "vector": vector}, holdout=0.5)) == Facts((3,), 100, has_conditions=True)
    assert Facts.of(load({"x": x, "start": x})).has_start
    assert Facts.of(load("two_moons")) == Facts((2,))
    images = load(rng.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8))
    assert Facts.of(images) == Facts((8, 8, 3), 90)


@pytest.mark.parametrize(
    ("shape", "patch"), [((28, 28, 1), 4), ((8, 8, 1), 2), ((64, 64, 3), 8), ((31, 31, 3), 1), ((32, 48, 3), 8)]
)
def test_patches_are_few_and_divide_the_image(shape, patch):
    assert auto.patch_of(shape) == patch


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto") / "mine.csv"
    rng = np.random.default_rng(0)
    sizes, counts = rng.normal(size=90), rng.integers(0, 9, 90)
    rows = "\n".join(f"{a:.3f},{b},{c}" for a, b, c in zip(sizes, counts, "abc" * 30, strict=True))
    path.write_text("size,count,kind\n" + rows)
    return path


SMALL = ("--network.width", "16", "--batch-size", "16")


def test_a_table_is_trained_within_its_minutes_and_the_choice_is_told(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto, "measure", lambda config, dataset: (0.01, 0.0))
    cli.main(["train", str(table), *SMALL, "--minutes", "0.05", "--out", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["steps"] == 260  # 0.9 of 3 s, 0.01 s each, in chunks of 13
    assert config["method"] == auto.recipe(TrainConfig("x"), Facts((5,), 81)).config.method
    assert (config["network"]["width"], config["batch_size"]) == (16, 16)
    told = "".join(capsys.readouterr())
    assert f"chosen: {config['method']}" in told
    assert "chosen: 260 steps at 10 ms each, measured here: what 0.05 minutes allow (--minutes)" in told


def parsed(words) -> TrainConfig:
    """The configuration of a command line, before any measurement."""
    from vamf.cli_options import Parser
    from vamf.commands import defaults
    from vamf.commands.parsing import parse
    from vamf.commands.train import Train, settings_of

    words = list(map(str, words))
    start = defaults.prepare(words, Train).start if defaults.is_auto(words) else settings_of(words, "train")
    parser = Parser(start, Train)
    return parser.config(parse(parser.kind, words, "train"))


def test_every_choice_has_a_flag_that_wins(table):
    free = parsed([table])
    assert parsed([table, "--method", "auto"]) == parsed([table, "--method=auto"]) == free
    one = parsed([table, "--learning-rate", "0.5", "--optimizer.ema-decay", "0.9", "--steps", "7", "--seed", "3"])
    assert (one.learning_rate, one.optimizer.ema_decay, one.steps, one.seed) == (0.5, 0.9, 7, 3)
    assert (one.method, one.network, one.optimizer.clip_norm) == (free.method, free.network, free.optimizer.clip_norm)
    assert parsed([table, "--network", "mlp"]).network == MLPConfig()
    assert parsed([table, "--method", "meanflow"]) == dataclasses.replace(presets.table(str(table)), method="meanflow")
    assert parsed([table, "--beta", "0.25"]).method == "vamf"  # an option of the mix selects its method
    assert parsed([table, "--table.label", "kind"]).table.label == "kind"


def test_presets_stay_as_they_are_and_may_be_chosen_for(table):
    assert parsed(["two_moons"]) == presets.PRESETS["two_moons"]
    config = parsed(["two_moons", "--method", "auto"])
    assert config.data == "two_moons"
    assert config.log == LogConfig(variance_every=0)


def test_minutes_shorten_a_preset_too(monkeypatch, capsys):
    monkeypatch.setattr(auto, "measure", lambda config, dataset: (0.01, 0.0))
    created = []
    monkeypatch.setattr(Run, "create", lambda config, folder, epochs: created.append(config) or sys.exit(3))
    with pytest.raises(SystemExit):
        cli.main(["train", "two_moons", "--minutes", "0.05", "--log.every", "100"])
    assert created == [dataclasses.replace(presets.PRESETS["two_moons"], steps=200, checkpoint_every=100,
                                           log=LogConfig(every=100))]  # fmt: skip
