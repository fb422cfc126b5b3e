"""Data as an argument: arrays, conditions and pairs reach a run by one door; laws that are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf import data
from vamf.cli import main
from vamf.conditioning import Conditioning
from vamf.data import Dataset
from vamf.diagnosis.run import diagnose_run
from vamf.errors import UserError
from vamf.networks import DiTConfig, MLPConfig
from vamf.progress import Progress
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.presets import for_data
from vamf.training.run import Run

QUIET = Progress(show=False)
RNG = np.random.default_rng(0)
N = 4096
A, B = np.array([[2.0, -1.0], [0.5, 1.0]]), np.array([10.0, -3.0])
Y = RNG.normal(size=(N, 2))
PAIRS = {"x": Y @ A.T + B, "start": Y}
C = RNG.normal(size=(N, 1)) * 3 + 5
REGRESSION = {"x": np.concatenate([0.8 * C, -0.4 * C], axis=1) + 0.5 * RNG.normal(size=(N, 2)), "vector": C}


def small(source, steps=300, width=64, **options):
    return for_data(
        source,
        method="meanflow",
        steps=steps,
        batch_size=128,
        learning_rate=5e-3,
        checkpoint_every=steps,
        network=MLPConfig(width=width, depth=2),
        optimizer=OptimizerConfig(ema_decay=0.99),
        log=LogConfig(every=steps, variance_every=0),
        **options,
    )


# ------------------------------------------------------------------------------------------------------ what is loaded


def test_arrays_and_files_are_the_same_data(tmp_path):
    """A table, labels, vectors: the same rows, units and held-out rows, whichever way they come in."""
    parts = {"x": PAIRS["x"], "label": np.repeat([3, 7], N // 2), "vector": C}
    np.savez(tmp_path / "parts.npz", **parts)
    one, other = data.load(parts), data.load(tmp_path / "parts.npz")
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name])
    np.testing.assert_array_equal(one.reference(50, 0), other.reference(50, 0))
    assert one.cond_shape[:3] == other.cond_shape[:3] == (2, 1, 0)
    assert one.classes == (3, 7)
    assert one.name == "array"
    assert data.load(one) is one
    np.testing.assert_array_equal(data.load(jnp.asarray(Y)).arrays["points"], data.load(np.float32(Y)).arrays["points"])


def test_vectors_are_standardised_and_belong_to_their_rows():
    """x is a function of its vector, constant columns are 0, and held-out rows are those of the reference."""
    vector = np.stack([1e6 + Y[:, 0], np.full(N, 4.0)], axis=1)
    result = data.load({"x": Y, "vector": vector})
    x, cond = result.draw(result.arrays, jax.random.key(0), 2000)
    assert isinstance(cond, Conditioning)
    assert cond.label is None
    np.testing.assert_allclose(cond.vector[:, 0], x[:, 0], atol=1e-4)
    np.testing.assert_array_equal(cond.vector[:, 1], 0)
    rows = result.reference_rows(30, 5)
    np.testing.assert_array_equal(rows["vector"][:, 0] - 1e6, 1e6 + result.reference(30, 5)[:, 0] - 1e6)
    encoded, _ = result.encode(rows)
    np.testing.assert_allclose(encoded.vector[:, 0], (rows["vector"][:, 0] - result.conditions.units["vector"].shift[0])
                               / result.conditions.units["vector"].scale[0], rtol=1e-6)  # fmt: skip


def test_images_of_bytes_and_floats_with_an_image_each():
    """In [-1, 1] by their range, back in their units, and mirrored together with their image and start."""
    pixels = RNG.integers(0, 256, (64, 4, 4, 1)).astype(np.uint8)
    for x in (pixels, pixels / 255.0, pixels / 127.5 - 1):
        result = data.load({"x": x, "image": x[..., [0, 0]], "start": x}, image_config=data.ImageConfig(flip=True))
        samples, cond = result.draw(result.arrays, jax.random.key(0), 200)
        start = result.start(result.arrays, jax.random.key(0), 200)
        assert result.cond_shape[:3] == (0, 0, 2)
        assert result.has_start
        np.testing.assert_array_equal(start, samples)
        np.testing.assert_array_equal(cond.image, jnp.repeat(samples, 2, axis=-1))
        back = result.to_original(np.asarray(samples))
        assert np.isin(np.round(back.astype(np.float32), 4), np.round(x.astype(np.float32), 4)).all()
        assert (result.min_value, result.max_value) == pytest.approx((x.min(), x.max()), abs=0.02)


def test_arrays_of_floats_in_files_are_images(tmp_path):
    """Of any number of channels, as they are in memory."""
    x = RNG.normal(size=(40, 8, 8, 4))
    np.save(tmp_path / "x.npy", x)
    result = data.load(tmp_path / "x.npy")
    assert result.event_shape == (8, 8, 4)
    np.testing.assert_array_equal(result.arrays["pixels"], data.load(x).arrays["pixels"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x": Y, "vectors": C}, "arrays x, vectors"),
        ({"x": Y, "vector": C[1:]}, r"vector of shape \(4095, 1\)"),
        ({"x": Y, "vector": np.full((N, 1), np.nan)}, "not finite numbers"),
        ({"x": Y, "start": Y[:, :1]}, r"start of shape \(4096, 1\)"),
        ({"x": Y, "image": np.zeros((N, 4, 4))}, "goes with images x"),
        ({"x": np.zeros((40, 4, 4, 1)), "image": np.zeros((40, 8, 8, 1))}, r"\(n, 4, 4, c\) with n = 40"),
        ([[object()]], "allowed are a data set's name"),
        ("array", "stands for arrays in memory"),
    ],
)
def test_bad_arrays_are_one_line(source, message):
    with pytest.raises(UserError, match=message) as raised:
        data.load(source)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------ laws, in pairs


def test_pairs_of_an_affine_map(tmp_path):
    """x = A y + b: the path is deterministic, so one jump from a start is the map itself."""
    config = small(PAIRS, 600, objective={"path": "pairs"})
    run = Run.create(config, tmp_path / "run", data=PAIRS)
    state = run.train(QUIET).state
    start = np.random.default_rng(1).normal(size=(500, 2))
    samples = run.draw(state, 500, start=start)[0]
    error = np.abs(samples - (start @ A.T + B)).mean()
    assert error < 0.1 * np.std(PAIRS["x"])
    again = Run.open(run.folder)  # from the folder alone, starts like the data's
    np.testing.assert_allclose(again.draw(again.load(QUIET)[0], 500, start=start)[0], samples, rtol=1e-5, atol=1e-5)
    free = again.draw(again.load(QUIET)[0], 2000)[0]
    np.testing.assert_allclose(np.cov(free.T), A @ A.T, atol=0.5)
    np.testing.assert_allclose(free, again.rows(2000)["start"] @ A.T + B, atol=1.5)
    result = run.evaluate(state, 600)["distances"]
    assert result["1 step"]["sw1"] < result["baseline"]["sw1"] + 0.2
    assert diagnose_run(run, state, 600).diagnosis.cells


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [(PAIRS, {}, "train with --path pairs"), (Y, {"objective": {"path": "pairs"}}, "no start for each row")],
)
def test_pairs_and_their_path_belong_together(tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        Run.create(small(source, **options), tmp_path / "run", data=source)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ laws, with conditions


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression") / "run"
    run = Run.create(small(REGRESSION, 600), folder, data=REGRESSION)
    return run, run.train(QUIET).state


def test_regression_on_a_vector(regression):
    """x | c is normal with mean (.8 c, -.4 c) and deviation .5: one jump has that mean and spread."""
    run, state = regression
    for c in (2.0, 8.0):
        samples = run.draw(state, 2000, condition={"vector": [[c]]})[0]
        np.testing.assert_allclose(samples.mean(axis=0), [0.8 * c, -0.4 * c], atol=0.35)
        assert (samples.std(axis=0) < 1.2).all()
    samples, rows = run.draw(state, 2000)[0], run.rows(2000)["vector"]
    slope = np.linalg.lstsq(np.c_[rows, np.ones(2000)], samples, rcond=None)[0][0]
    np.testing.assert_allclose(slope, [0.8, -0.4], atol=0.08)
    result = run.evaluate(state, 600)
    assert result["unseen"]
    assert result["joint"] == ["vector"]
    baseline, one_step = (result["distances"][name] for name in ("baseline", "1 step"))
    assert one_step["joint_sw1"] < baseline["joint_sw1"] + 4 * baseline["joint_sw1_std"]
    assert np.isfinite(diagnose_run(run, state, 600).diagnosis.amplification.value)


def test_a_run_on_arrays_is_opened_again(regression, tmp_path):
    """Sampled from its folder alone; goes on with the same rows, in memory or in a file; refuses others, or none."""
    run, state = regression
    reopened = Run.open(run.folder)
    loaded_state, _ = reopened.load(QUIET)
    np.testing.assert_allclose(reopened.draw(loaded_state, 20)[0], run.draw(state, 20)[0], rtol=1e-5, atol=1e-6)
    assert reopened.config.data == "array"
    np.savez(tmp_path / "same.npz", **REGRESSION)
    for same in (REGRESSION, tmp_path / "same.npz"):
        assert Run.open(run.folder, data=same).dataset.event_shape == (2,)
    others = ({**REGRESSION, "vector": C[::-1]}, {**REGRESSION, "x": REGRESSION["x"] + 1}, Y)
    for other in others:
        with pytest.raises(UserError, match="other data than those of the run"):
            Run.open(run.folder, data=other).dataset  # noqa: B018
    with pytest.raises(UserError, match=r"arrays in memory; give a file with the same rows, --data FILE .*Run.open"):
        Run.open(run.folder).dataset  # noqa: B018


def test_the_command_line_takes_conditions(regression, tmp_path, capsys):
    run, state = regression
    np.save(tmp_path / "c.npy", np.array([[2.0], [8.0]]))
    main(["sample", str(run.folder), "--condition", str(tmp_path / "c.npy"), "--out", str(tmp_path / "s.npy")])
    expected = run.draw(state, 2, seed=0, condition=np.array([[2.0], [8.0]]))[0]
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), expected, rtol=1e-5, atol=1e-6)
    main(["sample", str(run.folder), "--n", "2000", "--out", str(tmp_path / "s.npz")])
    with np.load(tmp_path / "s.npz") as file:  # each sample with the vector that it was made for
        slope = np.linalg.lstsq(np.c_[file["vector"], np.ones(2000)], file["x"], rcond=None)[0][0]
    np.testing.assert_allclose(slope, [0.8, -0.4], atol=0.08)
    assert data.load(str(tmp_path / "s.npz")).cond_shape.vector == 1
    main(["sample", str(run.folder), "--condition", str(tmp_path / "s.npz"), "--out", str(tmp_path / "again.npz")])
    with np.load(tmp_path / "s.npz") as file, np.load(tmp_path / "again.npz") as again:  # the same conditions
        np.testing.assert_allclose(again["vector"], file["vector"], rtol=1e-6)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--resume", str(run.folder)])
    assert "arrays in memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"image": np.zeros((4, 2, 2, 1))}, "this run takes vector"),
        ({"vector": np.zeros((3, 1))}, r"vector of shape \(3, 1\); \(4, 1\), or one row"),
        ({"vector": np.zeros((4, 2))}, r"vector of shape \(4, 2\)"),
        ({"label": [0]}, "this run takes vector"),
    ],
)
def test_bad_conditions_are_one_line(regression, condition, message):
    run, state = regression
    with pytest.raises(UserError, match=message):
        run.draw(state, 4, condition=condition)


def test_images_with_classes_vector_and_image():
    """One step on everything at once, and samples of a class have rows of that class."""
    x = RNG.integers(0, 256, (64, 4, 4, 1)).astype(np.uint8)
    label = np.arange(64) % 2
    source = {"x": x, "label": label, "vector": label[:, None] * 1.0, "image": x}
    config = TrainConfig(
        "array", "meanflow", steps=2, batch_size=8, network=DiTConfig(depth=1, width=16, heads=2, patch=2)
    )
    ensemble = Ensemble(config, source, [0, 1])
    state, metrics = ensemble.advance(ensemble.init(), 2)
    assert np.isfinite(metrics.loss).all()
    cond, _ = ensemble.dataset.sampling_conditions(6, [0, 1], np.array([0, 1, 0, 1, 0, 1]))
    np.testing.assert_array_equal(np.sign(cond.vector[..., 0]), np.tile([-1, 1], (2, 3)))
    assert ensemble.sample(state, 6, label=np.zeros(6)).shape == (2, 6, 4, 4, 1)
    bare = Ensemble(dataclasses.replace(config, conditional=False), source, [0])
    assert not any(bare.dataset.cond_shape)


# --------------------------------------------------------------------------------------------------- from the outside


def test_a_data_set_of_ones_own(tmp_path, monkeypatch):
    """A function in the table, and the object itself."""

    def ring(holdout):
        def draw(arrays, key, n):
            angle = 2 * jnp.pi * jax.random.uniform(key, (n,))
            return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1), None

        return Dataset("ring", (2,), (), draw, lambda n, seed: np.asarray(draw((), jax.random.key(seed + 1), n)[0]))

    monkeypatch.setitem(data.SOURCES, "ring", ring)
    assert for_data("ring").network == for_data(ring(0)).network
    named = Run.create(small("ring", 2), tmp_path / "named")
    np.testing.assert_array_equal(named.train(QUIET).state.step, [2])
    run = Run.create(small(ring(0), 2), tmp_path / "given", data=ring(0))
    assert np.isfinite(run.draw(run.train(QUIET).state, 5)[0]).all()
    monkeypatch.delitem(data.SOURCES, "ring")
    with pytest.raises(UserError, match="its data 'ring' are not known; import first"):
        Run.open(tmp_path / "named")
