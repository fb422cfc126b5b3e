"""Exported files give the samples that the run gives, in programs that do not have vamf."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from safetensors.numpy import load_file

from vamf import cli, export, sampling
from vamf.average_velocity import flow_map
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.errors import UserError
from vamf.export import few_step, onnx, safetensors, stablehlo, units
from vamf.networks import DiTConfig, InContextConfig, MLPConfig, UNetConfig
from vamf.progress import Progress
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.presets import for_data
from vamf.training.run import Run
from vamf.training.step import build_network, rng_streams

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
ROWS = 40
RANDOM = np.random.default_rng(0)
LABEL = np.array(["cat", "dog", "owl", "yak"])[np.arange(ROWS) % 4]
IMAGES = {
    "x": RANDOM.integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8),
    "label": LABEL,
    "vector": RANDOM.normal(size=(ROWS, 3)) * 5 + 7,
    "image": RANDOM.integers(0, 256, (ROWS, 8, 8, 2), dtype=np.uint8),
}
TABLE = {"x": RANDOM.normal(size=(ROWS, 3)) * 4 + 100, "label": LABEL, "vector": RANDOM.normal(size=(ROWS, 2))}
KINDS = {
    "mlp": (MLPConfig(width=16, depth=2), TABLE),
    "dit": (DiTConfig(depth=2, width=16, heads=2, patch=4, qk_norm=True, dtype="bfloat16"), IMAGES),
    "in_context": (InContextConfig(depth=2, width=16, heads=2, patch=4, head_depth=1), IMAGES),
    "unet": (UNetConfig(channels=4, multipliers=(1, 2), blocks=1, attention=(4,), time_features=8), IMAGES),
}
GUIDED = {"guidance": {"scale": 3.0, "scale_power": 1.0, "dropout": 0.1}}


def create(folder, network, data, **options):
    log = LogConfig(every=2, variance_every=0)
    config = TrainConfig("memory", steps=2, batch_size=8, network=network, log=log, **options)
    return Run.create(config, folder, data=data)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def random_velocity(run, scale=0.1):
    """The run's network with random weights, none of them 0."""
    network = build_network(run.config, run.dataset)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return network.bind(params)


def conditions(run, n):
    """Conditions of n rows in the data's units, with numbers of classes."""
    rows = {} if run.dataset.conditions is None else dict(run.dataset.conditions.draw(n, 0))
    return {name: values.astype(np.int32 if name == "label" else np.float32) for name, values in rows.items()}


def onnx_samples(contents, inputs):
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    return onnxruntime.InferenceSession(contents).run(["samples"], arrays)[0]


def stablehlo_samples(contents, inputs):
    return np.asarray(jax.export.deserialize(bytearray(contents)).call(*inputs.values()))


def serialize(kind, program):
    return kind.serialize(program, program.metadata)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = create(tmp_path_factory.mktemp(kind) / "run", *KINDS[kind])
        return made[kind]

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the digits' preset that has hardly begun."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    run = Run.create(for_data("digits", steps=3, batch_size=16, log=LogConfig(every=3, variance_every=0)), folder)
    run.train(Progress(show=False))
    return run


# ------------------------------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("kind", KINDS)
def test_onnx(runs, kind):
    """Against the sampler of the package, in the units of the data set; any number of rows."""
    run = runs(kind)
    u = random_velocity(run)
    program = few_step.few_step_map(run, u, float32=True)
    contents = serialize(onnx.Onnx(), program)
    names = [name for name in ("label", "vector", "image") if name in KINDS[kind][1]]
    assert [one.name for one in program.inputs] == ["noise", *names]
    noise, rows = normal(5, *run.dataset.event_shape), conditions(run, 5)
    cond, _ = run.dataset.encode(rows) if rows else (None, None)
    expected = sampling.sample(getattr(u, "precise", u), noise, label=jax.tree.map(jnp.asarray, cond))
    for n in (1, 5):
        samples = onnx_samples(contents, {"noise": noise[:n], **{name: part[:n] for name, part in rows.items()}})
        difference = (samples - run.dataset.to_original(np.asarray(expected[:n]))) / run.dataset.scale
        assert np.abs(difference).max() < 1e-4
    assert np.std(expected - noise) > 0.05  # the network does something
    assert np.std(expected) < 10  # outputs of size one


@pytest.mark.parametrize("kind", ["mlp", "in_context"])
def test_stablehlo(runs, kind):
    """Two jumps, with a row without class among others."""
    run = runs(kind)
    u = random_velocity(run)
    contents = serialize(stablehlo.StableHLO(), few_step.few_step_map(run, u, steps=2))
    assert jax.export.deserialize(bytearray(contents)).platforms == stablehlo.PLATFORMS
    noise, rows = normal(5, *run.dataset.event_shape), conditions(run, 5)
    rows["label"][0] = -1
    expected = sampling.sample(u, noise, 2, jax.tree.map(jnp.asarray, run.dataset.encode(rows)[0]))
    for n in (1, 5):
        samples = stablehlo_samples(contents, {"noise": noise[:n], **{name: part[:n] for name, part in rows.items()}})
        difference = (samples - run.dataset.to_original(np.asarray(expected[:n]))) / run.dataset.scale
        assert np.abs(difference).max() < 1e-5


def test_guidance_is_an_input_or_fixed(tmp_path):
    data = {"x": IMAGES["x"], "label": LABEL}
    run = create(tmp_path / "run", KINDS["in_context"][0], data, method="improved_meanflow", objective=GUIDED)
    u = random_velocity(run, 0.4)
    noise, label = normal(3, 8, 8, 3), np.array([0, 3, -1], np.int32)
    program = few_step.few_step_map(run, u)
    assert "or -1 for none" in program.inputs[1].meaning
    free, fixed = (serialize(onnx.Onnx(), one) for one in (program, few_step.few_step_map(run, u, 1, (2.5, 0.1, 0.9))))
    by_input = {"noise": noise, "label": label, "guidance": np.array([1, 2, 2.5], np.float32)}
    for contents, inputs, scale in (
        (free, by_input, GuidanceScale(jnp.array([1, 2, 2.5]), jnp.zeros(3), jnp.ones(3))),
        (fixed, {"noise": noise, "label": label}, GuidanceScale(*(jnp.full(3, one) for one in (2.5, 0.1, 0.9)))),
    ):
        cond = Conditioning(jnp.asarray(label), scale=scale)
        expected = run.dataset.to_original(np.asarray(flow_map(u, noise, jnp.ones(3), jnp.zeros(3), cond)))
        assert np.abs(onnx_samples(contents, inputs) - expected).max() < 1e-4 * 127.5
    plain = flow_map(u, noise, jnp.ones(3), jnp.zeros(3), jnp.asarray(label))
    assert np.abs(expected - run.dataset.to_original(np.asarray(plain))).max() > 0.1  # guidance matters
    with pytest.raises(UserError, match=r"guidance = 0\.5: allowed is 1"):
        few_step.check(run, 1, (0.5, 0.0, 1.0))


@pytest.mark.parametrize("whitening", [0.0, 0.01])
def test_units_are_those_of_the_table(tmp_path, whitening):
    """Constant and integer columns, and whitened coordinates."""
    x = np.array(normal(ROWS, 4))
    x[:, 1], x[:, 2] = 7.0, np.arange(ROWS) % 9
    run = create(tmp_path / "run", MLPConfig(width=8, depth=1), x, whitening=whitening)
    dataset = run.dataset
    z = np.asarray(normal(5, 3))
    back = units.to_original(dataset)(jnp.asarray(z))
    np.testing.assert_allclose(back, dataset.to_original(z), rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(back)[:, 1] == 7)
    assert (len(dataset.table.of_kind("integer")) > 0, dataset.inverse_transform is not None) == (True, whitening > 0)


class Doubled:
    """A change of coordinates from outside the package."""

    def __call__(self, samples):
        return samples / 2

    def forward(self, samples):
        return 2 * samples


def test_coordinates_without_a_rule_stay_in_the_networks_units(runs):
    dataset = dataclasses.replace(runs("mlp").dataset, inverse_transform=Doubled(), scale=2.0, shift=1.0)
    assert units.to_original(dataset) is None
    facts = units.describe_output(dataset, original=False)
    assert "Doubled" in facts["to_original"]
    assert (facts["units"], facts["scale"], facts["shift"]) == ("network", 2.0, 1.0)


# --------------------------------------------------------------------------------------------------------- whole files


def test_the_page(tmp_path, monkeypatch):
    """The examples of docs/export.md in their order: they train, write, and run without vamf."""
    monkeypatch.chdir(tmp_path)
    write, use, read = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(write.replace("STEPS = 2000", "STEPS = 4"), "example", "exec"), {})
    program = "import sys\nsys.modules['vamf'] = None\n" + use + "np.save('x.npy', x)\nnp.save('noise.npy', noise)\n"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference, *lines = done.stdout.splitlines()
    assert float(difference.split()[-1]) < 1e-4
    assert lines == ["noise ['n', 2] float32 standard normal", "samples ['n', 2] float32 "]
    run = Run.open(Path("runs/moons"))
    expected = sampling.sample(run.average_velocity(), jnp.asarray(np.load("noise.npy")))
    np.testing.assert_allclose(np.load("x.npy"), run.dataset.to_original(np.asarray(expected)), atol=1e-5)
    names = {}
    exec(compile(read, "example", "exec"), names)
    noise = jax.random.normal(jax.random.key(0), (1000, 2))
    np.testing.assert_array_equal(names["x"], sampling.sample(run.average_velocity(), noise, steps=2))


@pytest.mark.parametrize(("suffix", "steps"), [("onnx", 1), ("onnx", 3), ("stablehlo", 1)])
def test_the_runs_own_samples(trained, tmp_path, capsys, suffix, steps):
    """The preset's model from the same noise, by the command."""
    path = tmp_path / f"digits.{suffix}"
    cli.main(["export", str(trained.folder), "--out", str(path), "--steps", str(steps)])
    assert f"digits.{suffix}.json" in capsys.readouterr().out
    state, step = trained.load(Progress(show=False))
    expected = trained.sample(state, 20, steps=steps, seed=5, label=3)
    key = jax.random.split(rng_streams(5).sample)[0]
    noise = np.asarray(jax.random.normal(key, (20, *trained.dataset.event_shape)))
    read = onnx_samples if suffix == "onnx" else stablehlo_samples
    samples = read(path.read_bytes(), {"noise": noise, "label": np.full(20, 3, np.int32)})
    assert np.abs(samples - expected).max() < 1e-4
    facts = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts["training_steps"], facts["steps"], facts["data"]) == (step, steps, "digits")
    assert facts["output"]["image"]["brightest"] == 16.0


def test_weights(trained, tmp_path):
    model = export.write(trained, tmp_path / "digits", options=export.ExportOptions(ema="none"))
    arrays, folder = load_file(model), tmp_path / "digits"
    state, _ = trained.load(Progress(show=False))
    flat, _ = jax.tree.flatten_with_path(trained.weights(state, "none"))
    named = {"/".join(str(part.key) for part in path): leaf for path, leaf in flat}
    assert arrays.keys() == named.keys()
    assert all(np.array_equal(arrays[name], leaf) for name, leaf in named.items())
    z, at = normal(4, 64), jnp.full(4, 0.5)
    expected = trained.average_velocity(ema="none")(z, 0 * at, at, None)
    np.testing.assert_array_equal(export.load(folder)(z, 0 * at, at, None), expected)
    facts = json.loads((folder / "config.json").read_text())
    assert (facts["network"]["type"], facts["ema"], facts["event_shape"]) == ("mlp", "none", [64])
    (folder / "config.json").write_text(json.dumps(facts | {"sha256": "0"}))
    with pytest.raises(UserError, match="not the weights"):
        export.load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not of an exported network"):
        export.load(folder)
    with pytest.raises(UserError, match="No such file"):
        export.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        ([], {"method": "vamf", "objective": {"distribution_matching": {"weight": 1.0}, "proxy": "ema"}}),
        (["velocity"], {"method": "improved_meanflow", "objective": {"proxy": "head"}}),
    ],
)
def test_weights_of_networks_with_heads_and_conditions(tmp_path, monkeypatch, heads, options):
    """The second network of distribution matching is not part of them."""
    run = create(tmp_path / "run", KINDS["mlp"][0], TABLE, **options)
    state = run.ensemble.init()
    monkeypatch.setattr(run, "load", lambda *_: (state, 0))
    export.write(run, tmp_path / "net.safetensors")
    facts = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert facts["heads"] == heads
    assert facts["condition_shape"] == {"num_classes": 4, "vector": 2}
    z, at = normal(4, 3), jnp.full(4, 0.5)
    cond = Conditioning(jnp.array([0, 1, 2, 3]), vector=jnp.ones((4, 2)))
    expected = run.average_velocity(state)(z, 0 * at, at, cond)
    np.testing.assert_array_equal(export.load(tmp_path / "net.safetensors")(z, 0 * at, at, cond), expected)


def test_average_velocity_is_that_of_the_ensemble(trained):
    state, _ = trained.load(Progress(show=False))
    z, t = normal(4, 64), np.array([1.0, 0.7, 0.5, 0.1], np.float32)
    for ema in (None, "none"):
        u = trained.average_velocity(ema=ema)(jnp.asarray(z), 0.5 * jnp.asarray(t), jnp.asarray(t), None)
        expected = trained.ensemble.velocity(trained.ensemble.select_ema(state, ema), z, 0.5 * t, t)
        assert (u.shape, expected.shape) == ((4, 64), (1, 4, 64))
        np.testing.assert_allclose(u, expected[0], atol=1e-6)
    with pytest.raises(UserError, match=r"ema = 0\.5: this run has"):
        trained.average_velocity(ema=0.5)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--out m.pt", "out = m.pt: allowed are a file .safetensors, .stablehlo, .onnx, or a folder"),
        ("--out m.onnx --format stablehlo", "format = stablehlo: m.onnx is a file of onnx"),
        ("--out m --format torch", "format = torch: allowed are safetensors, stablehlo, onnx"),
        ("--out m --steps 2", "steps: format = safetensors holds the weights"),
        ("--out m --guidance 2", "guidance: format = safetensors holds the weights"),
        ("--out m.onnx --steps 0", "steps = 0: allowed is 1 or more"),
        ("--out m.onnx --guidance 2", "guidance = 2: this run's network is not conditioned on it"),
        ("--out m.onnx --guidance-interval 0 0.5", "only with --guidance"),
        ("--out m.onnx --ema 0.5", "ema = 0.5: this run has the EMAs"),
        ("--out m.onnx --checkpoint 7", "7"),
        ("--out there.onnx", "out = there.onnx: there.onnx exists already"),
        ("--out there", "out = there: there/config.json exists already"),
        ("--out m.onnx", "format = onnx: needs the package onnx; pip install 'vamf[export]'"),
        ("--out m.stablehlo", "format = stablehlo: needs the package flatbuffers; pip install 'vamf[export]'"),
    ],
)
def test_refused(trained, tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    Path("there").mkdir()
    Path("there/config.json").touch()
    if "package" in line:
        monkeypatch.setitem(sys.modules, re.search(r"package (\w+)", line)[1], None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(trained.folder), *words.split()])
    message = capsys.readouterr().err
    assert (stopped.value.code, message.count("\n"), sorted(tmp_path.rglob("*"))) == (2, 1, before)
    assert line in message


@pytest.mark.parametrize("method", ["flow_matching", "ddpm", "pairs"])
def test_runs_without_a_map_from_noise_are_refused(tmp_path, method):
    data, options = np.asarray(normal(ROWS, 2)), {"method": method}
    if method == "pairs":
        data, options = {"x": data, "start": data + 1}, {"objective": {"path": {"type": "pairs"}}}
    run = create(tmp_path / "run", MLPConfig(width=8, depth=1), data, **options)
    line = "do not begin at standard normal noise" if method == "pairs" else f"{method} learns no map"
    with pytest.raises(UserError, match=rf"{line}.*--format safetensors"):
        export.write(run, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


# --------------------------------------------------------------------------------------------------------- ONNX's rules


def through_onnx(function, *shapes):
    """A function of arrays (n, ...) and what its ONNX graph gives, for random inputs of four rows."""
    inputs = tuple(few_step.Input(f"x{i}", shape, "float32", "") for i, shape in enumerate(shapes))
    output = jax.eval_shape(function, *(jnp.zeros((4, *shape)) for shape in shapes))
    program = few_step.FewStepMap(inputs, function, {"output": {"shape": ["n", *output.shape[1:]]}})
    values = [normal(4, *shape) for shape in shapes]
    named = {one.name: value for one, value in zip(inputs, values, strict=True)}
    return onnx_samples(serialize(onnx.Onnx(), program), named), function(*values)


lax = jax.lax
FUNCTIONS = {
    "elementwise": lambda x: jnp.sign(x) * jnp.floor(x) + jnp.ceil(x) + jnp.abs(x) ** 1.5 + jnp.cos(x) - lax.erf(x),
    "powers": lambda x: lax.integer_pow(x, 5) + lax.integer_pow(x, -2) + lax.integer_pow(x, 0) + jnp.sqrt(x * x + 1),
    "logarithm": lambda x: jnp.log(1 + jnp.exp(-x)) + jax.nn.softmax(x, axis=-1) + jax.nn.gelu(x),
    "comparisons": lambda x: jnp.where(((x > 0) & (x <= 1)) | ~(x >= -1) | (x != x) | (x == 0) ^ (x < 2), x, -1.0),
    "rounded": lambda x: jnp.rint(3 * x) + jnp.clip(x, -0.5, 0.25) + lax.stop_gradient(x),
    "reductions": lambda x: x * x.sum(axis=(1, 2), keepdims=True) + x.min(axis=1)[:, None] + x.prod(axis=2)[..., None],
    "repeated": lambda x: jnp.broadcast_to(jnp.arange(3.0)[:, None], x.shape) + jnp.broadcast_to(x[:, :1], x.shape),
    "parts": lambda x: jnp.concatenate([x[:, ::2], x[:, 1:], jnp.stack([x[:, 0], x[:, -1]], axis=1)], axis=1),
    "taken": lambda x: jnp.take(x, jnp.array([2, 0, 1, 1]), axis=1),
    "batches": lambda x: jnp.einsum("nij,nkj->nik", x, x) @ x,
    "two sums": lambda x: jnp.einsum("nij,ij->n", x, jnp.arange(12.0).reshape(3, 4)),
    "matrix first": lambda x: jnp.einsum("ki,nij->nkj", jnp.arange(6.0).reshape(2, 3), x),
    "outer": lambda x: jnp.einsum("nij,nkl->nijkl", x, x),
    "checkpoint": lambda x: jax.checkpoint(lambda x: x * jnp.sin(x))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rule(name):
    result, expected = through_onnx(FUNCTIONS[name], (3, 4))
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, "SAME", 1, 1), (2, "SAME", 1, 2), (2, "VALID", 2, 1)]
)
def test_convolution(stride, padding, dilation, groups):
    kernel = normal(3, 3, 4 // groups, 6)

    def convolve(x):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation), feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    result, expected = through_onnx(convolve, (8, 8, 4))
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: jnp.sort(x, axis=-1), "the operation sort"),
        (lambda x: lax.fori_loop(0, 3, lambda _, x: x + 1, x), "the operation"),
        (lambda x: jnp.round(x) + lax.round(x), "round away from zero"),
        (lambda x: (x.astype(jnp.bfloat16) + 1).astype(x.dtype), "half precision"),
        (lambda x: x + jnp.arange(x.shape[0])[:, None, None], "the operation iota"),
    ],
)
def test_operations_without_a_rule_are_refused(function, what):
    with pytest.raises(UserError, match=rf"format = onnx: the network uses {what}.*--format stablehlo"):
        through_onnx(function, (3, 4))


def test_safetensors_names_are_paths():
    tree = {"blocks": {0: {"kernel": np.ones((2, 3), np.float32)}}, "scale": np.zeros(1, np.float32)}
    assert safetensors.flatten(tree).keys() == {"blocks/0/kernel", "scale"}


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_a_table_of_every_kind_of_column(tmp_path, form):
    """Long tails, ranks, integers, booleans and categories, as numbers, in a program as on the host."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "income": np.exp(rng.normal(3, 1.5, 200)),
            "debt": np.where(rng.random(200) < 0.4, 0.0, rng.normal(size=200)),
            "rooms": rng.poisson(3, 200),
            "owner": rng.random(200) < 0.3,
            "city": rng.choice(["Rome", "Oslo", "Lima"], 200),
        }
    )
    run = create(tmp_path / "run", MLPConfig(width=16, depth=2), {"x": frame}, method="meanflow")
    assert [column.transform for column in run.dataset.table.columns] == ["log", "quantile", "none", "none", "none"]
    u, noise = random_velocity(run), normal(5, *run.dataset.event_shape)
    program = few_step.few_step_map(run, u, float32=True)
    expected = run.dataset.to_original(np.asarray(sampling.sample(u, noise)))
    if form == "onnx":
        samples = onnx_samples(serialize(onnx.Onnx(), program), {"noise": noise})
    else:
        samples = stablehlo_samples(serialize(stablehlo.StableHLO(), program), {"noise": noise})
    np.testing.assert_allclose(samples, expected, rtol=2e-4, atol=2e-4)
    assert '"categories": ["Lima", "Oslo", "Rome"]' in json.dumps(program.metadata)
