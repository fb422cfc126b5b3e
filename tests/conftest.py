"""What holds for every test: shapes and types in vamf's signatures are enforced at every call."""

import typing

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

from vamf.average_velocity import AverageVelocity

# A protocol can be checked at run time only where it says so; beartype refuses to guess.
typing.runtime_checkable(AverageVelocity)

# An int is welcome wherever a float is asked for, as everywhere in Python.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Has to run before the first import of what it checks.
install_import_hook("vamf", "conftest.typechecker")
