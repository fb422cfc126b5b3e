"""FastFlow against the method written out step by step, and against Euler's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.errors import UserError
from vamf.sampling import FastFlow, FastFlowState, integrate
from vamf.sampling.registry import batches, draw

MIXTURE = oracles.Mixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def velocity(z, r, t, label=None):
    return MIXTURE.velocity(z, t)


def noises(generations, n=64, d=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(generations, n, d)))


def generations(method, u, noise, state=None):
    """x (generations, n, d), calls (generations,) and the last state."""

    def one(state, z):
        x, state, calls = method.sample(u, z, state)
        return state, (x, calls)

    start = method.init() if state is None else state
    state, (x, calls) = jax.jit(lambda noise, start: jax.lax.scan(one, start, noise))(noise, start)
    return np.asarray(x), np.asarray(calls), state


def euler(u, noise, steps):
    return np.asarray(jax.jit(jax.vmap(lambda z: integrate(u, z, steps, method="euler")))(noise))


class Reference:
    """The method in numpy: one Euler step after another, rewards kept one by one."""

    def __init__(self, steps, arms, explore):
        self.steps, self.arms, self.explore = steps, arms, explore
        self.misses = {(k, a): [] for k in range(steps) for a in arms}

    def choose(self, k):
        if k == 0:
            return 0
        largest = max((np.mean(m) for m in self.misses.values() if m), default=0.0)
        mu = largest / self.steps
        total = sum(len(self.misses[k, a]) for a in self.arms)
        best, chosen = -np.inf, 0
        for a in self.arms:
            if k + 1 + a > self.steps - 1 and a > 0:
                continue
            tried = self.misses[k, a]
            bound = np.inf
            if tried:
                reward = np.mean([mu * a - miss for miss in tried])
                bound = reward / mu + self.explore * np.sqrt(np.log(total) / len(tried))
            if bound > best:
                best, chosen = bound, a
        return chosen

    def sample(self, velocity, z):
        times = np.linspace(1, 0, self.steps + 1)
        calls, k, before, skipped = [], 0, 0, 0
        while k < self.steps:
            v = velocity(z, np.full(len(z), times[k]))
            calls.append((k, v))
            if len(calls) > 2:
                predicted = extrapolate(times[k])
                self.misses[before, skipped].append(np.mean((predicted - v) ** 2))
            slope = 0 * v
            if len(calls) > 1:
                last, v_last = calls[-2]
                slope = (v_last - v) / (times[last] - times[k])

            def extrapolate(t, v=v, k=k, slope=slope):
                return v + (t - times[k]) * slope

            before, skipped = k, self.choose(k)
            for _ in range(1 + skipped):
                z = z - (times[k] - times[k + 1]) * extrapolate(times[k])
                k += 1
        return z, len(calls)


@pytest.mark.parametrize(("arms", "explore"), [((0, 1, 2, 3, 4), 2.0), ((0, 2, 5), 0.5), ((0, 1), 0.0)])
def test_equals_the_method_written_out(arms, explore):
    noise = noises(15)
    x, calls, state = generations(FastFlow(20, arms, explore), velocity, noise)
    reference = Reference(20, arms, explore)
    for number, z in enumerate(np.asarray(noise)):
        expected, count = reference.sample(MIXTURE.velocity, z)
        assert calls[number] == count
        np.testing.assert_allclose(x[number], expected, rtol=1e-9, atol=1e-9)
    for (k, a), tried in reference.misses.items():
        column = arms.index(a)
        assert state.trials[k, column] == len(tried)
        np.testing.assert_allclose(state.error[k, column], np.mean(tried) if tried else 0, rtol=1e-4)
    assert len(set(calls.tolist())) > 1  # it did skip


@pytest.mark.parametrize("arms", [(0,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_euler_without_arms_and_in_the_first_batch(arms, steps):
    u = oracles.Smooth.random(0, 2)
    noise = noises(3 if arms == (0,) else 1)
    x, calls, _ = generations(FastFlow(steps, arms), u, noise)
    np.testing.assert_allclose(x, euler(u, noise, steps), rtol=1e-12, atol=1e-13)
    assert calls.tolist() == [steps] * len(noise)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_skipping_costs_nothing_where_the_velocity_is_linear_in_time(dtype):
    def linear(z, r, t, label):
        a, b = jnp.asarray([0.3, -1.7], z.dtype), jnp.asarray([2.1, 0.9], z.dtype)
        return a + b * t[:, None] + 0 * z

    def bent(z, r, t, label):
        return linear(z, r, t, label) + t[:, None] ** 2

    noise, method = noises(40, 4).astype(dtype), FastFlow(50, explore=0.0)
    x, calls, state = generations(method, linear, noise)
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(x, euler(linear, noise, 50), rtol=0, atol=10 * tolerance)
    assert not np.any(state.error)  # rounding alone is no error
    # Calls at 0, then 1, 6, ..., 46 with four skipped each, and 49: the last step is always a call.
    assert calls.min() == calls[-1] == 12
    x, _, state = generations(method, bent, noise)
    assert np.any(state.error)
    assert np.max(np.abs(x - euler(bent, noise, 50))) > 1e-3


def test_calls_reported_are_calls_made():
    times = []

    def counted(z, r, t, label):
        jax.debug.callback(lambda t: times.append(float(t)), t[0])
        return velocity(z, r, t)

    noise, method = noises(8), FastFlow(25)
    _, calls, _ = generations(method, counted, noise)
    jax.effects_barrier()
    assert len(times) == calls.sum() < 8 * 25
    # Whatever is skipped, the first two and the last steps are calls in every batch.
    grid = np.linspace(1, 0, 26)
    for k in (0, 1, 24):
        assert np.sum(np.isclose(times, grid[k])) == 8


def test_the_network_is_compiled_once_and_on_the_diagonal():
    seen = []

    def u(z, r, t, label):
        seen.append(r is t)
        return velocity(z, r, t)

    FastFlow(30).sample(u, noises(1)[0], FastFlow(30).init())
    assert seen
    assert all(seen)
    assert len(seen) <= 2  # JAX may trace a loop's body twice, but not once for each step


def test_fewer_calls_than_euler_at_almost_its_accuracy():
    """Of the last 60 of 100 batches: at most 70 % of the calls, and the path's end at most 40 % further from the
    exact one than with all calls, where Euler's method with as few calls is at least 60 % further; SW1 to the exact
    ends likewise."""
    from vamf.metrics import sliced_wasserstein

    noise, steps = noises(100), 50
    x, calls, _ = generations(FastFlow(steps), velocity, noise)
    late = noise[40:]
    few = int(np.ceil(calls[40:].mean()))
    assert few <= 0.7 * steps
    exact = np.asarray(jax.jit(jax.vmap(lambda z: integrate(velocity, z, 500)))(late))

    def distance(ends):
        return np.sqrt(np.mean((ends - exact) ** 2))

    def sw1(ends):
        return sliced_wasserstein(ends.reshape(-1, 2), exact.reshape(-1, 2))

    full, short = euler(velocity, late, steps), euler(velocity, late, few)
    for measure in (distance, sw1):
        assert measure(x[40:]) < 1.4 * measure(full)
        assert measure(short) > 1.6 * measure(full)


def test_deterministic_given_the_state():
    method, noise = FastFlow(20), noises(12)
    x, calls, state = generations(method, velocity, noise)
    again, calls_again, state_again = generations(method, velocity, noise)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(calls, calls_again)
    jax.tree.map(np.testing.assert_array_equal, state, state_again)
    # Two halves with the state handed over are the whole.
    _, first, middle = generations(method, velocity, noise[:5])
    rest, second, end = generations(method, velocity, noise[5:], middle)
    np.testing.assert_array_equal(calls, np.concatenate([first, second]))
    np.testing.assert_array_equal(rest, x[5:])
    jax.tree.map(np.testing.assert_array_equal, state, end)
    assert not np.allclose(rest[0], generations(method, velocity, noise[5:])[0][0])  # the state matters


def test_what_is_not_finite_is_not_learned():
    method, noise = FastFlow(20), noises(3)
    _, _, state = generations(method, velocity, noise)
    x, _, after = generations(method, lambda z, r, t, label: z * jnp.nan, noise[:1], state)
    assert np.isnan(x).all()
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_labels_shapes_and_types_pass():
    u, method = oracles.Smooth.random(1, 3), FastFlow(6)
    noise, label = noises(1, 30, 3)[0], jnp.arange(30) % 3
    mixed, _, _ = method.sample(u, noise, method.init(), label)
    np.testing.assert_allclose(mixed, integrate(u, noise, 6, label, "euler"), rtol=1e-10)
    x, state, calls = method.sample(
        lambda z, r, t, label: z * t[:, None, None], jnp.ones((4, 2, 3), jnp.float32), method.init()
    )
    assert (x.shape, x.dtype, calls.dtype) == ((4, 2, 3), jnp.float32, jnp.int32)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == FastFlowState(jnp.float32, jnp.int32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0: allowed is 1 or more"),
        ({"arms": ()}, "arms = (): allowed is whole numbers"),
        ({"arms": (1, 2)}, "arms = (1, 2): allowed is whole numbers"),
        ({"arms": (0, 2, 1)}, "arms = (0, 2, 1): allowed is whole numbers"),
        ({"explore": -1.0}, "explore = -1.0: allowed is 0 or more"),
        ({"explore": float("nan")}, "explore = nan: allowed is 0 or more"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError) as refusal:
        FastFlow(**options)
    assert message in str(refusal.value)


def test_a_state_of_another_sampler_is_refused():
    with pytest.raises(UserError, match="shape of the state"):
        FastFlow(10).sample(velocity, noises(1)[0], FastFlow(20).init())


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 4096, 5000])
def test_batches_hold_all_samples_and_few_more(n):
    count, size = batches(n)
    assert count <= 64
    assert (count - 1) * size < n <= count * size


@pytest.mark.parametrize(
    ("sampler", "calls"), [("flow_map", 8), ("restart", 8), ("heun", 16), ("euler", 8), ("fast_flow", None)]
)
def test_named_samplers_count_their_calls(sampler, calls):
    times = []

    def counted(z, r, t, label):
        jax.debug.callback(lambda t: times.append(float(t)), t[0])
        return oracles.Gaussian(0.5).average_velocity(z, r, t)

    noise = noises(1, 150, 2)[0]
    x, reported = draw(sampler, counted, noise, 8, jax.random.key(0))
    jax.effects_barrier()
    assert x.shape == noise.shape
    assert len(times) == reported
    assert calls is None or reported == calls
    if sampler != "restart":  # which alone has noise of its own
        np.testing.assert_allclose(x, 0.5 * noise, atol=0.7)
        assert np.corrcoef(np.ravel(x), np.ravel(noise))[0, 1] > 0.99
