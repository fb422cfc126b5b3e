"""Stands for a Python with torch that runs `benchmarks/torch_reference.py`: the same requests, answered in plain JAX.

Nothing of vamf is used: that the losses agree says that both are the run that is described there.
"""

import itertools
import json
import math
import sys
import time

HALF, EPS = 16, 1e-4


def embed(t):
    """sin and cos of t in turn, at HALF frequencies."""
    angle = t[:, None] / 1e4 ** (jnp.arange(HALF) / HALF)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=2).reshape(len(t), -1)


def network(params, z, r, t):
    """u(z, r, t); params are weight, bias, weight, bias, ..., kernels transposed as torch keeps them."""
    *hidden, last = zip(params[::2], params[1::2], strict=True)
    h = jnp.concatenate([z, embed(t), embed(t) - embed(r)], axis=1)
    for weight, bias in hidden:
        h = jax.nn.silu(h @ weight.T + bias)
    return h @ last[0].T + last[1]


def mean_loss(params, average, batch, beta):
    """MeanFlow's loss with the tangent (1 - beta) v_c + beta v_hat; the derivative on all rows."""
    x, e, r, t = batch
    z, v = (1 - t)[:, None] * x + t[:, None] * e, e - x
    w = (1 - beta) * v + beta * network(average, z, t, t)
    u, dudt = jax.jvp(lambda z, t: network(params, z, r, t), (z, t), (w, jnp.ones_like(t)))
    target = jax.lax.stop_gradient(v - (t - r)[:, None] * dudt)
    return jnp.sum((u - target) ** 2, axis=1).mean()


def train(params, average, batch, beta, decay, count, of):
    """The losses of `count` steps of Adam with cosine decay to 1 %, and of the EMA."""
    m = v = jax.tree.map(jnp.zeros_like, params)
    losses, gradient = [], jax.jit(jax.value_and_grad(mean_loss))
    for step in range(count):
        loss, g = gradient(params, average, batch, beta)
        losses.append(float(loss))
        m = [0.9 * m + 0.1 * g for m, g in zip(m, g, strict=True)]
        v = [0.999 * v + 0.001 * g**2 for v, g in zip(v, g, strict=True)]
        rate = 1e-3 * (0.99 * 0.5 * (1 + math.cos(math.pi * step / of)) + 0.01)
        near, far = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        params = [p - rate * (m / near) / (jnp.sqrt(v / far) + 1e-8) for p, m, v in zip(params, m, v, strict=True)]
        average = [decay * a + (1 - decay) * p for a, p in zip(average, params, strict=True)]
    return losses


def rate(width, batch, beta, seconds, **_):
    """Steps per second."""
    random = np.random.default_rng(0)
    sizes = [2 + 4 * HALF, width, width, width, 2]
    params = []
    for inputs, outputs in itertools.pairwise(sizes):
        params += [jnp.asarray(random.normal(size=(outputs, inputs)) / 10, jnp.float32), jnp.zeros(outputs)]
    t = jnp.linspace(EPS, 1 - EPS, batch)
    data = (jnp.ones((batch, 2)), jnp.zeros((batch, 2)), t / 2, t)
    start = time.perf_counter()
    done = len(train(params, params, data, beta, 0.999, 3, 3))
    return {"rate": done / (time.perf_counter() - start) if seconds else 0.0}


def follow(params, average, batch, steps, beta, ema_decay, **_):
    """Losses of a whole training of a few steps."""
    given = [[jnp.asarray(leaf, jnp.float32) for leaf in arrays] for arrays in (params, average, batch)]
    return {"losses": train(*given, beta, ema_decay, steps, steps)}


for line in sys.stdin:
    request = json.loads(line)
    kind = request.pop("kind")
    if kind == "version":
        reply = {"version": "none"}
    else:
        import jax
        import jax.numpy as jnp
        import numpy as np

        reply = {"rate": rate, "follow": follow}[kind](**request)
    print(json.dumps(reply), flush=True)
