"""Inception-v3 of 2015 written out layer by layer in numpy: channels first, float64, batch normalisation not folded.

It makes its own random weights as it goes, under the names of the PyTorch copy of the graph, so that names, shapes and
wiring are stated here a second time.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Oracle:
    """A network with random weights, collected in `state` while it runs; a second run reuses them."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.state = {}

    def __call__(self, x):
        """Features of images (n, 3, h, w), by their number, and the logits without bias."""
        found = {}
        x = self.layer(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
        x = self.layer(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = self.layer(x, "Conv2d_2b_3x3", 64, (3, 3), 1, (1, 1))
        x = largest(x, 2)
        found["64"] = x.mean(axis=(2, 3))
        x = self.layer(x, "Conv2d_3b_1x1", 80)
        x = self.layer(x, "Conv2d_4a_3x3", 192, (3, 3))
        x = largest(x, 2)
        found["192"] = x.mean(axis=(2, 3))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.a(x, name, pooled)
        x = self.b(x, "Mixed_6a")
        for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.c(x, name, inner)
        found["768"] = x.mean(axis=(2, 3))
        x = self.d(x, "Mixed_7a")
        found["1280"] = x.mean(axis=(2, 3))
        x = self.e(x, "Mixed_7b", mean)
        x = self.e(x, "Mixed_7c", lambda x: largest(pad(x, (1, 1), -np.inf), 1))
        found["2048"] = x.mean(axis=(2, 3))
        if "fc.weight" not in self.state:
            self.state["fc.weight"] = (self.rng.normal(size=(1008, 2048)) / 45).astype(np.float32)
            self.state["fc.bias"] = self.rng.normal(size=1008).astype(np.float32)
        found["logits"] = found["2048"] @ self.state["fc.weight"].T
        return found

    def a(self, x, name, pooled):
        five = self.layer(self.layer(x, f"{name}.branch5x5_1", 48), f"{name}.branch5x5_2", 64, (5, 5), 1, (2, 2))
        three = self.layer(x, f"{name}.branch3x3dbl_1", 64)
        three = self.layer(three, f"{name}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
        three = self.layer(three, f"{name}.branch3x3dbl_3", 96, (3, 3), 1, (1, 1))
        pool = self.layer(mean(x), f"{name}.branch_pool", pooled)
        return np.concatenate([self.layer(x, f"{name}.branch1x1", 64), five, three, pool], axis=1)

    def b(self, x, name):
        one = self.layer(x, f"{name}.branch3x3", 384, (3, 3), 2)
        two = self.layer(x, f"{name}.branch3x3dbl_1", 64)
        two = self.layer(two, f"{name}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
        two = self.layer(two, f"{name}.branch3x3dbl_3", 96, (3, 3), 2)
        return np.concatenate([one, two, largest(x, 2)], axis=1)

    def c(self, x, name, inner):
        wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        one = self.layer(x, f"{name}.branch7x7_1", inner)
        one = self.layer(one, f"{name}.branch7x7_2", inner, *wide)
        one = self.layer(one, f"{name}.branch7x7_3", 192, *tall)
        two = self.layer(x, f"{name}.branch7x7dbl_1", inner)
        two = self.layer(two, f"{name}.branch7x7dbl_2", inner, *tall)
        two = self.layer(two, f"{name}.branch7x7dbl_3", inner, *wide)
        two = self.layer(two, f"{name}.branch7x7dbl_4", inner, *tall)
        two = self.layer(two, f"{name}.branch7x7dbl_5", 192, *wide)
        pool = self.layer(mean(x), f"{name}.branch_pool", 192)
        return np.concatenate([self.layer(x, f"{name}.branch1x1", 192), one, two, pool], axis=1)

    def d(self, x, name):
        one = self.layer(self.layer(x, f"{name}.branch3x3_1", 192), f"{name}.branch3x3_2", 320, (3, 3), 2)
        two = self.layer(x, f"{name}.branch7x7x3_1", 192)
        two = self.layer(two, f"{name}.branch7x7x3_2", 192, (1, 7), 1, (0, 3))
        two = self.layer(two, f"{name}.branch7x7x3_3", 192, (7, 1), 1, (3, 0))
        two = self.layer(two, f"{name}.branch7x7x3_4", 192, (3, 3), 2)
        return np.concatenate([one, two, largest(x, 2)], axis=1)

    def e(self, x, name, pool):
        wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = self.layer(x, f"{name}.branch3x3_1", 384)
        ones = [
            self.layer(one, f"{name}.branch3x3_2a", 384, *wide),
            self.layer(one, f"{name}.branch3x3_2b", 384, *tall),
        ]
        two = self.layer(x, f"{name}.branch3x3dbl_1", 448)
        two = self.layer(two, f"{name}.branch3x3dbl_2", 384, (3, 3), 1, (1, 1))
        twos = [
            self.layer(two, f"{name}.branch3x3dbl_3a", 384, *wide),
            self.layer(two, f"{name}.branch3x3dbl_3b", 384, *tall),
        ]
        pooled = self.layer(pool(x), f"{name}.branch_pool", 192)
        return np.concatenate([self.layer(x, f"{name}.branch1x1", 320), *ones, *twos, pooled], axis=1)

    def layer(self, x, name, out, kernel=(1, 1), stride=1, padding=(0, 0)):
        """Convolution, batch normalisation with epsilon 1e-3, ReLU."""
        w, gain, shift, centre, variance = self.weights(name, out, x.shape[1], kernel)
        windows = sliding_window_view(pad(x, padding, 0.0), kernel, axis=(2, 3))[:, :, ::stride, ::stride]
        y = np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        gain, shift, centre, variance = (v[:, None, None] for v in (gain, shift, centre, variance))
        return np.maximum((y - centre) / np.sqrt(variance + 1e-3) * gain + shift, 0)

    def weights(self, name, out, channels, kernel):
        parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        names = [f"{name}.{part}" for part in parts]
        if names[0] not in self.state:
            fan_in = channels * kernel[0] * kernel[1]
            fresh = [
                self.rng.normal(size=(out, channels, *kernel)) * np.sqrt(2 / fan_in),
                self.rng.uniform(0.8, 1.2, out),
                self.rng.normal(size=out) * 0.1,
                self.rng.normal(size=out) * 0.1,
                self.rng.uniform(0.5, 1.5, out),
            ]
            self.state |= {key: value.astype(np.float32) for key, value in zip(names, fresh, strict=True)}
        return [self.state[key].astype(np.float64) for key in names]


def pad(x, padding, value):
    return np.pad(x, ((0, 0), (0, 0), *((width, width) for width in padding)), constant_values=value)


def largest(x, stride):
    return sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride].max(axis=(4, 5))


def mean(x):
    """Of the 3x3 neighbours that exist."""
    return np.nanmean(sliding_window_view(pad(x, (1, 1), np.nan), (3, 3), axis=(2, 3)), axis=(4, 5))
