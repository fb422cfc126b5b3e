"""Networks of the official codes in plain numpy: random tensors under the official names, and the forward passes.

Written from the descriptions of the papers and codes, image by image; nothing here knows of vamf.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


class Maker:
    """Random tensors under the names of a framework."""

    def __init__(self, flax, seed=0):
        self.flax, self.rng, self.arrays = flax, np.random.default_rng(seed), {}

    def normal(self, name, *shape):
        fan = np.prod(shape[:-1]) if len(shape) > 1 else 20
        self.arrays[name] = (self.rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    def linear(self, name, fan_in, fan_out, bias=True):
        if self.flax:
            self.normal(f"{name}/_flax_linear/kernel", fan_in, fan_out)
        else:
            self.normal(f"{name}.weight", fan_out, fan_in)
        if bias:
            self.normal(f"{name}/_flax_linear/bias" if self.flax else f"{name}.bias", fan_out)

    def conv(self, name, fan_in, fan_out, side):
        self.normal(f"{name}.weight", fan_out, fan_in, side, side)
        self.normal(f"{name}.bias", fan_out)

    def norm(self, name, channels):
        self.normal(f"{name}.weight", channels)
        self.normal(f"{name}.bias", channels)


class Net:
    """Tensors in float64, and the layers made of them."""

    def __init__(self, arrays, flax):
        self.arrays, self.flax = {name: np.asarray(array, np.float64) for name, array in arrays.items()}, flax

    def __getitem__(self, name):
        return self.arrays[name]

    def linear(self, name, x):
        if self.flax:
            name = f"{name}/_flax_linear"
            return x @ self[f"{name}/kernel"] + self.arrays.get(f"{name}/bias", 0)
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def number(self, name, t):
        """A number's embedding: cosines, then sines, through two layers."""
        frequency = np.exp(-np.log(10_000) * np.arange(128) / 128)
        features = np.concatenate([np.cos(t * frequency), np.sin(t * frequency)])
        first, second = ("mlp/layers_0", "mlp/layers_2") if self.flax else ("mlp.0", "mlp.2")
        joint = "/" if self.flax else "."
        return self.linear(f"{name}{joint}{second}", silu(self.linear(f"{name}{joint}{first}", features)))

    def tokens(self, image):
        """Patches of an image (height, width, channels), each as a convolution sees it."""
        if self.flax:
            kernel, bias = self["x_embedder/proj/kernel"], self["x_embedder/proj/bias"]
        else:
            kernel, bias = self["x_embedder.proj.weight"].transpose(2, 3, 1, 0), self["x_embedder.proj.bias"]
        side = len(kernel)
        rows = []
        for i in range(0, image.shape[0], side):
            for j in range(0, image.shape[1], side):
                rows.append(np.einsum("abc,abcd->d", image[i : i + side, j : j + side], kernel) + bias)
        return np.array(rows), side


def unpatchify(tokens, side, shape):
    channels = tokens.shape[1] // side**2
    image, tokens = np.empty((*shape[:2], channels)), iter(tokens)
    for i in range(0, shape[0], side):
        for j in range(0, shape[1], side):
            image[i : i + side, j : j + side] = next(tokens).reshape(side, side, channels)
    return image


# --------------------------------------------------------------------------------------- diffusion transformers


def dit(
    flax, width=16, depth=3, patch=2, channels=4, classes=3, outputs=4, embedders=("t_embedder",), q_norm=0, seed=0
):
    """The tensors of a DiT, and those of further embedders of numbers."""
    make = Maker(flax, seed)
    join = "/".join if flax else ".".join
    zero, one, two = ("layers_0", "layers_1", "layers_2") if flax else ("0", "1", "2")
    if flax:
        make.normal("x_embedder/proj/kernel", patch, patch, channels, width)
        make.normal("x_embedder/proj/bias", width)
        make.normal("y_embedder/embedding_table/_flax_embedding/embedding", classes + 1, width)
    else:
        make.conv("x_embedder.proj", channels, width, patch)
        make.normal("y_embedder.embedding_table.weight", classes + 1, width)
    for name in embedders:
        make.linear(join([name, "mlp", zero]), 256, width)
        make.linear(join([name, "mlp", two]), width, width)
    for number in range(depth):
        block = join(["blocks", f"layers_{number}" if flax else str(number)])
        make.linear(join([block, "attn", "qkv"]), width, 3 * width)
        make.linear(join([block, "attn", "proj"]), width, width)
        make.linear(join([block, "mlp", "fc1"]), width, 4 * width)
        make.linear(join([block, "mlp", "fc2"]), 4 * width, width)
        make.linear(join([block, "adaLN_modulation", one]), width, 6 * width)
        for name in ("q_norm", "k_norm") if q_norm else ():
            make.normal(f"{block}.attn.{name}.scale", q_norm)
    make.linear(join(["final_layer", "adaLN_modulation", one]), width, 2 * width)
    make.linear(join(["final_layer", "linear"]), width, patch**2 * outputs)
    return make


def layer_norm(x, shift, scale):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-6) * (1 + scale) + shift


def places(rows, columns, width):
    """Sines and cosines of the column, then of the row."""
    frequency = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    every = []
    for row in range(rows):
        for column in range(columns):
            parts = [wave(at * frequency) for at in (column, row) for wave in (np.sin, np.cos)]
            every.append(np.concatenate(parts))
    return np.array(every)


def dit_forward(net, z, heads, conditions):
    """One image (height, width, channels) through blocks of which each has its condition; the last layer has the last.

    Args:
        conditions: for block i and depth + 1 in all, the sum of embeddings.
    """
    x, side = net.tokens(z)
    x = x + places(z.shape[0] // side, z.shape[1] // side, x.shape[1])
    join = "/".join if net.flax else ".".join
    one = "layers_1" if net.flax else "1"
    for number, c in enumerate(conditions[:-1]):
        block = join(["blocks", f"layers_{number}" if net.flax else str(number)])
        parts = np.split(net.linear(join([block, "adaLN_modulation", one]), silu(c)), 6)
        x = x + parts[2] * dit_attention(net, join([block, "attn"]), layer_norm(x, *parts[:2]), heads)
        h = net.linear(join([block, "mlp", "fc1"]), layer_norm(x, *parts[3:5]))
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + parts[5] * net.linear(join([block, "mlp", "fc2"]), h)
    shift, scale = np.split(net.linear(join(["final_layer", "adaLN_modulation", one]), silu(conditions[-1])), 2)
    out = net.linear(join(["final_layer", "linear"]), layer_norm(x, shift, scale))
    return unpatchify(out, side, z.shape)


def dit_attention(net, name, x, heads):
    join = "/" if net.flax else "."
    length, width = x.shape
    q, k, v = net.linear(f"{name}{join}qkv", x).reshape(length, 3, heads, width // heads).transpose(1, 2, 0, 3)
    if f"{name}.q_norm.scale" in net.arrays:
        q, k = (rms(a) * net[f"{name}.{part}.scale"] for a, part in ((q, "q_norm"), (k, "k_norm")))
    weights = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(width // heads))
    return net.linear(f"{name}{join}proj", (weights @ v).transpose(1, 0, 2).reshape(length, width))


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def meanflow(net, z, r, t, label, heads):
    c = net.number("t_embedder", t) + net.number("h_embedder", t - r)
    c = c + net["y_embedder/embedding_table/_flax_embedding/embedding"][label]
    depth = sum(name.endswith("attn/qkv/_flax_linear/kernel") for name in net.arrays)
    return dit_forward(net, z, heads, [c] * (depth + 1))


def dmf(net, z, r, t, label, heads, decoupled_depth):
    of_label = net["y_embedder.embedding_table.weight"][label]
    early, late = (net.number("t_embedder", at) + of_label for at in (t, r))
    depth = sum(name.endswith("attn.qkv.weight") for name in net.arrays)
    return dit_forward(net, z, heads, [early] * decoupled_depth + [late] * (depth - decoupled_depth + 1))


def dmf_log_variance(net, r, t):
    frequency = np.exp(-np.log(10_000) * np.arange(64) / 64)
    parts = [wave(at * frequency) for at in (t, r) for wave in (np.cos, np.sin)]
    return net.linear("logvar_linear", np.concatenate(parts))[0]


# ------------------------------------------------------------------------------------------ improved MeanFlow


IMF_TOKENS = {"class": 8, "omega": 4, "t_min": 2, "t_max": 2, "time": 4}
IMF_NUMBERS = ("omega_embedder", "cfg_t_start_embedder", "cfg_t_end_embedder", "h_embedder")


def imeanflow(width=24, heads=2, shared=1, own=1, patch=2, channels=4, classes=3, with_v=True, seed=0):
    make = Maker(True, seed)
    make.normal("x_embedder/proj/kernel", patch, patch, channels, width)
    make.normal("x_embedder/proj/bias", width)
    make.normal("y_embedder/embedding_table/_flax_embedding/embedding", classes + 1, width)
    for name, count in IMF_TOKENS.items():
        make.normal(f"{name}_tokens", count, width)
    for name in IMF_NUMBERS:
        make.linear(f"{name}/mlp/layers_0", 256, width)
        make.linear(f"{name}/mlp/layers_2", width, width)
    hidden = int(width * 8 / 3)
    branches = {"shared_blocks": shared, "u_heads": own} | ({"v_heads": own} if with_v else {})
    for block in (f"{name}_{number}" for name, count in branches.items() for number in range(count)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            make.linear(f"{block}/attn/{name}", width, width, bias=False)
        for name in ("w1", "w3"):
            make.linear(f"{block}/mlp/{name}", width, hidden, bias=False)
        make.linear(f"{block}/mlp/w2", hidden, width, bias=False)
        for name, size in (("attn/q_norm/kernel", width // heads), ("attn/k_norm/kernel", width // heads),
                           ("norm1/kernel", width), ("norm2/kernel", width),
                           ("attn_scale", width), ("mlp_scale", width)):  # fmt: skip
            make.normal(f"{block}/{name}", size)
    for name in ("u_final_layer", "v_final_layer")[: 1 + with_v]:
        make.normal(f"{name}/norm/kernel", width)
        make.linear(f"{name}/linear", width, patch**2 * channels)
    return make


def imf_forward(net, z, h, omega, t_min, t_max, label, heads, branch="u"):
    numbers = (1 - 1 / omega, t_min, t_max, h)
    vectors = [net["y_embedder/embedding_table/_flax_embedding/embedding"][label]]
    vectors += [net.number(name, number) for name, number in zip(IMF_NUMBERS, numbers, strict=True)]
    context = [net[f"{name}_tokens"] + vector for name, vector in zip(IMF_TOKENS, vectors, strict=True)]
    patches, side = net.tokens(z)
    x = np.concatenate([*context, patches])
    names = [f"{kind}_{number}" for kind in ("shared_blocks", f"{branch}_heads") for number in range(100)]
    for block in (name for name in names if f"{name}/attn_scale" in net.arrays):
        h = rms(x) * net[f"{block}/norm1/kernel"]
        x = x + net[f"{block}/attn_scale"] * imf_attention(net, f"{block}/attn", h, heads)
        h = rms(x) * net[f"{block}/norm2/kernel"]
        h = silu(net.linear(f"{block}/mlp/w1", h)) * net.linear(f"{block}/mlp/w3", h)
        x = x + net[f"{block}/mlp_scale"] * net.linear(f"{block}/mlp/w2", h)
    last = f"{branch}_final_layer"
    out = net.linear(f"{last}/linear", rms(x[20:]) * net[f"{last}/norm/kernel"])
    return unpatchify(out, side, z.shape)


def imf_attention(net, name, x, heads):
    """Queries and keys are normed, then rotated in pairs (2 i, 2 i + 1) by their place."""
    length, width = x.shape
    size = width // heads
    q, k, v = (net.linear(f"{name}/{part}_proj", x).reshape(length, heads, size) for part in "qkv")
    turn = np.exp(1j * np.outer(np.arange(length), 10_000.0 ** (-np.arange(0, size, 2) / size)))[:, None]
    rotated = []
    for part, rows in (("q", q), ("k", k)):
        rows = rms(rows) * net[f"{name}/{part}_norm/kernel"]
        pairs = (rows[..., 0::2] + 1j * rows[..., 1::2]) * turn
        rotated.append(np.stack([pairs.real, pairs.imag], axis=-1).reshape(rows.shape))
    weights = softmax(np.einsum("ihd,jhd->hij", *rotated) / np.sqrt(size))
    return net.linear(f"{name}/out_proj", np.einsum("hij,jhd->ihd", weights, v).reshape(length, width))


# ------------------------------------------------------------------------------------------- the U-Net of CIFAR-10


def unet(side=8, base=8, multipliers=(1, 2), blocks=1, attention=(4,), augment=6, seed=0):
    """The tensors of SongUNet, DDPM++ with two times, each embedded in 2 `base` features."""
    make, wide = Maker(False, seed), 4 * base
    noise = 2 * base
    make.linear("map_layer0", 2 * noise, wide)
    make.linear("map_layer1", wide, wide)
    if augment:
        make.normal("map_augment.weight", 2 * noise, augment)
    sides = [side >> level for level in range(len(multipliers))]

    def block(name, fan_in, fan_out, attends=False, resampled=False):
        make.norm(f"{name}.norm0", fan_in)
        make.conv(f"{name}.conv0", fan_in, fan_out, 3)
        make.linear(f"{name}.affine", wide, fan_out)
        make.norm(f"{name}.norm1", fan_out)
        make.conv(f"{name}.conv1", fan_out, fan_out, 3)
        if fan_in != fan_out or resampled:
            make.conv(f"{name}.skip", fan_in, fan_out, 1)
        for part in ("conv0", "skip") if resampled else ():
            taps = np.array([1, 3, 3, 1]) / 8
            make.arrays[f"{name}.{part}.resample_filter"] = np.outer(taps, taps)[None, None].astype(np.float32)
        if attends:
            make.norm(f"{name}.norm2", fan_out)
            make.conv(f"{name}.qkv", fan_out, 3 * fan_out, 1)
            make.conv(f"{name}.proj", fan_out, fan_out, 1)

    make.conv(f"enc.{side}x{side}_conv", 3, base, 3)
    skips, at = [base], base
    for level, (pixels, multiplier) in enumerate(zip(sides, multipliers, strict=True)):
        if level:
            block(f"enc.{pixels}x{pixels}_down", at, at, resampled=True)
            skips.append(at)
        for number in range(blocks):
            block(f"enc.{pixels}x{pixels}_block{number}", at, multiplier * base, pixels in attention)
            at = multiplier * base
            skips.append(at)
    block(f"dec.{sides[-1]}x{sides[-1]}_in0", at, at, attends=True)
    block(f"dec.{sides[-1]}x{sides[-1]}_in1", at, at)
    for level, (pixels, multiplier) in reversed(list(enumerate(zip(sides, multipliers, strict=True)))):
        if level < len(sides) - 1:
            block(f"dec.{pixels}x{pixels}_up", at, at, resampled=True)
        for number in range(blocks + 1):
            last = number == blocks and pixels in attention
            block(f"dec.{pixels}x{pixels}_block{number}", at + skips.pop(), multiplier * base, last)
            at = multiplier * base
    make.norm(f"dec.{side}x{side}_aux_norm", at)
    make.conv(f"dec.{side}x{side}_aux_conv", at, 3, 3)
    return make


def unet_forward(net, z, r, t, augment=None):
    """One image (height, width, channels)."""
    half = net["map_layer0.weight"].shape[1] // 4
    frequency = 10_000.0 ** (-np.arange(half) / (half - 1))
    emb = np.concatenate([wave(at * frequency) for at in (t, t - r) for wave in (np.sin, np.cos)])
    if augment is not None:
        emb = emb + net["map_augment.weight"] @ augment
    emb = silu(net.linear("map_layer1", silu(net.linear("map_layer0", emb))))
    x = np.moveaxis(z, 2, 0)
    skips = []
    for name in (name for name in order(net) if name.startswith("enc.")):
        x = convolve(net, name, x) if name.endswith("_conv") else unet_block(net, name, x, emb)
        skips.append(x)
    for name in (name for name in order(net) if name.startswith("dec.") and "aux" not in name):
        if "_block" in name:
            x = np.concatenate([x, skips.pop()])
        x = unet_block(net, name, x, emb)
    name = next(name for name in order(net) if name.endswith("aux_norm"))
    x = convolve(net, name.replace("norm", "conv"), silu(group_norm(net, name, x)))
    return np.moveaxis(x, 0, 2)


def order(net):
    """The layers of encoder and decoder, in the order in which their tensors are stored."""
    return dict.fromkeys(".".join(name.split(".")[:2]) for name in net.arrays if name.startswith(("enc.", "dec.")))


def unet_block(net, name, x, emb):
    straight, h = x, silu(group_norm(net, f"{name}.norm0", x))
    if name.endswith("_down"):
        straight, h = (resample(a, up=False) for a in (straight, h))
    if name.endswith("_up"):
        straight, h = (resample(a, up=True) for a in (straight, h))
    h = convolve(net, f"{name}.conv0", h) + net.linear(f"{name}.affine", emb)[:, None, None]
    h = convolve(net, f"{name}.conv1", silu(group_norm(net, f"{name}.norm1", h)))
    if f"{name}.skip.weight" in net.arrays:
        straight = convolve(net, f"{name}.skip", straight)
    x = (straight + h) * np.sqrt(0.5)
    if f"{name}.qkv.weight" not in net.arrays:
        return x
    q, k, v = np.split(convolve(net, f"{name}.qkv", group_norm(net, f"{name}.norm2", x)).reshape(-1, x[0].size), 3)
    weights = softmax(q.T @ k / np.sqrt(len(q)))
    return (x + convolve(net, f"{name}.proj", (v @ weights.T).reshape(x.shape))) * np.sqrt(0.5)


def group_norm(net, name, x):
    parts = x.reshape(min(32, len(x) // 4), -1)
    parts = (parts - parts.mean(axis=1, keepdims=True)) / np.sqrt(parts.var(axis=1, keepdims=True) + 1e-6)
    return parts.reshape(x.shape) * net[f"{name}.weight"][:, None, None] + net[f"{name}.bias"][:, None, None]


def convolve(net, name, x):
    weight = net[f"{name}.weight"]
    side = weight.shape[-1]
    pad = side // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return np.einsum("chwij,dcij->dhw", windows, weight) + net[f"{name}.bias"][:, None, None]


def resample(x, up):
    """A filter of 1, 3, 3, 1: with stride 2 after padding by 1, or its adjoint times 4."""
    taps = np.array([1, 3, 3, 1]) / 8
    size = x.shape[1] * (2 if up else 1)
    matrix = np.zeros((size // 2, size))
    for row in range(size // 2):
        for tap, weight in enumerate(taps):
            if 0 <= 2 * row - 1 + tap < size:
                matrix[row, 2 * row - 1 + tap] += weight
    matrix = 2 * matrix.T if up else matrix
    return matrix @ x @ matrix.T
