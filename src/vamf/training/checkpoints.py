"""Checkpoints that can be trusted: written whole or not at all, checked when read, tied to their configuration.

A checkpoint holds the parameters, their moving average, the optimiser's state, the step and the objective's memory,
and the log's last line. The state of the random numbers and the place in the data are not in it: both follow from the
seed and the step.
"""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
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
"""Where a checkpoint is moved before it is deleted: none is ever there in part."""
Which = int | Literal["newest", "best"]
"""A checkpoint: by its step, or the newest, or the one with the least of what `checkpoints.best` says."""


class Restored(NamedTuple):
    """A state that was read."""

    state: Any
    step: int
    metrics: dict[str, Any]
    """The log's line at that step."""


class Foreign(UserError):
    """A checkpoint of another training than the one that asks for it."""


class Checkpoints:
    """The checkpoints of one training, written in the background while it goes on; to be used in a `with`.

    Orbax writes each under a temporary name and renames it when complete, so that a process killed at any instant
    leaves the earlier ones intact. Each is then read back and compared; an older one goes only when a newer one has
    passed. With several processes every method is called by all of them.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        config: CheckpointConfig | None = None,
        say: Callable[[str], None] = print,
        clean: bool = False,
        reread: str = "",
    ):
        """`fingerprint` identifies configuration and data; a checkpoint with another one is refused.

        Args:
            say: called with a line for each checkpoint that turned out bad.
            clean: whether what a killed process left half written is cleared away; only for the one who trains.
            reread: what earlier versions made otherwise of the same data, for the refusal of their checkpoints.
        """
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are raised here, in one line, not logged there
        sys.unraisablehook = _ignore_closed_loop
        self.folder = folder.absolute()
        self.fingerprint = fingerprint
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
        """Wait for the last checkpoint. If something else has failed already, its failure is only told."""
        try:
            if kind is None or jax.process_count() == 1:
                self.settle()
        except UserError as error:
            if kind is None:
                raise
            self._say(str(error))
        finally:
            self._worker.shutdown()
            self._empty_removed()
            with contextlib.suppress(Exception):  # which was raised before
                self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest good checkpoint, if there is one."""
        return max(self._good, default=None)

    def tell_latest(self) -> str:
        """Where the newest good checkpoint is, in a few words, once it is known how the last one came out."""
        self.settle()
        return f"last good checkpoint: {self.folder / str(self.latest)}" if self._good else "no checkpoint yet"

    def save(self, step: int, state: Any, metrics: dict[str, Any] | None = None) -> None:
        """Start to write the state (a tree of arrays, on the host or on devices) as the checkpoint of a step.

        The state is copied before this returns: its memory may be used again. A single process copies it to the host,
        and does all else in the background; several have to meet before they write.

        Raises:
            UserError: this one or the one before cannot be written; the line names the newest good checkpoint.
        """
        self.settle()
        arrays, facts = named_leaves(state), {"fingerprint": self.fingerprint, "metrics": finite(metrics or {})}
        self._scores[step] = self._score(facts)
        if jax.process_count() == 1:
            copies = {name: np.array(array) for name, array in arrays.items()}
            work = self._worker.submit(lambda: self._finish(step, *self._begin(step, copies, facts)))
        else:
            try:
                begun = self._begin(step, arrays, facts)
            except Exception as error:
                raise self._unwritten(step, _line(error)) from None
            work = self._worker.submit(self._finish, step, *begun)
        self._writing = step, work

    def settle(self, wait: bool = True) -> None:
        """See how the checkpoint in the making came out: good ones take their place, bad ones are told and removed.

        Args:
            wait: else one that is not finished is left for later, and, with several processes, any.

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
        if anywhere(bool(unwritten)):
            raise self._unwritten(step, unwritten or "another process failed")
        if anywhere(bool(fault)):
            kept = f"the newest good one is step {self.latest}" if self._good else "there is no good one"
            if fault:  # the first process's
                self._say(f"checkpoint {self.folder / str(step)} does not read back ({fault}) and is removed; {kept}")
            self._remove([step])
        else:
            self._good.append(step)
            self._prune()

    def restore(self, like: Any, which: Which = "newest") -> Restored | None:
        """A state with its step, the newest readable one if none is named; None where there is no checkpoint.

        Args:
            like: a tree with the state's structure, shapes and types. A leaf with a `sharding` is read into it, by
                each process what it needs; the others become host arrays.

        Raises:
            Foreign: the checkpoint belongs to another configuration, network or other data.
            UserError: it is not there or cannot be read.
        """
        leaves, structure = jax.tree.flatten(like)
        template = {name: _blank(leaf) for name, leaf in named_leaves(leaves).items()}
        steps = self._named(which)
        for step in steps:
            foreign = "a checkpoint of another configuration or other data"
            try:
                facts = self._facts(step)
                if facts["fingerprint"] == self.fingerprint:
                    args = self._args.Composite(state=self._args.StandardRestore(template))
                    restored = self._manager.restore(step, args=args)["state"]
                    if not matches(restored, facts):
                        raise ValueError("its arrays do not match their checksum")
                    if all(restored[name].shape == blank.shape for name, blank in template.items()):
                        state = jax.tree.unflatten(structure, [restored[name] for name in sorted(restored)])
                        return Restored(state, step, facts.get("metrics", {}))
                    foreign = "a checkpoint of a network of other shapes; the data may have other classes now"
            except Exception as error:
                older = [other for other in steps if other < step]
                then = f"; using step {older[0]}" if older else ""
                self._say(f"checkpoint {self.folder / str(step)} cannot be read ({_line(error)}){then}")
            else:
                raise Foreign(f"{self.folder / str(step)}: {foreign}{self._reread}")
        if steps and which == "newest":
            raise UserError(f"{self.folder}: no checkpoint can be read; start again with another --out")
        if steps:
            raise UserError(f"{self.folder / str(steps[0])}: cannot be read")
        return None

    def _named(self, which: Which) -> list[int]:
        """The steps that may be meant, the first choice first."""
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

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, which were found unreadable and will be written again."""
        self._remove([later for later in self._good if later > step])

    def _begin(self, step: int, arrays: dict[str, Any], facts: dict) -> tuple[dict[str, jax.ShapeDtypeStruct], str]:
        """Start to write; returns the arrays' shapes and checksum."""
        expected = checksum(arrays)
        content = self._args.StandardSave(arrays), self._args.JsonSave(facts | {"checksum": expected})
        self._manager.save(step, args=self._args.Composite(state=content[0], facts=content[1]), force=True)
        return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}, expected

    def _finish(self, step: int, shapes: dict[str, jax.ShapeDtypeStruct], expected: str) -> str:
        """Wait until a checkpoint is on the disk, then read it back: what is wrong with it, or nothing."""
        self._manager.wait_until_finished()
        if not self._config.verify or jax.process_index() > 0:
            return ""
        try:
            template = {name: np.empty(shape.shape, shape.dtype) for name, shape in shapes.items()}
            read = self._reader.restore(self.folder / str(step) / "state", args=self._args.StandardRestore(template))
            return "" if checksum(read) == expected else "its arrays do not match their checksum"
        except Exception as error:
            return _line(error)

    @cached_property
    def _reader(self):
        """What the first process reads back with, on its own."""
        import orbax.checkpoint as ocp

        alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="read_back")
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        return ocp.Checkpointer(handler, multiprocessing_options=alone)

    def _facts(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=self._args.Composite(facts=self._args.JsonRestore()))["facts"]

    def _score(self, facts: dict[str, Any]) -> float:
        """What the best checkpoint has least of: the mean over members; none is worst of all."""
        value = float(np.mean(np.asarray(facts.get("metrics", {}).get(self._config.best), float)))
        return value if np.isfinite(value) else float("inf")

    def _best(self) -> int:
        """The step with the lowest score, the earliest of several."""
        for step in self._good:
            if step not in self._scores:
                self._scores[step] = float("inf")
                with contextlib.suppress(Exception):  # a damaged one is not the best
                    self._scores[step] = self._score(self._facts(step))
        return min(self._good, key=lambda step: (self._scores[step], step))

    def _prune(self) -> None:
        """Delete good checkpoints that nothing asks to keep."""
        kept = set(self._good[-self._config.keep :])
        if self._config.best != "none":
            kept.add(self._best())
        self._remove([step for step in self._good if step not in kept])

    def _remove(self, steps: list[int]) -> None:
        """Move checkpoints away at once, and delete them in the background, before the next one is seen to."""
        for step in steps:
            self._manager.delete(step)
        self._good = [step for step in self._good if step not in steps]
        if steps:
            self._worker.submit(self._empty_removed)

    def _empty_removed(self) -> None:
        """Delete what was moved away."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

    def _unwritten(self, step: int, why: str) -> UserError:
        kept = f"the newest good one is step {self.latest}" if self._good else "there is no earlier one"
        return UserError(f"cannot write checkpoint {self.folder / str(step)}: {why}; {kept}")


def _blank(leaf: Any) -> Any:
    """What orbax takes for an array to be read: where it goes on the devices, or a host array."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


_report_unraisable = sys.unraisablehook


def _ignore_closed_loop(unraisable) -> None:
    """A failed save or restore leaves callbacks to an event loop that is gone; what failed is raised elsewhere."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        _report_unraisable(unraisable)


def _line(error: Exception) -> str:
    """What an error says, in one short line; the operating system's reason where there is one."""
    text = " ".join(str(error).split())
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES))
    return next((reason for reason in reasons if reason in text), text[:120] or type(error).__name__)
