"""The classifier that is trained on a data set's own images: it learns, it is repeatable, it is named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf.errors import UserError
from vamf.files import write_arrays
from vamf.metrics import classifier
from vamf.metrics.comparison import compare
from vamf.metrics.features import extract, open_extractor
from vamf.metrics.images import from_array
from vamf.metrics.options import Options


def sample_images(n=600, channels=1, seed=0, size=(8, 6)):
    """Noise with a bright row, column or corner: three classes that no single pixel tells apart."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 60, (n, *size, channels), dtype=np.uint8)
    label = rng.integers(0, 3, n)
    for image, kind in zip(x, label, strict=True):
        row, column = rng.integers(0, size[0] - 1), rng.integers(0, size[1] - 1)
        if kind == 0:
            image[row] += 150
        elif kind == 1:
            image[:, column] += 150
        else:
            image[row : row + 2, column : column + 2] += 150
    return x, label


@pytest.fixture(scope="module")
def trained():
    return classifier.train(*sample_images(), 3, epochs=12)


def test_it_learns_a_separable_problem_and_states_an_honest_accuracy(trained):
    x, label = sample_images(n=400, seed=1)
    params = classifier.load(trained, Path("memory"))[0]
    accuracy = np.mean(classifier.classify(params, x) == label)
    assert accuracy > 0.9
    assert abs(float(trained["accuracy"]) - accuracy) < 0.1  # 60 unseen images


@pytest.mark.slow
def test_it_is_repeatable(trained):
    again = classifier.train(*sample_images(), 3, epochs=12)
    assert trained.keys() == again.keys()
    for name, array in trained.items():
        np.testing.assert_array_equal(array, again[name])
    other = classifier.train(*sample_images(), 3, epochs=1, seed=1)
    assert not np.array_equal(other["hidden.kernel"], classifier.train(*sample_images(), 3, epochs=1)["hidden.kernel"])


def test_images_kept_out_are_not_trained_on():
    train_rows, test_rows = classifier.train_test_split(50)
    assert sorted([*train_rows, *test_rows]) == list(range(50))
    assert len(test_rows) == 5
    x, label = sample_images(n=50)
    changed = x.copy()
    changed[test_rows] = 255 - changed[test_rows]
    ours, theirs = (classifier.train(inputs, label, 3, epochs=1) for inputs in (x, changed))
    np.testing.assert_array_equal(ours["hidden.kernel"], theirs["hidden.kernel"])


def test_as_an_extractor_it_names_the_score(trained, tmp_path):
    path = tmp_path / "shapes-classifier.npz"
    write_arrays(path, trained)
    extractor = open_extractor(str(path))
    assert extractor.identity.score("FID", "Fréchet distance") == "Fréchet distance (shapes-classifier 128)"
    x, label = sample_images(n=200, seed=2)
    result = extract(from_array(x), extractor, keep=True)
    assert result.rows.shape == (200, 128)
    assert np.mean(result.logits.argmax(axis=1) == label) > 0.9
    options = Options(weights=str(path), kid=False, inception_score=False, precision_recall=False, bootstrap=0)
    scores = {
        seed: compare(from_array(x), from_array(sample_images(n=400, seed=seed)[0]), options)["scores"]
        for seed in (3, 4)
    }
    assert list(scores[3]) == ["Fréchet distance (shapes-classifier 128)"]
    one_class = compare(from_array(x[label == 0]), from_array(x), options)["scores"]
    near_score, far_score = (next(iter(result.values()))["value"] for result in (scores[3], one_class))
    assert far_score > 5 * near_score


def test_grey_images_count_as_rgb(trained):
    params = classifier.load(trained, Path("memory"))[0]
    x = sample_images(n=20, seed=5)[0]
    np.testing.assert_array_equal(classifier.classify(params, x), classifier.classify(params, x.repeat(3, axis=3)))


def test_neighbourhoods_are_those_of_a_convolution_with_stride_2():
    for size in ((7, 8), (1, 2)):
        x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
        kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(classifier._patches(jnp.asarray(x)) @ kernel.reshape(27, 4), expected, atol=1e-4)


def test_refusals(trained, tmp_path):
    extractor_path = tmp_path / "own.npz"
    write_arrays(extractor_path, trained)
    with pytest.raises(UserError, match="images of 8x8: this classifier takes 8x6 only"):
        extract(from_array(sample_images(size=(8, 8))[0]), open_extractor(str(extractor_path)))
    with pytest.raises(UserError, match="dims = 64: a classifier of vamf has 128"):
        open_extractor(str(extractor_path), 64)
    write_arrays(extractor_path, {name: array for name, array in trained.items() if name != "classes.bias"})
    with pytest.raises(UserError, match=r"missing classes\.bias"):
        open_extractor(str(extractor_path))
