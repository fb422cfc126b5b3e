"""Loss terms beside the residual: one file each."""

from vamf.objectives.terms.anchor import Anchor
from vamf.objectives.terms.base import Term
from vamf.objectives.terms.distribution_matching import DistributionMatching
from vamf.objectives.terms.flow_matching import FlowMatching
from vamf.objectives.terms.temporal_pair import TemporalPair
from vamf.objectives.terms.velocity_head import VelocityHead
from vamf.options import family

TERMS: dict[str, type[Term]] = family(Term, "vamf.objectives.terms.TERMS", {})
"""Terms of your own by name, for `terms`; those of this package are options of every method."""

__all__ = ["TERMS", "Anchor", "DistributionMatching", "FlowMatching", "TemporalPair", "Term", "VelocityHead"]
