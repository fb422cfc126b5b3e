"""What a network is told: every kind of condition reaches every kind of network, and its absence too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import quick
from vamf import objectives
from vamf.conditioning import Conditioning, CondShape, drop
from vamf.errors import UserError
from vamf.networks import DiTConfig, InContextConfig, MLPConfig, UNetConfig, build

SHAPE = CondShape(num_classes=3, vector=2, image=1)
KINDS = {
    "mlp": MLPConfig(width=8, depth=1, time_features=4),
    "dit": DiTConfig(depth=1, width=8, heads=2, patch=4),
    "in_context": InContextConfig(depth=1, width=8, heads=2, patch=4, head_depth=1),
    "unet": UNetConfig(channels=4, multipliers=(1,), blocks=1, time_features=4, attention=()),
}
N, EVENT = 4, (8, 8, 2)


def batch(event=EVENT, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, N)
    return [jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(N, *event)), t * rng.uniform(0, 0.9, N), t)]


def conditions(event=EVENT, seed=1):
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.normal(size=(N, *event[:-1], 1)), jnp.float32)
    return Conditioning(jnp.arange(N) % 3, vector=jnp.asarray(rng.normal(size=(N, 2)), jnp.float32), image=image)


def random_parameters(network, seed=2):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_condition_reaches_every_network(kind):
    network = build(KINDS[kind], EVENT, SHAPE)
    u, cond, (z, r, t) = quick(network.bind(random_parameters(network))), conditions(), batch()
    base = u(z, r, t, cond)
    moved = {
        "label": dataclasses.replace(cond, label=(cond.label + 1) % 3),
        "vector": dataclasses.replace(cond, vector=cond.vector + 0.5),
        "image": dataclasses.replace(cond, image=cond.image + 0.5),
    }
    for name, other in moved.items():
        change = np.max(np.abs(u(z, r, t, other) - base), axis=(1, 2, 3))
        assert np.min(change) > 1e-4, name
    # a row without condition sees none of it, and zeros are not the same as none
    none = np.array([True, False, True, False])
    dropped = u(z, r, t, drop(cond, jnp.asarray(none)))
    np.testing.assert_allclose(dropped[~none], base[~none], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dropped[none], u(z, r, t, None)[none], rtol=1e-4, atol=1e-5)
    zeros = dataclasses.replace(cond, vector=0 * cond.vector, image=0 * cond.image, label=cond.label * 0 - 1)
    assert np.min(np.max(np.abs(u(z, r, t, zeros) - u(z, r, t, None)), axis=(1, 2, 3))) > 1e-4


def test_other_conditions_than_the_networks_are_refused():
    network = build(KINDS["mlp"], (2,), CondShape(vector=2))
    u, (z, r, t) = network.bind(network.init(jax.random.key(0))), batch((2,))
    with pytest.raises(UserError, match="condition: vector of 3 numbers; this network takes one of 2"):
        u(z, r, t, Conditioning(vector=jnp.zeros((N, 3))))
    with pytest.raises(UserError, match="condition: image of 1 numbers; this network takes none"):
        u(z, r, t, Conditioning(image=jnp.zeros((N, 1))))


@pytest.mark.parametrize("name", [name for name in objectives.METHODS if name != "ddpm"])
def test_every_method_passes_conditions_on(name):
    """With its condition dropped in every row, a loss is that of no condition at all; without, it depends on it."""
    options = {"reduction": "sum", "guidance": {"dropout": 0.5}} if name != "rao_blackwell" else {"reduction": "sum"}
    objective = objectives.create(name, **options)
    network = build(KINDS["mlp"], (2,), SHAPE, objective.heads)
    u, cond = network.bind(random_parameters(network)), conditions((2,))
    x, r, t = batch((2,))
    e = batch((2,), seed=5)[0]

    @quick
    def loss(cond, dropped):
        return objective.loss_at(u, x, e, r, t, cond, u, draws={"guidance": {"dropped": dropped}})

    every, none = jnp.ones(N, bool), jnp.zeros(N, bool)
    if "bank" in objective.needs:
        with pytest.raises(UserError, match="proxy"):
            loss(cond, none)
        return
    shown, hidden = loss(cond, none), loss(cond, every)
    assert np.all(np.isfinite(shown))
    if "guidance" in options:
        other = dataclasses.replace(cond, vector=cond.vector + 1, label=(cond.label + 1) % 3)
        np.testing.assert_allclose(hidden, loss(other, every), rtol=1e-5)
        assert np.min(np.abs(shown - loss(other, none))) > 1e-6
