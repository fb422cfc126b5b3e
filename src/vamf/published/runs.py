"""A run folder from published weights: what `vamf import` writes."""

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from vamf.files import write_atomic, write_json
from vamf.progress import Progress
from vamf.published import Options, Published, read
from vamf.training import loop
from vamf.training.checksum import fingerprint
from vamf.training.config_file import CONFIG, to_json
from vamf.training.ensemble import Ensemble
from vamf.training.folders import new_run_folder
from vamf.training.initial import Initial
from vamf.training.run import Run

ORIGIN = "import.json"
"""File in the run's folder: which weights of which file it has."""


def create(
    path: str | Path,
    source: str,
    folder: Path | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Run:
    """A run whose EMA and parameters are published weights, as if it had been trained up to the file's step.

    Args:
        path, source, options: of `vamf.published.read`.
        folder: of the run; by default the first free `runs/SOURCE-METHOD-NUMBER`.

    Raises:
        UserError: as `read`, or the folder holds something already; nothing is left behind.
    """
    progress = progress or Progress(show=False)
    published = read(path, source, options)
    config = dataclasses.replace(published.config, steps=max(published.config.steps, published.step))
    origin = {
        "file": str(Path(path).resolve()),
        "sha256": _sha256(Path(path)),
        "from": source,
        "weights": published.weights,
        "step": published.step,
    }
    with new_run_folder(dataclasses.replace(config, data=source), folder) as place, _cleared(place):
        run = Run(place, config)
        run.inputs = published.inputs
        _write_checkpoint(run, published, progress)
        published.inputs.write(place)
        write_json(place / ORIGIN, origin)
        write_atomic(place / CONFIG, to_json(config))  # last: with it the folder is a run
    return run


def _write_checkpoint(run: Run, published: Published, progress: Progress) -> None:
    """The state of a run at the file's step, with an optimizer that has taken no step."""
    config, inputs = run.config, published.inputs
    start = Initial(published.params, fingerprint(published.params), "")
    ensemble = Ensemble(config, inputs.dataset(), [config.seed], inputs=inputs, init_from=lambda: start)
    state = ensemble.init()
    state = state._replace(step=jax.tree.map(lambda step: jnp.full_like(step, published.step), state.step))
    with loop.open_checkpoints(ensemble, run.folder, progress.say) as checkpoints:
        checkpoints.save(published.step, ensemble.to_checkpoint(state))


@contextlib.contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    """Remove what was written if writing fails."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for name in (CONFIG, ORIGIN, "inputs.npz"):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        raise


def _sha256(path: Path) -> str | None:
    """Digest of a file; None of a folder."""
    if path.is_dir():
        return None
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
