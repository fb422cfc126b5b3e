"""Refusals name options in one way: the path with dots, and dashes, as on the command line."""

import ast
import re
from pathlib import Path

import pytest

import vamf
from vamf.errors import UserError
from vamf.objectives import METHODS, create
from vamf.training.config import TrainConfig

ROOT = Path(vamf.__file__).parent


def literal(node):
    """The text of a message as far as it is written in the source, braces for the rest."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return "{}"


MESSAGES = [
    (f"{path.relative_to(ROOT)}:{node.lineno}", literal(node.args[0]))
    for path in sorted(ROOT.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args
]


def test_no_message_begins_with_an_option_spelled_otherwise():
    assert len(MESSAGES) > 100
    begins = {place: re.match(r"(?:--)?[\w.-]+(?=:| = )", text) for place, text in MESSAGES}
    assert {place: found[0] for place, found in begins.items() if found and "_" in found[0]} == {}


OPTIONS = [name for name in METHODS["vamf"].options if "_" in name]


def test_no_message_names_an_option_otherwise_in_its_middle():
    words = re.compile(rf"(?<![-\w'])({'|'.join(OPTIONS)}|\w+\.[a-z]+_[a-z_]+)(?![\w(])")
    allowed = ("method rao_blackwell", "is for flow_matching", "presets.for_data")
    found = {place: words.findall(text) for place, text in MESSAGES if not any(one in text for one in allowed)}
    assert {place: names for place, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"residual": {"jvp_scale": 2.0}}, "residual.jvp-scale = 2.0: allowed is [0, 1]"),
        ({"residual.jvp_scale": 2.0}, "residual.jvp-scale = 2.0: allowed is [0, 1]"),
        ({"residual": {"difference_step": 0.1, "jvp_gradient_fraction": 0.5}},
         "residual.difference-step: not with jvp-gradient-fraction"),
        ({"times": {"flow_matching_ratio": 2.0}}, "times.flow-matching-ratio = 2.0"),
        ({"flow_matching": {"times": {"type": "logit_normal", "std": 0.0}}}, "flow-matching.times.std = 0.0"),
        ({"flow_matching": {"weight": -1.0}}, "flow-matching.weight = -1.0"),
        ({"flow_matching": {"noise": "loud"}}, "flow-matching.noise = 'loud': allowed is same, fresh"),
        ({"distribution_matching": {"weight": -1.0}}, "distribution-matching.weight = -1.0"),
        ({"temporal_pair.weight": 2.0}, "temporal-pair.weight = 2.0"),
        ({"guidance": {"dropout_interval": (0.5, 0.1)}}, "guidance.dropout-interval = 0.5, 0.1"),
        ({"guidance": {"scale_power": 1.0}}, "guidance.scale-power: needs guidance.scale above 1"),
        ({"guidance": {"scale": 2.0}}, "guidance.scale: needs guidance.dropout above 0"),
        ({"bank": {"t_min": 2.0}}, "bank.t-min = 2.0"),
        ({"bank": {"memory": 2, "size": 3}}, "bank.memory: not with bank.size"),
        ({"bank_ema_fraction": 0.5}, "bank-ema-fraction: only with the proxy bank"),
        ({"gap_weight": 2.0}, "gap-weight = 2.0"),
        ({"gap_weight": "fast"}, "gap-weight = 'fast': allowed is a number or KIND:START"),
        ({"diagonal_weight": "most"}, "diagonal-weight = 'most'"),
        ({"mix_at_diagonal": 3}, "mix-at-diagonal = 3: allowed is true or false"),
        ({"head": {"trained_in": "both"}}, "head.trained-in = 'both'"),
        ({"anchor": {"wieght": 1.0}}, "anchor.wieght: no such option; allowed are weight, interval, every"),
        ({"flow_matching": {"guided_weight": 1.0}}, "flow-matching.guided-weight: no such option"),
        ({"bank_share": 1.0}, "bank-share: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("made", ["create", "TrainConfig"])
def test_one_spelling(options, words, made):
    with pytest.raises(UserError) as refused:
        create("vamf", **options) if made == "create" else TrainConfig("swiss_roll", "vamf", options)
    assert str(refused.value).startswith(words)
