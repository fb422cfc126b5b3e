"""The run that `toys.py` measures, in PyTorch: eager and torch.compile'd, written to be fast.

A worker of `toys.py`, run by a Python that has torch (and nothing else): one JSON request a line on standard input,
one JSON reply a line on standard output.

| kind      | request                                                         | replies                        |
|-----------|-----------------------------------------------------------------|--------------------------------|
| `version` |                                                                 | torch's version                |
| `rate`    | width, batch, equal, beta, split, compiled, seconds             | steps per second               |
| `follow`  | params, average, batch, steps, equal, beta, split, compiled ... | the loss of each step          |

`follow` is how `toys.py` verifies that both sides compute the same training.

What is done for speed: parameters as plain tensors (no module calls), the fused Adam, one foreach update for the moving
average, the sine embedding as one sine, denormals flushed as XLA does, no logging. `split` takes the Jacobian-vector
product only on the rows with r < t; `toys.py` reports the faster of split and unsplit.
"""

import argparse
import json
import math
import sys
import time

try:
    import torch
except ImportError:
    print(
        f"{sys.executable} has no torch: make a separate environment, `pip install torch==2.13.0` in it, "
        "and name its interpreter with --torch",
        file=sys.stderr,
    )
    sys.exit(2)

TIME_FEATURES, DEPTH, EPS = 32, 3, 1e-4
HALF = TIME_FEATURES // 2
FREQUENCY = (1e4 ** (-torch.arange(HALF) / HALF)).repeat_interleave(2)
PHASE = torch.tensor([0.0, math.pi / 2]).repeat(HALF)


def embed(t):
    """sin and cos of t, the cosine as a sine with its phase moved."""
    return torch.sin(t[:, None] * FREQUENCY + PHASE)


def network(params, z, r, t):
    """u(z, r, t); params are weight, bias, weight, bias, ..."""
    at_t = embed(t)
    h = torch.cat([z, at_t, at_t - embed(r)], dim=1)
    for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
        h = torch.nn.functional.silu(torch.nn.functional.linear(h, weight, bias))
    return torch.nn.functional.linear(h, *params[-2:])


def draw(batch, equal):
    """A batch of the swiss roll, noise and times; the first `equal` rows have r = t."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(batch))
    x = angle[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) / 8 + 0.08 * torch.randn(batch, 2)
    pair = EPS + (1 - 2 * EPS) * torch.rand(2, batch)
    t = torch.maximum(pair[0], pair[1])
    r = torch.cat([t[:equal], torch.minimum(pair[0], pair[1])[equal:]])
    return x, torch.randn(batch, 2), r, t


def mean_loss(params, average, batch, beta, equal, split):
    """MeanFlow's loss with the tangent (1 - beta) v_c + beta v_hat, v_hat from the EMA."""
    x, e, r, t = batch
    z, v = (1 - t)[:, None] * x + t[:, None] * e, e - x
    squared = []
    if split and equal:
        squared.append((network(params, z[:equal], t[:equal], t[:equal]) - v[:equal]).square().sum(1))
        # Copies: torch.compile (2.13) cannot take the Jacobian-vector product at a view that starts inside its base.
        z, v, r, t = (whole[equal:].clone() for whole in (z, v, r, t))
    w = v
    if beta:
        with torch.no_grad():
            w = (1 - beta) * v + beta * network(average, z, t, t)
    u, dudt = torch.func.jvp(lambda z, t: network(params, z, r, t), (z, t), (w, torch.ones_like(t)))
    squared.append((u - (v - (t - r)[:, None] * dudt).detach()).square().sum(1))
    return torch.cat(squared).mean()


class Training:
    """One run; `step` is what is timed."""

    def __init__(self, params, average, beta, equal, split, compiled, steps=20_000, ema_decay=0.999):
        self.params = [p.requires_grad_() for p in params]
        self.average, self.decay, self.steps, self.done = average, ema_decay, steps, 0
        self.adam = torch.optim.Adam(self.params, lr=1e-3, fused=True)
        self.options, self.equal, self.loss, self.draw = (beta, equal, split), equal, mean_loss, draw
        if compiled:
            self.loss, self.draw = (torch.compile(f, fullgraph=True, dynamic=False) for f in (mean_loss, draw))

    def step(self, batch):
        """One optimizer step with cosine decay to 1 % and the EMA; `batch` is its size or the data."""
        batch = self.draw(batch, self.equal) if isinstance(batch, int) else batch
        loss = self.loss(self.params, self.average, batch, *self.options)
        loss.backward()
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.done / self.steps, 1)))
        self.adam.param_groups[0]["lr"] = 1e-3 * (0.99 * cosine + 0.01)
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1 - self.decay)
        self.done += 1
        return loss


def fresh(width):
    """Xavier-uniform weights; the last layer starts at 0."""
    sizes = [2 + 2 * TIME_FEATURES, *[width] * DEPTH, 2]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = [torch.nn.init.xavier_uniform_(torch.empty(shape)) for shape in shapes[:-1]] + [torch.zeros(shapes[-1])]
    return [leaf for weight in weights for leaf in (weight, torch.zeros(len(weight)))]


def rate(runs, seconds, width, batch, equal, **options):
    """Steps per second over at least `seconds`; the first call of a kind also compiles and warms up."""
    key = (width, batch, equal, *options.values())
    if key not in runs:
        params = fresh(width)
        runs[key] = Training(params, [p.clone() for p in params], equal=equal, **options)
        for _ in range(5 if seconds else 1):
            runs[key].step(batch)
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        runs[key].step(batch)
        steps += 1
    return {"rate": steps / elapsed if steps else 0.0}


def follow(params, average, batch, steps, **options):
    """Losses of a run of a few steps, always on the given batch."""
    trees = [[torch.tensor(array) for array in arrays] for arrays in (params, average)]
    training = Training(*trees, steps=steps, **options)
    batch = tuple(torch.tensor(array) for array in batch)
    return {"losses": [training.step(batch).item() for _ in range(steps)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, required=True, help="threads of torch")
    torch.set_num_threads(parser.parse_args().threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    runs = {}
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        if kind == "version":
            reply = {"version": torch.__version__}
        elif kind == "follow":
            reply = follow(**request)
        else:
            reply = rate(runs, **request)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
