"""What README and docs tell to type is typed here, at a tiny size, and every benchmark is run.

Commands are read from the pages: every line of a shell block, `$ ` lines of a text block with the refusal that follows
them, and commands in the running text. Those of a page are typed in the order in which they stand, in a folder of their
own, so that a run that one of them makes is there for the next. What is changed before is stated in tables: files and
runs that a reader has (`FILES`, `RUNS`), words (`PLACEHOLDERS`), sizes (`SIZES`, `NETWORKS`, `SMALLER`, `small`). What
cannot be had here (`PARSED`) is read by the command line's own parser and goes no further; what is not vamf's is in
`FOREIGN` and `ELSEWHERE`. Nothing else is left out: a new command is typed without anybody's doing, or fails.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import re
import runpy
import shlex
import shutil
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from flax import serialization, traverse_util

import official_networks
import test_readme
from pytorch_files import write_zip
from test_autoencoders import tiny_weights
from test_autoencoders import write as write_tensors
from test_fid import write_safetensors
from test_image_files import BATCHES, cifar, save, write_mnist
from vamf import cli
from vamf.autoencoders import tiny
from vamf.commands import aliases
from vamf.likelihood import runs as likelihood_runs
from vamf.metrics import inception
from vamf.metrics.moments import Moments
from vamf.studies import costs, engine, launcher, measures, methods, sweep, toys
from vamf.training import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


# ------------------------------------------------------------------------------------------------ what the pages say


class Said(NamedTuple):
    """A command of a page."""

    text: str
    kind: str
    """typed: in a shell block; shown: with the line it ends in; told: in the running text; foreign: none of ours."""
    ends: str = ""
    """The line on standard error that the page shows."""


FOREIGN = {
    "until vamf train --resume runs/moons; do": "vamf train --resume runs/moons",
    "case $? in 75|76|124|134) ;; *) break ;; esac": "",
    "done": "",
}
"""Lines of shell blocks that are no command alone, and the command in them."""
PREFIX = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:srun |mpirun -n \d+ )?")
"""What starts a command on other machines or with other variables, and is left away."""
PROGRAM = re.compile(r"^(vamf|python|make|pip) ")


def command(line):
    """A line of a shell without comment, prefix and superfluous blanks."""
    line = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
    remote = re.match(r'gcloud .*--command="(.*)"$', line)
    return PREFIX.sub("", remote[1] if remote else FOREIGN.get(line, line))


def said(page):
    """The commands of a page, in order."""
    found = []
    for language, block, inline in re.findall(r"^```(\S*)\n(.*?)^```|`([^`]+)`", page, re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        if inline:
            text = command(inline)
            if PROGRAM.match(text):
                found.append(Said(text, "told"))
        elif language in ("", "sh", "bash", "console"):
            for line in lines:
                if text := command(line):
                    found.append(Said(text, "typed" if PROGRAM.match(text) else "foreign"))
        elif language == "text":
            for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
                if line.startswith("$ "):
                    found.append(Said(line.removeprefix("$ "), "shown", next_line))
    return found


ALL = {page: said(text) for page, text in PAGES.items()}
EVERY = {one.text for page in ALL.values() for one in page}


def owned(page):
    """The commands of a page that are run there: what is dear or only told is run where it stands first."""
    for one in ALL[page]:
        first = next(other for other, lines in ALL.items() if any(it.text == one.text for it in lines))
        typed = any(it.text == one.text and it.kind == "typed" for lines in ALL.values() for it in lines)
        dear = one.text.startswith(("vamf study", "vamf compare"))
        if (one.kind == "told" and (typed or first != page)) or (dear and first != page):
            continue
        yield one


# ------------------------------------------------------------------------------------------------------- what is had


def table(names="a,b,c", rows=60):
    random = np.random.default_rng(0)
    lines = [",".join(f"{value:.4f}" for value in row) for row in random.normal(size=(rows, names.count(",") + 1))]
    return "\n".join([names, *lines]) + "\n"


def write_table(path):
    path.write_text(table())


def write_bad_table(path, entry="x"):
    lines = table("a,b").splitlines()
    lines[2] = f"{lines[2].split(',')[0]},{entry}"
    path.write_text("\n".join(lines))


def write_photos(path):
    random = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        save(path / kind, random.integers(0, 256, (20, 20, 20, 3), dtype=np.uint8))


def write_masks(path):
    for kind in ("cat", "dog"):
        save(path / kind, np.full((20, 20, 20, 3), 9, np.uint8))


def write_vectors(path):
    np.savetxt(path, np.random.default_rng(0).normal(size=(40, 2)), delimiter=",", header="a,b", comments="")


def write_fashion_mnist(path):
    random, y = np.random.default_rng(0), np.arange(120) % 10
    x = (random.integers(0, 60, (120, 28, 28, 1)) + 19 * y[:, None, None, None]).astype(np.uint8)
    write_mnist(path, x[:80], y[:80])
    write_mnist(path, x[80:], y[80:], prefix="t10k")


def write_cifar10(path):
    write, end = BATCHES["binary"]
    with tarfile.open(path, "w:gz") as archive:
        for name, content in cifar(write, end)[2].items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_autoencoder(path):
    parts = tiny_weights(channels=4, pooled=False)
    tensors = {f"{part}.{name}": array for part, of in zip(("encoder", "decoder"), parts, strict=True)
               for name, array in of.items()}  # fmt: skip
    write_tensors(path, tensors)


def write_inception(path):
    """Random weights of the first layers of Inception, up to 192 features."""
    random, state = np.random.default_rng(0), {}
    for layer, shape in inception.shapes(192).items():
        state[f"{layer}.conv.weight"] = random.normal(size=shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{layer}.bn.{part}"] = random.uniform(0.5, 1, shape[0]).astype(np.float32)
    write_safetensors(path, state)


def write_meanflow(path):
    """MeanFlow's zip archive, of a small network."""
    make = official_networks.dit(True, width=64, depth=1, patch=8, classes=1000, embedders=("t_embedder", "h_embedder"))
    write_archive(path, make.arrays)


def write_improved_meanflow(path):
    write_archive(path, official_networks.imeanflow(patch=8, classes=1000).arrays)


def write_archive(path, arrays):
    """A zip archive with a checkpoint of flax."""
    state = {"ema_params": {"net": traverse_util.unflatten_dict(arrays, sep="/")}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint_10", serialization.msgpack_serialize(state))


def write_unet(path):
    arrays = official_networks.unet().arrays
    write_zip(path, {"model": {f"net_ema1.{name}": array for name, array in arrays.items()}}, arrays.values())


def write_images(path):
    np.savez(path, images=np.random.default_rng(len(path.stem)).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))


def conditioned(rows):
    """Rows with a vector for each."""
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(rows, 2)), "vector": rng.normal(size=(rows, 3))}


FILES = {
    "my.csv": write_table,
    "measurements.csv": write_table,
    "bad.csv": write_bad_table,
    "short.csv": lambda path: path.write_text(table(rows=2)),
    "holes.csv": lambda path: write_bad_table(path, ""),
    "digits.npy": lambda path: np.save(path, np.random.default_rng(0).normal(size=(60, 16))),
    "table.npz": lambda path: np.savez(path, **conditioned(60)),
    "conditions.npz": lambda path: np.savez(path, vector=conditioned(5)["vector"]),
    "fields.npy": lambda path: np.save(path, np.random.default_rng(0).normal(size=(40, 8, 8, 4))),
    "vectors.csv": write_vectors,
    "masks": write_masks,
    "photos": write_photos,
    "images": write_photos,
    "fashion-mnist": write_fashion_mnist,
    "cifar-10-binary.tar.gz": write_cifar10,
    "vae.safetensors": write_autoencoder,
    "inception.safetensors": write_inception,
    "MF-B4.zip": write_meanflow,
    "iMF-B-2.zip": write_improved_meanflow,
    "model.pth": write_unet,
    "a.npz": write_images,
    "b.npz": write_images,
}
"""What readers bring, by the name of the file or folder."""

RUNS = {
    "runs/given": "train digits --optimizer.ema-decays 0.99",
    "runs/digits-vamf-1": "train digits",
    "runs/swiss_roll-rao_blackwell-1": "train swiss_roll",
    "runs/moons": "train two_moons",
    "wine-model": "train measurements.csv",
    "runs/measurements-rao_blackwell-1": "train measurements.csv",
    "runs/teacher": "train swiss_roll --method flow_matching",
    "runs/my-flow_matching-1": "train my.csv --method flow_matching",
    "runs/imagenet_dit_b4-vamf-1": "train digits",
    "shared/runs/imagenet": "train digits",
}
"""Runs that readers have from elsewhere, where their page does not make them."""

PLACEHOLDERS = {
    "RUN": "runs/given",
    "CONFIG": "two_moons",
    "N": "8",
    "K": "2",
    "S": "0",
    "DECAY": "0.999",
    "W": "1",
    "--sampler NAME": "heun",
    "SOURCE": "photos",
    "FOLDER": "made",
    "--out RUN": "runs/made",
    "--data FOLDER": "fashion-mnist",
    "--autoencoder FILE": "vae.safetensors",
    "--out FILE": "made.npy",
    "DIR": "made",
    "A": "a.npz",
    "B": "b.npz",
    "--field": "",
    "value": "",
    "...": "",
    "studies/dit-default/judge/fashion_mnist-classifier.npz": "inception.safetensors",
    "pt_inception-2015-12-05-6726825d.pth": "inception.safetensors",
}
"""What stands for a word, or for a word after its option."""
INSTEAD = {
    "vamf sample runs/mf-b4 --n 16 --label 207 --autoencoder sd-vae-ft-mse.safetensors --out dogs.png": (
        "vamf sample runs/mf-b4 --n 16 --label 207 --out dogs.npy"  # test_published.py decodes
    ),
    "vamf sample RUN --condition conditions.npz --out s.npy": (
        "vamf sample runs/table-meanflow-1 --condition conditions.npz --out s.npy"
    ),
    "vamf sample RUN --condition vectors.csv --label each --out s.npz": (
        "vamf sample runs/photos-vamf-2 --condition vectors.csv --label each --out s.npz"
    ),
    "vamf sample RUN --condition masks/ --label each --out s.npz": (
        "vamf sample runs/photos-vamf-3 --condition masks/ --label each --out s.npz"
    ),
    "vamf fid samples.npz FOLDER": "vamf fid a.npz photos --weights inception.safetensors",
}
"""What stands for a command."""
NAMES = {*cli.COMMANDS, "check", "latents", "images"}
RUN = {"docs/methods/ddpm.md": "runs/cifar-10-binary.tar-ddpm-1"}
"""RUN of a page that makes its own."""


# ------------------------------------------------------------------------------------------------------- what is small

SIZES = {
    "train": "--steps 4 --batch-size 16 --checkpoint-every 4 --log.every 2 --log.variance-every 0",
    "compare": "--steps 10 --seeds 0",
    "sweep": "--steps 4 --batch-size 16",
    "fid": "--dims 192 --bootstrap 2",
    "data latents": "--size 16",
    "data images": "--size 16",
}
"""Options that every command of a kind gets, over those that are printed."""
NETWORKS = {
    "mlp": "--network.width 16 --network.depth 1 --network.time-features 4",
    "dit": "--network.depth 1 --network.width 16 --network.heads 2 --network.patch 4 --images.size 8",
    "latents": "--network.depth 1 --network.width 16 --network.heads 2 --network.patch 1",
    "in_context": "--network.depth 1 --network.width 16 --network.heads 2 --network.patch 4 --images.size 8 "
    "--network.head-depth 1",
    "unet": "--network.channels 4 --network.multipliers 1 --network.blocks 1 --network.time-features 4 --images.size 8",
}
KINDS = {
    "photos": "dit",
    "images": "dit",
    "fields.npy": "dit",
    "photos-latents": "latents",
    "fashion_mnist": "dit",
    "ddpm_cifar10": "unet",
}
"""The kind of network of what is trained on, where it is no MLP and none is named."""
SMALLER = {
    "--n": 12,
    "--reflow.pairs": 256,
    "--images.size": 8,
    "--profile": 2,
}
"""The largest value of an option."""

ADAPTIVE, DIT, FINETUNE, METHODS, MIXTURES, TABLES = (
    f"test_study_{name}.py runs it" for name in ("adaptive", "dit", "finetune", "methods", "mixtures", "tables")
)
PARSED = {
    "vamf train imagenet_dit_b4 --data imagenet-latents --init-from runs/mf-b4": "latents of ImageNet",
    "vamf train imagenet_in_context_b2 --data imagenet-latents --init-from runs/imf-b2": "latents of ImageNet",
    "vamf train imagenet_dit_b4 --out runs/imagenet": "latents of ImageNet",
    "vamf train imagenet_dit_b4 --mesh.data 0": "latents of ImageNet",
    "vamf train imagenet_dit_b4 --mesh.data 0 --mesh.model 4": "latents of ImageNet",
    "vamf train imagenet_dit_b4 --mesh.data 0 --out /shared/runs/imagenet": "latents of ImageNet",
    "vamf train digits --mesh.data 4 --mesh.model 2": "eight devices; test_sharding.py trains on them",
    "vamf train digits --log.to tensorboard wandb": "a service; test_logs.py has stand-ins",
    "vamf study toys --launcher local --workers 4": "processes; test_launcher.py trains in them",
    "vamf study toys --launcher slurm --resources gpus_per_node=1 timeout_min=600": "SLURM",
    "vamf study toys --launcher ray --workers 16 --resources num_gpus=0.25": "Ray",
    "vamf study adaptive": ADAPTIVE,
    "vamf study adaptive --quick": ADAPTIVE,
    "vamf study adaptive --paper": ADAPTIVE,
    "vamf study dit": DIT,
    "vamf study dit --data fashion-mnist": DIT,
    "vamf study dit --data downloads/fashion-mnist": DIT,
    "vamf study dit --quick --data downloads/fashion-mnist": DIT,
    "vamf study dit --paper --data downloads/cifar10": DIT,
    "vamf study dit --paper --preset imagenet_dit_b4 --data latents": DIT,
    "vamf study finetune --data fashion-mnist": FINETUNE,
    "vamf study finetune --data downloads/fashion-mnist": FINETUNE,
    "vamf study finetune --quick --data downloads/fashion-mnist": FINETUNE,
    "vamf study methods": METHODS,
    "vamf study methods --quick": METHODS,
    "vamf study mixtures": MIXTURES,
    "vamf study mixtures --quick": MIXTURES,
    "vamf study mixtures --paper": MIXTURES,
    "vamf study tables --quick --data FOLDER": TABLES,
    "vamf study tables --data FOLDER": TABLES,
    "vamf study toys --paper": "an accelerator; made small it is `vamf study toys`",
    "vamf study toys --quick": "made small it is `vamf study toys`",
    "vamf study toys --as-published": "the same, with --out",
    "vamf study toys --quick --as-published": "made small it is the same without --quick",
}
"""Commands that are only parsed, and why."""
ELSEWHERE = {
    "make demo": "its study is run here",
    "vamf study spread --only plan": "test_readme.py runs the study, after the example that defines it",
    "vamf study NAME": "the same",
    "vamf train NAME": "test_readme.py trains on such data, after the example that defines them",
    "vamf train two_moons --import my_package.parts --method my_method": "test_extensions.py imports such a module",
    "make test": "the suite",
    "make docs": "continuous integration",
    "pip install .": "continuous integration",
    "pip install -e .": "continuous integration",
    'pip install -U "jax[cuda12]"': "an accelerator",
    'pip install "jax[k8s]"': "a cluster",
    "pip install xprof": "another tool",
    "python -m pytest -m slow tests/test_autoencoders.py": "the suite",
}
"""Commands that are not vamf's own or need one's own module, and who runs them."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="module", autouse=True)
def small():
    """Evaluations, studies and timings of a few samples, points and steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "EVALUATED", 16)
        patch.setattr(run, "IMAGES", 4)
        patch.setattr(likelihood_runs, "ROWS", 16)
        patch.setattr(run, "SHOWN", 16)
        tiny_toys = toys.Budget("default", ("swiss_roll",), 10, (0,), 5, betas=(0.0, 0.5, 1.0))
        for module, budgets in ((toys, {**toys.STUDY.budgets, "default": tiny_toys}), (methods, methods.STUDY.budgets)):
            few = dataclasses.replace(module.STUDY.measures, samples=64)
            patch.setattr(module, "STUDY", dataclasses.replace(module.STUDY, measures=few, budgets=budgets))
        patch.setattr(sweep.SweepMeasures, "count", lambda self, dataset: 64)
        patch.setattr(measures, "PROJECTIONS", 16)
        patch.setattr(tiny, "WIDTH", 8)
        patch.setattr(costs, "step_costs", lambda configs, *_, **__: dict.fromkeys(configs, 1.0))
        patch.setattr(costs, "step_memory", lambda _: 0)
        patch.setattr(measures, "exact_error", functools.partial(measures.exact_error, n=16))
        yield


# --------------------------------------------------------------------------------------------------------------- doing


class Parsed(Exception):
    """A command has been parsed."""


def parse(words):
    """Have a command read by its own parser, up to where work would begin: the objective of a run is built, and a
    study with its budget."""

    def stop(*arguments, **_):
        raise Parsed(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        if words[0] == "study":
            patch.setattr(launcher, "choose", lambda *_: None)
            patch.setattr(launcher, "run", stop)
            patch.setattr(engine.Execution, "run", stop)
        else:
            patch.setattr(run.Run, "create", stop)
        with pytest.raises(Parsed) as stopped:
            cli.main(words)
    if words[0] == "train":
        stopped.value.args[0].build_objective()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that readers have, by the words of its training; each is made once."""

    @functools.cache
    def folder(words):
        path = tmp_path_factory.mktemp("given")
        with contextlib.chdir(path):
            supply(words.split())
            cli.main([*resized(words.split()), "--out", "run"])
        return path / "run"

    return folder


def resized(words):
    """A command of vamf with what makes it small; options that are printed keep their place."""
    for index, word in enumerate(words[:-1]):
        if word in SMALLER and words[index + 1].isdigit():
            words[index + 1] = str(min(int(words[index + 1]), SMALLER[word]))
    sizes = SIZES.get(words[0], SIZES.get(" ".join(words[:2]), ""))
    if words[0] == "train":
        if "--resume" in words and "--steps" in words:
            words[words.index("--steps") + 1] = "8"
        if {"--resume", "--help", "--help-all"} & set(words):
            return words
        if "--epochs" in words:
            words[words.index("--epochs") + 1] = "0.01"
            sizes = sizes.replace("--steps 4 ", "")
        kind = words[words.index("--network") + 1] if "--network" in words else KINDS.get(words[1].rstrip("/"), "mlp")
        sizes = f"{sizes} {NETWORKS[kind]}"
    for option, value in re.findall(r"(--\S+) (\S+)", sizes):
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def made_up(text, page, trained, refused=False):
    """The words of a command, with what stands for placeholders; files and runs that it takes are made, and those that
    it is refused for."""
    words = []
    for word in shlex.split(INSTEAD.get(text, text)):
        word = word.strip("[]").replace("/shared/", "shared/")
        for name in (f"{words[-1]} {word}" if words else "", word):
            if name in PLACEHOLDERS:
                word = RUN.get(page, PLACEHOLDERS[name]) if word == "RUN" else PLACEHOLDERS[name]
                break
        if word:
            words.append(word)
    words = aliases.expand(words)
    for before, word in itertools.pairwise(words):
        if word in RUNS and (refused or before != "--out") and not Path(word).exists():
            shutil.copytree(trained(RUNS[word]), word)
    supply(words)
    return words


def supply(words):
    """Make the files that a command takes."""
    for before, word in itertools.pairwise(words):
        path = Path(word)
        if path.name in FILES and before != "--out" and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[path.name](path)


def typed(words, capsys):
    """Exit status, standard output and standard error of a command."""
    capsys.readouterr()
    status = 0
    try:
        cli.main(words)
    except SystemExit as stop:
        status = stop.code or 0
    return status, *capsys.readouterr()


@pytest.mark.parametrize("page", [page for page in PAGES if list(owned(page))])
def test_commands(page, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for one in owned(page):
        if one.text in ELSEWHERE or one.text.startswith("python benchmarks/"):
            continue
        if extra := re.fullmatch(r"pip install 'vamf\[(\w+)\]'", one.text):
            assert extra[1] in EXTRAS
            continue
        assert one.text.startswith("vamf "), f"{one.text}: who runs it? see FOREIGN and ELSEWHERE"
        words = made_up(one.text, page, trained, one.kind == "shown")[1:]
        if one.kind == "shown":
            status, _, err = typed(words, capsys)
            assert (status, err.strip().replace(f"{tmp_path}/", "")) == (2, one.ends), one.text
        elif one.text in PARSED:
            parse(words)
        elif one.kind == "told" and all(word.startswith("--") or word in NAMES for word in words):
            names = [word for word in words if word in NAMES]  # a mention: a command's name, perhaps with an option's
            helps = ("--help", "--help-all") if names[:1] in (["train"], ["estimate"], ["sweep"]) else ("--help",)
            pages = [typed([*names, which], capsys) for which in helps]
            assert all(status == 0 for status, *_ in pages), one.text
            usage = "".join(page for _, page, _ in pages)
            assert all(f"{word} " in usage for word in words if word.startswith("--")), one.text
        else:
            status, _, err = typed(resized(words), capsys)
            assert status == 0, f"{one.text}\nas: vamf {shlex.join(words)}\n{err}"


def test_the_tables_are_of_commands_that_are_printed():
    assert set(PARSED) | set(ELSEWHERE) | set(INSTEAD) <= EVERY


# ------------------------------------------------------------------------------------------------- examples in Python

EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page, text in PAGES.items()
    if page != "README.md" and Path(page).stem not in (*test_readme.PAGES, "export")  # test_export.py runs the latter's
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    """Those that the default suite does not run."""
    monkeypatch.chdir(tmp_path)
    supply(["", *re.findall(r'"(\S+\.pth)"', code)])
    for part in range(4):  # of an example that reads statistics
        features = np.random.default_rng(part).normal(size=(8, 3))
        Moments.of(features).statistics().save(Path(f"part-{part}.npz"))
    small = re.sub(r"steps=\d+", "steps=4", code.replace("400_000", "1_000"))
    exec(compile(small, "example", "exec"), {})


# --------------------------------------------------------------------------------------------------------- benchmarks

TINY = {
    "checkpoints.py": "--every 20 --checkpoints 1 --turns 1 --out out.json",
    "cycle.py": "--steps 20 --seeds 0 --rows 16 --out out.json",
    "ddpm_check.py": "--data fashion-mnist --steps 10 --held-out 32 --sampler-steps 2 --out out.json --image out.png",
    "dit.py": "--size tiny --batch 4 --steps 1 --seconds 0.1 --variants 'beta = 0;beta = 0.5, all rows' "
    "--official official --out out.json",
    "fast_flow.py": "--data eight_gaussians --steps 4 --batches 4",
    "optimizers.py": "--steps 20 --quick --out out.json",
    "streaming.py": "--images 70 --size 8 --steps 2 --turns 1",
    "tables.py": "--only iris digits",
    "toys.py": "--torch ./torch --quick --force --out out.json",
}
"""Options that make a benchmark tiny, over those that are printed."""
WORKERS = {"vamf_worker.py", "torch_reference.py"}
"""Processes of `toys.py`; `plain_worker.py` beside this file stands for the second, since torch is not installed."""
OFFICIAL = {
    "meanflow.py": """
import flax.linen as nn
import jax
import jax.numpy as jnp
from models import models_dit

class MeanFlow(nn.Module):
    model_str: str
    model_config: dict
    omega: float
    kappa: float

    def setup(self):
        self.net = getattr(models_dit, self.model_str)(name="net", class_dropout_prob=0.0)

    def __call__(self, x, t, y):
        return self.net(x, t, t, y)

    def forward(self, imgs, labels):
        e, t = jax.random.normal(self.make_rng("gen"), imgs.shape), jnp.full(len(imgs), 0.5)
        gap = jnp.clip(2 * t, a_min=0.0, a_max=0.25).reshape(-1, 1, 1, 1)
        return ((self.net(imgs + e, t, t, labels) - gap * (e - imgs)) ** 2).mean(), {}
""",
    "models/models_dit.py": """
import flax.linen as nn

class DiT(nn.Module):
    depth: int
    hidden_size: int
    patch_size: int
    num_heads: int
    class_dropout_prob: float

    @nn.compact
    def __call__(self, x, t, h, y):
        return nn.Dense(x.shape[-1])(nn.silu(nn.Dense(self.hidden_size)(x)))
""",
}
"""A folder laid out as the official code, which bounds by names that JAX has dropped; its network is another."""


def benchmarks():
    """(script, printed options) of every printed command of a benchmark, and each script that is printed nowhere."""
    printed = sorted(text.split(" ", 2)[1:] for text in EVERY if text.startswith("python benchmarks/"))
    found = [(Path(script).name, "".join(rest)) for script, *rest in printed]
    return found + [(name, "") for name in sorted(TINY) if name not in dict(found)]


def test_every_benchmark_is_run():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts - WORKERS == set(TINY) == {name for name, _ in benchmarks()}


@pytest.mark.parametrize(("name", "printed"), benchmarks())
def test_benchmark(name, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, code in OFFICIAL.items():
        (tmp_path / "official" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "official" / path).write_text(code)
    (tmp_path / "torch").write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'plain_worker.py').read_text()}")
    (tmp_path / "torch").chmod(0o755)
    write_fashion_mnist(tmp_path / "fashion-mnist")
    if name == "toys.py":
        monkeypatch.setenv("XLA_FLAGS", "")  # its processes work more than they compile
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(printed), *shlex.split(TINY[name])])
    runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
    if "out.json" in TINY[name]:
        assert "NaN" not in (tmp_path / "out.json").read_text()
        report = json.loads((tmp_path / "out.json").read_text())
        if name == "toys.py":
            assert max(report["differences_of_losses"].values()) < 1e-5
            assert report["ratios"]["128 x 256: ensemble per model / torch compile"] > 0
        if name == "dit.py":
            assert [variant["variant"] for variant in report["variants"]] == [
                "beta = 0",
                "beta = 0.5, all rows",
                "official MeanFlow",
            ]
