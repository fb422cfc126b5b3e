"""What an examination of a run says in words."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One finding about a run."""

    severity: Literal["good", "note", "advice", "warning", "problem"]
    """good: nothing to do; note: information; advice: a possible gain; warning and problem: something is wrong."""
    text: str
    """One or two sentences."""
    setting: str = ""
    """The command-line option to change, if any."""
