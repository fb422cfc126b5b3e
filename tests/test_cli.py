"""The command line as its users meet it."""

import html
import io
import json
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from vamf import cli
from vamf.commands import aliases
from vamf.errors import UserError
from vamf.objectives import METHODS
from vamf.progress import Progress
from vamf.training.presets import PRESETS
from vamf.training.run import Run

FAST = ["--steps", "20", "--batch-size", "16", "--checkpoint-every", "10", "--log.every", "10", "--network.width", "16"]


def run(*arguments, capsys):
    """Exit status, standard output and standard error of a command."""
    try:
        cli.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    cli.main(["train", "digits", *FAST, "--optimizer.ema-decays", "0.5", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(1000, 5, 200), rng.uniform(0, 1e-3, 200), np.full(200, 7.0)])
    (folder / "my.csv").write_text("height,mass,constant\n" + "\n".join(",".join(map(str, row)) for row in rows))
    cli.main(["train", str(folder / "my.csv"), *FAST, "--out", str(folder / "run")])
    return folder / "run"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["jump"], "command 'jump': allowed are train"),
        (["train"], "train needs a CONFIG"),
        (["train", "swiss_rol"], "did you mean swiss_roll?"),
        (["train", "nothing.csv"], "nothing.csv: no such file"),
        (["train", "swiss_roll", "--method", "magic"], "method = 'magic': allowed are flow_matching, meanflow, vamf"),
        (["train", "swiss_roll", "--beta", "1.5"], "beta = 1.5: allowed is [0, 1]"),
        (["train", "swiss_roll", "--beta", "soon"], "beta = 'soon': allowed is a number or"),
        (["train", "swiss_roll", "--beta", "linear:0:3"], "beta = 3.0: allowed is [0, 1]"),
        (["train", "swiss_roll", "--method", "meanflow", "--beta", "0.5"], "--beta, 0.5 (an option of vamf"),
        (["train", "swiss_roll", "--proxy", "none"], "proxy = 'none'"),
        (
            ["train", "swiss_roll", "--times.flow-matching-ratio", "-0.1"],
            "times.flow-matching-ratio = -0.1: allowed is [0, 1]",
        ),
        (["train", "swiss_roll", "--times.max-gap", "0"], "times.max-gap = 0.0"),
        (["train", "swiss_roll", "--steps", "many"], "--steps = many: allowed is INT"),
        (["train", "swiss_roll", "--steps", "0"], "steps = 0: allowed is 1 or more"),
        (["train", "swiss_roll", "--optimizer.ema-decay", "1"], "optimizer.ema-decay = 1.0"),
        (["train", "swiss_roll", "--optimizer.ema-decays", "0.9", "1.5"], "optimizer.ema-decays = 1.5"),
        (["train", "two_moons", "--method", "meanflow", "--optimizer.ema-target", "0.5"], "optimizer.ema-target = 0.5"),
        (["train", "swiss_roll", "--network.time-features", "3"], "network.time-features = 3"),
        (["train", "swiss_roll", "--speed", "9"], "--speed"),
        (["train", "--resume", "nowhere"], "nowhere: holds no run"),
        (["train", "--resume", "nowhere", "--lr", "5"], "--resume takes the run's folder and nothing else"),
        (["train", "--resume", "nowhere", "--lr", "5"], "vamf train CONFIG ... --init-from RUN"),
        (["train", "--resume", "nowhere", "--steps", "5"], "nowhere: holds no run"),
        (["train", "--resume", "nowhere", "--data", "x.csv"], "nowhere: holds no run"),
        (["train", "swiss_roll", "--resume", "nowhere"], "--resume takes the run's folder and nothing else"),
        (["sample", "nowhere", "--out", "x.npy"], "nowhere: holds no run"),
        (["trian"], "command 'trian' (did you mean train?): allowed are train"),
        (["train", "swiss_roll", "--lerning-rate", "1"], "--lerning-rate, 1 (did you mean --learning-rate?)"),
        (["train", "swiss_roll", "--epochs", "3"], "epochs = 3: swiss_roll has no number of rows"),
        (["train", "swiss_roll", "--epochs", "3", "--steps", "9"], "--epochs and --steps: choose one of them"),
        (["train", "digits", "--epochs", "-1"], "epochs = -1.0: allowed is any number above 0"),
        (["sample", "nowhere", "--out", "x.npy", "--samper", "heun"], "(did you mean --sampler?)"),
        (["sample"], "Missing from vamf sample: RUN"),
        (["evaluate", "nowhere"], "nowhere: holds no run"),
        (["study", "everything"], "toys"),
        (["compare"], "Missing from vamf compare: --data"),
        (["compare", "meanflow", "meanflux", "--data", "swiss_roll"], "method = 'meanflux' (did you mean meanflow?)"),
        (["compare", "meanflow", "--data", "swiss_rolls"], "did you mean swiss_roll?"),
        (["compare", "meanflow", "meanflow", "--data", "swiss_roll"], "named twice"),
        (["train", "swiss_roll", "--method", "rectified_meanflow"], "--teacher RUN"),
        (["train", "swiss_roll", "--method", "meanflow_rae"], "--teacher RUN"),
        (["train", "swiss_roll", "--method", "ddpm", "--times", "uniform"], "times: the method ddpm draws the steps"),
        (["train", "ddpm_cifar10", "--method", "meanflow"], "network.predicts = noise: is for flow_matching and ddpm"),
        (["train", "swiss_roll", "--method", "meanflow_rae", "--teacher", "nowhere"], "nowhere: holds no run"),
        (["study", "toys", "--quick", "--paper"], "choose one of them"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_the_letters_of_a_path(tmp_path, monkeypatch):
    """The file is written and the path told, as far as the terminal can; its status is that of success."""
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    cli.main(["data", "images", str(tmp_path / "x.npz"), "--out", str(tmp_path / "\u00e9\u732b.npz")])
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(b"\\xe9\\u732b.npz\n")
    assert (tmp_path / "\u00e9\u732b.npz").exists()


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    """Neither by images nor by statistics or a receipt."""
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    before = (tmp_path / "x.npz").read_bytes()
    for words in (
        ["data", "images", tmp_path / "x.npz", "--out", tmp_path / "x.npz"],
        ["fid", tmp_path / "x.npz", tmp_path / "x.npz", "--weights", "pixels", "--save", tmp_path / "x.npz"],
        ["fid", tmp_path / "x.npz", tmp_path / "x.npz", "--weights", "pixels", "--metadata", tmp_path / "x.npz"],
    ):
        status, _, err = run(*words, capsys=capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert "x.npz: would overwrite an input" in err
    assert (tmp_path / "x.npz").read_bytes() == before


def test_no_device_is_one_line(monkeypatch, capsys):
    """Whatever the error was that JAX met it with."""

    def nothing(*_):
        raise AssertionError

    monkeypatch.setattr("jax.devices", nothing)
    monkeypatch.setitem(cli.COMMANDS, "evaluate", nothing)
    status, out, err = run("evaluate", "run", capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "JAX cannot compute there (there is no such device)" in err


@pytest.mark.slow
def test_a_platform_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "vamf", "train", "two_moons", "--steps", "5"]
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vamf: JAX_PLATFORMS = cuda: JAX cannot compute there")
    assert list(tmp_path.iterdir()) == []


def test_bad_table_is_named_by_row_and_column(tmp_path, capsys):
    rows = [["x", "y"], *[["1", "2"] for _ in range(40)]]
    rows[7][1] = "n/a"
    (tmp_path / "bad.csv").write_text("\n".join(",".join(row) for row in rows))
    status, _, err = run("train", tmp_path / "bad.csv", "--out", tmp_path / "run", capsys=capsys)
    assert status == 2
    assert "row 7 (line 8), column 2 (y) is 'n/a'" in err
    assert not (tmp_path / "run").exists()


def test_help_is_fast_and_complete():
    """Help must not wait for the heavy imports."""
    code = "import sys; from vamf.cli import main; main(['--help']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert name in done.stdout


def test_command_help(capsys):
    for command in cli.COMMANDS:
        status, out, _ = run(command, "--help", capsys=capsys)
        assert status == 0
        assert f"usage: vamf {command}" in out
    for command, names in {"sample": "RUN", "evaluate": "RUN", "diagnose": "RUN", "fid": "A B"}.items():
        _, out, _ = run(command, "--help", capsys=capsys)
        assert f"usage: vamf {command} [-h] [OPTIONS] {names}" in out
        assert not re.search("--(run|a|b) ", out)


def test_help_is_short_and_help_all_is_complete(capsys):
    _, short, _ = run("train", "--help", capsys=capsys)
    assert len(short.splitlines()) < 64
    presets, methods = re.search(r"presets: (.*?)\nmethods: (.*?)\n\n", short, re.DOTALL).groups()
    assert presets.split() == list(PRESETS)
    assert methods.split() == list(METHODS)
    kinds = ("--network KIND", "--times KIND", "--weighting KIND", "--path KIND", "--terms KIND")
    for option in ("--beta", "--steps", "--epochs", "--guidance.scale", "--out", "--help-all", "--lr", *kinds):
        assert option in short
    assert "--guard.patience INT" not in short
    _, whole, _ = run("train", "digits", "--network", "dit", "--help-all", capsys=capsys)
    for option in ("--anchor.weight", "--times.max-gap", "--guard.patience", "--profile", *kinds):
        assert option in whole
    assert "--network.times 't,t-r' | 't,r' | 't,r,t-r' | t-r" in whole
    _, method, _ = run("train", "digits", "--method", "alphaflow", "--help", capsys=capsys)
    for name in ("times.r-mean", "bank.memory", "anchor.weight", "flow-matching.times KIND"):
        assert f"--{name}" in method
    assert "--beta" not in method


def test_other_names_of_options(capsys, tmp_path, monkeypatch):
    """One table; each is the option itself, and no command has an option of such a name."""
    monkeypatch.chdir(tmp_path)
    words = ["--lr", "2e-3", "--bs=32", "--iters", "7", "-o", "out"]
    assert aliases.expand(["train", "two_moons", *words]) == [
        "train", "two_moons", "--learning-rate", "2e-3", "--batch-size=32", "--steps", "7", "--out", "out"
    ]  # fmt: skip
    for command in ("train", "estimate", "sweep", "sample", "evaluate", "diagnose", "compare", "fid"):
        _, out, _ = run(command, "--help-all" if command in ("train", "estimate", "sweep") else "--help", capsys=capsys)
        assert not {word for line in out.splitlines() if "for --" not in line for word in line.split()[1:2]} & {
            *aliases.ALIASES
        }
    monkeypatch.setattr(Run, "create", lambda config, out, *_, **__: (_ for _ in ()).throw(UserError(repr(config))))
    _, _, err = run("train", "two_moons", "--lr", "2e-3", "--batch", 32, "--max_steps", 7, capsys=capsys)
    for part in ("steps=7", "batch_size=32", "learning_rate=0.002"):
        assert part in err
    assert aliases.option("lr") == "learning_rate"


def test_runs_of_another_version_are_refused_in_one_line(digits_run, tmp_path, capsys):
    """Their options have other names; nothing is guessed."""
    values = json.loads((digits_run / "config.json").read_text())
    assert values.pop("format") == 3
    for version in ({}, {"format": 1}, {"format": 2}, {"format": 4}):
        (tmp_path / "config.json").write_text(json.dumps(version | values))
        for words in (["train", "--resume", tmp_path], ["sample", tmp_path, "--out", "s.npy"], ["evaluate", tmp_path]):
            status, out, err = run(*words, capsys=capsys)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert "config.json: of a run that another version of vamf made" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_run_is_not_overwritten(digits_run, capsys):
    before = (digits_run / "config.json").read_text()
    status, _, err = run("train", "digits", "--out", digits_run, capsys=capsys)
    assert status == 2
    assert "holds another run" in err
    assert (digits_run / "config.json").read_text() == before


def test_train_ends_with_distances_and_a_report(digits_run):
    report = (digits_run / "report.html").read_text()
    assert "data:image/png;base64," in report
    for elsewhere in ('src="http', 'href="http', "@import", "<script"):
        assert elsewhere not in report
    assert "of the EMA 0.999" in report
    assert "mean ± standard deviation over 10 draws" in report
    assert set(json.loads((digits_run / "evaluation.json").read_text())["distances"]) >= {"1 step", "baseline"}


def test_what_the_report_prints_repeats_the_run(digits_run, tmp_path, capsys, monkeypatch):
    """Run as it stands: the same configuration, and the same bits."""
    page = html.unescape((digits_run / "report.html").read_text())
    words = shlex.split(re.search(r"Repeat: <code>vamf (train .*?)</code>", page)[1])
    known = json.loads((digits_run / "evaluation.json").read_text())
    monkeypatch.setattr(Run, "evaluate", lambda *_, **__: known)  # which is another test's
    assert run(*words, "--out", tmp_path / "again", capsys=capsys)[0] == 0
    first, again = Run.open(digits_run), Run.open(tmp_path / "again")
    assert again.config == first.config
    states = [one.load(Progress(show=False))[0] for one in (first, again)]
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sample_npy_png_and_label(digits_run, tmp_path, capsys):
    status, out, _ = run("sample", digits_run, "--n", 12, "--label", 3, "--out", tmp_path / "s.npy", capsys=capsys)
    assert status == 0
    assert "12 samples in 1 step" in out
    assert np.load(tmp_path / "s.npy").shape == (12, 64)
    assert run("sample", digits_run, "--n", 12, "--steps", 4, "--out", tmp_path / "s.png", capsys=capsys)[0] == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    status, _, err = run("sample", digits_run, "--label", 12, "--out", tmp_path / "t.npy", capsys=capsys)
    assert status == 2
    assert "label = 12: allowed is 0 to 9" in err
    status, _, _ = run("sample", digits_run, "--n", 20, "--label=each", "--out", tmp_path / "each.npy", capsys=capsys)
    assert status == 0
    each, threes = (np.load(tmp_path / name) for name in ("each.npy", "s.npy"))
    np.testing.assert_allclose(each[3], threes[3], atol=2e-5)  # the same noise, and class 3 is the fourth in turn
    assert not np.allclose(each[4], threes[4], atol=2e-5)
    status, _, err = run("sample", digits_run, "--out", tmp_path / "t.gif", capsys=capsys)
    assert status == 2
    assert ".npy, .npz, .csv for tables, and .png or a folder for images" in err


@pytest.mark.slow
def test_samples_of_a_table_are_in_its_units(table_run, tmp_path, capsys):
    assert run("sample", table_run, "--n", 300, "--out", tmp_path / "s.csv", capsys=capsys)[0] == 0
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "height,mass,constant"
    drawn = np.loadtxt(lines[1:], delimiter=",")
    assert drawn.shape == (300, 3)
    # Hardly trained, the generator is near the identity: noise in the units of the data.
    np.testing.assert_allclose(drawn.mean(axis=0), [1000, 5e-4, 7], rtol=0.3)
    assert 2 < drawn[:, 0].std() < 10
    np.testing.assert_array_equal(drawn[:, 2], 7)
    assert run("sample", table_run, "--n", 300, "--out", tmp_path / "s.npz", capsys=capsys)[0] == 0
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_array_equal(written["x"], drawn)  # no digit is lost
        assert written.files == ["x"]
    status, _, err = run("sample", table_run, "--out", tmp_path / "s.png", capsys=capsys)
    assert status == 2
    assert "no images" in err


def test_sample_seed(digits_run, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("sample", digits_run, "--n", 5, "--seed", seed, "--out", tmp_path / f"{name}.npy", capsys=capsys)
    first, same, other = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_sample_by_the_name_of_an_average(digits_run, tmp_path, capsys):
    for ema, said in ((0.999, "EMA 0.999"), (0.5, "EMA 0.5"), ("none", "no EMA")):
        out = tmp_path / f"{ema}.npz"
        assert said in run("sample", digits_run, "--n", 5, "--ema", ema, "--out", out, capsys=capsys)[1]
        assert json.loads(out.with_suffix(".json").read_text())["ema"] == ema
    assert len({np.load(path)["images"].tobytes() for path in tmp_path.glob("*.npz")}) == 3
    status, _, err = run("sample", digits_run, "--ema", 0.7, "--out", tmp_path / "s.npy", capsys=capsys)
    assert (status, err) == (
        2,
        "vamf: ema = 0.7: this run has the EMAs 0.999, 0.5; none is the parameters themselves\n",
    )


@pytest.mark.slow
def test_samplers_by_name(table_run, tmp_path, capsys):
    drawn, said = {}, {}
    for name in ("flow_map", "restart", "heun", "euler", "fast_flow"):
        out = tmp_path / f"{name}.npy"
        status, said[name], _ = run(
            "sample", table_run, "--n", 200, "--steps", 9, "--sampler", name, "--out", out, capsys=capsys
        )
        assert status == 0
        drawn[name] = np.load(out)
        assert drawn[name].shape == (200, 3)
    run("sample", table_run, "--n", 200, "--steps", 9, "--out", tmp_path / "default.npy", capsys=capsys)
    np.testing.assert_array_equal(drawn["flow_map"], np.load(tmp_path / "default.npy"))
    assert said["flow_map"].startswith("200 samples in 9 steps (training step")
    assert said["heun"].startswith("200 samples in 9 steps of heun (training step")
    scale = drawn["euler"].std(axis=0)[:2]

    def apart(name, other):
        return np.max(np.abs(drawn[name] - drawn[other])[:, :2] / scale)

    assert apart("heun", "euler") < 0.5 < apart("restart", "euler")  # the same ODE, and noise of its own
    found = re.search(r"9 steps of fast_flow, (\d+) network calls for 4 batches of 64, (\S+) each", said["fast_flow"])
    assert 9 <= int(found[1]) < 36
    assert float(found[2]) == pytest.approx(int(found[1]) / 4, abs=0.05)
    np.testing.assert_allclose(drawn["fast_flow"][:64], drawn["euler"][:64], rtol=1e-5)  # nothing is skipped yet


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sampler", "fast_flow", "--steps", "1"], "steps = 1: allowed is 4 or more with fast_flow"),
        (["--sampler", "restart", "--steps", "0"], "steps = 0: allowed is 1 or more"),
        (["--sampler", "ancestral", "--steps", "1001"], "steps = 1001: allowed is 1 to 1000 with ancestral"),
        (["--sampler", "rk4"], "--sampler"),
        (["--guidance-interval", "0.2", "0.8"], "guidance-interval = 0.2 0.8: only with --guidance"),
    ],
)
def test_samplers_are_refused_in_one_line(options, expected, digits_run, tmp_path, capsys):
    status, _, err = run("sample", digits_run, *options, "--out", tmp_path / "s.npy", capsys=capsys)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s.npy").exists()


def test_evaluate_json(digits_run, capsys):
    status, out, _ = run("evaluate", digits_run, "--json", capsys=capsys)
    assert status == 0
    result = json.loads(out)
    assert result["step"] == 20
    assert result["reference"] == 180  # the images held out
    assert result["ema"] == 0.999
    assert result["distances"]["baseline"]["sw1_std"] > 0
    status, out, _ = run("evaluate", digits_run, "--ema", "all", capsys=capsys)
    assert status == 0
    assert all(f"1 step, {weights} " in out for weights in ("EMA 0.999", "EMA 0.5", "no EMA"))
    assert "±" in next(line for line in out.splitlines() if "baseline" in line)


def test_resume_of_a_finished_run_changes_nothing(digits_run, capsys):
    before = (digits_run / "metrics.jsonl").read_text()
    assert run("train", "--resume", digits_run, capsys=capsys)[0] == 0
    assert (digits_run / "metrics.jsonl").read_text() == before
