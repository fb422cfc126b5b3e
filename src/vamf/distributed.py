"""Many processes that train as one: how they find each other, and what only one of them does.

Every process runs the same program on its own devices; JAX's runtime joins them. All take part in every computation and
in checkpoints, which lie in a folder that all see. The first process alone writes everything else.
"""

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vamf.errors import UserError

ADDRESS, COUNT, NUMBER = VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Where the first process listens (host:port), how many processes there are, and which one this is, from 0."""
HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead, and the others stop."""
PATIENCE = 30
"""Seconds that a process which has ended waits for the others to end too."""
LOST = 76
"""Exit status of a process that stopped because another one is gone: EX_PROTOCOL."""
LAST_WORDS = "vamf: ended from outside: another process is gone, or this one was killed; continue with --resume"
LONGEST = 2**12
"""Bytes of what the first process tells the others."""


def start() -> None:
    """Join the other processes, where the environment says that there are any; before JAX is used for anything else.

    Plain variables go first; otherwise JAX asks SLURM, Open MPI, Kubernetes or the TPU about the others.

    Raises:
        UserError: variables that are incomplete or no numbers, or processes that did not meet.
    """
    plain = given(os.environ)
    if plain is None and not launched(os.environ):
        return
    import jax

    options = {} if plain is None else {**plain, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = "" if plain is None else f" at {plain['coordinator_address']}"
        raise UserError(f"the processes did not meet{where}: {' '.join(str(error).split())[:200]}") from None
    if jax.process_count() > 1:
        _leave_last_words()


def _leave_last_words() -> None:
    """Have a line printed should this process end without Python: JAX's runtime aborts it where another is gone.

    A shell holds the line until it is told that all is well or this process is no more.
    """
    holder = subprocess.Popen(
        ["sh", "-c", 'read well || echo "$0" >&2', LAST_WORDS], stdin=subprocess.PIPE, start_new_session=True
    )
    atexit.register(_withhold, holder)


def _withhold(holder: subprocess.Popen) -> None:
    holder.communicate(b"well\n")


def no_backend() -> str:
    """Why JAX has no devices to compute on, in a line, once something went wrong; nothing where it has some."""
    import jax

    try:
        jax.devices()
        return ""
    except Exception as error:
        said = " ".join(str(error).split())[:200] or "there is no such device"
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        return f"JAX_PLATFORMS = {asked}: JAX cannot compute there ({said}); unset it to use what there is"


def stop_if_lost(error: Exception) -> None:
    """End the process, with the error in a line before its last words, if the error is that another process is gone.

    At once: Python's way out leads through JAX's runtime, which would wait for the dead and then abort.
    """
    import jax

    said = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in said:
        return
    print(f"vamf: {said[:300]}", file=sys.stderr, flush=True)
    os._exit(LOST)


def given(environment: Mapping[str, str]) -> dict | None:
    """What plain variables say, as `jax.distributed.initialize` takes it; None where there are none.

    Raises:
        UserError: some are missing, or are not what they should be.
    """
    found = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not found:
        return None
    if missing := [name for name in VARIABLES if name not in found]:
        raise UserError(f"{', '.join(found)} given, but not {', '.join(missing)}: several processes need all three")
    if not (found[COUNT].isdecimal() and found[NUMBER].isdecimal() and int(found[NUMBER]) < int(found[COUNT])):
        raise UserError(f"{NUMBER} = {found[NUMBER]}, {COUNT} = {found[COUNT]}: allowed are 0 <= {NUMBER} < {COUNT}")
    if not found[ADDRESS].rpartition(":")[2].isdecimal():
        raise UserError(f"{ADDRESS} = {found[ADDRESS]}: allowed is host:port")
    return {
        "coordinator_address": found[ADDRESS],
        "num_processes": int(found[COUNT]),
        "process_id": int(found[NUMBER]),
    }


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX can ask has started several processes, or may have."""
    several = any(int(environment.get(name, 1)) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return several or job or _on_tpu(environment)


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine with TPUs, which alone know whether there are others."""
    from importlib.util import find_spec

    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = [chip for pattern in ("accel*", "vfio/*") for chip in Path("/dev").glob(pattern)]
    return "tpu" in platforms and bool(chips) and find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def told_all(mine: Any) -> Any:
    """A tree of arrays of each process, of one shape everywhere, stacked in the order of processes, on every host."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], mine)
    return multihost_utils.process_allgather(mine)


def by_first(act: Callable[[], str | None]) -> str:
    """What the first process does, and what it says of it to all; an error of the user's there is one everywhere."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return act() or ""
    told = np.zeros(LONGEST, np.uint8)
    if is_first():
        try:
            said = "=" + (act() or "")
        except UserError as error:
            said = "!" + str(error)
        text = said.encode()[:LONGEST]
        told[: len(text)] = np.frombuffer(text, np.uint8)
    said = multihost_utils.broadcast_one_to_all(told).tobytes().rstrip(b"\0").decode(errors="ignore")
    if said.startswith("!"):
        raise UserError(said[1:])
    return said[1:]
