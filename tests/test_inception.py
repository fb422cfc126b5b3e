import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from inception_oracle import Oracle
from vamf import tensors
from vamf.errors import UserError
from vamf.metrics import cifar_resnet, inception
from vamf.metrics.resize import matrix, resize

SHARED = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
FOLDED = SHARED / "inception" / "inception_2015_12_05_folded_to_mixed8.npz"
SHEETS = SHARED / "cifar10"

needs_inception = pytest.mark.skipif(not FOLDED.exists(), reason=f"no {FOLDED}")
needs_cifar = pytest.mark.skipif(not SHEETS.exists(), reason=f"no {SHEETS}")


def sheet(number):
    """A thousand CIFAR-10 images; number 50 has the test images."""
    return np.asarray(Image.open(SHEETS / f"cifar10_batch_{number}.png").convert("RGB")).reshape(-1, 32, 32, 3)


def labels():
    text = (SHEETS / "cifar10_labels.js").read_text()
    return np.array(json.loads(text[text.index("[") : text.index("]") + 1]))


@pytest.fixture(scope="module")
def oracle():
    """Weights, images between -1 and 1 and their features; large enough for every block to see its neighbours."""
    network = Oracle(0)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 107, 139, 3)).astype(np.float32)
    expected = network(x.transpose(0, 3, 1, 2).astype(np.float64))
    return network.state, jnp.asarray(x), expected


# -------------------------------------------------------------------------------------------------------- the network


def test_every_feature_equals_another_implementation(oracle):
    state, x, expected = oracle
    parameters = inception.load(state, 2048, Path("random"))
    result = jax.jit(inception.features, static_argnums=2)(parameters, x, 2048)
    assert set(result) == {"64", "192", "768", "1280", "2048", "logits"}
    for name, values in expected.items():
        assert result[name].shape == values.shape
        assert values.std() > 0.05  # a network that has died would agree with anything
        np.testing.assert_allclose(result[name], values, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("dims", [64, 192])
def test_shallow_features_need_shallow_weights(oracle, dims):
    state, x, expected = oracle
    kernels = inception.shapes(dims)
    shallow = {name: array for name, array in state.items() if name.rsplit(".", 2)[0] in kernels}
    result = inception.features(inception.load(shallow, dims, Path("random")), x, dims)
    np.testing.assert_allclose(result[str(dims)], expected[str(dims)], atol=1e-4)
    assert list(result)[-1] == str(dims)


def test_the_layout_is_the_published_one(oracle):
    """94 convolutions and 21.75 million weights in them, as the published file has."""
    state, _, _ = oracle
    shapes = inception.shapes(2048)
    assert {f"{name}.conv.weight": shape for name, shape in shapes.items()} == {
        name: array.shape for name, array in state.items() if name.endswith("conv.weight")
    }
    assert len(shapes) == 94
    assert sum(np.prod(shape) for shape in shapes.values()) == 21_751_136


def test_missing_and_misshapen_weights_are_named(oracle):
    state = dict(oracle[0])
    del state["Mixed_6e.branch7x7_2.bn.running_var"]
    state["Mixed_7c.branch3x3_2a.conv.weight"] = state["Mixed_7c.branch3x3_2b.conv.weight"]
    with pytest.raises(UserError) as refusal:
        inception.load(state, 2048, Path("w.pth"))
    message = str(refusal.value)
    assert message.startswith("w.pth: missing Mixed_6e.branch7x7_2.bn.running_var; Mixed_7c.branch3x3_2a.conv.weight")
    assert "(384, 384, 3, 1), needed is (384, 384, 1, 3)" in message


def test_thousand_classes_are_another_network(oracle):
    """torchvision's Inception-v3 has other weights, and 1000 classes."""
    state = oracle[0] | {"fc.weight": np.zeros((1000, 2048), np.float32)}
    with pytest.raises(UserError, match=r"fc.weight has shape \(1000, 2048\), needed is \(1008, 2048\)"):
        inception.load(state, 2048, Path("w.pth"))


def test_torch_fidelity_agrees(oracle, tmp_path):
    """The whole way from uint8 images, in torch-fidelity's own network with the same random weights."""
    torch = pytest.importorskip("torch", reason="PyTorch runs the other implementation")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")  # the package itself would import torchvision
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save({name: torch.tensor(array) for name, array in oracle[0].items()}, tmp_path / "w.pth")
    names = ["64", "192", "768", "2048", "logits_unbiased"]
    other = FeatureExtractorInceptionV3("other", names, str(tmp_path / "w.pth"), "float64")
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    expected = dict(zip(names, other(torch.tensor(images.transpose(0, 3, 1, 2))), strict=True))

    parameters = inception.load(tensors.read(tmp_path / "w.pth"), 2048, tmp_path / "w.pth")
    x = (resize(images, 299, "tensorflow") - 128) / 128
    result = jax.jit(inception.features, static_argnums=2)(parameters, x, 2048)
    result["logits_unbiased"] = result["logits"]
    for name in names:
        np.testing.assert_allclose(result[name], expected[name].numpy(), atol=1e-4)


# ----------------------------------------------------------------------------------------------------- the real weights


@needs_inception
def test_golden_features_of_the_real_weights():
    with np.load(SHARED / "inception" / "golden_cifar10_train0_63.npz") as archive:
        golden = {name: archive[name][:3] for name in archive.files}
    parameters = inception.load(tensors.read(FOLDED), 1280, FOLDED)
    x = (resize(sheet(0)[:3], 299, "tensorflow") - 128) / 128
    result = jax.jit(inception.features, static_argnums=2)(parameters, x, 1280)
    for dims in (64, 192, 768, 1280):
        np.testing.assert_allclose(result[str(dims)], golden[f"f{dims}"], atol=1e-3)


@needs_inception
def test_folded_weights_end_before_the_fid():
    with pytest.raises(UserError, match="end at 1280"):
        inception.load(tensors.read(FOLDED), 2048, FOLDED)


# ------------------------------------------------------------------------------------------------------------ resizing


def bilinear(image, size):
    """TensorFlow 1's, pixel by pixel."""
    h, w = image.shape[:2]
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            y, x = i * h / size, j * w / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, x - left
            upper = image[top, left] * (1 - dx) + image[top, right] * dx
            lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            out[i, j] = upper * (1 - dy) + lower * dy
    return out


def noise(h, w):
    return np.random.default_rng(h * w).integers(0, 256, (1, h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize(("h", "w", "size"), [(8, 8, 29), (11, 40, 29), (64, 50, 29), (29, 29, 29), (1, 2, 5)])
def test_bilinear_by_pixel(h, w, size):
    image = noise(h, w)
    expected = bilinear(image[0].astype(float), size)
    np.testing.assert_allclose(resize(image, size, "tensorflow")[0], expected, atol=1e-3)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (299, 299), (400, 61), (512, 640)])
def test_clean_is_pillows_bicubic_on_floats(h, w):
    image = noise(h, w)
    channels = [Image.fromarray(image[0, :, :, c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC)) for channel in channels]
    result = np.asarray(resize(image, 299, "clean"))[0]
    np.testing.assert_allclose(result, np.clip(np.stack(resized, axis=-1), 0, 255), atol=1e-3)
    assert result.min() >= 0
    assert result.max() <= 255


@pytest.mark.parametrize("method", ["tensorflow", "clean"])
@pytest.mark.parametrize("length", [1, 20, 299, 1000])
def test_a_grey_image_stays_what_it_is(method, length):
    np.testing.assert_allclose(matrix(length, 299, method).sum(axis=1), 1, atol=1e-5)


def test_the_methods_differ_where_images_shrink():
    """A fine chessboard: antialiasing makes it grey, reading every third pixel does not."""
    board = np.tile((np.indices((600, 600)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None], (1, 1, 1, 3))
    assert np.asarray(resize(board, 200, "clean")).std() < 2
    assert np.asarray(resize(board, 200, "tensorflow")).std() > 100


# ---------------------------------------------------------------------------------------------------------- the ResNets


def residual_state(depth, seed=0):
    """A random state dictionary, under PyTorch's names."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1": (16, 3)}
    for group, (fan_in, width) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
        for block in range(depth):
            shapes[f"layer{group}.{block}.conv1"] = (width, width if block else fan_in)
            shapes[f"layer{group}.{block}.conv2"] = (width, width)
    state = {"module.linear.weight": rng.normal(size=(10, 64)), "module.linear.bias": rng.normal(size=10)}
    for name, (out, channels) in shapes.items():
        norm = f"module.{name.replace('conv', 'bn')}"
        state[f"module.{name}.weight"] = rng.normal(size=(out, channels, 3, 3)) / np.sqrt(9 * channels)
        state |= {f"{norm}.weight": rng.uniform(0.5, 1, out), f"{norm}.bias": rng.normal(size=out)}
        state |= {f"{norm}.running_mean": rng.normal(size=out), f"{norm}.running_var": rng.uniform(0.5, 2, out)}
    return {name: array.astype(np.float32) for name, array in state.items()}


def residual_network(state, image, depth):
    """The network of one image (32, 32, 3) in numpy, channels first."""
    from numpy.lib.stride_tricks import sliding_window_view

    def layer(x, name, stride=1):
        w, norm = state[f"module.{name}.weight"], f"module.{name.replace('conv', 'bn')}"
        windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))[:, ::stride, ::stride]
        y = np.tensordot(w, windows, axes=((1, 2, 3), (0, 3, 4)))
        parts = (state[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var"))
        gain, shift, centre, variance = parts
        return (y - centre) / np.sqrt(variance + 1e-5) * gain + shift

    x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = np.maximum(layer(x.transpose(2, 0, 1), "conv1"), 0)
    for group in (1, 2, 3):
        for block in range(depth):
            halved = group > 1 and block == 0
            y = np.maximum(layer(x, f"layer{group}.{block}.conv1", 2 if halved else 1), 0)
            y = layer(y, f"layer{group}.{block}.conv2")
            if halved:
                empty = np.zeros((x.shape[0] // 2, *y.shape[1:]))
                x = np.concatenate([empty, x[:, ::2, ::2], empty])
            x = np.maximum(y + x, 0)
    x = x.mean(axis=(1, 2))
    return x, state["module.linear.weight"] @ x + state["module.linear.bias"]


@pytest.mark.parametrize("depth", [1, 3])
def test_residual_network_equals_another_implementation(depth):
    state = residual_state(depth)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)), jnp.float32)
    result = cifar_resnet.features(cifar_resnet.load(state, Path("random")), images)
    for row, image in enumerate(np.asarray(images, np.float64)):
        features, logits = residual_network(state, image, depth)
        np.testing.assert_allclose(result["64"][row], features, atol=1e-4)
        np.testing.assert_allclose(result["logits"][row], logits, atol=1e-3)
    classes = cifar_resnet.classify(cifar_resnet.load(state, Path("random")), np.asarray(images, np.uint8), 1)
    np.testing.assert_array_equal(classes, result["logits"].argmax(axis=1))


def test_missing_weights_of_a_residual_network_are_named():
    state = residual_state(3)
    del state["module.layer2.1.bn2.bias"]
    with pytest.raises(UserError, match=r"w.th: missing layer2\.1\.bn2\.bias"):
        cifar_resnet.load(state, Path("w.th"))


@needs_cifar
@pytest.mark.parametrize(
    ("file", "correct"),
    [("resnet20-12fca82f.th", 915), pytest.param("resnet56-4bfd9763.th", 926, marks=pytest.mark.slow)],
)
def test_accuracy_on_the_test_images(file, correct):
    path = SHARED / "cifar_resnet" / file
    parameters = cifar_resnet.load(tensors.read(path), path)
    assert (cifar_resnet.classify(parameters, sheet(50)) == labels()[50_000:51_000]).sum() == correct
