"""Checkpoints: written atomically, verified by a checksum when read, tied to their configuration.

A checkpoint holds the parameters, their EMAs, the optimizer's and the objective's state, the step and the log's last
line. It has no state of random numbers and no position in the data: both follow from the seed and the step.
"""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from vamf.errors import UserError
from vamf.files import finite
from vamf.training.checksum import checksum, matches, named_leaves
from vamf.training.config import CheckpointConfig

REMOVED = ".removed"
"""Folder that a checkpoint is moved to before it is deleted, so that none is ever half deleted in its place."""
CheckpointRef = int | Literal["newest", "best"]
"""A checkpoint: by its step, the newest, or the one with the lowest value of the metric `checkpoints.best`."""


class RestoredCheckpoint(NamedTuple):
    """A state read from a checkpoint."""

    state: Any
    step: int
    metrics: dict[str, Any]
    """The log's line at that step."""


class ForeignCheckpoint(UserError):
    """A checkpoint that belongs to another run."""


class Checkpoints:
    """The checkpoints of one run, written in the background during training. A context manager.

    Orbax writes each under a temporary name and renames it when complete, so that a process killed at any instant
    leaves the earlier ones intact. Each is then read back and compared; older ones are deleted only after a
    newer one has passed. With several processes, all of them call every method.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        config: CheckpointConfig | None = None,
        say: Callable[[str], None] = print,
        clean: bool = False,
        reread: str = "",
        earlier: Mapping[str, int] | None = None,
    ):
        """`fingerprint` identifies configuration and data; a checkpoint with another one is refused.

        Args:
            say: called with a line for each corrupt checkpoint.
            clean: delete what a killed process left half written; only for the process that trains.
            earlier: fingerprints that checkpoints of the same run may have too, each up to a step.
            reread: how earlier versions read the same data differently, for the message that refuses their checkpoints.
        """
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are raised here, in one line, not logged there
        sys.unraisablehook = _ignore_closed_loop
        self.folder = folder.absolute()
        self.fingerprint = fingerprint
        self._earlier = earlier or {}
        self._config = config or CheckpointConfig()
        self._say = say
        self._reread = f"; earlier versions read the same data otherwise: {reread}" if reread else ""
        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=clean, todelete_subdir=REMOVED)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
            if clean:
                self._empty_removed()
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._good = sorted(self._manager.all_steps())
        self._scores: dict[int, float] = {}
        self._writing: tuple[int, Future[str]] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        """Wait for the last checkpoint. If another exception is propagating, a failed write is only printed."""
        try:
            if kind is None or jax.process_count() == 1:
                self.wait()
        except UserError as error:
            if kind is None:
                raise
            self._say(str(error))
        finally:
            self._worker.shutdown()
            self._empty_removed()
            with contextlib.suppress(Exception):  # it was raised before
                self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest good checkpoint, if there is one."""
        return max(self._good, default=None)

    def describe_latest(self) -> str:
        """Where the newest good checkpoint is, in a few words, after the pending write has finished."""
        self.wait()
        return f"last good checkpoint: {self.folder / str(self.latest)}" if self._good else "no checkpoint yet"

    def save(self, step: int, state: Any, metrics: dict[str, Any] | None = None) -> None:
        """Start writing the state (a tree of arrays, on the host or on devices) as the checkpoint of a step.

        The state is copied before this returns: its memory may be reused. A single process copies it to the host and
        does the rest in the background; several synchronize before they write.

        Raises:
            UserError: this one or the one before cannot be written; the line names the newest good checkpoint.
        """
        self.wait()
        arrays, facts = named_leaves(state), {"fingerprint": self.fingerprint, "metrics": finite(metrics or {})}
        self._scores[step] = self._score(facts)
        if jax.process_count() == 1:
            copies = {name: np.array(array) for name, array in arrays.items()}
            work = self._worker.submit(lambda: self._finish(step, *self._begin(step, copies, facts)))
        else:
            try:
                started = self._begin(step, arrays, facts)
            except Exception as error:
                raise self._write_error(step, _line(error)) from None
            work = self._worker.submit(self._finish, step, *started)
        self._writing = step, work

    def wait(self, wait: bool = True) -> None:
        """Finish the pending checkpoint: register it if it is good, report and remove it if it is corrupt.

        Args:
            wait: block until it is written; else a pending one is left for later (with several processes, always).

        Raises:
            UserError: it could not be written; the line names the newest good checkpoint.
        """
        if self._writing is None or not (wait or (self._writing[1].done() and jax.process_count() == 1)):
            return
        (step, writing), self._writing = self._writing, None
        fault, unwritten = "", ""
        try:
            fault = writing.result()
        except Exception as error:
            unwritten = _line(error)
        if any_process(bool(unwritten)):
            raise self._write_error(step, unwritten or "another process failed")
        if any_process(bool(fault)):
            fallback = f"the newest good one is step {self.latest}" if self._good else "there is no good one"
            if fault:  # only the main process reads back
                self._say(
                    f"checkpoint {self.folder / str(step)} does not read back ({fault}) and is removed; {fallback}"
                )
            self._remove([step])
        else:
            self._good.append(step)
            self._prune()

    def restore(self, abstract_state: Any, which: CheckpointRef = "newest") -> RestoredCheckpoint | None:
        """A state with its step, the newest readable one if none is named; None where there is no checkpoint.

        Args:
            abstract_state: a tree with the state's structure, shapes and types. A leaf with a `sharding` is restored
                into it, each process reading its own shards; the others become host arrays.

        Raises:
            ForeignCheckpoint: the checkpoint belongs to another configuration, network or other data.
            UserError: it is not there or cannot be read.
        """
        leaves, treedef = jax.tree.flatten(abstract_state)
        template = {name: _restore_target(leaf) for name, leaf in named_leaves(leaves).items()}
        steps = self._candidate_steps(which)
        for step in steps:
            mismatch = "a checkpoint of another configuration or other data"
            try:
                facts = self._facts(step)
                if facts["fingerprint"] == self.fingerprint or step <= self._earlier.get(facts["fingerprint"], -1):
                    args = self._args.Composite(state=self._args.StandardRestore(template))
                    restored = self._manager.restore(step, args=args)["state"]
                    if not matches(restored, facts):
                        raise ValueError("its arrays do not match their checksum")
                    if all(restored[name].shape == target.shape for name, target in template.items()):
                        state = jax.tree.unflatten(treedef, [restored[name] for name in sorted(restored)])
                        return RestoredCheckpoint(state, step, facts.get("metrics", {}))
                    mismatch = "a checkpoint of a network of other shapes; the data may have other classes now"
            except Exception as error:
                older = [other for other in steps if other < step]
                then = f"; using step {older[0]}" if older else ""
                self._say(f"checkpoint {self.folder / str(step)} cannot be read ({_line(error)}){then}")
            else:
                raise ForeignCheckpoint(f"{self.folder / str(step)}: {mismatch}{self._reread}")
        if steps and which == "newest":
            raise UserError(f"{self.folder}: no checkpoint can be read; start again with another --out")
        if steps:
            raise UserError(f"{self.folder / str(steps[0])}: cannot be read")
        return None

    def _candidate_steps(self, which: CheckpointRef) -> list[int]:
        """The steps that a reference may mean, the first choice first."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if which == "newest" or not steps:
            return steps
        if which == "best":
            if self._config.best == "none":
                raise UserError("checkpoint = best: the run's checkpoints.best names nothing that they are judged by")
            return [self._best()]
        if which not in steps:
            raise UserError(f"checkpoint = {which}: allowed are {', '.join(map(str, steps[::-1]))}, newest and best")
        return [which]

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, which are unreadable and will be written again."""
        self._remove([later for later in self._good if later > step])

    def _begin(self, step: int, arrays: dict[str, Any], facts: dict) -> tuple[dict[str, jax.ShapeDtypeStruct], str]:
        """Start to write; returns the arrays' shapes and checksum."""
        expected = checksum(arrays)
        content = self._args.StandardSave(arrays), self._args.JsonSave(facts | {"checksum": expected})
        self._manager.save(step, args=self._args.Composite(state=content[0], facts=content[1]), force=True)
        return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}, expected

    def _finish(self, step: int, shapes: dict[str, jax.ShapeDtypeStruct], expected: str) -> str:
        """Wait until a checkpoint is on the disk, then restored it back: its defect, or an empty string."""
        self._manager.wait_until_finished()
        if not self._config.verify or jax.process_index() > 0:
            return ""
        try:
            template = {name: np.empty(shape.shape, shape.dtype) for name, shape in shapes.items()}
            restored = self._reader.restore(
                self.folder / str(step) / "state", args=self._args.StandardRestore(template)
            )
            return "" if checksum(restored) == expected else "its arrays do not match their checksum"
        except Exception as error:
            return _line(error)

    @cached_property
    def _reader(self):
        """The checkpointer of the main process, which reads back without the others."""
        import orbax.checkpoint as ocp

        single_process = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="read_back")
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=single_process)
        return ocp.Checkpointer(handler, multiprocessing_options=single_process)

    def _facts(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=self._args.Composite(facts=self._args.JsonRestore()))["facts"]

    def _score(self, facts: dict[str, Any]) -> float:
        """The metric by which the best checkpoint is chosen, lower is better: a mean over runs; infinite if missing."""
        value = float(np.mean(np.asarray(facts.get("metrics", {}).get(self._config.best), float)))
        return value if np.isfinite(value) else float("inf")

    def _best(self) -> int:
        """The step with the lowest score, the earliest of several."""
        for step in self._good:
            if step not in self._scores:
                self._scores[step] = float("inf")
                with contextlib.suppress(Exception):  # a corrupt one is not the best
                    self._scores[step] = self._score(self._facts(step))
        return min(self._good, key=lambda step: (self._scores[step], step))

    def _prune(self) -> None:
        """Delete the good checkpoints that the configuration does not keep."""
        keep = set(self._good[-self._config.keep :])
        if self._config.best != "none":
            keep.add(self._best())
        self._remove([step for step in self._good if step not in keep])

    def _remove(self, steps: list[int]) -> None:
        """Move checkpoints away at once and delete them in the background, before the next one is verified."""
        for step in steps:
            self._manager.delete(step)
        self._good = [step for step in self._good if step not in steps]
        if steps:
            self._worker.submit(self._empty_removed)

    def _empty_removed(self) -> None:
        """Delete what was moved away."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

    def _write_error(self, step: int, why: str) -> UserError:
        fallback = f"the newest good one is step {self.latest}" if self._good else "there is no earlier one"
        return UserError(f"cannot write checkpoint {self.folder / str(step)}: {why}; {fallback}")


def _restore_target(leaf: Any) -> Any:
    """The target that orbax restores an array into: a shape with a sharding, or a host array."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


_report_unraisable = sys.unraisablehook


def _ignore_closed_loop(unraisable) -> None:
    """A failed save or restore leaves callbacks to a closed event loop; the failure itself is raised elsewhere."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        _report_unraisable(unraisable)


def _line(error: Exception) -> str:
    """An error's message in one short line; the operating system's reason where there is one."""
    text = " ".join(str(error).split())
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES))
    return next((reason for reason in reasons if reason in text), text[:120] or type(error).__name__)
