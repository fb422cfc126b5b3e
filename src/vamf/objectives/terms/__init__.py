"""Loss terms beside the residual: one file each."""

from vamf.objectives.terms.anchor import Anchor
from vamf.objectives.terms.base import Term
from vamf.objectives.terms.cycle import Cycle
from vamf.objectives.terms.distribution_matching import DistributionMatching
from vamf.objectives.terms.flow_matching import FlowMatching
from vamf.objectives.terms.temporal_pair import TemporalPair
from vamf.objectives.terms.velocity_head import VelocityHead
from vamf.options import family

TERMS: dict[str, type[Term]] = family(Term, "vamf.objectives.terms.TERMS", {"cycle": Cycle})
"""Terms by name, for the option `terms`, also those of your own; the others here are options of every method."""

__all__ = ["TERMS", "Anchor", "Cycle", "DistributionMatching", "FlowMatching", "TemporalPair", "Term", "VelocityHead"]
