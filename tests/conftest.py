"""What holds for every test: shapes and types in vamf's signatures are enforced at every call."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is welcome wherever a float is asked for, as everywhere in Python.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Has to run before the first import of what it checks.
install_import_hook("vamf", "conftest.typechecker")
