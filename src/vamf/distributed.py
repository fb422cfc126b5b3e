"""Training with many processes: their initialization, and the work of the main process.

Every process runs the same program on its own devices; JAX's runtime connects them. All take part in every computation
and in checkpoints, which are in a shared folder. Only the main process (number 0) writes everything else.
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
"""Address of the main process (host:port), number of processes, and number of this one, from 0."""
HEARTBEAT = 30
"""Seconds without a heartbeat after which a process counts as dead, and the others stop."""
SHUTDOWN_TIMEOUT = 30
"""Seconds that a finished process waits for the others to finish."""
LOST = 76
"""Exit status of a process that stopped because another one has died: EX_PROTOCOL."""
ABORT_MESSAGE = "vamf: ended from outside: another process is gone, or this one was killed; continue with --resume"
MAX_MESSAGE = 2**12
"""Most bytes of a message from the main process to the others."""


def start() -> None:
    """Connect to the other processes, if the environment names any; call before any other use of JAX.

    The variables of this module take precedence; otherwise JAX queries SLURM, Open MPI, Kubernetes or the TPU.

    Raises:
        UserError: incomplete or invalid variables, or processes that cannot connect.
    """
    settings = from_env(os.environ)
    if settings is None and not under_launcher(os.environ):
        return
    import jax

    options = {} if settings is None else {**settings, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        where = "" if settings is None else f" at {settings['coordinator_address']}"
        raise UserError(f"the processes did not meet{where}: {' '.join(str(error).split())[:200]}") from None
    if jax.process_count() > 1:
        _print_if_aborted()


def _print_if_aborted() -> None:
    """Print a line if this process ends without Python: JAX's runtime aborts it when another process dies.

    A shell waits for a message that this process has ended normally, and prints the line if its input closes before.
    """
    watcher = subprocess.Popen(
        ["sh", "-c", 'read done || echo "$0" >&2', ABORT_MESSAGE], stdin=subprocess.PIPE, start_new_session=True
    )
    atexit.register(_dismiss, watcher)


def _dismiss(watcher: subprocess.Popen) -> None:
    watcher.communicate(b"done\n")


def no_backend() -> str:
    """Why JAX has no devices, in one line; empty where it has some."""
    import jax

    try:
        jax.devices()
        return ""
    except Exception as error:
        message = " ".join(str(error).split())[:200] or "there is no such device"
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        return f"JAX_PLATFORMS = {platforms}: JAX cannot compute there ({message}); unset it to use what there is"


def stop_if_lost(error: Exception) -> None:
    """End the process with one line if the error is that another process has died.

    `os._exit`, since a normal exit would make JAX's runtime wait for the dead process and then abort.
    """
    import jax

    message = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in message:
        return
    print(f"vamf: {message[:300]}", file=sys.stderr, flush=True)
    os._exit(LOST)


def from_env(environment: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize` from this module's variables; None without any.

    Raises:
        UserError: some are missing or invalid.
    """
    values = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not values:
        return None
    if missing := [name for name in VARIABLES if name not in values]:
        raise UserError(f"{', '.join(values)} given, but not {', '.join(missing)}: several processes need all three")
    if not (values[COUNT].isdecimal() and values[NUMBER].isdecimal() and int(values[NUMBER]) < int(values[COUNT])):
        raise UserError(f"{NUMBER} = {values[NUMBER]}, {COUNT} = {values[COUNT]}: allowed are 0 <= {NUMBER} < {COUNT}")
    if not values[ADDRESS].rpartition(":")[2].isdecimal():
        raise UserError(f"{ADDRESS} = {values[ADDRESS]}: allowed is host:port")
    return {
        "coordinator_address": values[ADDRESS],
        "num_processes": int(values[COUNT]),
        "process_id": int(values[NUMBER]),
    }


def under_launcher(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX supports has started several processes, or may have."""
    several = any(int(environment.get(name, 1)) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return several or job or _on_tpu(environment)


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs, which know whether there are other processes."""
    from importlib.util import find_spec

    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = [chip for pattern in ("accel*", "vfio/*") for chip in Path("/dev").glob(pattern)]
    return "tpu" in platforms and bool(chips) and find_spec("libtpu") is not None


def is_main_process() -> bool:
    """Whether this process writes files."""
    import jax

    return jax.process_index() == 0


def all_gather(tree: Any) -> Any:
    """A tree of arrays of every process, of equal shapes, stacked in the order of processes, on every host."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
    return multihost_utils.process_allgather(tree)


def on_main_process(function: Callable[[], str | None]) -> str:
    """Call a function on the main process and return its text on all; a UserError there is raised on all."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return function() or ""
    buffer = np.zeros(MAX_MESSAGE, np.uint8)
    if is_main_process():
        try:
            message = "=" + (function() or "")
        except UserError as error:
            message = "!" + str(error)
        encoded = message.encode()[:MAX_MESSAGE]
        buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    message = multihost_utils.broadcast_one_to_all(buffer).tobytes().rstrip(b"\0").decode(errors="ignore")
    if message.startswith("!"):
        raise UserError(message[1:])
    return message[1:]
