"""Paths from data (t = 0) to a prior (t = 1): one file each."""

from vamf.options import family
from vamf.path.base import Path, expand
from vamf.path.pairs import Pairs
from vamf.path.straight_line import StraightLine, conditional_velocity, interpolate

PATHS: dict[str, type[Path]] = family(Path, "vamf.path.PATHS", {"straight_line": StraightLine, "pairs": Pairs})
"""Paths by name."""

STRAIGHT_LINE = StraightLine()
"""The path where none is named."""

__all__ = ["PATHS", "STRAIGHT_LINE", "Pairs", "Path", "StraightLine", "conditional_velocity", "expand", "interpolate"]
