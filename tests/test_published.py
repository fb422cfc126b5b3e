"""Weights of official codes: outputs beside independent forward passes, names and shapes, files, runs made of them."""

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

import official_networks as official
from modules import quick
from official_networks import Net
from pytorch_files import Raw, name, write_legacy, write_zip
from test_image_files import labels, pixels
from test_latents import channels, plain
from vamf import autoencoders, cli, published
from vamf.autoencoders import Autoencoder, kl
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.data import encoding
from vamf.data.to_images import make_to_images
from vamf.errors import UserError
from vamf.networks import DiTConfig, InContextConfig
from vamf.networks.unet import CIFAR10
from vamf.published import SOURCES, Architecture, Options, files, read, runs
from vamf.training import run as run_module
from vamf.training.run import Run
from vamf.training.step import build_network

DATA = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
WEIGHTS = DATA.parent / "weights"
"""Random networks in the official codes' own files, with their outputs."""
N = 3


# --------------------------------------------------------------------------------------------------------- checkpoints


def tree(arrays):
    return traverse_util.unflatten_dict({tuple(key.split("/")): value for key, value in arrays.items()})


def write_msgpack(path, arrays, **more):
    path.write_bytes(serialization.msgpack_serialize({**tree(arrays), **more}))
    return path


def state(arrays):
    """A training state of flax: the weights, and others that differ."""
    other = {key: np.zeros_like(value) for key, value in arrays.items()}
    sets = {"ema_params/net": arrays, "params/net": other}
    return {f"{prefix}/{key}": value for prefix, part in sets.items() for key, value in part.items()}


def options_of_a_script(values):
    """An `argparse.Namespace` as pickle writes it."""
    from pytorch_files import opcodes

    return Raw(name("argparse", "Namespace") + b")\x81" + opcodes(values) + b"b")


def write_torch(path, sets, write=write_zip, **more):
    """A PyTorch file of sets of tensors by name."""
    nested = {key: dict(arrays) for key, arrays in sets.items()}
    arrays = [array for part in sets.values() for array in part.values()]
    value = {**(nested.pop("") if "" in nested else {}), **nested, **more}
    return write(path, value, arrays)


DIT = Options(heads=2, size=8)
SIZE = {"width": 16, "depth": 3, "patch": 2, "channels": 4, "classes": 3}


def pos_embed():
    return np.zeros((1, 16, 16), np.float32)


def meanflow(path):
    make = official.dit(True, embedders=("t_embedder", "h_embedder"), **SIZE)
    write_msgpack(path / "checkpoint_12", state(make.arrays), step=12)
    return path / "checkpoint_12", DIT, Net(make.arrays, True)


def imeanflow(path):
    make = official.imeanflow()
    return write_msgpack(path / "w.msgpack", state(make.arrays), step=7), Options(size=8), Net(make.arrays, True)


def dmf(path, q_norm=0, scale=True):
    make = official.dit(False, q_norm=q_norm, **SIZE)
    make.arrays["pos_embed"] = pos_embed()
    if scale:
        make.linear("logvar_linear", 256, 1)
    file = write_torch(path / "dmf.pt", {"": make.arrays})
    return file, dataclasses.replace(DIT, decoupled_depth=1), Net(make.arrays, False)


def repa(path):
    make = official.dit(False, **SIZE)
    make.linear("projectors.0.0", 16, 8)
    sets = {"ema": make.arrays, "model": {key: np.zeros_like(value) for key, value in make.arrays.items()}}
    more = {"steps": 40, "args": options_of_a_script({"lr": 1e-4, "name": "x"})}
    return write_torch(path / "0000040.pt", sets, write_legacy, **more), DIT, Net(make.arrays, False)


def sit(path):
    make = official.dit(False, outputs=8, **SIZE)
    make.arrays["pos_embed"] = pos_embed()
    return write_torch(path / "sit.pt", {"": make.arrays}), DIT, Net(make.arrays, False)


def py_meanflow(path):
    make = official.unet()
    sets = {"model": {f"net_ema.{key}": value for key, value in make.arrays.items()}}
    sets["model"] |= {f"net.{key}": np.zeros_like(value) for key, value in make.arrays.items()}
    sets["model"]["num_updates"] = np.array(300)
    return write_torch(path / "last.pth", sets, epoch=4), Options(), Net(make.arrays, False)


def vamf_toys(path):
    make = official.Maker(True)
    for number, (rows, columns) in enumerate([(2 + 64, 8), (8, 8), (8, 8), (8, 2)]):
        make.normal(f"Dense_{number}/kernel", rows, columns)
        make.normal(f"Dense_{number}/bias", columns)
    return write_msgpack(path / "toy.msgpack", make.arrays), Options(), Net(make.arrays, True)


MAKE = {make.__name__: make for make in (meanflow, imeanflow, dmf, repa, sit, py_meanflow, vamf_toys)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A file of each source, the options it needs, and its network."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {source: make(folder) for source, make in MAKE.items()}


@pytest.fixture(scope="module")
def networks_read(checkpoints):
    return {source: read(file, source, options) for source, (file, options, _) in checkpoints.items()}


def test_every_source_is_tested():
    assert MAKE.keys() == SOURCES.keys()


# ------------------------------------------------------------------------------------------------------------- outputs


def arguments(shape, seed=1):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.2, 1, N)
    z, r, t = (a.astype(np.float32) for a in (rng.normal(size=(N, *shape)), t * rng.uniform(0, 0.9, N), t))
    return z, r, t, rng.integers(0, 4, N)  # of three classes, the fourth of which stands for none


def of_meanflow(net, z, r, t, label):
    return official.meanflow(net, z, r, t, label, heads=2)


def of_dmf(net, z, r, t, label):
    return official.dmf(net, z, r, t, label, heads=2, decoupled_depth=1)


def of_repa(net, z, r, t, label):
    """The velocity at t, whatever r: blocks and last layer take the same time."""
    return official.dmf(net, z, t, t, label, heads=2, decoupled_depth=3)


def of_sit(net, z, r, t, label):
    """Time and velocity point from noise to data there; the second half of the outputs is not used."""
    return -official.dmf(net, z, 1 - t, 1 - t, label, heads=2, decoupled_depth=3)[..., :4]


def of_vamf_toys(net, z, r, t, label):
    def embed(at):
        frequency = 10_000.0 ** (-np.arange(16) / 16)
        return np.concatenate([np.sin(at * frequency), np.cos(at * frequency)])

    x = np.concatenate([z, embed(r), embed(r) - embed(t)])
    for number in range(4):
        x = x @ net[f"Dense_{number}/kernel"] + net[f"Dense_{number}/bias"]
        x = x if number == 3 else official.silu(x)
    return x


@pytest.mark.parametrize("source", ["meanflow", "dmf", "repa", "sit", "vamf_toys"])
def test_outputs_are_those_of_the_description(source, checkpoints, networks_read):
    found, net = networks_read[source], checkpoints[source][2]
    z, r, t, label = arguments((2,) if source == "vamf_toys" else (8, 8, 4))
    r = t if source in ("repa", "sit") else r
    u = quick(found.bind())(z, r, t, None if source == "vamf_toys" else jnp.asarray(label))
    for row in range(N):
        expected = globals()[f"of_{source}"](net, z[row], r[row], t[row], label[row])
        np.testing.assert_allclose(u[row], expected, rtol=2e-5, atol=2e-5)


def test_improved_meanflow_has_both_outputs(checkpoints, networks_read):
    found, net = networks_read["imeanflow"], checkpoints["imeanflow"][2]
    z, r, t, label = arguments((8, 8, 4))
    scale = np.array([[1.0, 2.5, 7.0], [0.0, 0.1, 0.3], [1.0, 0.8, 0.9]], np.float32)
    cond = Conditioning(jnp.asarray(label), scale=GuidanceScale(*scale))
    u, v = quick(found.bind().with_velocity)(z, r, t, cond)
    for row in range(N):
        told = (t[row] - r[row], *scale[:, row], label[row])
        for branch, out in (("u", u), ("v", v)):
            expected = official.imf_forward(net, z[row], *told, heads=2, branch=branch)
            np.testing.assert_allclose(out[row], expected, rtol=2e-5, atol=2e-5)


def test_the_unet_with_augmentation(checkpoints, networks_read):
    found, net = networks_read["py_meanflow"], checkpoints["py_meanflow"][2]
    z, r, t, _ = arguments((8, 8, 3))
    augment = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    u = quick(found.bind())(z, r, t, Conditioning(augment=augment))
    for row in range(N):
        expected = official.unet_forward(net, z[row], r[row], t[row], augment[row])
        np.testing.assert_allclose(u[row], expected, rtol=5e-5, atol=5e-5)


def test_the_learned_scale_of_the_loss(checkpoints, networks_read, tmp_path):
    found, net = networks_read["dmf"], checkpoints["dmf"][2]
    r, t = map(jnp.asarray, arguments((8, 8, 4))[1:3])
    expected = [official.dmf_log_variance(net, *at) for at in zip(r, t, strict=True)]
    np.testing.assert_allclose(found.bind().log_variance(r, t), expected, rtol=1e-5, atol=1e-6)
    file, options, _ = dmf(tmp_path, scale=False)  # the official code may be without: 0, as at its start
    without = read(file, "dmf", options)
    np.testing.assert_array_equal(without.bind().log_variance(r, t), 0)


def test_normed_queries_tell_the_heads(tmp_path):
    file, _, net = dmf(tmp_path, q_norm=8)
    found = read(file, "dmf", Options(decoupled_depth=1))
    assert (found.network.heads, found.network.qk_norm) == (2, True)
    z, r, t, label = arguments((8, 8, 4))
    u = quick(found.bind())(z, r, t, jnp.asarray(label))
    np.testing.assert_allclose(u[0], of_dmf(net, z[0], r[0], t[0], label[0]), rtol=2e-5, atol=2e-5)
    with pytest.raises(UserError, match=r"heads = 4: blocks.0.attn.q_norm.scale has shape \(8,\), of 2"):
        read(file, "dmf", Options(heads=4))


# -------------------------------------------------------------------------------------------- names, shapes and sizes


PUBLISHED = {
    "meanflow": (Architecture(DiTConfig.named("B/4"), (32, 32, 4), 1000), 131_165_248),
    "imeanflow": (Architecture(InContextConfig.named("B/2"), (32, 32, 4), 1000, ("velocity",)), 145_596_960),
    "py_meanflow": (Architecture(CIFAR10, (32, 32, 3)), 55_932_419),
    # DiT-XL/2 is published with 675,129,632 parameters, of which 294,912 are the constants of the 256 places.
    "sit": (Architecture(DiTConfig.named("XL/2", decoupled_depth=28), (32, 32, 4), 1000), 675_129_632 - 294_912),
}


def official_shapes(source, architecture):
    """The official tensors of a network by their names."""
    row = SOURCES[source]
    network = build_network(
        dataclasses.replace(row.recipe(architecture), data="none"),
        row.inputs(architecture, row.recipe(architecture)).dataset(),
    )
    ours = published._shapes(network)
    parts = row.parameters(architecture)
    assert ours.keys() == parts.keys() | row.optional(architecture).keys()
    pairs = [
        pair for path, part in parts.items() for pair in zip(part.names, part.transform.shapes(ours[path]), strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)  # no tensor twice
    return dict(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(PUBLISHED))
def test_published_sizes(source):
    architecture, count = PUBLISHED[source]
    shapes = official_shapes(source, architecture)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    # The shapes alone tell the network again.
    options = Options(decoupled_depth=0)
    named = {**shapes, "pos_embed": (1, 256, 1152)} if source == "sit" else dict(shapes)
    for level in (16, 8) if source == "py_meanflow" else ():
        named[f"enc.{level}x{level}_down.skip.resample_filter"] = (1, 1, 4, 4)
    assert SOURCES[source].architecture(named, options) == architecture


@pytest.mark.parametrize("source", ["meanflow", "imeanflow", "dmf", "repa", "py_meanflow"])
def test_every_number_has_one_place(source, checkpoints):
    """Numbered throughout, all numbers of the file are among the parameters, each once."""
    _, options, net = checkpoints[source]
    names = list(official_shapes(source, SOURCES[source].architecture(shapes(net), options)))
    assert set(names) == {key for key in net.arrays if not SOURCES[source].is_unused(key)}
    ends = np.cumsum([net[key].size for key in names])
    numbered = {
        key: np.arange(end - net[key].size, end, dtype=np.float32).reshape(net[key].shape)
        for key, end in zip(names, ends, strict=True)
    }
    architecture = SOURCES[source].architecture(shapes(net), options)
    parts = SOURCES[source].parameters(architecture)
    every = np.concatenate(
        [np.ravel(part.transform.convert(*(numbered[key] for key in part.names))) for part in parts.values()]
    )
    np.testing.assert_array_equal(np.sort(every), np.arange(ends[-1]))


def shapes(net):
    return {key: array.shape for key, array in net.arrays.items()}


def changed(checkpoints, source, path, change):
    """The file of a source with its bare tensors changed."""
    arrays = {key: value.astype(np.float32) for key, value in checkpoints[source][2].arrays.items()}
    change(arrays)
    if checkpoints[source][2].flax:
        return write_msgpack(path / "changed.msgpack", arrays)
    return write_torch(path / "changed.pt", {"": arrays})


def rename(arrays):
    arrays["blocks.1.mlp.fc3.weight"] = arrays.pop("blocks.1.mlp.fc2.weight")


def cut(arrays):
    arrays["blocks/layers_1/mlp/fc1/_flax_linear/kernel"] = np.zeros((16, 63), np.float32)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("dmf", rename, "missing blocks.1.mlp.fc2.weight; unexpected blocks.1.mlp.fc3.weight"),
        ("meanflow", cut, r"blocks/layers_1/mlp/fc1/_flax_linear/kernel has shape \(16, 63\), needed is \(16, 64\)"),
        (
            "meanflow",
            lambda arrays: arrays.update({"noise_labels_next_embedder/mlp/layers_0/_flax_linear/bias": np.zeros(16)}),
            "unexpected noise_labels_next_embedder/mlp/layers_0/_flax_linear/bias",
        ),
        (
            "meanflow",
            lambda arrays: arrays.update({"x_embedder/proj/kernel": np.zeros((4, 4))}),
            r"x_embedder/proj/kernel has shape \(4, 4\), needed are 4 dimensions",
        ),
        ("imeanflow", lambda arrays: arrays.pop("omega_tokens"), "missing omega_tokens"),
        (
            "vamf_toys",
            lambda arrays: arrays.update({"Dense_0/kernel": np.zeros((64, 8))}),
            "Dense_0/kernel has 64 rows; needed are 64 for two times, and more for z",
        ),
    ],
)
def test_tensors_of_another_network_are_named(source, change, message, checkpoints, tmp_path):
    file, options, _ = changed(checkpoints, source, tmp_path, change), *checkpoints[source][1:]
    with pytest.raises(UserError, match=f"{file.name}: no network of {source}: {message}"):
        read(file, source, options)


def test_other_sources_are_named(checkpoints):
    with pytest.raises(UserError, match=r"no network of dmf: missing x_embedder.*; it looks like one of py_meanflow$"):
        read(checkpoints["py_meanflow"][0], "dmf")
    with pytest.raises(UserError, match="it looks like one of imeanflow"):
        read(checkpoints["imeanflow"][0], "meanflow")
    with pytest.raises(UserError, match=r"from = 'mine': allowed are meanflow, .*vamf.published.SOURCES"):
        read(checkpoints["dmf"][0], "mine")
    with pytest.raises(UserError, match=r"final_layer.linear.weight has shape \(16, 16\), needed is \(32, 16\)"):
        read(checkpoints["repa"][0], "sit", DIT)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("meanflow", Options(), "no published size has the width 16; name their number with --heads"),
        ("meanflow", Options(heads=3), "heads = 3: allowed are divisors of the width 16"),
        ("meanflow", Options(heads=2, size=7), "size = 7: allowed are multiples of the patch, 2"),
        ("imeanflow", Options(heads=3), r"heads = 3: shared_blocks_0/attn/q_norm/kernel has shape \(12,\)"),
        ("dmf", Options(heads=2, size=16), "size = 16: pos_embed has 16 places"),
        ("dmf", Options(heads=2, decoupled_depth=4), "decoupled-depth = 4: allowed are 1 to the depth 3"),
        ("py_meanflow", Options(size=32), "size = 32: enc.8x8_conv.weight is of images of 8x8"),
        ("py_meanflow", Options(ema="net_ema1"), "ema = net_ema1: this file has net_ema, net"),
        ("py_meanflow", Options(ema="best"), "ema = best: allowed are net_ema, net_ema1, net_ema2, net, weights"),
    ],
)
def test_options_that_disagree_with_the_file(source, options, message, checkpoints):
    with pytest.raises(UserError, match=message):
        read(checkpoints[source][0], source, options)
    with pytest.raises(UserError, match="size = -1: allowed"):
        Options(size=-1)


def test_defaults_of_what_the_shapes_do_not_tell():
    base = {"x_embedder.proj.weight": (64, 4, 2, 2), "y_embedder.embedding_table.weight": (11, 64)}
    for depth, expected in ((28, 20), (24, 18), (12, 8)):
        blocks = {f"blocks.{number}.attn.qkv.weight": (192, 64) for number in range(depth)}
        found = SOURCES["dmf"].architecture(base | blocks, Options())
        assert (found.network.decoupled_depth, found.network.heads, found.event_shape) == (expected, 1, (32, 32, 4))
        assert SOURCES["dmf"].architecture(base | blocks, Options(size=64)).event_shape == (64, 64, 4)


# --------------------------------------------------------------------------------------------------------------- files


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_weights_of_a_file_by_name(checkpoints, networks_read):
    assert (networks_read["meanflow"].weights, networks_read["meanflow"].step) == ("ema_params", 12)
    assert (networks_read["py_meanflow"].weights, networks_read["py_meanflow"].step) == ("net_ema", 300)
    assert (networks_read["repa"].weights, networks_read["repa"].step) == ("ema", 0)  # Python's numbers are left out
    file, options, _ = checkpoints["meanflow"]
    other = read(file, "meanflow", dataclasses.replace(options, ema="params"))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(other.params))
    # What the run will say of its EMA: one set of weights, with the decay of the official options.
    decays = [found.config.all_ema_decays for found in (*map(networks_read.get, ("py_meanflow", "meanflow")), other)]
    assert decays == [(0.9999,), (0.9999,), (0.0,)]


def test_folders_and_archives(checkpoints, networks_read, tmp_path):
    import orbax.checkpoint as ocp

    file, options, net = checkpoints["meanflow"]
    arrays = {key: value.astype(np.float32) for key, value in net.arrays.items()}
    folder = tmp_path / "run" / "checkpoint_20"
    older = tmp_path / "run" / "checkpoint_9"
    content = {**tree(state(arrays)), "step": 20, "opt_state": {"mu": np.zeros(3)}}
    ocp.PyTreeCheckpointer().save(folder.absolute(), content)
    shutil.copy(file, older)
    for place in (folder, folder.parent):  # the newest of several
        found = read(place, "meanflow", options)
        assert (found.step, found.weights) == (20, "ema_params")
        equal(found.params, networks_read["meanflow"].params)
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("__MACOSX/._checkpoint", b"x")
    equal(read(tmp_path / "weights.zip", "meanflow", options).params, networks_read["meanflow"].params)
    assert not list(tmp_path.glob("checkpoint*"))
    np.savez(tmp_path / "bare.npz", **arrays)
    equal(read(tmp_path / "bare.npz", "meanflow", options).params, networks_read["meanflow"].params)
    (folder / "_METADATA").write_text("{")
    (folder / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match="run/checkpoint_20: not a readable checkpoint of orbax"):
        read(tmp_path / "run", "meanflow", options)


def test_unreadable_files(checkpoints, tmp_path):
    file = checkpoints["meanflow"][0]
    (tmp_path / "cut.msgpack").write_bytes(file.read_bytes()[:-100])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "weights.bin2").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for number in range(2):
        shutil.copy(file, tmp_path / "two" / f"w{number}.msgpack")
    write_msgpack(tmp_path / "none.msgpack", {"name": "text"})
    for place, message in {
        "cut.msgpack": "truncated, or no msgpack of flax",
        "cut.zip": "truncated, or no zip archive",
        "weights.bin2": "a checkpoint is a folder of flax",
        "empty": "possible ones are none",
        "two": "possible ones are w0.msgpack, w1.msgpack",
        "none.msgpack": "no tensors in this file",
        "absent.pt": "no such file or folder",
    }.items():
        with pytest.raises(UserError, match=message) as raised:
            files.read(tmp_path / place)
        assert place in str(raised.value)
        assert "\n" not in str(raised.value)


def test_msgpack_executes_nothing(tmp_path):
    """Types beyond arrays and numbers are left out, as are names of Python's."""
    import msgpack

    content = {"w": np.ones(2, np.float32), "odd": msgpack.ExtType(77, b"os.system"), "text": "import os"}
    packed = msgpack.packb(content, default=lambda array: serialization._msgpack_ext_pack(array))
    (tmp_path / "odd.msgpack").write_bytes(packed)
    assert list(files.read(tmp_path / "odd.msgpack")) == ["w"]


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def imported(checkpoints, tmp_path_factory):
    """Runs of some sources."""
    folder = tmp_path_factory.mktemp("imported")
    made = {}
    for source in ("meanflow", "vamf_toys"):
        file, options, _ = checkpoints[source]
        runs.create(file, source, folder / source, options)
        made[source] = folder / source
    return made


SMALL = ["--steps", 2, "--batch-size", 16, "--log.every", 1, "--log.variance-every", 0, "--checkpoint-every", 2]


def command(*words):
    cli.main([str(word) for word in words])


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_a_run_has_the_weights_and_the_recipe(imported, networks_read, checkpoints):
    from vamf.progress import Progress

    run = Run.open(imported["meanflow"])
    state, step = run.load(Progress(show=False))
    found = networks_read["meanflow"]
    for part in (state.params, state.ema_params):
        equal(jax.tree.map(lambda leaf: leaf[0], run.inference.collect(part)), found.params)
    assert step == 12
    assert (run.config.method, run.config.latents.scale, run.config.data) == ("vamf", "factor", "none")
    origin = json.loads((imported["meanflow"] / "import.json").read_text())
    assert (origin["from"], origin["weights"], origin["file"]) == (
        "meanflow", "ema_params", str(checkpoints["meanflow"][0]))  # fmt: skip
    assert len(origin["sha256"]) == 64


def test_presets_of_the_published_networks():
    recipes = {
        source: dataclasses.replace(SOURCES[source].recipe(architecture), data="none")
        for source, (architecture, _) in PUBLISHED.items()
    }
    from vamf.training.presets import PRESETS

    for source, preset in {
        "meanflow": "imagenet_dit_b4",
        "imeanflow": "imagenet_in_context_b2",
        "py_meanflow": "cifar10_unet_v1",
    }.items():
        assert recipes[source] == dataclasses.replace(PRESETS[preset], data="none")
    large = Architecture(DiTConfig.named("XL/2"), (32, 32, 4), 1000)
    recipe = dataclasses.replace(SOURCES["meanflow"].recipe(large), data="none")
    assert recipe == dataclasses.replace(PRESETS["imagenet_dit_xl2"], data="none")


def test_units_of_latents(networks_read):
    """Samples decode as in the official codes: latents / 0.18215, and latents * std + mean."""
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    for source in ("meanflow", "dmf", "sit"):
        decoded = networks_read[source].inputs.dataset().to_original(x) / kl.SCALE
        np.testing.assert_allclose(decoded, x / 0.18215, rtol=1e-6)
    mean, std = [0.86488, -0.27787343, 0.21616915, 0.3738409], [4.85503674, 5.31922414, 3.93725398, 3.9870003]
    decoded = networks_read["imeanflow"].inputs.dataset().to_original(x) / kl.SCALE
    np.testing.assert_allclose(decoded, x * np.array(std) + mean, rtol=1e-5, atol=1e-5)


def test_images_are_bytes(networks_read):
    dataset = networks_read["py_meanflow"].inputs.dataset()
    x = np.linspace(-1.2, 1.2, 3 * 8 * 8 * 3).reshape(3, 8, 8, 3)
    expected = np.clip(np.rint(127.5 * x + 127.5), 0, 255)
    np.testing.assert_array_equal(make_to_images(dataset)(dataset.to_original(x)), expected)


def test_samples(imported, tmp_path, capsys, monkeypatch):
    command("sample", imported["meanflow"], "--n", 4, "--label", 2, "--out", tmp_path / "x.npy")
    x = np.load(tmp_path / "x.npy")
    run = Run.open(imported["meanflow"])
    assert x.shape == (4, 8, 8, 4)
    assert list(run.labels(4, 0, label="2")) == [2] * 4
    assert "latents of kl: name its weights with --autoencoder" in refusal(
        capsys, "sample", imported["meanflow"], "--n", 4, "--out", tmp_path / "x.png"
    )
    named = Autoencoder("kl", 4, 8, "0" * 64, channels, plain, None)
    monkeypatch.setattr(autoencoders, "load", lambda path, kind="auto": named)
    command("sample", imported["meanflow"], "--n", 4, "--out", tmp_path / "x.png", "--autoencoder", tmp_path / "a")
    assert (tmp_path / "x.png").exists()
    monkeypatch.setattr(autoencoders, "load", lambda path, kind="auto": named._replace(name="taesd"))
    assert "latents of kl; the autoencoder here is taesd" in refusal(
        capsys, "sample", imported["meanflow"], "--n", 4, "--out", tmp_path / "y.png", "--autoencoder", tmp_path / "a"
    )


def write_latents(path, classes=3):
    """A folder of latents of 8x8x4."""
    np.savez(path / "images.npz", images=pixels(40, 64, 64), labels=labels(40, classes))
    autoencoder = Autoencoder("kl", 4, 8, "0" * 64, channels, plain, None)
    folder = path / f"latents{classes}"
    encoding.encode(path / "images.npz", autoencoder, folder, encoding.LatentConfig(size=64, shard=40, batch_size=8))
    return folder


def test_data_for_a_run_without(imported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "EVALUATED", 16)
    monkeypatch.setattr(run_module, "BASELINES", 2)
    run = imported["meanflow"]
    says = refusal(capsys, "evaluate", run)
    assert "its weights were imported, without data; name data with --data: latents of Stable Diffusion's" in says
    assert "8x8x4, 3 classes" in says
    latents = write_latents(tmp_path)
    command("evaluate", run, "--data", latents, "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == 16
    assert "rows have 2 classes, the network takes 3 classes" in refusal(
        capsys, "evaluate", run, "--data", write_latents(tmp_path, classes=2)
    )
    np.savez(tmp_path / "small.npz", images=pixels(40, 16, 16), labels=labels(40, 3))
    assert "samples have shape (16, 16, 3), those of the network (8, 8, 4)" in refusal(
        capsys, "evaluate", run, "--data", tmp_path / "small.npz"
    )
    assert Run.open(imported["vamf_toys"], data="swiss_roll").dataset.name == "swiss_roll"
    np.save(tmp_path / "points.npy", 5 + np.random.default_rng(0).normal(size=(60, 2)))
    with pytest.raises(UserError, match=r"points.npy: column 1 has mean .* the run's 0 and 1"):
        _ = Run.open(imported["vamf_toys"], data=tmp_path / "points.npy").dataset  # in units of its own


def test_a_run_is_not_resumed(imported, capsys):
    says = refusal(capsys, "train", "--resume", imported["vamf_toys"], "--data", "swiss_roll")
    assert "without the state of their optimizer; begin a new run from them: vamf train CONFIG --init-from" in says


@pytest.mark.slow
def test_diagnosis_and_fine_tuning(imported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "EVALUATED", 16)
    network = ["--network.width", "8", "--network.depth", "3"]
    words = ["--init-from", imported["vamf_toys"], "--out", tmp_path / "tuned", *SMALL, *network]
    command("train", "swiss_roll", "--method", "meanflow", *words)
    assert (tmp_path / "tuned" / "checkpoints" / "2").is_dir()
    latents = write_latents(tmp_path)
    command("diagnose", imported["meanflow"], "--data", latents)
    assert "report:" in capsys.readouterr().out
    network = ["--network.width", "16", "--network.depth", "3", "--network.heads", "2", "--network.patch", "2"]
    words = ["--init-from", imported["meanflow"], "--out", tmp_path / "latents", *SMALL, *network]
    assert "both need the same options --latents" in refusal(capsys, "train", latents, *words)
    command("train", latents, *words, "--latents.scale", "factor")
    assert (tmp_path / "latents" / "checkpoints" / "2").is_dir()


def test_import_command(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _, _ = checkpoints["vamf_toys"]
    command("import", file, "--from", "vamf_toys")
    assert "MLP of 698 parameters for points of shape 2: runs/vamf_toys-vamf-1" in capsys.readouterr().out
    assert "import needs --from SOURCE: meanflow, imeanflow" in refusal(capsys, "import", file)
    assert "runs/vamf_toys-vamf-1: holds another run" in refusal(
        capsys, "import", file, "--from", "vamf_toys", "--out", "runs/vamf_toys-vamf-1"
    )
    assert "it looks like one of vamf_toys" in refusal(capsys, "import", file, "--from", "sit", "--out", "x")
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_of_a_failed_import(checkpoints, tmp_path, monkeypatch):
    file, options, _ = checkpoints["vamf_toys"]

    def full(*_):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(runs, "write_atomic", full)
    with pytest.raises(UserError, match="No space"):
        runs.create(file, "vamf_toys", tmp_path / "run", options)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- files of the official codes


def needs(file):
    return pytest.mark.skipif(not (WEIGHTS / file).exists(), reason=f"no {file} under {WEIGHTS}")


def given(file):
    loaded = np.load(WEIGHTS / file)
    return {key.removeprefix("check/"): jnp.asarray(loaded[key]) for key in loaded.files if key.startswith("check/")}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # found: 1.2e-6 for the U-Net, else 2.4e-7


@needs("meanflow_dit.msgpack")
@pytest.mark.parametrize("file", ["meanflow_dit.msgpack", "meanflow_dit_checkpoint"])
def test_official_meanflow(file):
    check, found = given("meanflow_dit.npz"), read(WEIGHTS / file, "meanflow", Options(heads=4, size=8))
    u = quick(found.bind())(check["z"], check["r"], check["t"], check["y"])
    close(u, check["u"])


@needs("imeanflow.msgpack")
def test_official_improved_meanflow():
    check, found = given("imeanflow.npz"), read(WEIGHTS / "imeanflow.msgpack", "imeanflow", Options(size=8))
    cond = Conditioning(check["y"], scale=GuidanceScale(check["omega"], check["t_min"], check["t_max"]))
    u, v = quick(found.bind().with_velocity)(check["z"], check["r"], check["t"], cond)
    close(u, check["u"])
    close(v, check["v"])


@needs("dmf.pt")
def test_official_decoupled_meanflow():
    check, found = given("dmf.npz"), read(WEIGHTS / "dmf.pt", "dmf", Options(heads=4, decoupled_depth=2))
    u = found.bind()
    z = check["z"].transpose(0, 2, 3, 1)
    close(quick(u)(z, check["r"], check["t"], check["y"]).transpose(0, 3, 1, 2), check["u"])
    close(u.log_variance(check["r"], check["t"]), check["log_variance"].ravel())


@needs("py_meanflow_unet.pth")
def test_official_unet():
    check, found = given("py_meanflow_unet.npz"), read(WEIGHTS / "py_meanflow_unet.pth", "py_meanflow")
    u = quick(found.bind())
    z = check["z_nchw"].transpose(0, 2, 3, 1)
    augmented = u(z, check["r"], check["t"], Conditioning(augment=check["augment"]))
    close(augmented.transpose(0, 3, 1, 2), check["u_nchw"])
    close(u(z, check["r"], check["t"]).transpose(0, 3, 1, 2), check["u_no_augment_nchw"])
