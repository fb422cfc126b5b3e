"""Residuals of the rows with r < t: one file each."""

from vamf.objectives.residuals.alphaflow import AlphaFlow
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.residuals.eulerian import Eulerian
from vamf.objectives.residuals.flow_matching import FlowMatchingResidual
from vamf.objectives.residuals.lagrangian import Lagrangian
from vamf.objectives.residuals.semigroup import Semigroup
from vamf.objectives.residuals.teacher_trajectory import TeacherTrajectory

__all__ = ["AlphaFlow", "Eulerian", "FlowMatchingResidual", "Lagrangian", "Residual", "ResidualOutput", "Semigroup",
           "TeacherTrajectory"]  # fmt: skip
