"""The weights of a run in a `.safetensors` file, and a network built from them.

Names are paths in our tree of parameters (`blocks/0/attention/inputs/kernel`), kernels have shape (inputs, outputs).
The metadata hold what rebuilds the network, and the units of what it takes and returns.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vamf import networks, tensors
from vamf.average_velocity import AverageVelocity
from vamf.conditioning import CondShape
from vamf.errors import UserError
from vamf.export import units
from vamf.export.format import Format
from vamf.export.names import METADATA, metadata_path, model_path
from vamf.networks import FAKE, MAIN
from vamf.training.config_file import network_values, read_network

SEPARATOR = "/"
"""Between the parts of a tensor's name."""
_TYPES = {"float32": "F32", "float64": "F64", "int32": "I32"}


class Safetensors(Format):
    """The weights and what rebuilds the network."""

    suffix = ".safetensors"

    def check(self, run, options):
        for name, value in (("steps", options.steps), ("guidance", options.scale)):
            if value:
                raise UserError(
                    f"{name}: format = safetensors holds the weights, which any number of steps and any guidance use; "
                    "allowed with --format stablehlo and onnx"
                )

    def contents(self, run, state, options, metadata):
        params, config, dataset = run.weights(state, options.ema), run.config, run.dataset_info
        heads = config.build_objective().heads
        metadata = metadata | {
            "network": network_values(config.network),
            "event_shape": list(dataset.event_shape),
            "condition_shape": {name: value for name, value in dataset.cond_shape._asdict().items() if value},
            "heads": [name for name in heads if name != FAKE],
            "prediction": config.prediction,
            "jvp_dtype": config.jvp_dtype,
            "units": units.describe_units(dataset),
            "condition_units": units.describe_conditions(dataset),
        }
        return encode(flatten(params[MAIN] if FAKE in heads else params), {"vamf": json.dumps(metadata)}), metadata


def flatten(params: Any) -> dict[str, np.ndarray]:
    """A tree of parameters as arrays by name."""
    flat = traverse_util.flatten_dict(params)
    return {SEPARATOR.join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}


def encode(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    """A safetensors file: a length, a JSON header and the arrays one after another; texts are its metadata."""
    header: dict[str, Any] = {"__metadata__": dict(texts)}
    start = 0
    for name, array in arrays.items():
        stop = start + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    parts = (np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays.values())
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load(path: Path | str) -> AverageVelocity:
    """u(z, r, t, label) of an exported network, in the network's units.

    Args:
        path: of the `.safetensors` file or of the folder that `write` made.

    Raises:
        UserError: files that are missing, damaged or do not belong together.
    """
    model = Path(path)
    model = model if model.suffix == Safetensors.suffix else model_path(model, Safetensors.suffix)
    facts = _read_metadata(metadata_path(model))
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        config, where = read_network(facts["network"], METADATA), metadata_path(model)
        shape = CondShape(**facts["condition_shape"])
        network = networks.build(
            config, tuple(facts["event_shape"]), shape, tuple(facts["heads"]), facts["jvp_dtype"], facts["prediction"]
        )
        if digest != facts["sha256"]:
            raise UserError(f"{model}: not the weights that {where} describes (sha256 {digest[:8]}...)")
    except OSError as error:
        raise UserError(f"{model}: {error.strerror or error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{metadata_path(model)}: not of an exported network ({error})") from None
    template: dict[Any, Any] = dict(traverse_util.flatten_dict(jax.eval_shape(network.init, jax.random.key(0))))
    names = {key: SEPARATOR.join(map(str, key)) for key in template}
    arrays = tensors.select(tensors.read(model), {names[key]: leaf.shape for key, leaf in template.items()}, model)
    return network.bind(traverse_util.unflatten_dict({key: jnp.asarray(arrays[name]) for key, name in names.items()}))


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
