"""What does not suit the data is refused when it is asked for: in one line, and nothing is left behind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf import cli
from vamf.data import Dataset
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.objectives import create
from vamf.objectives.posterior_mean import ClassMemoryBank
from vamf.path import Path as PathOfData
from vamf.path import expand
from vamf.studies.engine import Study
from vamf.studies.variants import Budget, Variant
from vamf.training.config import TrainConfig
from vamf.training.run import Run

N = 64
BESIDE = {
    "vector": {"vector": np.linspace(0, 1, 2 * N).reshape(N, 2)},
    "image": {"image": np.linspace(0, 255, 64 * N).reshape(N, 8, 8, 1).astype(np.uint8)},
    "both": {"vector": np.ones((N, 2)) * np.arange(N)[:, None],
             "image": np.linspace(0, 255, 64 * N).reshape(N, 8, 8, 1).astype(np.uint8)},
}  # fmt: skip
BANKS = {
    "rao_blackwell": {"method": "rao_blackwell"},
    "proxy": {"method": "vamf", "objective": {"proxy": "bank"}},
    "memory": {"method": "meanflow", "objective": {"rao_blackwell": True, "bank": {"memory": 8}}},
}
NETWORK = MLPConfig(width=16, depth=2)


def rows(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)) if kind == "vector" else rng.integers(0, 256, (N, 8, 8, 1)).astype(np.uint8)
    return {"x": x, **BESIDE[kind]}


def written(kind, folder):
    np.savez(folder / "rows.npz", **rows(kind))
    return str(folder / "rows.npz")


def left(folder):
    return {path.name for path in folder.rglob("*")} - {"rows.npz"}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("kind", BESIDE)
def test_a_run_with_a_bank_of_rows_that_nothing_makes_alike(kind, bank, tmp_path):
    config = TrainConfig(data="array", network=NETWORK, steps=2, **BANKS[bank])
    with pytest.raises(UserError, match=r"bank: compares rows of the same class, .* --method vamf") as refused:
        Run.create(config, tmp_path / "run", data=rows(kind))
    assert ("vector and image" if kind == "both" else kind) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not left(tmp_path)


def test_without_their_conditions_rows_are_alike(tmp_path):
    config = TrainConfig(data="array", network=NETWORK, steps=2, conditional=False, **BANKS["rao_blackwell"])
    Run.create(config, tmp_path / "run", data=rows("vector"))
    assert left(tmp_path) >= {"config.json", "inputs.npz"}


@pytest.mark.parametrize(
    "words",
    [
        "train rows.npz --method rao_blackwell --out run",
        "train rows.npz --method rao_blackwell",
        "train rows.npz --rao-blackwell --bank.memory 8",
        "sweep rows.npz --method rao_blackwell --over learning_rate=1e-3,1e-2 --out swept",
        "sweep rows.npz --over method=meanflow,rao_blackwell --steps 2",
        "compare meanflow rao_blackwell --data rows.npz --steps 2",
    ],
)
def test_commands(words, tmp_path, capsys):
    written("vector", tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert [line for line in said.splitlines() if line.startswith("vamf: bank: compares rows of the same class")]
    assert "Traceback" not in said
    assert not left(tmp_path)


def test_a_study(tmp_path):
    place = written("vector", tmp_path)
    variants = (Variant("plain", config={"method": "meanflow"}), Variant("bank", config={"method": "rao_blackwell"}))
    budget = Budget("default", datasets=(place,), steps=2, seeds=(0,), variance_every=2)
    study = Study("mine", {"default": budget}, variants, "# Mine", lambda results: {})
    with pytest.raises(UserError, match="bank: compares rows of the same class"):
        study.at(tmp_path / "study").run()
    assert not left(tmp_path)


@pytest.mark.parametrize("options", [{"proxy": "oracle"}, {"proxy": "oracle", "beta": 1.0}])
def test_an_oracle_of_data_whose_law_is_not_known(options, tmp_path):
    config = TrainConfig(data="array", method="vamf", objective=options, network=NETWORK, steps=2)
    with pytest.raises(UserError, match="proxy = oracle: the distribution of"):
        Run.create(config, tmp_path / "run", data=rows("vector")["x"])
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("guidance", "option"), [({"dropout": 0.1}, "dropout"), ({"dropout": 0.1, "scale": 2.0}, "scale")]
)
def test_guidance_without_a_condition(guidance, option, tmp_path, capsys):
    config = TrainConfig(data="array", objective={"guidance": guidance}, network=NETWORK, steps=2)
    with pytest.raises(UserError, match=rf"guidance\.{option}: array has no classes and no other condition"):
        Run.create(config, tmp_path / "run", data=rows("vector")["x"])
    assert not left(tmp_path)
    conditional = dataclasses.replace(config, conditional=False)
    with pytest.raises(UserError, match=rf"guidance\.{option}: array has no classes"):
        Run.create(conditional, tmp_path / "run", data=rows("vector"))
    Run.create(config, tmp_path / "run", data=rows("vector"))


@dataclasses.dataclass(frozen=True)
class Bent(PathOfData):
    """z_t = (1 - t^2) x + t^2 e: the law of z given x is not stated."""

    def interpolate(self, x, e, t):
        return (1 - expand(t, x) ** 2) * x + expand(t, x) ** 2 * e

    def velocity(self, x, e, t):
        return 2 * expand(t, x) * (e - x)


@pytest.mark.parametrize("path", [Bent(), {"type": "pairs"}])
@pytest.mark.parametrize("bank", BANKS)
def test_a_bank_on_a_path_without_a_kernel(path, bank):
    name = BANKS[bank]["method"]
    with pytest.raises(UserError, match=r"bank: the path (Bent|Pairs) has no posterior .*proxy ema"):
        create(name, path=path, **BANKS[bank].get("objective", {}))


# ------------------------------------------------------------------------------------------------------------ classes


def labelled(classes, of=3):
    """Data from outside with rows of some classes, said to be `of` many."""

    def draw(arrays, key, n):
        return jax.random.normal(key, (n, 2)), jnp.asarray(classes)[jnp.arange(n) % len(classes)]

    return Dataset("mine", (2,), (), draw, lambda n, seed: np.zeros((n, 2)), num_classes=of)


def test_classes_outside_the_memory(tmp_path):
    for classes, wrong in (([0, 1, 2, 3], 3), ([0, -2], -2)):
        config = TrainConfig(data="array", network=NETWORK, steps=2, **BANKS["memory"])
        with pytest.raises(UserError, match=rf"bank\.memory: rows of mine have the class {wrong}; allowed are 0 to 2"):
            Run.create(config, tmp_path / "run", data=labelled(classes))
        assert not left(tmp_path)
    Run.create(config, tmp_path / "run", data=labelled([0, 2, -1]))


def test_a_memory_asked_outside_a_program_knows_its_classes():
    bank = ClassMemoryBank.empty(3, 4, (2,))
    x = e = jnp.zeros((2, 2))
    for wrong in ([0, 3], [-2, 1]):
        label = jnp.array(wrong)
        with pytest.raises(UserError, match=r"label = (3|-2): allowed is \[-1, 2\]"):
            bank.push(x, label)
        with pytest.raises(UserError, match=r"label = (3|-2): allowed is \[-1, 2\]"):
            bank.posterior_mean(x, e, jnp.ones(2), label)
    assert bank.push(x, jnp.array([2, -1])).seen.tolist() == [0, 0, 1, 2]
    assert ClassMemoryBank.empty(0, 4, (2,)).push(x, jnp.array([5, 6])).seen.tolist() == [2]  # all are one
