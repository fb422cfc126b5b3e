"""The few-step map as a StableHLO program, serialized by `jax.export`: it runs with JAX alone, on any platform.

The number of rows is free, the precision is that of the run's network, and the weights are constants of the program.
"""

import jax
import jax.export

from vamf.export.format import MapFormat

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that a file is lowered for."""


class StableHLO(MapFormat):
    """A file that `jax.export.deserialize` reads."""

    name, suffix, package = "stablehlo", ".stablehlo", "flatbuffers"

    def serialize(self, program, metadata):
        def samples(*inputs):
            return program.function(*inputs)

        exported = jax.export.export(jax.jit(samples), platforms=PLATFORMS)(*program.abstract_inputs())
        return bytes(exported.serialize())
