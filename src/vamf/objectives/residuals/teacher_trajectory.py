"""Jumps along a teacher's trajectories: consistency mid-training.

Hu et al., *MeanFlow Transformers with Representation Autoencoders* (arXiv:2511.13019), second stage.

    z_K = e,   z_{k-1} = z_k - (t_k - t_{k-1}) v_T(z_k, t_k)             Euler steps of the teacher from noise to data
    R = u(z_i, t_j, t_i) - (z_i - z_j) / (t_i - t_j)                     j < i

t_0 = 0, ..., t_K = 1 are the times of the distribution `teacher_grid`: published are 16, so K = 15 steps, shifted with
a = 6.93. A trajectory is dear and its pairs (i, j) are cheap, so rows in turn share one (`pairs`, published: 64).

No bootstrap, no derivative, no data: the network sees what jumps are before it has to agree with itself about them. It
is exact up to the teacher's Euler steps, and a start for `meanflow_rae`, not an end.

The paper's formula has the times of the trajectory throughout. The official code shifts those of the trajectory and
then conditions the student on, and divides by, the even ones i / K: a flow of its own, with other times than the
teacher and than the stage that follows, which looks like a slip. `student_times` has both.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from vamf.average_velocity import instantaneous_velocity
from vamf.errors import UserError, require
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.velocity import ModelVelocity, Teacher
from vamf.path import expand
from vamf.times import TeacherGrid


@dataclasses.dataclass(frozen=True)
class TeacherTrajectory(Residual):
    """u regresses what a teacher's trajectory does between two of its points, the nearest to (r, t)."""

    teacher: ModelVelocity = Teacher()
    """Whose velocity makes the trajectories."""
    pairs: int = 1
    """Rows in turn that share a trajectory, which starts at the first one's noise and has its condition."""
    student_times: Literal["shifted", "unshifted"] = "shifted"
    """Times that u takes and the jump is divided by: those of the trajectory (the paper) or i / K (its code)."""

    def __post_init__(self):
        require(self.pairs >= 1, "pairs", self.pairs, "1 or more")
        require(
            self.student_times in ("shifted", "unshifted"), "student_times", self.student_times, "shifted, unshifted"
        )

    @property
    def needs(self):
        return frozenset({"straight line"})

    def __call__(self, rows, target, ctx):
        """R = u - sg[(z_i - z_j) / (t_i - t_j)] at two points of the row's trajectory."""
        times = ctx.objective.times
        if not isinstance(times, TeacherGrid):
            raise UserError("times: a teacher's trajectory has the times of teacher_grid")
        teacher = self.teacher.model(ctx)
        first = rows[:: self.pairs]
        grid = times.grid().astype(rows.t.dtype)

        def euler(z, k):
            t = jnp.full(first.t.shape, grid[k])
            v = jax.lax.stop_gradient(instantaneous_velocity(teacher, z, t, first.cond))
            return z - (grid[k] - grid[k - 1]) * v, z

        last, path = jax.lax.scan(euler, first.e, jnp.arange(len(grid) - 1, 0, -1))
        path = jnp.concatenate([path, last[None]])[::-1]  # path[k] is z_k

        start = times.index(rows.t)
        end = jnp.minimum(times.index(rows.r), start - 1)
        group = jnp.arange(len(start)) // self.pairs
        z, z_end = path[start, group], path[end, group]
        cond = None if rows.cond is None else rows[group * self.pairs].cond
        even = jnp.arange(len(grid), dtype=grid.dtype) / (len(grid) - 1)
        times = grid if self.student_times == "shifted" else even
        t, r = times[start], times[end]
        return ResidualOutput(ctx.u(z, r, t, cond) - (z - z_end) / expand(t - r, z))

    def noise(self, target, step):
        return 0.0, 0.0
