import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf.errors import UserError
from vamf.schedules import Schedule, check_fraction, is_zero, parse, value_at

# (kind, steps, values) for a schedule from 1 to 0 over the steps 100 to 300
HALF = 0.5 - 0.5 / np.sqrt(2)
VALUES = [
    ("constant", [0, 100, 200, 1000], [1, 1, 1, 1]),
    ("linear", [0, 100, 150, 200, 300, 1000], [1, 1, 0.75, 0.5, 0, 0]),
    ("cosine", [0, 100, 150, 200, 250, 300, 1000], [1, 1, 1 - HALF, 0.5, HALF, 0, 0]),
    ("step", [0, 100, 199, 200, 300, 1000], [1, 1, 1, 0, 0, 0]),
]


@pytest.mark.parametrize(("kind", "steps", "values"), VALUES)
def test_values(kind, steps, values):
    schedule = Schedule(kind, 1.0, 0.0, 100, 300)
    np.testing.assert_allclose([schedule(step) for step in steps], values, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.array(steps)), values, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
def test_either_direction(kind):
    up, down = Schedule(kind, 0.2, 0.8, 0, 10), Schedule(kind, 0.8, 0.2, 0, 10)
    for step in range(12):
        np.testing.assert_allclose(up(step) + down(step), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", 0.5),
        (0.25, 0.25),
        ("1", 1.0),
        ("linear:1:0", Schedule("linear", 1.0, 0.0, 0, 500)),
        ("cosine:0.2:0.9", Schedule("cosine", 0.2, 0.9, 0, 500)),
        ("step:1:0:20:80", Schedule("step", 1.0, 0.0, 20, 80)),
    ],
)
def test_parse(text, expected):
    assert parse("beta", text, 500) == expected


@pytest.mark.parametrize("text", ["", "half", "linear", "linear:1", "linear:1:0:5", "linear:a:b", "quadratic:1:0"])
def test_parse_refuses(text):
    with pytest.raises(UserError, match="beta") as refusal:
        parse("beta", text, 500)
    assert "\n" not in str(refusal.value)
    assert repr(text) in str(refusal.value)


def test_schedule_has_to_end_after_it_begins():
    with pytest.raises(UserError, match="80 to 20"):
        parse("beta", "linear:1:0:80:20", 500)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_shares_outside_the_unit_interval_are_refused(value):
    for coefficient in (value, Schedule("linear", value, 0.5, 0, 1), Schedule("linear", 0.5, value, 0, 1)):
        with pytest.raises(UserError, match="gamma"):
            check_fraction("gamma", coefficient)


def test_zero_is_known_only_for_numbers():
    assert is_zero(0)
    assert is_zero(0.0)
    assert not is_zero(1e-9)
    assert not is_zero(jnp.zeros(()))
    assert not is_zero(Schedule("constant", 0.0, 0.0, 0, 1))


def test_value_at_takes_numbers_arrays_and_schedules():
    assert value_at(0.3, 7) == 0.3
    assert value_at(jnp.array(0.25), 7) == 0.25
    assert value_at(Schedule("linear", 0.0, 1.0, 0, 10), 5) == 0.5
