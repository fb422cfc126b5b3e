"""Check the options of a run against its data set."""

from vamf.data.dataset import Dataset
from vamf.errors import UserError


def check_options(dataset: Dataset, custom_scale: bool, augmented: bool, reflow: bool, uses_start: bool) -> None:
    """Refuse options that do not suit a data set.

    Args:
        custom_scale: latents have a custom scale.
        augmented: images are augmented.
        reflow: a teacher's flow makes the pairs.
        uses_start: the path begins at the start of each row of paired data.

    Raises:
        UserError: names the option and what the data allow.
    """
    if custom_scale and dataset.latents is None:
        raise UserError(f"latents.scale = own: {dataset.name} holds no latents")
    if augmented and dataset.image_shape != dataset.event_shape:
        raise UserError(f"augment: moves images; samples of {dataset.name} have shape {dataset.event_shape}")
    if augmented and (dataset.has_start or dataset.cond_shape.image):
        raise UserError("augment: not with an image as condition or start, which it does not move")
    if reflow and dataset.has_start:
        raise UserError(f"reflow.pairs: {dataset.name} has a start for each row already")
    if dataset.has_start and not uses_start:
        raise UserError(f"{dataset.name} has a start for each row: train with --path pairs, or leave `start` out")
    if uses_start and not dataset.has_start:
        raise UserError(f"path = pairs: {dataset.name} has no start for each row, such as the array `start` of a .npz")
