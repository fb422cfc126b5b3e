"""Base class of network configurations."""

import abc
import dataclasses
from typing import Any

from flax import nnx

from vamf.conditioning import CondShape


@dataclasses.dataclass(frozen=True)
class NetworkConfig(abc.ABC):
    """Size and form of a network. From outside the package: a frozen dataclass of this kind, named in `KINDS`."""

    takes_scale = False
    """Whether the network is conditioned on the guidance scale of each row."""

    @abc.abstractmethod
    def module(self, event_shape: tuple[int, ...], cond: CondShape, heads: tuple[str, ...], rngs: nnx.Rngs) -> Any:
        """The network: an `nnx.Module` that is called as (z, r, t, cond), with heads as in `BoundNetwork`.

        Args:
            cond: the kinds of conditioning.
            heads: further outputs, of `velocity` and `log_variance`.

        Raises:
            UserError: the size does not fit the events.
        """

    @property
    def takes_both_times(self) -> bool:
        """Whether u depends on r; a network of the velocity alone takes t."""
        return True

    def with_both_times(self) -> "NetworkConfig":
        """The same network with r as an input too."""
        return self

    def from_velocity(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Parameters with u(z, r, t) = v(z, t) for every r, from those of a velocity model; None where none are known.

        Args:
            params: of the same network trained at r = t, or of the one without r.
        """
        return None
