"""The parameters of a run that begins with those of another: which are taken, and what a velocity model becomes.

A model of the velocity, v(z, t), knows no r. Where the run trains jumps, its network starts as u(z, r, t) = v(z, t) for
every r, if it can (`NetworkConfig.from_velocity`): random or untrained weights of the gap would spoil v at once.
"""

from typing import Any, NamedTuple

import jax

from vamf import networks
from vamf.errors import UserError, spelled
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig

STARTS_AS_VELOCITY = "u(z, r, t) starts as its v(z, t) for every r"
STARTS_OTHERWISE = "u(z, r, t) starts as its v(z, t) at r = t; elsewhere it differs, as r has weights that learnt v"
DECOUPLED = "u(z, r, t) starts as its v(z, t) at r = t; elsewhere its last blocks take r for t"


class Initial(NamedTuple):
    """The parameters that a run starts from."""

    params: Any
    digest: str
    """Digest of the weights that they are made of."""
    summary: str
    """Which parameters were taken, in one line."""


def initial(config: TrainConfig, source: TrainConfig, network: networks.Network, params: Any) -> Initial:
    """The parameters for a run from those of another.

    Args:
        source: the configuration of the other run.
        network: of the run.
        params: of the other run.

    Raises:
        UserError: the networks do not fit, or predict something else.
    """
    folder = config.init_from
    _check(config, source)
    from_velocity = learns_velocity(source) and not learns_velocity(config)
    converted = config.network.from_velocity(params) if from_velocity else None
    taken = params if converted is None else converted
    ours = jax.eval_shape(network.init, jax.random.key(0))
    try:
        networks.overlay(ours, taken)
    except UserError as error:
        raise UserError(f"{error}{_differing_fields(source.network, config.network)}") from None
    parts = [f"init-from {folder}: all {len(jax.tree.leaves(params))} tensors of its EMA are taken"]
    if left := networks.left_out(ours, params):
        parts.append(f"others start afresh: {', '.join(left)}")
    if from_velocity and converted is None:
        parts.append(DECOUPLED if getattr(config.network, "decoupled_depth", 0) else STARTS_OTHERWISE)
    elif from_velocity:
        parts.append(STARTS_AS_VELOCITY)
    return Initial(taken, fingerprint(params), "; ".join(parts))


def learns_velocity(config: TrainConfig) -> bool:
    """Whether a run trains the velocity alone, and no jumps."""
    return config.build_objective().sampler != "flow_map"


def _check(config: TrainConfig, source: TrainConfig) -> None:
    """Refuse a network of another kind, and outputs that mean something else."""
    kinds = [networks.kind_of(one.network) for one in (source, config)]
    if kinds[0] != kinds[1]:
        raise UserError(f"init-from = {config.init_from}: its network is {kinds[0]}, this one {kinds[1]}")
    if source.prediction != config.prediction:
        raise UserError(
            f"init-from = {config.init_from}: its network predicts {source.prediction}, this one {config.prediction}; "
            "both need the same --prediction"
        )
    theirs, ours = (getattr(one.network, "predicts", "") == "noise" for one in (source, config))
    if theirs != ours:
        names = ("noise" if noise else "velocities" for noise in (theirs, ours))
        raise UserError("init-from = {}: its network predicts {}, this one {}".format(config.init_from, *names))


def _differing_fields(theirs: networks.NetworkConfig, ours: networks.NetworkConfig) -> str:
    """Which options of two networks of a kind differ, for a message."""
    pairs = {name: (value, getattr(ours, name)) for name, value in vars(theirs).items()}
    return "".join(f"; network.{spelled(name)} is {old} there, {new} here"
                   for name, (old, new) in pairs.items() if old != new)  # fmt: skip
