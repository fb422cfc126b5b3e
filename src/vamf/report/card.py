"""A trained generator at a glance, as a fragment of HTML for a notebook."""

import base64
import html
from typing import Any

import numpy as np

from vamf import figures
from vamf.report import tables
from vamf.report.gallery import gallery
from vamf.training.logs import LOG, read
from vamf.training.run import Run
from vamf.training.step import State

SHOWN = 512
"""Samples in the picture, or images."""
IMAGES = 40


def card(run: Run, state: State, evaluation: dict[str, Any] | None) -> str:
    """What was trained, samples beside data where these are at hand, distances and the loss.

    Args:
        evaluation: the last one, of `Run.evaluate`, if there was one.
    """
    records = read(run.folder / LOG)
    step = records[-1]["step"] if records else 0
    lines = [run.dataset_info.summary, f"{run.config.describe()}; {step:,} steps trained"]
    if records:
        lines.append(f"velocity loss at r = t {records[-1]['v_loss']:.4g}, residual {records[-1]['residual']:.4g}")
    if evaluation is None:
        lines.append("not evaluated yet: evaluate()")
    else:
        rows = evaluation["distances"].items()
        distances = ", ".join(f"{name} {tables.number(row['sw1'])}" for name, row in rows)
        lines.append(f"sliced Wasserstein distances to unseen data: {distances}")
    picture = _picture(run, state)
    text = "<br>".join(html.escape(line) for line in lines)
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    return f'<div><p>{text}</p><img alt="samples" style="max-width: 100%" src="{source}"></div>'


def _picture(run: Run, state: State) -> bytes:
    dataset, to_images = run.dataset_info, run.view
    if to_images is not None:
        images = to_images(run.draw(state, IMAGES)[0])
        return figures.image_grid(images, 10, figures.enlargement(images, 4, 96), 0, 255)
    real: dict[str, np.ndarray] = {"data": run.dataset.reference(SHOWN, 0)} if run.has_data else {}
    return gallery(dataset, {**real, "samples": run.draw(state, SHOWN)[0]}, None)[0]
