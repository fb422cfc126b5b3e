"""Autoencoders from files: images (n, h, w, 3) in [-1, 1] to latents and back, as compiled functions.

| kind    | file                                                                     | latents of 256 x 256 |
|---------|--------------------------------------------------------------------------|----------------------|
| `kl`    | Stable Diffusion's AutoencoderKL (sd-vae-ft-mse), one file                | 32 x 32 x 4          |
| `tiny`  | TAESD, TAEF1, TAEF2: `*encoder*` and `*decoder*`, or one file with both   | 32 x 32 x 4, 16, 32  |

Latents of `kl` are scaled by 0.18215, as published generative models see them. Those of the tiny autoencoders are
not scaled: TAESD is trained in these units.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vamf import tensors
from vamf.autoencoders import kl, tiny
from vamf.autoencoders.layers import from_torch
from vamf.errors import UserError

__all__ = ["Autoencoder", "load"]

Kind = Literal["auto", "kl", "tiny"]
FACTORS = {"kl": kl.SCALE}
"""Factor of the latents after encoding, by autoencoder name; 1 for the others."""


class Autoencoder(NamedTuple):
    """An encoder and a decoder."""

    name: str
    """kl, taesd or taef2, from the layout."""
    channels: int
    """Channels of the latents."""
    downsampling: int
    """Ratio of the image's height and width to those of its latents."""
    sha256: str
    """Of the file; for two files, of the concatenated encoder and decoder."""
    encode: Callable[[Float[Array, "n h w 3"]], Float[Array, "n h8 w8 c"]]
    """Images in [-1, 1] -> latents; where latents are random, their mean."""
    decode: Callable[[Float[Array, "n h8 w8 c"]], Float[Array, "n h w 3"]]
    """Latents -> images in [-1, 1]."""
    moments: Callable[[Float[Array, "n h w 3"]], tuple[Float[Array, "n h8 w8 c"], Float[Array, "n h8 w8 c"]]] | None
    """Images -> mean and standard deviation of the latents, in the units of `encode`; None if deterministic."""
    path: Path | None = None
    """Path of its file or folder."""


def load(path: Path, kind: Kind = "auto") -> Autoencoder:
    """The autoencoder in a file, a pair of files or the folder that holds them.

    `path` of a pair is either file, or the folder.

    Raises:
        UserError: no such file, not readable, or tensors missing or misshapen (each is named).
    """
    files = _files(Path(path))
    state_dict = _read(files)
    if kind == "auto":
        kind = "tiny" if "encoder.0.weight" in state_dict else "kl"
    sha256 = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    autoencoder = (_load_tiny if kind == "tiny" else _load_kl)(state_dict, path, sha256)
    return autoencoder._replace(path=Path(path).resolve())


def _load_kl(state_dict: Mapping[str, np.ndarray], path: Path, sha256: str) -> Autoencoder:
    params = from_torch(tensors.select(kl.new_names(state_dict), kl.shapes(), path))

    @jax.jit
    def gaussian(params, images):
        mean, log_variance = kl.encode(params, images)
        return kl.SCALE * mean, kl.SCALE * jnp.exp(log_variance / 2)

    moments = partial(gaussian, params)
    decode = jax.jit(lambda params, latents: jnp.clip(kl.decode(params, latents / kl.SCALE), -1, 1))
    return Autoencoder(
        name="kl",
        channels=kl.CHANNELS,
        downsampling=kl.DOWNSAMPLING,
        sha256=sha256,
        encode=lambda images: moments(images)[0],
        decode=partial(decode, params),
        moments=moments,
    )


def _load_tiny(state_dict: Mapping[str, np.ndarray], path: Path, sha256: str) -> Autoencoder:
    pooled = "encoder.11.pool.0.weight" in state_dict
    layers = {"encoder": tiny.encoder(pooled), "decoder": tiny.decoder(pooled)}
    last = state_dict.get(f"encoder.{len(layers['encoder']) - 1}.weight")
    channels = len(last) if last is not None and last.ndim else 4
    ends = {"encoder": (3, channels), "decoder": (channels, 3)}
    shapes = {
        f"{side}.{name}": shape for side in layers for name, shape in tiny.shapes(layers[side], *ends[side]).items()
    }
    torch_params = from_torch(tensors.select(state_dict, shapes, path))
    params = {
        side: {name.removeprefix(f"{side}."): array for name, array in torch_params.items() if name.startswith(side)}
        for side in layers
    }
    return Autoencoder(
        name="taef2" if pooled else "taesd",
        channels=channels,
        downsampling=tiny.DOWNSAMPLING,
        sha256=sha256,
        encode=partial(jax.jit(partial(tiny.encode, layers["encoder"])), params["encoder"]),
        decode=partial(jax.jit(partial(tiny.decode, layers["decoder"])), params["decoder"]),
        moments=None,
    )


def _files(path: Path) -> list[Path]:
    """One file, or the encoder's and the decoder's."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        for side, other in (("encoder", "decoder"), ("decoder", "encoder")):
            if side in path.name:
                counterpart = path.with_name(path.name.replace(side, other))
                if not counterpart.exists():
                    raise UserError(f"{path}: the {other} is missing; {counterpart.name} is needed beside it")
                return [path, counterpart] if side == "encoder" else [counterpart, path]
        return [path]
    visible = (file for file in path.iterdir() if not file.name.startswith("."))
    files = sorted(file for file in visible if file.suffix.lower() in tensors.SUFFIXES)
    sides = [[file for file in files if side in file.name] for side in ("encoder", "decoder")]
    if [len(files) for files in sides] == [1, 1]:
        return [sides[0][0], sides[1][0]]
    if len(files) == 1:
        return files
    names = ", ".join(file.name for file in files) or "none"
    raise UserError(f"{path}: files of tensors: {names}; one, or one *encoder* and one *decoder*, is needed")


def _read(files: list[Path]) -> dict[str, np.ndarray]:
    """All tensors; those of a pair of files get `encoder.` or `decoder.` before their names."""
    if len(files) == 1:
        return tiny.plain_names(tensors.read(files[0]))
    sides = zip(("encoder", "decoder"), files, strict=True)
    return {f"{side}.{name}": array for side, file in sides for name, array in tensors.read(file).items()}
