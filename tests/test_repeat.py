"""The command line and Python say the same training, and a report says how to repeat its own."""

import dataclasses
import shlex

import pytest

from vamf.cli_options import Parser
from vamf.commands.parsing import parse
from vamf.commands.train import settings_of
from vamf.data import ImageConfig
from vamf.errors import UserError
from vamf.networks import DiTConfig, MLPConfig
from vamf.report import repeat
from vamf.training import presets
from vamf.training.config import CheckpointConfig, LogConfig, TrainConfig
from vamf.training.run import Run


def parsed(words: list[str]) -> TrainConfig:
    """The configuration that the words after `vamf train` make."""
    words = list(words)
    parser = Parser(settings_of(words, "train"))
    return parser.config(parse(parser.kind, words, "train CONFIG"))


TOY = presets.PRESETS["two_moons"]
DIT = presets.PRESETS["cifar10_dit"]
CONFIGS = {
    **presets.PRESETS,
    "nothing": dataclasses.replace(DIT, method="meanflow", objective={}),
    "much": dataclasses.replace(
        TOY,
        method="vamf",
        learning_rate=1 / 3,
        conditional=False,
        log=LogConfig(to=("wandb", "tensorboard")),
        checkpoints=CheckpointConfig(verify=False, best="loss"),
        images=ImageConfig(size=3, flip=True),
        objective={
            "beta": "linear:1:0",
            "guidance.interval": (0.1, 0.9),
            "rao_blackwell": True,
            "mix_at_diagonal": False,
            "gamma": "linear:0:1",
        },
        init_from="/some where/it's",
        prediction="data",
    ),
    "as it is": dataclasses.replace(TOY, method="vamf", objective={"beta": 1.0, "proxy": "bank"}),
    "elsewhere": dataclasses.replace(TOY, data="/x y/it's.csv", network=DiTConfig()),
    "unaugmented": dataclasses.replace(presets.PRESETS["cifar10_unet"], network=MLPConfig(), augment=TOY.augment),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_its_command(name):
    words = shlex.split(repeat.command(CONFIGS[name]))
    assert words[:2] == ["vamf", "train"]
    assert parsed(words[2:]) == CONFIGS[name]
    assert (len(words) == 3) == (name in presets.PRESETS)


def test_python_and_the_command_line_start_from_the_same(tmp_path):
    """`for_data` is what `vamf train` starts from, and one option says no more than it says there."""
    table = tmp_path / "table.csv"
    table.write_text("\n".join(f"{i},{i % 7}" for i in range(64)))
    ours = presets.for_data(str(table), steps=7, optimizer={"b2": 0.9}, network={"width": 32})
    theirs = parsed([str(table), "--steps", "7", "--optimizer.b2", "0.9", "--network.width", "32"])
    assert ours == theirs
    assert (ours.network, ours.optimizer.clip_norm) == (MLPConfig(width=32), 10)
    with pytest.raises(UserError, match="speed: no such field of TrainConfig; allowed are data, method"):
        presets.for_data("swiss_roll", speed=3)
    with pytest.raises(UserError, match=r"network: where none is named .*presets\.for_data\(.*table\.csv'\)"):
        Run.create(TrainConfig(str(table), steps=7), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert Run.create(TrainConfig(str(table), network=MLPConfig()), tmp_path / "run").config.network == MLPConfig()
