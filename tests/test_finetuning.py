"""From a flow model to a one-step model: what it starts from, the remedies, and what is known to fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf import cli, networks
from vamf.cli_options import Parser
from vamf.commands.train import Train, settings_of
from vamf.conditioning import Conditioning, CondShape
from vamf.diagnosis import log_checks
from vamf.diagnosis.run import diagnose_run
from vamf.errors import UserError
from vamf.networks import DiTConfig, InContextConfig, MLPConfig, UNetConfig
from vamf.objectives.terms import Anchor
from vamf.objectives.velocity import EMA, Mix
from vamf.objectives.weighting import Power
from vamf.progress import Progress
from vamf.schedules import Schedule
from vamf.times import LogitNormal
from vamf.training import finetuning, known_failures
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.initial import initial
from vamf.training.run import Run

# ------------------------------------------------------------------------------------- where the network starts

DIT = DiTConfig(depth=1, width=16, heads=2, patch=4)
UNET = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(), time_features=8)
COND = CondShape(num_classes=3, vector=2)
VELOCITY = {
    "mlp": (MLPConfig(16, 2, 8), MLPConfig(16, 2, 8), (2,), COND),
    "dit": (DIT, DIT, (8, 8, 1), COND),
    "dit of t": (dataclasses.replace(DIT, times="t"), DIT, (8, 8, 1), COND),
    "in_context": (*(InContextConfig(depth=1, width=16, heads=2, patch=4, head_depth=0),) * 2, (8, 8, 1), COND),
    "unet of t": (dataclasses.replace(UNET, predicts="velocity", augment_features=2),
                  dataclasses.replace(UNET, augment_features=2), (8, 8, 1), COND),
    "unet": (UNET, UNET, (8, 8, 1), CondShape()),
}  # fmt: skip


def perturbed(network):
    """Parameters without zeros, as after training."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(("source", "config", "shape", "cond"), VELOCITY.values(), ids=VELOCITY)
def test_every_network_starts_as_the_velocity(source, config, shape, cond):
    theirs, ours = (networks.build(one, shape, cond) for one in (source, config))
    params, rng = perturbed(theirs), np.random.default_rng(1)
    z, t = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32), jnp.array([0.2, 0.6, 1.0])
    r = t * jnp.array([0.0, 0.5, 1.0])
    label = None
    if cond.num_classes:
        augment = jnp.ones((3, 2)) if getattr(source, "augment_features", 0) else None
        label = Conditioning(label=jnp.array([0, 2, -1]), vector=jnp.ones((3, 2)), augment=augment)

    @jax.jit
    def both(params, key):
        first = networks.overlay(ours.init(key), config.from_velocity(params))
        return theirs.bind(params)(z, t, t, label), ours.bind(first)(z, r, t, label)

    expected, u = both(params, jax.random.key(0))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mlp", "dit of t"])
def test_what_ignores_the_gap_learns_it(name):
    """The weights of the gap start at 0, and not where their gradient is 0."""
    source, config, shape, _ = VELOCITY[name]
    theirs, ours = (networks.build(one, shape) for one in (source, config))
    rng = np.random.default_rng(1)
    z, r, t = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32), jnp.zeros(2), jnp.array([0.5, 1.0])

    @jax.jit
    def difference(params, key):
        params = networks.overlay(ours.init(key), config.from_velocity(params))
        step = jax.grad(lambda params: jnp.sum(ours.bind(params)(z, r, t) ** 2))(params)
        moved = ours.bind(jax.tree.map(lambda value, change: value - 1e-3 * change, params, step))
        return moved(z, r, t) - moved(z, t, t)

    assert np.abs(difference(perturbed(theirs), jax.random.key(0))).max() > 1e-5


def test_weights_of_r_that_learnt_v_are_left_alone():
    both = dataclasses.replace(DIT, times="t,r")
    assert both.from_velocity(networks.build(both, (8, 8, 1)).init(jax.random.key(0))) is None
    with_class = networks.build(UNET, (8, 8, 1), 3).init(jax.random.key(0))
    assert UNET.from_velocity(with_class) is None  # a class has weights in the gap's features


def test_a_network_of_one_time_has_no_jumps():
    for network in (dataclasses.replace(DIT, times="t"), dataclasses.replace(UNET, predicts="velocity")):
        TrainConfig("digits", "flow_matching", network=network)
        with pytest.raises(UserError, match=r"^network"):
            TrainConfig("digits", "meanflow", network=network)
        assert network.with_both_times().takes_both_times


# ------------------------------------------------------------------------------------------------- a run to start from


def config_of(**options):
    options = {"data": "two_moons", "method": "flow_matching", "steps": 20, "batch_size": 32, **options}
    options = {"network": MLPConfig(16, 2), "log": LogConfig(every=5, variance_every=0), **options}
    return TrainConfig(**options)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """The folder of a flow model, hardly trained."""
    run = Run.create(config_of(optimizer=OptimizerConfig(clip_norm=3.0)), tmp_path_factory.mktemp("flow") / "run")
    run.train(Progress(show=False))
    return run.folder


def parsed(*arguments):
    """The configuration that `vamf train` makes of its arguments."""
    words = list(arguments)
    parser = Parser(settings_of(words, "train"), Train)
    return parser.config(cli_parse(parser, words))


def cli_parse(parser, words):
    from vamf.commands.parsing import parse

    return parse(parser.kind, words, "train CONFIG")


def test_fine_tuning_repeats_nothing_and_has_the_remedies(flow):
    source = config_of(optimizer=OptimizerConfig(clip_norm=3.0))
    config = parsed("--finetune", str(flow), "--steps", "100")
    assert (config.data, config.network, config.prediction) == (source.data, source.network, source.prediction)
    assert (config.optimizer, config.batch_size) == (source.optimizer, source.batch_size)
    assert config.learning_rate == source.learning_rate
    assert config == finetuning.finetune(flow, steps=100)
    objective = config.build_objective()
    assert objective.residual.tangent == Mix(1.0, objective.unbiased, EMA())
    assert objective.weighting == Power(0.0)
    assert objective.terms == (Anchor(0.5),)
    assert objective.times.max_gap == Schedule("linear", 0.1, 1.0, 0, 50)
    assert not known_failures.before_training(config, (2,))


def test_what_the_flow_model_trained_with_stays():
    """Its times, guidance, path and reduction; its weight, which may be adaptive, does not."""
    objective = {"times": LogitNormal(mean=-1.0), "weighting": {"power": 1.0}, "reduction": "mean"}
    config = finetuning.with_remedies(config_of(objective=objective), "RUN")
    built = config.build_objective()
    assert built.times == LogitNormal(mean=-1.0, max_gap=Schedule("linear", 0.1, 1.0, 0, 10))
    assert (built.weighting, built.reduction) == (Power(0.0), "mean")


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--weighting.power 1", lambda config, objective: objective.weighting.power == 1),
        ("--proxy online", lambda config, objective: "ema" not in objective.needs),
        ("--anchor.weight 0", lambda config, objective: objective.terms == ()),
        ("--times.max-gap 1", lambda config, objective: objective.times.max_gap == 1),
        ("--learning-rate 1e-2", lambda config, objective: config.learning_rate == 1e-2),
        ("--method improved_meanflow", lambda config, objective: objective.weighting.power == 0 and objective.terms),
        ("--method split_meanflow", lambda config, objective: objective.times.max_gap.end == 1 and objective.terms),
    ],
)
def test_every_remedy_has_its_flag(flow, words, changed):
    config = parsed("two_moons", "--finetune", str(flow), *words.split())
    assert changed(config, config.build_objective())


def test_what_cannot_be_fine_tuned_is_refused(flow, tmp_path):
    with pytest.raises(UserError, match=r"finetune = \S*nowhere: holds no run"):
        parsed("--finetune", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--finetune: name the folder"):
        parsed("two_moons", "--finetune")
    noise = dataclasses.replace(UNET, predicts="noise")
    target = TrainConfig("digits", "flow_matching", network=UNET, init_from="RUN")
    with pytest.raises(UserError, match="its network predicts noise, this one velocities"):
        initial(target, TrainConfig("digits", "ddpm", network=noise), networks.build(UNET, (8, 8, 1)), {})
    base = {"init_from": str(flow), "method": "meanflow"}
    with pytest.raises(UserError, match=r"init-from: its \S+ has shape .*; network.width is 16 there, 24 here"):
        Run.create(config_of(**base, network=MLPConfig(24, 2)), tmp_path / "wide")
    with pytest.raises(UserError, match=r"its network predicts average_velocity, this one data; both need the same"):
        Run.create(config_of(**base, prediction="data"), tmp_path / "data")
    other = config_of(data="digits", network=DIT)
    with pytest.raises(UserError, match=r"init-from = RUN: its network is mlp, this one dit"):
        initial(dataclasses.replace(other, init_from="RUN"), config_of(), networks.build(DIT, (8, 8, 1)), {})


def test_the_command_says_what_it_starts_from_and_what_may_fail(flow, tmp_path, capsys):
    naive = ["--proxy", "online", "--anchor.weight", "0", "--weighting.power", "1"]
    cli.main(["train", "--finetune", str(flow), *naive, "--steps", "5", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert (
        f"fine-tuning {flow}: method vamf, beta 1.0, proxy online, p 1.0, anchor 0.0, max-gap linear:0.1:1:0%:50%"
        in said
    )
    assert "all 6 tensors of its EMA are taken; u(z, r, t) starts as its v(z, t) for every r" in said
    assert "caution: fine-tuning with the network's own diagonal as tangent" in said
    assert "(--proxy ema --anchor.weight 0.5)" in said
    assert "(--weighting.power 0)" in said
    flow.rename(tmp_path / "moved")
    assert Run.open(tmp_path / "run").load(Progress(show=False))[1] == 5  # once begun, a run stands on its own
    (tmp_path / "moved").rename(flow)


def test_what_the_velocity_model_lacks_starts_afresh():
    source = config_of()
    config = config_of(method="improved_meanflow", objective={"proxy": "head"}, init_from="RUN")
    theirs = networks.build(source.network, (2,)).init(jax.random.key(0))
    first = initial(config, source, networks.build(config.network, (2,), heads=("velocity",)), theirs)
    assert first.summary == (
        "init-from RUN: all 6 tensors of its EMA are taken; others start afresh: head, own; u(z, r, t) starts as its "
        "v(z, t) for every r"
    )
    one_step = dataclasses.replace(source, method="meanflow")
    same = initial(config, one_step, networks.build(config.network, (2,), heads=("velocity",)), theirs)
    assert same.params is theirs  # jumps that were learnt stay
    assert "v(z, t)" not in same.summary
    assert same.digest == first.digest


# ------------------------------------------------------------------------------------------------ what is known to fail


def names(config, event_shape=(2,)):
    return [failure.name for failure in known_failures.before_training(config, event_shape)]


def test_settings_that_are_known_to_fail():
    online = {"method": "vamf", "objective": {"beta": 1.0, "proxy": "online"}}
    assert names(config_of(**online)) == []  # a run from scratch
    assert names(config_of(**online, init_from="RUN")) == ["online tangent"]
    for tie in ({"anchor": {"weight": 0.1}}, {"flow_matching": {"weight": 1.0}}, {"proxy": "ema"}, {"beta": 0.0}):
        tied = {"method": "vamf", "objective": {**online["objective"], **tie}}
        assert names(config_of(**tied, init_from="RUN")) == []
    default = config_of(method="improved_meanflow", init_from="RUN")
    assert names(default) == ["online tangent", "adaptive weight"]
    with_head = config_of(method="improved_meanflow", init_from="RUN", objective={"proxy": "head"})
    assert names(with_head) == ["adaptive weight"]
    assert names(config_of(method="decoupled_meanflow", init_from="RUN")) == []  # a flow-matching term of its own


def test_semigroup_objectives_need_rows_with_equal_times_on_images():
    def split(**objective):
        return config_of(method="split_meanflow", objective=objective)

    few = split(times={"flow_matching_ratio": 0.5})
    assert names(few, (8, 8, 1)) == ["few rows with r = t"]
    assert names(few, (64,)) == []
    assert names(split(times={"flow_matching_ratio": 0.8}), (8, 8, 1)) == []
    assert names(split(times={"flow_matching_ratio": 0.5}, anchor={"weight": 0.1}), (8, 8, 1)) == []


def records(v_loss, every=10):
    return [
        {"step": every * (i + 1), "loss": 1.0, "residual": v_loss(i), "v_loss": v_loss(i), "jvp_norm": 1.0,
         "grad_norm": 1.0, "grad_norm_max": 1.5}
        for i in range(16)
    ]  # fmt: skip


def noisy(level):
    return lambda i: level * (1 + 0.002 * (-1) ** i)


def test_the_diagnosis_names_what_is_known_to_fail():
    config = config_of(method="improved_meanflow", init_from="RUN", steps=160)
    failures = known_failures.before_training(config, (2,))
    healthy = log_checks.read(records(noisy(2.0)), config, failures=failures, source=records(noisy(2.0)))
    assert [finding.severity for finding in healthy] == ["good", "note", "note"]
    assert "no sign" in healthy[1].text
    lost = log_checks.read(records(noisy(2.2)), config, failures=failures, source=records(noisy(2.0)))
    assert [finding.severity for finding in lost] == ["warning"] * 3
    assert "v_loss) is 10% above that of the run" in lost[0].text
    assert "proxy online" in lost[1].text
    assert "likely cause" in lost[1].text
    assert [finding.setting for finding in lost[1:]] == ["--proxy ema --anchor.weight 0.5", "--weighting.power 0"]
    diverged = log_checks.read(records(lambda i: 1.0 if i < 9 else float("nan")), config, failures=failures)
    assert [finding.severity for finding in diverged] == ["problem", "warning", "warning"]


@pytest.mark.slow
def test_a_fine_tuning_that_fails_is_named(tmp_path):
    """Without the remedies the velocity of a small flow model is lost, and with it the samples."""
    log = LogConfig(every=40, variance_every=0)
    base = {"data": "swiss_roll", "batch_size": 256, "learning_rate": 1e-3, "network": MLPConfig(64, 3), "log": log}
    flow = Run.create(config_of(**base, steps=3000), tmp_path / "flow")
    flow.train(Progress(show=False))
    naive = {"proxy": "online", "anchor": {"weight": 0.0}, "times": {"max_gap": 1.0}, "weighting": {"power": 1.0}}
    texts, distances = {}, {}
    for name, changes in {"naive": {"objective": naive, "learning_rate": 1e-3}, "remedies": {}}.items():
        run = Run.create(finetuning.finetune(flow.folder, steps=800, **changes), tmp_path / name)
        run.train(Progress(show=False))
        state, step = run.load(Progress(show=False))
        texts[name] = {finding.text: finding for finding in diagnose_run(run, state, step).log}
        distances[name] = run.evaluate(state, step)["distances"]["1 step"]["sw1"]
    assert distances["remedies"] < 0.7 * distances["naive"]
    known = [finding for text, finding in texts["naive"].items() if "Known to fail" in text]
    assert [finding.severity for finding in known] == ["warning", "warning"]
    assert known[0].setting == "--proxy ema --anchor.weight 0.5"
    assert any("above that of the run" in text for text in texts["naive"])
    assert not any("Known to fail" in text for text in texts["remedies"])
