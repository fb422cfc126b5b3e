"""Refusals of options of a training that are meant for data of another kind."""

from vamf.data.dataset import Dataset
from vamf.errors import UserError


def check_options(dataset: Dataset, own_units: bool, augmented: bool, reflow: bool, uses_start: bool) -> None:
    """Refuse options that do not go with a data set.

    Args:
        own_units: units of latents are given.
        augmented: images are moved at random.
        reflow: pairs are made by a teacher's flow.
        uses_start: the path begins at the start that data in pairs have for each row.

    Raises:
        UserError: names the option and what goes with these data.
    """
    if own_units and dataset.latents is None:
        raise UserError(f"latents.scale = own: {dataset.name} holds no latents")
    if augmented and dataset.picture != dataset.event_shape:
        raise UserError(f"augment: moves pictures; samples of {dataset.name} have shape {dataset.event_shape}")
    if augmented and (dataset.has_start or dataset.cond_shape.image):
        raise UserError("augment: not with an image as condition or start, which it does not move")
    if reflow and dataset.has_start:
        raise UserError(f"couplings: {dataset.name} has a start for each row already")
    if dataset.has_start and not uses_start:
        raise UserError(f"{dataset.name} has a start for each row: train with --path pairs, or leave `start` out")
    if uses_start and not dataset.has_start:
        raise UserError(f"path = pairs: {dataset.name} has no start for each row, such as the array `start` of a .npz")
