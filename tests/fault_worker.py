"""Trainings that are killed, started as processes that have the libraries loaded: `multiprocessing` forks them from a
server that has imported the modules named here, so that a start costs a fraction of a second."""

import sys

PRELOAD = ["jax", "optax", "flax.nnx", "orbax.checkpoint", "vamf.training.run", "vamf.report.run", "vamf.cli", "tyro"]


def vamf(*arguments: str) -> None:
    """The command line, silent; its lines are somebody else's to test."""
    from vamf import cli

    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    cli.main(list(arguments))
