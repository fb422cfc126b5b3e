"""The classifier that is trained on a data set's own pictures: it learns, it is repeatable, it is named."""

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


def pictures(n=600, channels=1, seed=0, size=(8, 6)):
    """Noise with a bright row, column or corner: three classes that no single pixel tells apart."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 60, (n, *size, channels), dtype=np.uint8)
    label = rng.integers(0, 3, n)
    for picture, kind in zip(x, label, strict=True):
        row, column = rng.integers(0, size[0] - 1), rng.integers(0, size[1] - 1)
        if kind == 0:
            picture[row] += 150
        elif kind == 1:
            picture[:, column] += 150
        else:
            picture[row : row + 2, column : column + 2] += 150
    return x, label


@pytest.fixture(scope="module")
def trained():
    return classifier.train(*pictures(), 3, epochs=12)


def test_it_learns_a_separable_problem_and_states_an_honest_accuracy(trained):
    x, label = pictures(n=400, seed=1)
    params = classifier.load(trained, Path("memory"))[0]
    accuracy = np.mean(classifier.classify(params, x) == label)
    assert accuracy > 0.9
    assert abs(float(trained["accuracy"]) - accuracy) < 0.1  # 60 unseen pictures


@pytest.mark.slow
def test_it_is_repeatable(trained):
    again = classifier.train(*pictures(), 3, epochs=12)
    assert trained.keys() == again.keys()
    for name, array in trained.items():
        np.testing.assert_array_equal(array, again[name])
    other = classifier.train(*pictures(), 3, epochs=1, seed=1)
    assert not np.array_equal(other["hidden.kernel"], classifier.train(*pictures(), 3, epochs=1)["hidden.kernel"])


def test_pictures_kept_out_are_not_trained_on():
    seen, unseen = classifier.split(50)
    assert sorted([*seen, *unseen]) == list(range(50))
    assert len(unseen) == 5
    x, label = pictures(n=50)
    changed = x.copy()
    changed[unseen] = 255 - changed[unseen]
    ours, theirs = (classifier.train(given, label, 3, epochs=1) for given in (x, changed))
    np.testing.assert_array_equal(ours["hidden.kernel"], theirs["hidden.kernel"])


def test_as_an_extractor_it_names_the_score(trained, tmp_path):
    path = tmp_path / "shapes-classifier.npz"
    write_arrays(path, trained)
    extractor = open_extractor(str(path))
    assert extractor.identity.score("FID", "Fréchet distance") == "Fréchet distance (shapes-classifier 128)"
    x, label = pictures(n=200, seed=2)
    found = extract(from_array(x), extractor, keep=True)
    assert found.rows.shape == (200, 128)
    assert np.mean(found.logits.argmax(axis=1) == label) > 0.9
    options = Options(weights=str(path), kid=False, inception_score=False, precision_recall=False, bootstrap=0)
    scores = {
        seed: compare(from_array(x), from_array(pictures(n=400, seed=seed)[0]), options)["scores"] for seed in (3, 4)
    }
    assert list(scores[3]) == ["Fréchet distance (shapes-classifier 128)"]
    one_class = compare(from_array(x[label == 0]), from_array(x), options)["scores"]
    near, far = (next(iter(found.values()))["value"] for found in (scores[3], one_class))
    assert far > 5 * near


def test_grey_pictures_count_as_rgb(trained):
    params = classifier.load(trained, Path("memory"))[0]
    x = pictures(n=20, seed=5)[0]
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
        extract(from_array(pictures(size=(8, 8))[0]), open_extractor(str(extractor_path)))
    with pytest.raises(UserError, match="dims = 64: a classifier of vamf has 128"):
        open_extractor(str(extractor_path), 64)
    write_arrays(extractor_path, {name: array for name, array in trained.items() if name != "classes.bias"})
    with pytest.raises(UserError, match=r"missing classes\.bias"):
        open_extractor(str(extractor_path))
