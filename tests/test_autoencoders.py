"""Autoencoders: names and shapes, layers against plain numpy, whole networks against PyTorch's, real weights."""

import hashlib
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytorch_files import write_zip
from test_tensors import write_safetensors
from vamf import autoencoders
from vamf.autoencoders import kl, layers, tiny
from vamf.autoencoders.images import from_bytes, map_in_batches, psnr, to_bytes
from vamf.data import image_dataset, image_files, images
from vamf.errors import UserError

SHARED = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


def weights(shapes, seed=0, gain=1.0):
    """Random tensors in PyTorch's layout; kernels keep the size of what they act on."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            gain * rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
            if len(shape) > 1
            else 0.1 * rng.standard_normal(shape) + ("norm" in name or "pool.1" in name) * name.endswith("weight")
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def sample_images(n=2, size=16, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, size, size, 3)), jnp.float32)


def write(path, tensors):
    if path.suffix == ".safetensors":
        return write_safetensors(path, {name: ("F32", array) for name, array in tensors.items()})
    return write_zip(path, tensors, list(tensors.values()))


def tiny_weights(channels, pooled):
    encoder, decoder = tiny.encoder(pooled), tiny.decoder(pooled)
    return weights(tiny.shapes(encoder, 3, channels), 0), weights(tiny.shapes(decoder, channels, 3), 1)


def refusal(path, kind="auto"):
    with pytest.raises(UserError) as raised:
        autoencoders.load(path, kind)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path.name) in message
    return message


@pytest.fixture
def small_kl(monkeypatch):
    """The large autoencoder with few channels."""
    monkeypatch.setattr(kl, "STAGES", (32, 64, 64, 64))
    return weights(kl.shapes())


# --------------------------------------------------------------------------------- layers against numpy, name by name


def numpy_conv(tensors, name, x, stride=1, pad=None):
    """A convolution as a sum over the kernel's places; PyTorch's tensors, images (n, h, w, c), float64."""
    kernel = tensors[f"{name}.weight"].astype(np.float64)
    size = kernel.shape[2]
    pad = (size // 2, size // 2) if pad is None else pad
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    out = np.zeros((len(x), height, width, len(kernel)))
    for i in range(size):
        for j in range(size):
            window = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            out += window[:, :height, :width] @ kernel[:, :, i, j].T
    return out + tensors.get(f"{name}.bias", 0)


def numpy_group_norm(tensors, name, x, groups, eps):
    n, h, w, c = x.shape
    split = x.reshape(n, h, w, groups, c // groups)
    mean, var = split.mean(axis=(1, 2, 4), keepdims=True), split.var(axis=(1, 2, 4), keepdims=True)
    return ((split - mean) / np.sqrt(var + eps)).reshape(x.shape) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def numpy_tiny(tensors, x):
    """A tiny encoder or decoder, its layers read off the names in the file (as its users do)."""
    places = {int(name.split(".")[0]) for name in tensors}
    for place in range(max(places) + 1):
        if place not in places:  # layers without parameters: a clamp first, a ReLU third, enlargements elsewhere
            x = (
                3 * np.tanh(x / 3)
                if place == 0
                else np.maximum(x, 0)
                if place == 2
                else np.kron(x, np.ones((1, 2, 2, 1)))
            )
        elif f"{place}.conv.0.weight" in tensors:
            if f"{place}.pool.0.weight" in tensors:
                wide = numpy_conv(tensors, f"{place}.pool.0", x)
                wide = np.maximum(numpy_group_norm(tensors, f"{place}.pool.1", wide, 4, 1e-5), 0)
                x = x + numpy_conv(tensors, f"{place}.pool.3", wide)
            h = np.maximum(numpy_conv(tensors, f"{place}.conv.0", x), 0)
            h = np.maximum(numpy_conv(tensors, f"{place}.conv.2", h), 0)
            x = np.maximum(numpy_conv(tensors, f"{place}.conv.4", h) + x, 0)
        else:
            shrinks = 0 in places and place in (2, 6, 10)
            x = numpy_conv(tensors, f"{place}", x, 2 if shrinks else 1)
    return x


@pytest.mark.parametrize(("stride", "padding"), [(1, None), (2, None), (2, (0, 1))])
@pytest.mark.parametrize("width", [1, 3])
def test_convolution(stride, padding, width):
    tensors = weights(layers.conv_shapes("c", 5, 7, width))
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 5))
    result = layers.conv(layers.from_torch(tensors), "c", jnp.asarray(x, jnp.float32), stride, padding)
    np.testing.assert_allclose(result, numpy_conv(tensors, "c", x, stride, padding), atol=1e-5)


def test_group_normalisation_and_enlargement():
    tensors = {"n.weight": np.linspace(0.5, 2, 12, dtype=np.float32), "n.bias": np.arange(12, dtype=np.float32)}
    x = 100 + 3 * np.random.default_rng(0).normal(size=(2, 4, 5, 12))
    result = layers.group_norm(layers.from_torch(tensors), "n", jnp.asarray(x, jnp.float32), 3, 1e-6)
    np.testing.assert_allclose(result, numpy_group_norm(tensors, "n", x, 3, 1e-6), atol=1e-4)
    np.testing.assert_array_equal(layers.upsample(jnp.asarray(x)), np.kron(x, np.ones((1, 2, 2, 1))).astype(np.float32))


def test_attention():
    """Every pixel looks at all others, one query at a time."""
    shapes = {f"a.{part}.weight": (32, 32) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    shapes |= {f"a.{part}.bias": (32,) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    shapes |= {"a.group_norm.weight": (32,), "a.group_norm.bias": (32,)}
    tensors = weights(shapes, gain=3.0)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 32))
    result = kl._attention(layers.from_torch(tensors), "a", jnp.asarray(x, jnp.float32))
    normal = numpy_group_norm(tensors, "a.group_norm", x, 32, 1e-6).reshape(2, 12, 32)
    q, k, v = (normal @ tensors[f"a.to_{part}.weight"].T + tensors[f"a.to_{part}.bias"] for part in "qkv")
    expected = x.reshape(2, 12, 32).copy()
    for image in range(2):
        for place in range(12):
            weight = np.exp(k[image] @ q[image, place] / np.sqrt(32))
            batch_sizes = weight @ v[image] / weight.sum()
            expected[image, place] += tensors["a.to_out.0.weight"] @ batch_sizes + tensors["a.to_out.0.bias"]
    np.testing.assert_allclose(np.asarray(result).reshape(2, 12, 32), expected, atol=1e-4)


# --------------------------------------------------------------------------------------------------- tiny autoencoders


@pytest.mark.parametrize(
    ("pooled", "channels", "counts"), [(False, 4, (1_222_532, 1_222_531)), (True, 32, (1_338_528, 1_338_499))]
)
def test_tiny_parameters(pooled, channels, counts):
    result = [tiny.shapes(tiny.encoder(pooled), 3, channels), tiny.shapes(tiny.decoder(pooled), channels, 3)]
    assert tuple(sum(map(math.prod, shapes.values())) for shapes in result) == counts
    encoder, decoder = result
    assert encoder["0.weight"] == (64, 3, 3, 3)
    assert encoder["14.weight"] == (channels, 64, 3, 3)
    assert [name for name in encoder if ".conv." not in name and name.endswith("bias") and "pool" not in name] == [
        "0.bias", "14.bias",
    ]  # fmt: skip
    assert decoder["1.weight"] == (64, channels, 3, 3)
    assert decoder["19.weight"] == (3, 64, 3, 3)
    pools = {name.split(".")[0] for name in decoder if "pool" in name}
    assert pools == ({"3", "4", "5"} if pooled else set())


@pytest.mark.parametrize(
    ("pooled", "channels", "name"), [(False, 4, "taesd"), (False, 16, "taesd"), (True, 32, "taef2")]
)
@pytest.mark.parametrize("layout", ["two files", "one file"])
def test_tiny_against_numpy(tmp_path, pooled, channels, name, layout):
    encoder, decoder = tiny_weights(channels, pooled)
    if layout == "two files":
        write(tmp_path / "my_encoder.pth", encoder)
        write(tmp_path / "my_decoder.pth", decoder)
        result = autoencoders.load(tmp_path)
        content = (tmp_path / "my_encoder.pth").read_bytes() + (tmp_path / "my_decoder.pth").read_bytes()
        assert autoencoders.load(tmp_path / "my_decoder.pth").sha256 == result.sha256
    else:  # in which the decoder's clamp has no place
        shifted = {re.sub(r"^\d+", lambda at: str(int(at[0]) - 1), key): array for key, array in decoder.items()}
        both = {f"encoder.layers.{key}": array for key, array in encoder.items()}
        both |= {f"decoder.layers.{key}": array for key, array in shifted.items()}
        content = write(tmp_path / "model.safetensors", both).read_bytes()
        result = autoencoders.load(tmp_path / "model.safetensors")
    assert (result.name, result.channels, result.downsampling, result.moments) == (name, channels, 8, None)
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    x = sample_images()
    latents = np.asarray(result.encode(x))
    assert latents.shape == (2, 2, 2, channels)
    np.testing.assert_allclose(latents, numpy_tiny(encoder, (np.asarray(x, np.float64) + 1) / 2), atol=1e-4)
    z = 4 * np.random.default_rng(2).normal(size=(2, 2, 2, channels))  # the clamp matters
    expected = np.clip(numpy_tiny(decoder, z), 0, 1) * 2 - 1
    np.testing.assert_allclose(result.decode(z.astype(np.float32)), expected, atol=1e-4)
    assert np.abs(expected).min() < 0.5


def test_tiny_against_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="an independent implementation")
    torch = pytest.importorskip("torch")

    theirs = diffusers.AutoencoderTiny(latent_channels=16).eval()
    both = tiny.plain_names({name: value.numpy() for name, value in theirs.state_dict().items()})
    x = sample_images(1, 32)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).latents
        decoded = theirs.decode(latents).sample.clamp(-1, 1)
    sides = {}
    for side in ("encoder", "decoder"):
        plain = {name.removeprefix(f"{side}."): array for name, array in both.items() if name.startswith(side)}
        sides[side] = layers.from_torch(plain)
    z = tiny.encode(tiny.encoder(False), sides["encoder"], x)
    np.testing.assert_allclose(z, latents.permute(0, 2, 3, 1), atol=1e-5)
    result = tiny.decode(tiny.decoder(False), sides["decoder"], z)
    np.testing.assert_allclose(result, decoded.permute(0, 2, 3, 1), atol=1e-5)


def reconstructions(step):
    """PSNR of every `step`-th of the 49 photographs through the real TAEF2."""
    folder, photographs = SHARED / "taef2", SHARED / "imagenet_sample"
    if not folder.exists() or not photographs.exists():
        pytest.skip(f"no taef2 or imagenet_sample under {SHARED}")
    autoencoder = autoencoders.load(folder)
    assert (autoencoder.name, autoencoder.channels) == ("taef2", 32)
    config = image_dataset.ImageConfig(size=256, channels="rgb")
    pixels = images.decode(image_files.read(photographs), config, "photographs").pixels[::step]
    latents = map_in_batches(autoencoder.encode, from_bytes(pixels), 7)
    assert latents.shape == (len(pixels), 32, 32, 32)
    return psnr(to_bytes(map_in_batches(autoencoder.decode, latents, 7)), pixels)


@pytest.mark.slow
def test_real_taef2_on_photographs():
    result = reconstructions(7)
    assert len(result) == 7
    assert result.min() > 24


@pytest.mark.slow
def test_real_taef2_on_all_photographs():
    """Three images full of fine detail stay below 24 dB; PyTorch with the same weights says the same."""
    result = reconstructions(1)
    assert len(result) == 49
    assert result.mean() > 29
    assert result.min() > 21
    assert np.sum(result > 24) == 46


# ------------------------------------------------------------------------------------------------------ AutoencoderKL


def test_kl_parameters():
    shapes = kl.shapes()
    assert sum(map(math.prod, shapes.values())) == 83_653_863
    assert len(shapes) == 248
    for name, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "encoder.down_blocks.2.downsamplers.0.conv.weight": (512, 512, 3, 3),
        "encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.bias": (4,),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": (256, 512, 1, 1),
        "decoder.up_blocks.3.resnets.0.conv_shortcut.bias": (128,),
        "decoder.up_blocks.2.upsamplers.0.conv.weight": (256, 256, 3, 3),
        "decoder.up_blocks.3.resnets.2.norm1.weight": (128,),
        "decoder.conv_norm_out.weight": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert shapes[name] == shape
    for absent in (
        "encoder.down_blocks.3.downsamplers.0.conv.weight",
        "encoder.down_blocks.0.resnets.0.conv_shortcut.weight",
        "decoder.up_blocks.3.upsamplers.0.conv.weight",
        "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
    ):
        assert absent not in shapes


def test_kl_shapes_of_latents():
    turned = {name: (*shape[2:], *shape[1::-1]) for name, shape in kl.shapes().items()}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in turned.items()}
    mean, log_variance = jax.eval_shape(kl.encode, params, jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32))
    assert mean.shape == log_variance.shape == (2, 32, 32, 4)
    assert jax.eval_shape(kl.decode, params, mean).shape == (2, 256, 256, 3)


def old_names(tensors, convolutions):
    """The attention under its earlier names, its matrices perhaps as 1x1 convolutions."""
    old = {new: name for name, new in kl.OLD_NAMES.items()}
    stored = {}
    for name, array in tensors.items():
        result = re.fullmatch(r"(.*attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(\.\w+)", name)
        matrix = result and array.ndim == 2
        key = f"{result[1]}{old[result[2]]}{result[3]}" if result else name
        stored[key] = array[..., None, None] if matrix and convolutions else array
    return stored


@pytest.mark.parametrize("convolutions", [False, True])
def test_kl_older_names(small_kl, convolutions):
    stored = old_names(small_kl, convolutions)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in stored
    for tensors in (stored, small_kl):
        renamed = kl.new_names(tensors)
        assert set(renamed) == set(small_kl)
        for name, array in renamed.items():
            np.testing.assert_array_equal(array, small_kl[name])


def test_kl_file(tmp_path, small_kl):
    path = write(tmp_path / "vae.bin", old_names(small_kl, False))
    result = autoencoders.load(path)
    assert (result.name, result.channels, result.downsampling) == ("kl", 4, 8)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x, params = sample_images(1, 32), layers.from_torch(small_kl)
    mean, log_variance = jax.jit(kl.encode)(params, x)
    np.testing.assert_allclose(result.encode(x), 0.18215 * mean, rtol=1e-4, atol=1e-6)
    for moment, expected in zip(result.moments(x), (mean, np.exp(0.5 * log_variance)), strict=True):
        np.testing.assert_allclose(moment, 0.18215 * expected, rtol=1e-4, atol=1e-6)
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
    expected = np.clip(jax.jit(kl.decode)(params, latents / 0.18215), -1, 1)
    np.testing.assert_allclose(result.decode(latents), expected, rtol=1e-3, atol=1e-4)


def test_kl_against_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="an independent implementation")
    torch = pytest.importorskip("torch")

    theirs = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert {name: array.shape for name, array in state.items()} == kl.shapes()
    x = sample_images(1, 32)
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    params = layers.from_torch(state)
    mean, log_variance = jax.jit(kl.encode)(params, x)
    np.testing.assert_allclose(mean, posterior.mean.permute(0, 2, 3, 1), atol=2e-5)
    np.testing.assert_allclose(log_variance, posterior.logvar.permute(0, 2, 3, 1), atol=2e-5)
    np.testing.assert_allclose(jax.jit(kl.decode)(params, mean), decoded.permute(0, 2, 3, 1), atol=2e-5)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_missing_and_misshapen_tensors_are_named(tmp_path, small_kl):
    stored = dict(small_kl)
    del stored["decoder.mid_block.resnets.1.conv2.bias"]
    stored["encoder.conv_in.weight"] = stored["encoder.conv_in.weight"][:, :1]
    path = write(tmp_path / "vae.safetensors", stored)
    message = refusal(path)
    assert "missing decoder.mid_block.resnets.1.conv2.bias" in message
    assert "encoder.conv_in.weight has shape (32, 1, 3, 3)" in message
    encoder, decoder = tiny_weights(4, False)
    del decoder["12.weight"]
    write(tmp_path / "encoder.pth", encoder)
    write(tmp_path / "decoder.pth", decoder)
    assert "missing decoder.12.weight" in refusal(tmp_path / "encoder.pth")
    assert "missing encoder.0.weight" in refusal(path, "tiny")


def test_files_that_are_not_there(tmp_path):
    assert "no such file" in refusal(tmp_path / "nowhere.pth")
    assert "none" in refusal(tmp_path)
    encoder, _ = tiny_weights(4, False)
    write(tmp_path / "my_encoder.pth", encoder)
    assert "my_decoder.pth is needed beside it" in refusal(tmp_path / "my_encoder.pth")
    write(tmp_path / "a.pth", encoder)
    assert "a.pth, my_encoder.pth" in refusal(tmp_path)


# ----------------------------------------------------------------------------------------------------- bytes and back


def test_bytes_survive():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    there = from_bytes(every)
    assert (there.min(), there.max()) == (-1, 1)
    np.testing.assert_array_equal(to_bytes(there), every)
    np.testing.assert_array_equal(to_bytes(np.array([-3.0, 3.0], np.float32).reshape(1, 1, 2, 1)).ravel(), [0, 255])


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_batches_of_one_size(n):
    batch_sizes = []

    def double(x):
        batch_sizes.append(len(x))
        return 2 * x, x.sum(axis=1)

    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    twice, sums = map_in_batches(double, x, 4)
    np.testing.assert_array_equal(twice, 2 * x)
    np.testing.assert_allclose(sums, x.sum(axis=1))
    assert batch_sizes == [4] * math.ceil(n / 4)


def test_psnr():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0] = 51  # 255 / 5
    np.testing.assert_allclose(psnr(a, b), [20 * np.log10(5), np.inf])
