"""Parts of an author's own: named in configurations and on the command line, or refused in one line."""

import dataclasses
import json
import os
import shlex
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from vamf import cli, errors, extensions
from vamf.average_velocity import instantaneous_velocity
from vamf.cli_options import Parser
from vamf.commands.train import settings_of
from vamf.data import SOURCES
from vamf.errors import UserError
from vamf.networks import KINDS
from vamf.objectives import METHODS, create
from vamf.objectives.compose import Common
from vamf.objectives.methods import Method
from vamf.objectives.methods.meanflow import meanflow
from vamf.objectives.residuals import Residual, ResidualOutput
from vamf.objectives.terms import TERMS, Anchor, Term
from vamf.objectives.velocity import EMA, MODELS, ModelVelocity, Teacher
from vamf.objectives.weighting import WEIGHTINGS, Weighting
from vamf.path import StraightLine
from vamf.report.repeat import command
from vamf.schedules import Coefficient, Schedule
from vamf.streams import stream
from vamf.studies.axes import Axis, parse_axes, traceable_axes, with_values
from vamf.times import Uniform
from vamf.training.config import TrainConfig
from vamf.training.config_file import identity, read_json, to_json
from vamf.training.run import Run


@dataclasses.dataclass(frozen=True)
class AtTime(Term):
    """The velocity at a time of its own."""

    name = "at_time"
    weight: Coefficient = 0.1
    power: int = 1
    """Of the squared error."""

    def draw(self, key, x, r, t, step):
        return jax.random.uniform(stream(key, 1000), t.shape)

    def default_draw(self, x, e, t):
        return t

    def __call__(self, ctx):
        rows = ctx.batch.at(ctx.objective.path, ctx.batch.draws[self.name])
        error = ctx.objective.reduce(instantaneous_velocity(ctx.u, rows.z, rows.t, rows.cond) - rows.v_c)
        return self.scaled(error**self.power, ctx)


@dataclasses.dataclass(frozen=True)
class Small(Term):
    """u is small. Off unless it is given a weight."""

    def __call__(self, ctx):
        return self.scaled(ctx.objective.reduce(ctx.u(ctx.batch.z, ctx.batch.r, ctx.batch.t, ctx.batch.cond)), ctx)


@dataclasses.dataclass(frozen=True)
class Still(ModelVelocity):
    """Nothing moves."""

    def model(self, ctx):
        return lambda z, r, t, cond: jnp.zeros_like(z)


@dataclasses.dataclass(frozen=True)
class Huber(Weighting):
    """Lengths."""

    constant: float = 1e-2

    def __call__(self, squared, rows, ctx):
        return jnp.sqrt(squared + self.constant)


@dataclasses.dataclass(frozen=True)
class Bent(StraightLine):
    """A path without a name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Early(Uniform):
    """Times without a name."""


@dataclasses.dataclass(frozen=True)
class Landing(Residual):
    """Lands with a model."""

    model: ModelVelocity = EMA()
    """Whose jump it is."""
    factor: float = 1.0
    """Of the error."""

    def __call__(self, rows, target, ctx):
        theirs = jax.lax.stop_gradient(self.model.model(ctx)(rows.z, rows.r, rows.t, rows.cond))
        return ResidualOutput(self.factor * (ctx.u(rows.z, rows.r, rows.t, rows.cond) - theirs))


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    for table, name, part in ((TERMS, "at_time", AtTime), (TERMS, "small", Small), (WEIGHTINGS, "huber", Huber),
                              (MODELS, "still", Still), (METHODS, "landing", Method.of_residual(Landing))):  # fmt: skip
        monkeypatch.setitem(table, name, part)


def config(data="swiss_roll", method="meanflow", steps=4, **objective):
    return TrainConfig(data, method, objective, steps=steps)


def given(words, command="train", swept=()):
    """The configuration that words on the command line say."""
    arguments = shlex.split(words)
    parser = Parser(settings_of(arguments, command, swept))
    return parser.config(tyro.cli(parser.kind, args=arguments))


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("terms", "written", "parts"),
    [
        ("at_time", {"at_time": {}}, (AtTime(),)),
        (["at_time", "small"], {"at_time": {}, "small": {}}, (AtTime(),)),  # one is off
        ((AtTime(0.3), Small(0.2)), {"at_time": {"weight": 0.3}, "small": {"weight": 0.2}}, (AtTime(0.3), Small(0.2))),
        ([{"type": "at_time", "power": 2}], {"at_time": {"power": 2}}, (AtTime(power=2),)),
        ({"small": {"weight": 1.0}, "at_time": {"weight": 0.1}}, {"small": {"weight": 1.0}, "at_time": {}},
         (Small(1.0), AtTime())),
        ({"at_time": {"weight": "linear:1:0"}}, {"at_time": {"weight": "linear:1:0"}},
         (AtTime(Schedule("linear", 1.0, 0.0, 0, 4)),)),
        ((), [], ()),
    ],
)  # fmt: skip
def test_terms_are_named_listed_or_parts(terms, written, parts, tmp_path):
    made = config(terms=terms)
    assert made.objective == ({"terms": written} if written else {})
    assert made.build_objective().terms == parts
    file = tmp_path / "config.json"
    file.write_text(to_json(made))
    again = read_json(TrainConfig, file)
    assert (again, identity(again)) == (made, identity(made))
    assert again.build_objective() == made.build_objective()
    if not isinstance(terms, tuple):
        assert create("meanflow", terms=terms).terms[: len(parts)] or not parts


def test_terms_join_the_methods_own():
    own = create("vamf_corner", terms={"small": {"weight": 0.5}})
    assert own.terms == (Anchor(0.5, (1e-4, 1e-2)), Small(0.5))
    x, e = jax.random.normal(jax.random.key(0), (2, 4, 3))
    t = jnp.array([0.2, 0.4, 0.6, 0.9])

    def u(z, r, t, label):
        return -2 * z

    base = create("meanflow").loss_at(u, x, e, t, t)
    found = create("meanflow", terms=("small", AtTime(0.5))).loss_at(u, x, e, t, t, draws={"at_time": t / 2})
    at = (1 - t / 2)[:, None] * x + (t / 2)[:, None] * e
    np.testing.assert_allclose(found, base + 0.5 * jnp.sum((-2 * at - (e - x)) ** 2, axis=1), rtol=1e-5)


def test_terms_of_a_method_from_outside_are_changed_added_to_and_left_out(monkeypatch):
    def method(common: Common = Common(terms=(AtTime(0.5), Small(0.2)))):
        """mine"""
        return meanflow(common=common)

    monkeypatch.setitem(METHODS, "mine", Method(method))
    for terms, parts in (
        ({"small": {"weight": 0.3}}, (AtTime(0.5), Small(0.3))),
        ({"at_time": None}, (Small(0.2),)),
        ([Small(0.2)], (Small(0.2),)),
        ({"at_time": {"power": 3}, "small": None}, (AtTime(0.5, 3),)),
    ):
        made = config(method="mine", terms=terms)
        assert set(made.build_objective().terms) == set(parts)
        assert config(method="mine", **made.objective) == made
    assert config(method="mine", terms=(AtTime(0.5), Small(0.2))).objective == {}


def test_options_with_dots_keep_the_others():
    made = config(**{"terms.at_time.weight": 0.2, "terms.at_time.power": 2})
    assert made.build_objective(**{"terms.at_time.weight": 0.3}).terms == (AtTime(0.3, 2),)


def test_a_residual_and_a_model_have_names():
    made = config(method="landing", residual={"model": "still", "factor": 2.0}, weighting="huber")
    assert made.objective == {"residual": {"model": {"type": "still"}, "factor": 2.0}, "weighting": {"type": "huber"}}
    found = made.build_objective()
    assert (found.residual, found.weighting) == (Landing(Still(), 2.0), Huber())
    assert METHODS["landing"].summary == "Lands with a model."
    assert create("landing", residual=Landing(Teacher())).needs == {"teacher"}
    for proxy in ("still", Still()):
        assert config(method="vamf", beta=1.0, proxy=proxy).build_objective().residual.tangent.b == Still()
    assert config(method="vamf", proxy=EMA()).build_objective() == create("vamf")


# --------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "objective"),
    [
        ("--terms at_time", {"terms": {"at_time": {}}}),
        ("--terms at_time small --terms.at-time.power 2 --terms.small.weight 1",
         {"terms": {"at_time": {"power": 2}, "small": {"weight": 1.0}}}),
        ("--terms at_time --terms.at_time.weight linear:1:0", {"terms": {"at_time": {"weight": "linear:1:0"}}}),
        ("--terms cycle --terms.cycle.weight 1 --terms.cycle.trained return",
         {"terms": {"cycle": {"weight": 1.0, "trained": "return"}}}),
        ("--method vamf --proxy still", {"proxy": "still"}),
        ("--method landing --residual.model still --weighting huber --weighting.constant 0.5",
         {"residual": {"model": {"type": "still"}}, "weighting": {"type": "huber", "constant": 0.5}}),
        ("--method landing --residual.factor 3", {"residual": {"factor": 3.0}}),
    ],
)  # fmt: skip
def test_words(words, objective):
    found = given(f"swiss_roll {words}")
    assert found.objective == objective
    assert given(command(found).removeprefix("vamf train ")) == found


def test_a_run_is_trained_resumed_and_repeated(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    words = f"train swiss_roll --steps 3 --terms at_time small --terms.small.weight 0.1 --out {folder}"
    cli.main(words.split())
    written = json.loads((folder / "config.json").read_text())["objective"]
    assert written == {"terms": {"at_time": {}, "small": {"weight": 0.1}}}
    assert "--terms at_time small --terms.small.weight 0.1" in (folder / "report.html").read_text()
    assert Run.open(folder).config.build_objective().terms == (AtTime(), Small(0.1))
    monkeypatch.delitem(TERMS, "small")
    capsys.readouterr()
    for again in (f"train --resume {folder}", f"sample {folder} --n 2 --out {tmp_path}/x.npy", f"diagnose {folder}"):
        with pytest.raises(SystemExit) as end:
            cli.main(again.split())
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert said.count("\n") == 1
        assert "terms = small: allowed are cycle, at_time; one of your own is known once" in said
        assert "vamf.objectives.terms.TERMS" in said


def test_a_weight_is_swept():
    base = config(terms="small")
    axes = parse_axes(["terms.small.weight=0,0.1,1", "seed=0"], base)
    assert axes[0] == Axis("terms.small.weight", (0.0, 0.1, 1.0))
    assert [with_values(base, {axes[0].name: value}).build_objective().terms for value in axes[0].values] == [
        (), (Small(0.1),), (Small(1.0),)
    ]  # fmt: skip
    assert traceable_axes(base, axes[:1]) == (axes[0],)
    with pytest.raises(UserError, match=r"over terms\.huge\.weight: allowed are small"):
        parse_axes(["terms.huge.weight=0,1"], base)
    assert given("swiss_roll --terms small", "sweep", ["terms.small.weight"]).objective == {"terms": {"small": {}}}


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"terms": {"huge": {}}}, "terms = huge: allowed are cycle, at_time, small; one of your own is known once the "
         r"module that puts it into vamf.objectives.terms.TERMS is imported \(--import MODULE for commands\)"),
        ({"terms": ["huge"]}, "terms = huge: allowed"),
        ({"terms": 3}, "terms = 3: allowed is names or parts"),
        ({"terms": {"small": 0.5}}, "terms.small = 0.5: allowed is a dict of its options"),
        ({"terms": {"small": {"size": 1}}}, "terms.small.size: no such option; allowed are weight"),
        ({"terms": (Small(0.1), Small(0.2))}, "terms: small, small; a configuration holds one of each kind"),
        ({"terms": (Anchor(0.1),)}, "terms: Anchor has no name by which a configuration could hold it; put "
         "it into vamf.objectives.terms.TERMS"),
        ({"weighting": {"type": "hubr"}}, r"weighting = hubr \(did you mean huber\?\): "
         "allowed are power, .*vamf.objectives.weighting.WEIGHT"),
        ({"path": Bent()}, "path: Bent has no name .*vamf.path.PATHS"),
        ({"times": Early()}, "times: Early has no name .*vamf.times.DISTRIBUTIONS"),
        ({"flow_matching": {"weight": 1.0, "times": Early()}}, "flow-matching: Early has no name"),
        ({"proxy": lambda z, r, t, c: z}, "proxy: <lambda> is a function, .*vamf.objectives.velocity.MODELS"),
    ],
)  # fmt: skip
def test_what_a_configuration_cannot_hold_is_refused_in_one_line(objective, words, tmp_path):
    with pytest.raises(UserError, match=words) as refused:
        TrainConfig("swiss_roll", "vamf", objective)
    assert "\n" not in str(refused.value)


def test_terms_that_would_share_a_draw_are_refused():
    with pytest.raises(UserError, match="terms: two have the name 'anchor'"):
        create("vamf_corner", terms=(Anchor(0.1, (0.1, 0.2)),))
    assert create("meanflow", terms=(Small(0.1), Small(0.2))).terms == (Small(0.1), Small(0.2))


def test_a_term_that_is_off_is_not_named_for_nothing(capsys):
    for words in ("--terms small", "--terms=small"):
        with pytest.raises(SystemExit):
            cli.main(["train", "swiss_roll", *words.split()])
        assert (
            "--terms.small.weight: give one; at 0, the default of this kind, it is left out" in capsys.readouterr().err
        )


def test_commands_import_what_the_environment_names(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_too.py").write_text(
        "from vamf.objectives.terms import TERMS, TemporalPair\n\n\nclass Paired(TemporalPair):\n    pass\n\n\n"
        'TERMS["paired"] = Paired\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TERMS, "paired", Small)  # taken away again in the end, whoever puts it there
    monkeypatch.setenv("VAMF_IMPORT", "mine_too")
    words = ["train", "swiss_roll", "--terms", "paired", "--terms.paired.weight", "0.1", "--steps", "2", "--out"]
    cli.main([*words, str(tmp_path / "run")])
    assert [type(one).__name__ for one in Run.open(tmp_path / "run").config.build_objective().terms] == ["Paired"]
    monkeypatch.setenv("VAMF_IMPORT", "mine_too,not_there")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(tmp_path / "run")])
    assert "VAMF_IMPORT = not_there: not to be imported" in capsys.readouterr().err
    (tmp_path / "broken_too.py").write_text("1 / 0\n")
    monkeypatch.setenv("VAMF_IMPORT", "broken_too")
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "VAMF_IMPORT = broken_too: not to be imported (ZeroDivisionError: division by zero)" in said
    assert said.count("\n") == 1
    monkeypatch.setenv("VAMF_IMPORT", "mine_too")
    with pytest.raises(SystemExit):
        cli.main(["train", "swiss_roll", "--terms", "--out", str(tmp_path / "none")])
    assert "--terms: name one or more kinds after it" in capsys.readouterr().err


PACKAGE = """import dataclasses
from vamf.data import SOURCES, toys
from vamf.networks import KINDS, MLPConfig
from vamf.objectives import METHODS
from vamf.objectives.methods import Method
from vamf.objectives.residuals import MeanFlow
from vamf.objectives.terms import TERMS, Anchor


@dataclasses.dataclass(frozen=True)
class Tied(Anchor):
    weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class Narrow(MLPConfig):
    width: int = 8


TERMS["tied"] = Tied
KINDS["narrow"] = Narrow
SOURCES["plain_roll"] = lambda holdout: toys.load("swiss_roll")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose entry point names the module with its parts."""
    site = tmp_path / "site"
    (site / "parts_of_mine-1.0.dist-info").mkdir(parents=True)
    (site / "parts_of_mine-1.0.dist-info" / "METADATA").write_text("Name: parts-of-mine\nVersion: 1.0\n")
    (site / "parts_of_mine-1.0.dist-info" / "entry_points.txt").write_text("[vamf]\nmine = parts_of_mine\n")
    (site / "parts_of_mine.py").write_text(PACKAGE.replace("from vamf.objectives.residuals import MeanFlow\n", ""))
    for table, name in ((TERMS, "tied"), (KINDS, "narrow"), (SOURCES, "plain_roll")):
        monkeypatch.setitem(table, name, None)
        del table[name]  # forgotten in the end, whoever puts it there
    monkeypatch.setattr(extensions, "_loaded", False)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("parts_of_mine", None)


def test_parts_of_an_installed_package_are_known(package, tmp_path, capsys, monkeypatch):
    """Without an import, in Python and on the command line; a run remembers where they come from."""
    assert "parts_of_mine" not in sys.modules
    assert create("meanflow", terms=["tied"]).terms == (sys.modules["parts_of_mine"].Tied(),)
    folder = tmp_path / "run"
    words = "train plain_roll --network narrow --method vamf --terms tied --steps 2 --batch-size 8"
    cli.main([*words.split(), "--out", str(folder)])
    assert json.loads((folder / "config.json").read_text())["imports"] == ["parts_of_mine"]
    for table, name in ((TERMS, "tied"), (KINDS, "narrow"), (SOURCES, "plain_roll")):
        del table[name]
    del sys.modules["parts_of_mine"]
    monkeypatch.setattr(extensions, "_loaded", False)
    cli.main(["sample", str(folder), "--n", "2", "--out", str(tmp_path / "x.npy")])
    assert np.load(tmp_path / "x.npy").shape == (2, 2)
    # The package is gone from the entry points, but may be imported.
    shutil.rmtree(package / "parts_of_mine-1.0.dist-info")
    for table, name in ((TERMS, "tied"), (KINDS, "narrow"), (SOURCES, "plain_roll")):
        del table[name]
    del sys.modules["parts_of_mine"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["sample", str(folder), "--n", "2", "--out", str(tmp_path / "y.npy")])
    said = capsys.readouterr().err
    assert "its parts come from parts_of_mine, not imported yet; add --import parts_of_mine" in said
    assert said.count("\n") == 1
    monkeypatch.setenv("VAMF_IMPORT", "")  # which --import adds to
    cli.main(["--import", "parts_of_mine", "sample", str(folder), "--n", "2", "--out", str(tmp_path / "y.npy")])
    assert os.environ["VAMF_IMPORT"] == "parts_of_mine"
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"))


def test_a_broken_package_is_named_where_a_name_is_not_known(package, monkeypatch):
    (package / "parts_of_mine.py").write_text("1 / 0\n")
    monkeypatch.setattr(errors, "FAILED_IMPORTS", {})
    monkeypatch.setattr(extensions, "FAILED_IMPORTS", errors.FAILED_IMPORTS)
    TrainConfig("swiss_roll", "vamf")  # nobody misses it
    with pytest.raises(UserError, match=r"parts_of_mine could not be imported \(ZeroDivisionError: division by zero\)"):
        create("meanflow", terms=["tied"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--import not_there train swiss_roll", "--import = not_there: not to be imported"),
        ("train swiss_roll --import", "--import: allowed is MODULE or MODULE,MODULE"),
        ("--import math", "--import: a command follows: train"),
    ],
)
def test_what_cannot_be_imported(words, said, capsys, monkeypatch):
    monkeypatch.setenv("VAMF_IMPORT", "")
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert said in capsys.readouterr().err
