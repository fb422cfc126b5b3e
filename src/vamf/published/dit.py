"""The official diffusion transformers (DiT, SiT and those made from them) and `vamf.networks.dit`.

The parameters are the same in all of them. Names and layouts follow flax linen (MeanFlow's code) or PyTorch; features
of a time are all cosines, then all sines, where here they alternate.
"""

from collections.abc import Mapping
from typing import NamedTuple

from vamf.errors import UserError
from vamf.networks.dit import SIZES
from vamf.published.source import (
    SAME,
    TRANSPOSED,
    Options,
    Parameter,
    Path,
    Shape,
    Transform,
    count_layers,
    dims,
    interleaved,
)

FEATURES = 256
"""Features of a time."""
LATENT_SIZE = 32
"""Height and width of the latents of 256x256 images."""
TIME_FEATURES = interleaved(FEATURES // 2, 0, FEATURES // 2)
"""Rows of the first kernel of a time's embedding."""


class Style(NamedTuple):
    """How a framework names and lays out parameters; layers are given in PyTorch's names."""

    kernel: str
    bias: str
    patches: str
    embedding: str
    linear: Transform
    layers: str
    """What a number in a name becomes."""
    separator: str
    block: str
    """A tensor that every block has, with {} for its number."""

    def name(self, layer: str, pattern: str) -> str:
        """A tensor of a layer."""
        words = [self.layers.format(word) if word.isdigit() else word for word in layer.split(".")]
        return pattern.format(self.separator.join(words))

    def layer(self, ours: Path, theirs: str, linear: Transform | None = None) -> dict[Path, Parameter]:
        """Kernel and bias of a linear layer."""
        return {
            (*ours, "kernel"): Parameter((self.name(theirs, self.kernel),), linear or self.linear),
            (*ours, "bias"): Parameter((self.name(theirs, self.bias),), SAME),
        }

    def time(self, ours: Path, theirs: str) -> dict[Path, Parameter]:
        """The embedding of a number: two linear layers on its features."""
        first = self.layer((*ours, "first"), f"{theirs}.mlp.0", self.linear.then(TIME_FEATURES))
        return first | self.layer((*ours, "second"), f"{theirs}.mlp.2")


FLAX = Style(
    kernel="{}/_flax_linear/kernel",
    bias="{}/_flax_linear/bias",
    patches="{}/kernel",
    embedding="{}/_flax_embedding/embedding",
    linear=SAME,
    layers="layers_{}",
    separator="/",
    block="blocks/layers_{}/attn/qkv/_flax_linear/kernel",
)
TORCH = Style(
    kernel="{}.weight",
    bias="{}.bias",
    patches="{}.weight",
    embedding="{}.weight",
    linear=TRANSPOSED,
    layers="{}",
    separator=".",
    block="blocks.{}.attn.qkv.weight",
)


def patches(style: Style, patch: int) -> Transform:
    """The convolution that embeds patches, as a matrix whose rows are ordered by row, column and channel."""

    def shapes(shape: Shape) -> tuple[Shape, ...]:
        channels, width = shape[0] // patch**2, shape[1]
        return ((patch, patch, channels, width) if style is FLAX else (width, channels, patch, patch),)

    def convert(kernel):
        kernel = kernel if style is FLAX else kernel.transpose(2, 3, 1, 0)
        return kernel.reshape(-1, kernel.shape[-1])

    return Transform(shapes, convert)


def patch_layer(style: Style, patch: int) -> dict[Path, Parameter]:
    """The embedding of patches."""
    bias = style.name("x_embedder.proj", "{}/bias" if style is FLAX else "{}.bias")
    return {
        ("patches", "kernel"): Parameter((style.name("x_embedder.proj", style.patches),), patches(style, patch)),
        ("patches", "bias"): Parameter((bias,), SAME),
    }


def classes(style: Style) -> dict[Path, Parameter]:
    """The embedding of classes, the last of which stands for no label."""
    name = style.name("y_embedder.embedding_table", style.embedding)
    return {("classes", "embedding"): Parameter((name,), SAME)}


def parameters(style: Style, depth: int, patch: int, qk_norm: bool = False) -> dict[Path, Parameter]:
    """All parameters but the embeddings of times."""
    found = patch_layer(style, patch) | classes(style)
    for number in range(depth):
        ours, theirs = ("blocks", number), f"blocks.{number}"
        for path, layer in (
            (("attention", "inputs"), "attn.qkv"),
            (("attention", "output"), "attn.proj"),
            (("up",), "mlp.fc1"),
            (("down",), "mlp.fc2"),
            (("modulation",), "adaLN_modulation.1"),
        ):
            found |= style.layer((*ours, *path), f"{theirs}.{layer}")
        for index, name in enumerate(("q_norm", "k_norm") if qk_norm else ()):
            found[(*ours, "attention", "norms", index, "gain")] = Parameter((f"{theirs}.attn.{name}.scale",), SAME)
    found |= style.layer(("last", "modulation"), "final_layer.adaLN_modulation.1")
    return found | style.layer(("last", "linear"), "final_layer.linear")


class Size(NamedTuple):
    """What the shapes tell of a transformer on patches."""

    depth: int
    width: int
    patch: int
    channels: int
    num_classes: int


def size(style: Style, shapes: Mapping[str, Shape]) -> Size:
    """The size by the shapes of the tensors.

    Raises:
        UserError: shapes that no such transformer has.
    """
    name = style.name("x_embedder.proj", style.patches)
    shape = dims(shapes, name, 4)
    patch, other, channels, width = shape if style is FLAX else (shape[2], shape[3], shape[1], shape[0])
    if patch != other:
        raise UserError(f"{name} has shape {shape}; patches are square")
    rows = dims(shapes, style.name("y_embedder.embedding_table", style.embedding), 2)[0]
    if rows < 2:
        raise UserError(f"{style.name('y_embedder.embedding_table', style.embedding)} has {rows} row; needed are 2")
    return Size(count_layers(shapes, style.block), width, patch, channels, rows - 1)


def choose_heads(width: int, options: Options) -> int:
    """The number of heads, which no shape tells.

    Raises:
        UserError: it does not divide the width, or there is no default.
    """
    default = {size_width: heads for _, size_width, heads in SIZES.values()}
    heads = options.heads or default.get(width, width // 64 if width % 64 == 0 else 0)
    if not heads:
        raise UserError(f"heads: no published size has the width {width}; name their number with --heads")
    if width % heads:
        raise UserError(f"heads = {heads}: allowed are divisors of the width {width}")
    return heads


def choose_side(patch: int, options: Options) -> int:
    """Height and width of the latents, where the tensors do not tell.

    Raises:
        UserError: it is no multiple of the patch.
    """
    side = options.size or LATENT_SIZE
    if side % patch:
        raise UserError(f"size = {side}: allowed are multiples of the patch, {patch}")
    return side
