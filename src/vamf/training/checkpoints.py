"""Checkpoints that can be trusted: written whole or not at all, checked when read, tied to their configuration."""

import errno
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf.errors import UserError

KEEP = 3


class Checkpoints:
    """The checkpoints of one training: the newest few, each with a digest of its arrays.

    Orbax writes each under a temporary name and renames it when complete, so that a process killed at any instant
    leaves the earlier ones intact.
    """

    def __init__(self, folder: Path, fingerprint: str):
        """`fingerprint` identifies configuration and data; a checkpoint with another one is refused."""
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are raised here, in one line, not logged there
        sys.unraisablehook = _ignore_closed_loop
        self.folder = folder.absolute()
        self.fingerprint = fingerprint
        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from None

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Write the state (a tree of host arrays) as the checkpoint of a step.

        Raises:
            UserError: it cannot be written; the line names the newest good checkpoint.
        """
        state = _plain(state)
        facts = {"digest": _digest(state), "fingerprint": self.fingerprint}
        earlier = self.latest
        try:
            args = self._args.Composite(state=self._args.StandardSave(state), facts=self._args.JsonSave(facts))
            self._manager.save(step, args=args, force=True)
            self._manager.wait_until_finished()
        except Exception as error:
            kept = f"the newest good one is step {earlier}" if earlier is not None else "there is no earlier one"
            raise UserError(f"cannot write checkpoint {self.folder / str(step)}: {_line(error)}; {kept}") from None

    def restore(self, like: Any, warn: Callable[[str], None]) -> tuple[Any, int] | None:
        """The newest readable state with its step, or None where there is no checkpoint.

        Args:
            like: a tree with the state's structure, shapes and types.
            warn: called with a line for each checkpoint that had to be passed over.

        Raises:
            UserError: the checkpoint belongs to another configuration, or none of them can be read.
        """
        leaves, structure = jax.tree.flatten(like)
        template = _plain(jax.tree.unflatten(structure, [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]))
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                facts = self._manager.restore(step, args=self._args.Composite(facts=self._args.JsonRestore()))["facts"]
                if facts["fingerprint"] == self.fingerprint:
                    restored = self._manager.restore(
                        step, args=self._args.Composite(state=self._args.StandardRestore(template))
                    )["state"]
                    if _digest(restored) != facts["digest"]:
                        raise ValueError("its arrays do not match their digest")
                    return jax.tree.unflatten(structure, [restored[name] for name in sorted(restored)]), step
            except Exception as error:
                older = [other for other in steps if other < step]
                then = f"; using step {older[0]}" if older else ""
                warn(f"checkpoint {self.folder / str(step)} cannot be read ({_line(error)}){then}")
            else:
                raise UserError(f"{self.folder / str(step)}: a checkpoint of another configuration or other data")
        if steps:
            raise UserError(f"{self.folder}: no checkpoint can be read; start again with another --out")
        return None

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, which were found unreadable and will be written again."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)


def fingerprint(*parts: Any) -> str:
    """A digest of text and trees of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(_digest(_plain(part)).encode())
    return digest.hexdigest()


def _plain(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree under names that sort in their order: the same on disk whatever the tree's types."""
    return {f"{index:05d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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
