"""Loss terms beside the residual: one file each."""

from vamf.objectives.terms.anchor import Anchor
from vamf.objectives.terms.base import Term
from vamf.objectives.terms.distribution_matching import DistributionMatching
from vamf.objectives.terms.flow_matching import FlowMatching
from vamf.objectives.terms.temporal_pair import TemporalPair
from vamf.objectives.terms.velocity_head import VelocityHead

__all__ = ["Anchor", "DistributionMatching", "FlowMatching", "TemporalPair", "Term", "VelocityHead"]
