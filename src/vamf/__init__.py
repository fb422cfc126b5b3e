"""vamf: one-step generative models by average velocities, and the variance of learning them.

generator = vamf.fit(x, condition=y)            arrays or a data frame in, a generator out
generator.sample(1000)                          in the units, columns and types of x
vamf.load("model")                              a saved generator, or a run of `vamf train`
vamf.create("vamf", beta=0.5)                   an objective, for a training loop of one's own
vamf.METHODS                                    all objectives by name
"""

from typing import TYPE_CHECKING, Any

from vamf.version import __version__

__all__ = ["METHODS", "Generator", "UserError", "__version__", "create", "fit", "load"]

if TYPE_CHECKING:
    from vamf.errors import UserError
    from vamf.generator import Generator, fit, load
    from vamf.objectives import METHODS, create

_PLACES = {
    "Generator": "vamf.generator",
    "fit": "vamf.generator",
    "load": "vamf.generator",
    "METHODS": "vamf.objectives",
    "create": "vamf.objectives",
    "UserError": "vamf.errors",
}


def __getattr__(name: str) -> Any:
    """What the front door offers, imported when it is first asked for, so that `vamf --help` is fast."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vamf' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
