"""Configurations by name; `for_data` gives one for any data file."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vamf import data
from vamf.data import ImageConfig, LatentScale, mixtures, tables, toys
from vamf.data.augment import Augmentation
from vamf.errors import UserError
from vamf.networks import DiTConfig, InContextConfig, MLPConfig, unet
from vamf.objectives.guidance import Guidance
from vamf.objectives.methods import IMAGES, nested
from vamf.objectives.weighting import Power
from vamf.options import merged
from vamf.times import LogitNormal, LogitNormalMin
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig


def toy(name: str) -> TrainConfig:
    """A 2-D toy or a dense mixture with the paper's network and time distribution, for good samples after a short run:
    Rao-Blackwellised roles and ten times the paper's learning rate, at a tenth of its 200,000 steps.

    `vamf train two_moons --steps 2000` ends at a one-step SW1 of .054, two samples of the data being .030 ± .008
    apart, and with the paper's rate and `vamf` at .100; `vamf train swiss_roll` at .026 (.017 ± .004). The studies
    have the paper's settings (`as_in_paper`).
    """
    return TrainConfig(data=name, method="rao_blackwell", learning_rate=1e-2)


def with_mixing_method(config: TrainConfig, options: Iterable[str]) -> TrainConfig:
    """The configuration that command-line options change. An option of the mix without a method selects `vamf`, since
    the toys' method has no mix."""
    flags = {option.partition("=")[0] for option in options}
    mixes = {"--beta", "--gamma", "--proxy"} & flags and "--method" not in flags
    return dataclasses.replace(config, method="vamf") if mixes and config.method == "rao_blackwell" else config


def as_in_paper(name: str) -> TrainConfig:
    """The base configuration of the paper's studies: on toys and mixtures its method and learning rate."""
    config = for_data(name)
    is_toy = config == toy(name)
    return dataclasses.replace(config, method="vamf", learning_rate=1e-3) if is_toy else config


def digits() -> TrainConfig:
    """The 8x8 handwritten digits, one generator for the ten classes."""
    return TrainConfig(
        data="digits",
        network=MLPConfig(width=512, depth=4),
        optimizer=OptimizerConfig(clip_norm=10.0),
    )


def table(path: str) -> TrainConfig:
    """A user's table: a wider network than the toys'."""
    return TrainConfig(data=path, network=MLPConfig(width=256), optimizer=OptimizerConfig(clip_norm=10.0))


def guided(mix: float, scale: float, until: float = 1.0) -> dict[str, Any]:
    """MeanFlow with classes on images (arXiv:2505.13447): guidance of a scale, mixed with the network's own velocity.

    The paper's omega and kappa are `(1 - mix) scale` and `mix`.
    """
    return {
        "method": "vamf",
        "objective": {
            "beta": 0.0,
            "guidance": Guidance(scale, mix, (0.0, until), dropout=0.1),
            "weighting": Power(1.0, 1e-2),
            "times": IMAGES,
        },
    }


def fashion_mnist() -> TrainConfig:
    """Fashion-MNIST with classes and guidance by a small transformer: recognisable in one step after 25 minutes on two
    cores (docs/images.md)."""
    return TrainConfig(
        data="data/fashion-mnist",
        images=ImageConfig(expect="fashion_mnist"),
        steps=7000,
        batch_size=64,
        network=DiTConfig(depth=4, width=128, heads=4, patch=4),
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=0.1, warmup=200),
        **guided(0.5, 2.0),
    )


def images(path: str) -> TrainConfig:
    """A user's images or latents: a small transformer, whose patches are chosen by the image, without guidance. Not
    measured."""
    return TrainConfig(
        data=path,
        method="meanflow",
        objective={"weighting": Power(1.0, 1e-2), "times": IMAGES},
        steps=50_000,
        batch_size=64,
        learning_rate=3e-4,
        network=DiTConfig(depth=6, width=256, heads=4, patch=0),
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=0.1, warmup=500),
    )


def cifar10_unet() -> TrainConfig:
    """MeanFlow's recipe for CIFAR-10, without classes (arXiv:2505.13447): FID 2.92 there, not measured here.

    Adam at 6e-4 after 10,000 steps of warm-up, batch 1024, p = 0.75, dropout 0.2; EMAs 0.99995, which the
    paper's number is of, 0.9999 and 0.9996, at every step (the official code: at every 16th, by the 16th power). As
    there, images are mirrored twice: when drawn, without conditioning, and by the augmentation.
    """
    return TrainConfig(
        data="data/cifar10",
        images=ImageConfig(expect="cifar10", flip=True),
        conditional=False,
        method="meanflow",
        objective={
            "weighting": Power(0.75, 1e-3),
            "times": LogitNormal(mean=-2.0, std=2.0, flow_matching_ratio=0.25),
        },
        steps=800_000,
        batch_size=1024,
        learning_rate=6e-4,
        checkpoint_every=10_000,
        augment=Augmentation(),
        network=unet.CIFAR10,
        optimizer=OptimizerConfig(
            final_learning_rate=1.0, warmup=10_000, ema_decay=0.99995, ema_decays=(0.9999, 0.9996), ema_warmup=False
        ),
        log=LogConfig(variance_every=0),
    )


def cifar10_unet_v1() -> TrainConfig:
    """Recipe v1 of MeanFlow's official code for CIFAR-10, of its published checkpoint: FID 2.80 there, with the
    EMA of 0.99995. Not measured here.

    t and r have different distributions, r := t with probability 0.25, then r := min(t, r). 16,000 epochs of 48 steps,
    200 of them warm-up. 307 rows of a batch have r = t; for `grad_accumulation`, choose a divisible number:
    `--times.flow-matching-ratio 0.2468` has 304.
    """
    recipe = cifar10_unet()
    return dataclasses.replace(
        recipe,
        objective={
            **recipe.objective,
            "times": LogitNormalMin(mean=-0.6, std=1.6, r_mean=-4.0, flow_matching_ratio=0.25),
        },
        steps=768_000,
        optimizer=dataclasses.replace(recipe.optimizer, warmup=9600),
    )


def cifar10_dit() -> TrainConfig:
    """CIFAR-10 with classes and guidance by DiT-S/2. Not from a paper; not measured."""
    return TrainConfig(
        data="data/cifar10",
        images=ImageConfig(expect="cifar10", flip=True),
        steps=200_000,
        batch_size=256,
        learning_rate=2e-4,
        checkpoint_every=5000,
        network=DiTConfig.named("S/2"),
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=1.0, warmup=2000, ema_decay=0.9999),
        log=LogConfig(variance_every=0),
        **guided(0.5, 2.0),
    )


def ddpm_cifar10() -> TrainConfig:
    """DDPM on CIFAR-10 without classes, with the published constants (arXiv:2006.11239): FID 3.17 there after 1,000
    steps of the ancestral sampler. Not measured here: the way to check a Fréchet distance against a published one.
    """
    return TrainConfig(
        data="data/cifar10",
        images=ImageConfig(expect="cifar10", flip=True),
        conditional=False,
        method="ddpm",
        steps=800_000,
        batch_size=128,
        learning_rate=2e-4,
        checkpoint_every=10_000,
        network=unet.DDPM_CIFAR10,
        optimizer=OptimizerConfig(
            final_learning_rate=1.0, warmup=5000, clip_norm=1.0, ema_decay=0.9999, ema_warmup=False
        ),
        log=LogConfig(variance_every=0),
    )


def imagenet_dit(size: str, mix: float = 0.5, scale: float = 2.0, until: float = 1.0) -> TrainConfig:
    """ImageNet-256 latents (32x32x4) of Stable Diffusion's autoencoder with a DiT, as MeanFlow and VaMF train it.

    Adam (0.9, 0.95) at a constant 1e-4, batch 256, EMA 0.9999, label dropout 0.1, p = 1 and c = 0.01, on all
    latents times 0.18215. FID of one call, published, after 240 epochs: B/2 6.17, M/2 5.01, L/2 3.84, XL/2 3.43; B/4
    after 300,000 steps 11.4 (arXiv:2605.09235). Not measured here.
    """
    return TrainConfig(
        data="data/imagenet-latents",
        holdout=0.0,
        latents=LatentScale("factor"),
        steps=300_000 if size == "B/4" else 1_200_000,
        batch_size=256,
        learning_rate=1e-4,
        checkpoint_every=5000,
        network=DiTConfig.named(size),
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=1.0, ema_decay=0.9999, ema_warmup=False),
        log=LogConfig(variance_every=0),
        **guided(mix, scale, until),
    )


def imagenet_in_context(size: str) -> TrainConfig:
    """Improved MeanFlow on ImageNet-256 latents with the in-context transformer (arXiv:2512.02012).

    Guidance scales up to 8 are drawn as conditioning. All latents are used for training, with a published mean and
    deviation for each channel. FID of one call, published, at the best scale and times: B 3.39, M 2.27, L 1.86, XL
    1.72. Not measured here.
    """
    return TrainConfig(
        data="data/imagenet-latents",
        holdout=0.0,
        latents=LatentScale("fixed"),
        method="improved_meanflow",
        objective={"proxy": "head", "guidance": Guidance(8.0, scale_power=1.0, dropout=0.1)},
        steps=800_000,
        batch_size=1024,
        learning_rate=1e-4,
        checkpoint_every=5000,
        network=InContextConfig.named(size),
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=1.0, ema_decay=0.9999, ema_warmup=False, warmup=12_500),
        log=LogConfig(variance_every=0),
    )


PRESETS = {name: toy(name) for name in (*toys.NAMES, *mixtures.NAMES)} | {
    "digits": digits(),
    "fashion_mnist": fashion_mnist(),
    "cifar10_unet": cifar10_unet(),
    "cifar10_unet_v1": cifar10_unet_v1(),
    "cifar10_dit": cifar10_dit(),
    "ddpm_cifar10": ddpm_cifar10(),
    "imagenet_dit_b4": imagenet_dit("B/4"),
    "imagenet_dit_b2": imagenet_dit("B/2"),
    "imagenet_dit_m2": imagenet_dit("M/2", 0.92, 2.5, 0.8),
    "imagenet_dit_l2": imagenet_dit("L/2", 0.92, 2.5, 0.8),
    "imagenet_dit_xl2": imagenet_dit("XL/2", 0.92, 2.5, 0.75),
    "imagenet_in_context_b2": imagenet_in_context("B/2"),
}


def is_name(name: str) -> bool:
    """Whether `vamf train` has a configuration of this name, and chooses none by the data."""
    return name in PRESETS or data.is_name(name)


def for_data(source: str | data.Source, **changes: Any) -> TrainConfig:
    """The default configuration of a preset's name or of data, as in `vamf train`.

    Args:
        source: a preset's name, or data as `vamf.data.load` takes them.
        changes: fields with other values; a dict for a part, such as `optimizer`, changes only the fields it names.

    Raises:
        UserError: neither a preset nor data of a known kind, or an unknown field.
    """
    return update(_for_data(source), changes)


def update(config: Any, changes: Mapping[str, Any]) -> Any:
    """A configuration with other values in some fields, those of parts as dicts.

    Raises:
        UserError: an unknown field.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if unknown := [name for name in changes if name not in fields]:
        raise UserError(f"{unknown[0]}: no such field of {type(config).__name__}; allowed are {', '.join(fields)}")
    deep = {name: update(fields[name], value) for name, value in changes.items()
            if isinstance(value, Mapping) and dataclasses.is_dataclass(fields[name])}  # fmt: skip
    if "objective" in changes and changes.get("method", fields.get("method")) == fields.get("method"):
        deep["objective"] = merged(fields["objective"], nested(changes["objective"]))
    return dataclasses.replace(config, **{**changes, **deep})


def _for_data(source: Any) -> TrainConfig:
    is_name = isinstance(source, str | Path)
    name = str(source) if is_name else data.IN_MEMORY
    if is_name and name in PRESETS:
        return PRESETS[name]
    if data.are_images(source):
        return images(data.source_name(source))
    if is_name and tables.is_file(Path(name)) and not data.is_name(name):
        if not Path(name).exists():
            raise UserError(f"{name}: no such file")
        return table(data.source_name(source))
    if not is_name:
        return table(name)
    dataset = data.load(name)  # raises, naming what is allowed
    if dataset.mixture is not None:  # dense mixtures of other dimensions
        return toy(name)
    return dataclasses.replace(_for_data(dataset), data=name)
