"""What a network is told: every kind of condition reaches every kind of network and method, and its absence too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import oracles
from modules import quick
from vamf import objectives
from vamf.conditioning import Conditioning, CondShape, GuidanceScale, drop, is_conditional, unconditional
from vamf.errors import UserError
from vamf.networks import DiTConfig, InContextConfig, MLPConfig, NetworkConfig, UNetConfig, build
from vamf.networks.conditions import VectorEmbedding, with_image

SHAPE = CondShape(num_classes=3, vector=2, image=1)
KINDS = {
    "mlp": MLPConfig(width=8, depth=1, time_features=4),
    "dit": DiTConfig(depth=1, width=8, heads=2, patch=4),
    "in_context": InContextConfig(depth=1, width=8, heads=2, patch=4, head_depth=1),
    "unet": UNetConfig(channels=4, multipliers=(1,), blocks=1, time_features=4, attention=()),
}
N, EVENT = 4, (8, 8, 2)
DROPPED = jnp.array([True, False, True, False])


def batch(event=EVENT, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, N)
    return [jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(N, *event)), t * rng.uniform(0, 0.9, N), t)]


def conditions(event=EVENT, seed=1):
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.normal(size=(N, *event[:-1], 1)), jnp.float32)
    vector = jnp.asarray(rng.normal(size=(N, 2)), jnp.float32)
    return Conditioning(jnp.arange(N) % 3, vector=vector, image=image, present=jnp.ones(N, bool))


def others(cond):
    """The same with one kind of condition changed in every row, by its name."""
    values = {"label": (cond.label + 1) % 3, "vector": cond.vector + 0.5, "image": cond.image - 0.5}
    return {name: dataclasses.replace(cond, **{name: value}) for name, value in values.items()}


def random_parameters(network, seed=2):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_condition_reaches_every_network(kind):
    network = build(KINDS[kind], EVENT, SHAPE)
    u, cond = quick(functools.partial(network.bind(random_parameters(network)), *batch())), conditions()

    def differ(one, other):
        return np.max(np.abs(one - other), axis=(1, 2, 3)) > 1e-4

    base, dropped = u(cond), u(drop(cond, DROPPED))
    np.testing.assert_array_equal(differ(dropped, base), DROPPED)
    np.testing.assert_array_equal(differ(dropped, u(unconditional(cond))), ~DROPPED)
    for name, other in others(cond).items():
        assert np.all(differ(u(other), base)), name
        np.testing.assert_array_equal(differ(u(drop(other, DROPPED)), dropped), ~DROPPED, name)


def test_no_condition_is_not_a_condition_of_zeros():
    cond = Conditioning(vector=jnp.zeros((N, 2)), image=jnp.zeros((N, 8, 8, 1)))
    embed = VectorEmbedding(2, 8, rngs=nnx.Rngs(0))
    for result in (embed, lambda cond: with_image(jnp.ones((N, *EVENT)), cond, SHAPE)):
        assert np.max(np.abs(result(cond) - result(drop(cond)))) > 1e-3
    np.testing.assert_array_equal(is_conditional(drop(cond, DROPPED)), ~DROPPED)


VECTOR = Conditioning(vector=jnp.zeros((N, 2)))
SCALE = GuidanceScale(jnp.ones(N), jnp.zeros(N), jnp.ones(N))


@pytest.mark.parametrize(
    ("shape", "cond", "message"),
    [
        (CondShape(), jnp.zeros(N, int), "a class is given; this network takes none"),
        (CondShape(3), VECTOR, r"vector of shape \(4, 2\); this network takes none"),
        (CondShape(vector=3), VECTOR, r"vector of shape \(4, 2\); this network takes one of shape \(4, 3\)"),
        (CondShape(vector=2), None, r"no vector is given; this network takes one of shape \(4, 2\)"),
        (
            CondShape(3, image=1),
            jnp.zeros(N, int),
            r"no image is given; this network takes one of shape",
        ),
        (CondShape(image=1), Conditioning(image=jnp.zeros((N, 4, 4, 1))), r"image of shape \(4, 4, 4, 1\); this"),
        (CondShape(3), Conditioning(jnp.zeros(N, int), scale=SCALE), "a guidance scale is given; this network takes"),
        (CondShape(), Conditioning(augment=jnp.zeros((N, 6))), r"augment of shape \(4, 6\); this network takes none"),
    ],
)
def test_other_conditions_than_the_networks_are_refused(shape, cond, message):
    network = build(KINDS["mlp"], EVENT, shape)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(UserError, match="^condition: " + message):
        jax.eval_shape(lambda params: network.bind(params)(*batch(), cond), params)


def test_a_head_that_a_network_lacks_is_refused():
    class Bare(nnx.Module):
        def __init__(self, event_shape, rngs):
            self.linear = nnx.Linear(*event_shape, *event_shape, rngs=rngs)

        def __call__(self, z, r, t, cond=None):
            return self.linear(z)

    @dataclasses.dataclass(frozen=True)
    class BareConfig(NetworkConfig):
        def module(self, event_shape, cond, heads, rngs):
            return Bare(event_shape, rngs)

    z, r, t = batch((2,))
    network = build(BareConfig(), (2,))
    u = network.bind(network.init(jax.random.key(0)))
    np.testing.assert_array_equal(u.diagonal(z, t), u(z, r, t))
    with pytest.raises(UserError, match="Bare has no head 'velocity'"):
        build(BareConfig(), (2,), heads=("velocity",))


# ------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("name", objectives.METHODS)
def test_every_method_passes_conditions_on(name):
    """Losses of rows whose condition is dropped are those under `unconditional`; the others depend on every kind.

    The network predicts data: losses and gradients are finite for every method with that too.
    """
    options = {"pairs": 1} if name == "mid_training" else {}  # otherwise rows are told what the first of several is
    objective = objectives.create(name, guidance={"dropout": 0.5}, **options)
    network = build(KINDS["mlp"], (2,), SHAPE, objective.heads, prediction="data")
    params, cond, x = random_parameters(network), conditions((2,)), batch((2,))[0]
    model = network.bind(random_parameters(network, seed=3))

    @quick
    def evaluate(cond):
        sample = objective.sample(jax.random.key(0), x)
        sample = sample._replace(draws={**sample.draws, "guidance": {"dropped": DROPPED}})

        def mean_loss(params):
            split = objective.times.num_diagonal(N)
            losses, aux = objective.loss(network.bind(params), x, sample, cond, 0, model, split)
            return losses.mean(), jnp.stack([losses, aux["residual"]])

        gradient, losses = jax.grad(mean_loss, has_aux=True)(params)
        return losses, gradient

    if "bank" in objective.needs:
        with pytest.raises(UserError, match="use the proxy ema or online, without rao-blackwell"):
            evaluate(cond)
        return
    losses, gradient = evaluate(cond)
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(losses[:, DROPPED], evaluate(unconditional(cond))[0][:, DROPPED], rtol=1e-5)
    for kind, other in others(cond).items():
        np.testing.assert_array_equal(np.any(evaluate(other)[0] != losses, axis=0), ~DROPPED, kind)


def test_a_memory_of_classes_takes_classes_alone():
    objective = objectives.create("meanflow", rao_blackwell=True, bank={"memory": 4})
    x, u, cond = batch((2,))[0], oracles.Smooth.random(0, 2), conditions((2,))
    evaluate = functools.partial(objective, lambda z, r, t, label: u(z, r, t), x, step=0, key=jax.random.key(0))
    augmented_cond = Conditioning(cond.label, augment=jnp.ones((N, 6)))
    assert np.all(np.isfinite(evaluate(augmented_cond, state=objective.init((2,), 3))[0]))
    with pytest.raises(UserError, match="a bank compares rows of the same class"):
        evaluate(cond, state=objective.init((2,), 3))


def test_guidance_takes_a_vector_as_the_class_that_it_stands_for():
    guidance = {"scale": 2.5, "mix": 0.3, "dropout": 0.5, "interval": (0.2, 0.8)}
    objective = objectives.create("vamf", beta=0.5, proxy="ema", guidance=guidance)
    smooth, x = oracles.Smooth.random(0, 2), jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)))

    def by_vector(z, r, t, cond):
        return smooth(z, r, t, jnp.where(is_conditional(cond), cond.vector @ jnp.arange(3.0), -1.0))

    label, losses = jnp.arange(16) % 3, []
    for u, cond in ((by_vector, Conditioning(vector=jax.nn.one_hot(label, 3))), (smooth, label)):
        losses.append(objective(u, x, cond, jax.random.key(1), 0, u)[0])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    unguided = objectives.create("vamf", beta=0.5, proxy="ema", guidance={"dropout": 0.5})
    assert np.max(np.abs(unguided(smooth, x, label, jax.random.key(1), 0, smooth)[0] - losses[1])) > 0.1
