"""What a run remembers of its data and of other runs: enough to sample without them, and to know them again."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from test_cli import run as vamf
from vamf.data import load, tables, whitening
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import CheckpointConfig, LogConfig, TrainConfig
from vamf.training.config_file import identity, to_json
from vamf.training.inputs import EXCLUDED, FILE, Inputs
from vamf.training.reflow import ReflowConfig
from vamf.training.run import Run

QUIET = Progress(show=False)
TABLE = np.random.default_rng(0).normal([1000.0, 0.5], [5.0, 0.1], (64, 2))


def write(path, table=TABLE, columns=("height", "mass")):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(repr, row)) for row in table.tolist())]))
    return path


def config(data, **changes) -> TrainConfig:
    options = {"method": "flow_matching", "steps": 4, "batch_size": 8, "checkpoint_every": 2}
    log, network = LogConfig(every=2, variance_every=0), MLPConfig(width=16, depth=2)
    return TrainConfig(str(data), network=network, log=log, **options | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and its table."""
    folder = tmp_path_factory.mktemp("made")
    Run.create(config(write(folder / "data" / "table.csv")), folder / "run").train(QUIET)
    return folder


@pytest.fixture
def moved(made, tmp_path):
    """The same, elsewhere, and its table in another folder under another name."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "data" / "table.csv", tmp_path / "renamed.csv")
    (made / "data").rename(made / "gone")
    yield tmp_path
    (made / "gone").rename(made / "data")


def assert_equal(ours, theirs):
    """Of trees of arrays and plain values."""
    assert type(ours) is type(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", ["table", "digits", "white"])
def test_all_that_is_no_row_is_remembered(tmp_path, source):
    """To the last bit and in its type; a data set without rows draws classes and goes back to its units."""
    dataset = load("digits") if source == "digits" else tables.from_file(write(tmp_path / "x" / "t.csv"), 0.1)
    if source == "white":
        dataset = whitening.whiten(dataset, 0.01)
    inputs = Inputs.of("here", dataset, {"teacher": "abc"})
    inputs.write(tmp_path)
    result = Inputs.read(tmp_path)
    assert result.digests == inputs.digests
    assert result.digest == inputs.digest
    bare = result.dataset()
    for field in dataclasses.fields(dataset):
        if field.name not in (*EXCLUDED, "inverse_transform"):
            assert_equal(getattr(bare, field.name), getattr(dataset, field.name))
    points = np.random.default_rng(1).normal(size=(5, *dataset.event_shape))
    np.testing.assert_array_equal(bare.to_original(points), dataset.to_original(points))
    if source == "digits":
        label = bare.draw_labels((), jax.random.key(0), 20_000)
        np.testing.assert_array_equal(label, dataset.draw_labels(dataset.arrays, jax.random.key(0), 20_000))
        frequencies = np.bincount(np.asarray(dataset.arrays["label"])) / len(dataset.arrays["label"])
        np.testing.assert_allclose(np.bincount(label) / 20_000, frequencies, atol=0.01)
    with pytest.raises(UserError, match="not at hand"):
        bare.reference(3, 0)


SHUFFLED = np.random.default_rng(2).permutation(TABLE)
TRAIN_ROW, HELD_ROW = (np.random.default_rng(0).permutation(64)[at] for at in (-1, 0))


def one_changed(row):
    """The table with a row that has been shifted by one unit of the last place."""
    table = TABLE.copy()
    table[row] = np.nextafter(table[row], np.inf)
    return table


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (
            1000 * TABLE,
            ("height", "mass"),
            r"column 'height' has mean 999\d+\.?\d* and spread \d+\.?\d*, the run's 999\.",
        ),
        (TABLE, ("mass", "height"), "columns mass, height, the run's height, mass"),
        (TABLE[:, :1], ("height",), "event shape 1, the run's 2"),
        (one_changed(HELD_ROW), ("height", "mass"), "other rows held out"),
        (TABLE[:-1], ("height", "mass"), "column 'height' has mean"),
        (SHUFFLED, ("height", "mass"), "column 'height' has mean"),
        (TABLE, ("height", "mass"), ""),
    ],
)
def test_other_data_are_told_apart(tmp_path, table, columns, message):
    """By what differs, in a line; the same contents under another name are the same."""
    inputs = Inputs.of("here", tables.from_file(write(tmp_path / "a" / "a.csv"), 0.1))
    other = tables.from_file(write(tmp_path / "b" / "b.csv", table, columns), 0.1)
    if not message:
        return inputs.check("there", other)
    with pytest.raises(UserError, match=f"^there: other data than those of the run: {message}"):
        inputs.check("there", other)


def test_rows_to_train_on_count_to_the_last(tmp_path):
    """Two rows that change places leave mean and scale as they were."""
    train = np.random.default_rng(0).permutation(64)[6:]
    table = np.round(TABLE * 64) / 64  # whose sums are exact in any order
    swapped = table.copy()
    swapped[train[:2]] = table[train[1::-1]]
    inputs = Inputs.of("here", tables.from_table("a", table))
    with pytest.raises(UserError, match="other rows to train on"):
        inputs.check("there", tables.from_table("a", swapped))


def test_a_run_is_sampled_without_its_data(made, moved, capsys):
    """The very samples; and goes on, is evaluated and diagnosed with data that have moved, if they are those."""
    state, step = Run.open(moved / "run").load(QUIET)
    assert step == 4
    samples = Run.open(moved / "run").draw(state, 20)[0]
    stored_samples = np.load(made / "run" / "samples" / "step-00000004.npy")
    np.testing.assert_array_equal(Run.open(moved / "run").draw(state, len(stored_samples))[0], stored_samples)
    status, _, err = vamf("evaluate", moved / "run", capsys=capsys)
    assert status == 2
    assert err.startswith(f"vamf: {made / 'data' / 'table.csv'}: the data of {moved / 'run'} are not there; name their")
    status, out, _ = vamf("evaluate", moved / "run", "--data", moved / "renamed.csv", capsys=capsys)
    assert (status, "baseline" in out) == (0, True)
    shutil.rmtree(moved / "run" / "checkpoints" / "4")
    run = Run.open(moved / "run", data=moved / "renamed.csv")
    again = run.train(QUIET).state
    np.testing.assert_array_equal(run.draw(again, 20)[0], samples)
    write(moved / "renamed.csv", 1000 * TABLE, ("mass", "height"))
    for command in (["evaluate"], ["diagnose"], ["sample", "--out", moved / "s.npy"]):
        options = [moved / "run", "--data", moved / "renamed.csv", *command[1:]]
        status, _, err = vamf(command[0], *options, capsys=capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert "other data than those of the run: columns mass, height" in err
    status, _, err = vamf("train", "--resume", moved / "run", "--data", moved / "renamed.csv", capsys=capsys)
    assert "other data than those of the run: columns mass, height" in err


def test_samples_do_not_replace_a_table_that_has_moved(moved, capsys):
    before = (moved / "renamed.csv").read_text()
    status, _, err = vamf("sample", moved / "run", "--n", 3, "--out", moved / "renamed.csv", capsys=capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "holds the rows that the run was trained on" in err
    assert (moved / "renamed.csv").read_text() == before
    for _ in range(2):  # what vamf itself has written may be
        assert vamf("sample", moved / "run", "--n", 3, "--out", moved / "drawn.csv", capsys=capsys)[0] == 0


def test_data_with_a_name_have_no_place(tmp_path):
    run = Run.create(config("swiss_roll"), tmp_path / "run")
    with pytest.raises(UserError, match="was trained on swiss_roll, which has no file"):
        Run.open(run.folder, data=tmp_path)
    with pytest.raises(UserError, match="uses no such run"):
        Run.open(run.folder, teacher=tmp_path)


@pytest.mark.slow
def test_other_runs_may_move_and_must_stay_what_they_were(made, tmp_path):
    """A student and a successor are resumed with their runs elsewhere, sampled without them, and refuse others."""
    shutil.copytree(made / "run", tmp_path / "first")
    table = made / "data" / "table.csv"
    other = str(tmp_path / "first")
    student = config(table, method="rectified_meanflow", reflow=ReflowConfig(64, 2), teacher=other, init_from=other)
    run = Run.create(student, tmp_path / "student")
    (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(UserError, match=r"teacher = .*first: holds no run .*--teacher"):
        Run.open(run.folder).train(QUIET)
    places = {"teacher": tmp_path / "second", "init_from": tmp_path / "second"}
    Run.open(run.folder, **places).train(QUIET)
    assert Run.open(run.folder).load(QUIET)[1] == 4  # alone
    Run.open(run.folder, teacher=tmp_path / "second").train(QUIET)  # what it started from is behind it
    Run.create(config(table, seed=1), tmp_path / "other").train(QUIET)
    with pytest.raises(UserError, match=r"teacher = .*other: other weights than those"):
        Run.open(run.folder, teacher=tmp_path / "other").train(QUIET)


def test_the_place_of_files_tells_no_training_from_another():
    first, second = (
        config(name, teacher=run, init_from=run) for name, run in (("/a/t.csv", "/a/run"), ("/b.csv", "/b"))
    )
    assert identity(first) == identity(second)
    assert to_json(first) != to_json(second)
    assert identity(config("two_moons")) != identity(config("swiss_roll"))


def test_runs_that_remember_nothing(made, tmp_path):
    """They go on with data that have moved, and refuse other points."""
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    table = write(tmp_path / "elsewhere.csv")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    Run.open(tmp_path / "run", data=table).train(QUIET)
    again, before = (
        json.loads((folder / "run" / "checkpoints" / "4" / "facts" / "metadata").read_text())
        for folder in (tmp_path, made)
    )
    assert again["fingerprint"] == before["fingerprint"]
    with pytest.raises(UserError, match="other data"):
        Run.open(tmp_path / "run", data=write(table, SHUFFLED)).load(QUIET)


def test_a_damaged_memory_is_one_line(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / FILE).write_bytes(b"PK half of it")
    with pytest.raises(UserError, match=r"inputs\.npz: not readable"):
        Run.open(tmp_path / "run").load(QUIET)


def test_samples_replace_nothing_that_is_needed(made, tmp_path, capsys):
    """Neither the table, by whatever name, nor files of a run, nor a JSON file that is none of ours; samples, yes."""
    table = made / "data" / "table.csv"
    (tmp_path / "link.csv").symlink_to(table)
    (tmp_path / "hard.csv").hardlink_to(table)
    before = table.read_bytes()
    for out, message in [
        (table, "would overwrite an input"),
        (tmp_path / "link.csv", "would overwrite an input"),
        (tmp_path / "hard.csv", "would overwrite an input"),
        (made / "run" / "samples" / "step-00000004.npy", "inside the run"),
        (made / "run" / "config.npy", "inside the run"),
    ]:
        status, _, err = vamf("sample", made / "run", "--n", 3, "--out", out, capsys=capsys)
        assert (status, err.count("\n"), message in err) == (2, 1, True)
    assert table.read_bytes() == before
    assert [path.name for path in (made / "data").iterdir()] == ["table.csv"]
    for seed in (0, 1):
        assert vamf("sample", made / "run", "--seed", seed, "--out", tmp_path / "s.csv", capsys=capsys)[0] == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 65


def test_the_safety_of_a_run_is_no_other_run(made, tmp_path):
    """What may be edited still may."""
    shutil.copytree(made / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.config = dataclasses.replace(run.config, checkpoints=CheckpointConfig(keep=7))
    assert run.load(QUIET)[1] == 4
