import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modules import attention, quick, turn
from vamf.networks.attention import Attention, RMSNorm, attend, rotate, rotation_table
from vamf.networks.embeddings import from_patches, grid_positions, to_patches


@pytest.mark.parametrize(("normalised", "rotated"), [(False, False), (True, True)])
def test_attention_is_a_softmax_of_products(normalised, rotated):
    with jax.enable_x64(True):
        layer = Attention(
            12, 3, bias=True, normalised=normalised, kernel_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0)
        )
        rng = np.random.default_rng(0)
        graph, state = nnx.split(layer)
        state = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), state)
        x = rng.normal(size=(2, 5, 12))
        rotation = jnp.asarray(rotation_table(5, 4)) if rotated else None
        found = quick(nnx.merge(graph, state))(jnp.asarray(x), rotation)
        expected = [attention(nnx.to_pure_dict(state), rows, 3, rotated) for rows in x]
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9, atol=1e-9)


def test_large_logits_are_no_trouble():
    q = jnp.full((1, 1, 2, 4), 1e4)
    v = jnp.arange(8.0).reshape(1, 1, 2, 4)
    np.testing.assert_allclose(attend(q, jnp.concatenate([q[:, :, :1], -q[:, :, 1:]], 2), v), v[:, :, :1].repeat(2, 2))


def test_half_precision_attends_in_single():
    """A softmax in half precision over 1,000 equal logits would lose a per cent."""
    q, v = jnp.ones((1, 1, 1000, 4), jnp.bfloat16), jnp.ones((1, 1, 1000, 4), jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(attend(q, q, v), np.float32), 1.0, rtol=1e-2)
    logits = [eqn.outvars[0].aval.dtype for eqn in jax.make_jaxpr(attend)(q, q, v).eqns if "dot" in eqn.primitive.name]
    assert logits[0] == jnp.float32


def test_rotated_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(np.repeat(rng.normal(size=(1, 1, 1, 8)), 20, axis=2), jnp.float32) for _ in range(2))
    table = jnp.asarray(rotation_table(20, 8), jnp.float32)
    q, k = (rotate(part, table)[0, 0] for part in (q, k))
    products = np.asarray(q @ k.T)
    for distance in range(-19, 20):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-3, atol=1e-4)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_allclose(jnp.linalg.norm(q, axis=1), np.linalg.norm(q[0]), rtol=1e-5)


def test_rotation_turns_pairs_as_complex_numbers():
    x = np.random.default_rng(0).normal(size=(1, 1, 7, 6))
    found = rotate(jnp.asarray(x, jnp.float32), jnp.asarray(rotation_table(7, 6), jnp.float32))
    np.testing.assert_allclose(found[0, 0], [turn(row, place) for place, row in enumerate(x[0, 0])], atol=1e-5)


def test_norm_of_half_precision_is_taken_in_single():
    x = jnp.asarray(300 * np.random.default_rng(0).normal(size=(4, 64)), jnp.bfloat16)
    out = RMSNorm(64)(x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(jnp.mean(out**2, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(out / out[:, :1], x.astype(jnp.float32) / x[:, :1].astype(jnp.float32), rtol=1e-4)


def test_patches_are_squares_of_the_image():
    z = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = to_patches(z, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], z[1, 2:4, 2:4].ravel())  # second row of patches, second column
    np.testing.assert_array_equal(from_patches(patches, 2, z.shape), z)


def test_places_of_a_grid_are_told_apart():
    """Every inner product depends on the offsets alone and is largest at the place itself."""
    table = grid_positions(3, 5, 16)
    assert table.shape == (15, 16)
    products = (table @ table.T).reshape(3, 5, 3, 5)
    np.testing.assert_allclose(np.max(products, axis=(2, 3)), 8.0)
    np.testing.assert_allclose(products[0, 0, 1, 2], products[1, 2, 2, 4])
    assert np.sum(products > 8 - 1e-6) == 15
    np.testing.assert_array_equal(table[:5, 8:], np.broadcast_to(table[0, 8:], (5, 8)))  # one row, one second half
    np.testing.assert_allclose(table[1, :8], np.concatenate([f(0.1 ** np.arange(4)) for f in (np.sin, np.cos)]))
