"""Other common names of options, accepted by every command."""

from collections.abc import Sequence

ALIASES = {
    "--lr": "--learning-rate",
    "--bs": "--batch-size",
    "--batch": "--batch-size",
    "--iterations": "--steps",
    "--iters": "--steps",
    "--max-steps": "--steps",
    "--num-steps": "--steps",
    "--output": "--out",
    "-o": "--out",
}
"""Other name of an option -> its name."""


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with each option under its own name."""
    return [_expand(word) for word in arguments]


def _expand(word: str) -> str:
    if not word.startswith("-"):
        return word
    name, equals, value = word.partition("=")
    return ALIASES.get(name.replace("_", "-"), name) + equals + value


def option(name: str) -> str:
    """The name of an option without dashes before it, such as `--over` takes."""
    flag = ALIASES.get("--" + name.replace("_", "-"))
    return name if flag is None else flag.removeprefix("--").replace("-", "_")
