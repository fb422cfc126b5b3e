"""What FastFlow saves on the exact velocity of a mixture, where the ODE's solution is known.

    python benchmarks/fast_flow.py [--data NAME] [--steps T] [--seed SEED] [--batches N]

FastFlow draws N batches of 256, by default 128; the last half are compared with Euler's method on the same noise: with
all T calls, and with as few as FastFlow made. Errors are distances to the ends of the exact paths from the same noise
(Heun, 1,000 steps, in float32): the root mean square of each path, and SW1 between the two samples.
"""

import argparse
import math

import jax
import numpy as np

from vamf.data.mixtures import toy_mixture
from vamf.metrics import sliced_wasserstein
from vamf.sampling import FastFlow, integrate

SIZE = 256
ARMS = (2, 4, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="eight_gaussians", help="a 2-D toy that is a mixture")
    parser.add_argument("--steps", type=int, default=50, help="Euler steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--batches", type=int, default=128, help="batches that FastFlow draws, 2 or more")
    args = parser.parse_args()
    if args.batches < 2:
        parser.error(f"--batches = {args.batches}: allowed is 2 or more")
    late_batches = args.batches // 2
    u = toy_mixture(args.data)
    noise = jax.random.normal(jax.random.key(args.seed), (args.batches, SIZE, 2))
    late = noise[-late_batches:].reshape(-1, 2)
    exact = np.asarray(jax.jit(lambda z: integrate(u, z, 1000))(late))

    def row(name, calls, x):
        x = np.asarray(x)
        path = math.sqrt(np.mean(np.sum((x - exact) ** 2, axis=1)))
        print(f"{name:26} {calls:6.1f} {path:8.4f} {sliced_wasserstein(x, exact):8.4f}")

    def euler(steps):
        row(f"euler, {steps} steps", steps, jax.jit(lambda z: integrate(u, z, steps, method="euler"))(late))

    print(f"{args.data}, seed {args.seed}\n{'sampler':26} {'calls':>6} {'path':>8} {'SW1':>8}")
    euler(args.steps)
    for most in ARMS:
        method = FastFlow(args.steps, tuple(range(most + 1)))

        def generation(state, z, method=method):
            x, state, calls = method.sample(u, z, state)
            return state, (x, calls)

        _, (x, calls) = jax.jit(lambda z, g=generation, m=method: jax.lax.scan(g, m.init(), z))(noise)
        mean = float(np.mean(np.asarray(calls)[-late_batches:]))
        row(f"fast_flow, arms 0 to {most}", mean, x[-late_batches:].reshape(-1, 2))
        euler(math.ceil(mean))


if __name__ == "__main__":
    main()
