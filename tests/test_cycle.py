"""The cycle term: a jump there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import objectives
from vamf.errors import UserError
from vamf.objectives.terms import Cycle
from vamf.theory import GaussianMixture

D, N = 2, 6
MIXTURE = GaussianMixture([0.4, 0.6], [[1.5, 0.5], [-1.0, -0.5]], [0.5, 0.8])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rows(seed=0):
    """x, e, r, t and the two times of round trips: both directions, no jump at all, and the ends of time."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.2, 1.0, N)
    ends = {"s": np.array([1.0, 0.0, 0.3, 0.9, 0.5, 1.0]), "t": np.array([0.0, 1.0, 0.8, 0.2, 0.5, 1.0])}
    arrays = (*rng.normal(size=(2, N, D)), t * rng.uniform(size=N), t)
    return [jnp.asarray(array) for array in arrays], {name: jnp.asarray(value) for name, value in ends.items()}


def term(u, batch, draws=None, **options):
    """The term's share of the loss."""
    with_term, without = (
        objectives.create("meanflow", terms={"cycle": {**options, "weight": weight}}) for weight in (0.5, 0.0)
    )
    draws = {} if draws is None else {"cycle": draws}
    return 2 * (with_term.loss_at(u, *batch, draws=draws) - without.loss_at(u, *batch))


def round_trip(u, batch, s, t):
    """||x_s - X(X(x_s, s, t), t, s)||^2 from the definition, in numpy."""
    x, e = (np.asarray(array) for array in batch[:2])
    start = x + s[:, None] * (e - x)
    there = start + (t - s)[:, None] * u(start, t, s)
    return np.sum((start - there - (s - t)[:, None] * u(there, s, t)) ** 2, axis=1)


def test_it_is_the_definition():
    u, (batch, draws) = oracles.Smooth.random(0, D), rows()
    expected = round_trip(u, batch, *(np.asarray(draws[name]) for name in ("s", "t")))
    assert np.all(expected[:4] > 1e-3)
    np.testing.assert_allclose(term(u, batch, draws), expected, rtol=1e-9, atol=1e-12)
    t = np.asarray(batch[3])
    for begin, ends in (("anywhere", (t, 0 * t)), ("noise", (t, 0 * t)), ("data", (0 * t, t))):
        np.testing.assert_allclose(term(u, batch, begin=begin), round_trip(u, batch, *ends), rtol=1e-9)


def test_it_is_zero_at_the_exact_average_velocity():
    batch, draws = rows()
    np.testing.assert_allclose(term(MIXTURE, batch, draws), 0, atol=1e-12)


@pytest.mark.parametrize("trained", ["both", "return"])
def test_gradients(trained):
    """Finite at the ends of time; with `return` none through the way there."""
    batch, draws = rows()
    smooth = oracles.Smooth.random(0, D)

    def loss(there, back):
        def u(z, r, t, label):
            scale = jnp.where((r == draws["t"]) & (t == draws["s"]), there, back)[:, None]
            return scale * smooth(z, r, t, label)

        # Rows with s = t have but one kind of jump.
        return jnp.sum(jnp.where(draws["s"] == draws["t"], 0.0, term(u, batch, draws, trained=trained)))

    there, back = jax.grad(loss, argnums=(0, 1))(1.0, 1.0)
    assert np.all(np.isfinite([there, back]))
    assert abs(back) > 1e-3
    assert abs(there) > 1e-3 if trained == "both" else there == 0


@pytest.mark.parametrize(("begin", "sign"), [("anywhere", 0), ("noise", -1), ("data", 1)])
def test_times_of_round_trips(begin, sign):
    drawn = Cycle(begin=begin).draw(jax.random.key(0), jnp.zeros((4000, D)), None, jnp.zeros(4000), 0)
    s, t = (np.asarray(drawn[name]) for name in ("s", "t"))
    assert np.all(sign * (t - s) >= 0)
    # Of two independent uniform times the earlier and the later have means 1/3 and 2/3.
    expected = {0: (1 / 2, 1 / 2), -1: (2 / 3, 1 / 3), 1: (1 / 3, 2 / 3)}[sign]
    np.testing.assert_allclose((s.mean(), t.mean()), expected, atol=5 * 0.29 / np.sqrt(4000))


def test_a_short_training_lowers_the_round_trip():
    """A linear u that does not invert itself learns to."""
    key = jax.random.key(0)
    objective = objectives.create("meanflow", terms={"cycle": {"weight": 1.0}})
    x = jax.random.normal(key, (256, D))

    def u_of(params):
        def u(z, r, t, label=None):
            features = jnp.stack([jnp.ones_like(t), t, t - r, (t - r) ** 2, r * t, jnp.abs(t - r)], axis=1)
            return z * (features @ params)[:, None]

        return u

    def loss(params, key):
        return objective(u_of(params), x, None, key, 0)[0].mean()

    @jax.jit
    def step(params, key):
        return params - 0.05 * jax.grad(loss)(params, key)

    def error(params):
        s, t = np.random.default_rng(1).uniform(size=(2, 256))
        return round_trip(u_of(params), (x, jax.random.normal(key, x.shape)), s, t).mean()

    params = jnp.asarray([0.5, 0.3, -0.2, 0.1, 0.2, 0.4])
    before = error(params)
    for index in range(200):
        params = step(params, jax.random.fold_in(key, index))
    assert error(params) < before / 10


def test_bad_options_are_refused():
    for options, said in (
        ({"weight": -1.0}, r"terms\.cycle\.weight"),
        ({"begin": "middle"}, r"terms\.cycle\.begin = 'middle': allowed is"),
        ({"trained": "none"}, r"terms\.cycle\.trained = 'none': allowed is"),
    ):
        with pytest.raises(UserError, match=said):
            objectives.create("meanflow", terms={"cycle": options})
