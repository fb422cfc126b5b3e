"""What every objective shares. A kind of derivative adds one method: the residual of the rows with r < t.

    z = (1 - t) x + t e          raw = v_c = e - x, or its posterior mean over a bank of data (`bank.py`)
    guided                       raw <- (1 - kappa) [W raw + (1 - W) v_null] + kappa u(z, t, t)   (`guidance.py`)
    roles                        tangent w = mix(beta; raw, v_hat)    target y = mix(gamma; raw, v_hat)
    r = t                        R = u(z, t, t) - y: flow matching, no derivative
    r < t                        R = the residual of the kind (`eulerian.py`, `finite_step.py`, `lagrangian.py`,
                                 `semigroup.py`)
    anchor                       F = u(z, t - delta, t) - raw,  delta ~ U[anchor_range], t - delta cut at 0
    flow matching of its own     G = u(z', t', t') - raw' at a time t' of its own
    temporal pair                P = u(z', t', t') - raw' and Q = u(z, t, t) - u(z', t', t') at t' = 1 - t of one path
    rectification                the one-step samples against the data (`rectification.py`)
    loss                         weight(||R||^2) + anchor_weight weight(||F||^2) + matching_weight weight(||G||^2)
                                 + weight(||P||^2) + pair_weight weight(||Q||^2) + rectification

| symbol | name            | symbol   | name              |
|--------|-----------------|----------|-------------------|
| gamma  | gamma           | p        | weight_power      |
| v_hat  | proxy           | c        | weight_constant   |
| W      | guidance        | lambda   | anchor_weight     |
| kappa  | guidance_mix    |          |                   |
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vamf import condition
from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.condition import Condition, Scale, Told
from vamf.errors import UserError, require
from vamf.objectives import adaptive, bank, guidance, proxies, rectification, weights
from vamf.objectives.roles import mix
from vamf.path import conditional_velocity, expand, interpolate
from vamf.schedules import Coefficient, Schedule, check_share, is_zero, value_at
from vamf.times import TimeLaw

Memory = adaptive.Memory | bank.Classes
"""What an objective has learnt so far."""


class Draw(NamedTuple):
    """The randomness of one batch."""

    e: Float[Array, "batch *event"]
    r: Float[Array, " batch"]
    t: Float[Array, " batch"]
    delta: Float[Array, " batch"] | None = None
    probe: Float[Array, "batch *event"] | None = None
    """Random signs, independent of everything else, where the Jacobian is probed."""
    share: Float[Array, " batch"] | None = None
    """lambda of the kinds that split [r, t]: s = t - lambda (t - r)."""
    matching_t: Float[Array, " batch"] | None = None
    """Time of the flow-matching term of its own."""
    matching_e: Float[Array, "batch *event"] | None = None
    """Its noise, where it has its own."""
    dropped: Bool[Array, " batch"] | None = None
    """True where the label is hidden."""
    renoised: rectification.Renoised | None = None
    """Noise and times of the rectification."""
    scale: Scale | None = None
    """The guidance of each row, where it has its own."""
    share_of_scale: Float[Array, " batch"] | None = None
    """Where in [1, guidance] the batch's scale lies, in [0, 1]; the same for all rows."""


class Points(NamedTuple):
    """Data points beyond the batch, drawn from the same law."""

    x: Float[Array, "bank *event"]
    label: Int[Array, " bank"] | None = None


class Rows(NamedTuple):
    """The rows with r < t, as a kind of derivative sees them."""

    z: Float[Array, "rows *event"]
    e: Float[Array, "rows *event"]
    """The noise at which the row's path starts."""
    r: Float[Array, " rows"]
    t: Float[Array, " rows"]
    raw: Float[Array, "rows *event"]
    """v_c, averaged and guided where asked."""
    v_hat: Float[Array, "rows *event"] | None
    y: Float[Array, "rows *event"]
    """The target."""
    label: Told
    probe: Float[Array, "rows *event"] | None
    share: Float[Array, " rows"] | None


class Diagonal(NamedTuple):
    """What a network says at r = t."""

    velocity: Float[Array, "rows *event"]
    """u(z, t, t)."""
    head: Float[Array, "rows *event"] | None
    """The velocity head, where there is one."""


class Found(NamedTuple):
    """What a kind of derivative makes of its rows."""

    error: Float[Array, "rows *event"]
    """R; only the gradient's path runs through it."""
    dudt: Float[Array, "rows *event"]
    """The derivative it took, for the log; 0 where it takes none."""
    beta: Float[Array, " rows"] | float = 0.0
    """Tangent mix of each row."""
    scale: Float[Array, "*rows"] | float = 1.0
    """Factor of these rows' loss, after the weight."""
    head: Float[Array, "rows *event"] | None = None
    """The velocity head, where the same pass gave it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """An average velocity, a batch and a key become losses."""

    gamma: Coefficient = 0.0
    """Share of v_hat in the target, in [0, 1]. Above 0 the target carries v_hat's bias (Proposition 3)."""
    proxy: proxies.Source = "ema"
    """Where v_hat comes from: none, online, ema, head, bank, oracle, teacher, or an average velocity. A `proxy`
    argument at call time goes before ema, oracle, teacher and an average velocity given here."""
    rao_blackwell: bool = False
    """Replace v_c by its posterior mean over a bank of data points wherever it occurs."""
    bank_size: int = 0
    """Points in the bank; the batch is always part of it, and 0 is the batch alone."""
    bank_from: float = 0.0
    """Use the bank for t from here on (Stable Velocity, arXiv:2602.05435: 0.5), and v_c below."""
    bank_memory: int = 0
    """Points of each class kept from earlier batches as the bank, and as many of all classes for rows without a label
    (Stable Velocity: 256); 0 draws the bank afresh. A row joins the points of its class."""
    guidance: float | Schedule = 1.0
    """W: scale of classifier-free guidance in the target field; 1 is none. A number or a schedule. Needs labels."""
    guidance_mix: float | Literal["unit", "capped"] | None = None
    """kappa: share of the network's own velocity in the guided field, in [0, 1), where guidance acts. unit: 1 - 1/W,
    which leaves v_c its noise; capped: 1 - max(1, W - 1)/W. None: 0, or unit where each row has a scale of its own."""
    guidance_range: tuple[float, float] = (0.0, 1.0)
    """Times at which guidance acts."""
    guidance_power: float | None = None
    """b: each row has a scale of its own, with density omega^-b on [1, guidance], which acts at times of its own; the
    network is told. None: one scale for all."""
    guidance_per_batch: bool = False
    """Draw the scale of each batch uniformly from [1, guidance]."""
    guidance_without_label: bool = False
    """Guide the rows without a label too."""
    label_dropout: float = 0.0
    """Share of rows whose label is hidden, so that the network learns the unconditional velocity too."""
    label_dropout_range: tuple[float, float] = (0.0, 1.0)
    """Times t at which labels are hidden."""
    anchor_weight: float = 0.0
    """lambda: weight of the flow-matching anchor close to the diagonal."""
    anchor_range: tuple[float, float] = (1e-4, 1e-2)
    """Range of the anchor's offset delta."""
    anchor_every: int = 1
    """k: the anchor is asked of every k-th row, which counts k times. Of all rows it costs as much as flow matching."""
    matching_weight: float = 0.0
    """Weight of a flow-matching term of its own for every row, at a time of its own."""
    matching_times: TimeLaw | None = None
    """Law of that time (its t); that of `times` where none is given."""
    matching_noise: Literal["same", "fresh"] = "same"
    """Whether that term shares the row's noise."""
    pair_weight: Coefficient = 0.0
    """lambda of temporal pairs (arXiv:2602.04908): velocities of one path at t and 1 - t are pulled together. Biased
    where flows curve: let it fall to 0."""
    rectify_weight: float = 0.0
    """Weight of the rectification, which pulls the law of one-step samples towards that of the data."""
    mix_diagonal: bool = True
    """Whether gamma counts at r = t too; otherwise the target there is v_c, which ties the diagonal to the data."""
    head_weight: float = 1.0
    """Weight of the loss of the velocity head, with the proxy head."""
    head_pass: Literal["row", "diagonal"] = "row"
    """Where the head is trained. row, as published: in the pass that gives u, so that it is told the row's gap and
    guidance. diagonal: in a pass of its own at r = t; a row without a label is then told the scale 1."""
    weight: Literal["power", "norm", "cauchy", "learned", "trace"] = "power"
    """Kind of loss weight; see `weights.py`."""
    weight_power: float = 0.0
    """p of the power weight; 0 is the plain squared error."""
    weight_constant: float = 1e-2
    """c of the weight."""
    trace_scale: Literal["one", "t", "t_squared", "bridge", "interpolant"] = "t"
    """s_t of the trace weight; see `weights.TRACE_SCALES`."""
    weight_gap: Coefficient = 0.0
    """s of the weight (1 - s) + s (1 - gap) / E[1 - gap], after the other weight; 0 is none (arXiv:2511.19065)."""
    weight_velocity: Literal["none", "min_snr"] = "none"
    """Weight of the rows with r = t: min_snr favours the noise levels where a velocity is learnt fastest."""
    reduction: Literal["sum", "mean"] = "sum"
    """Squared errors are summed or averaged over the event's axes; c is absolute, so this matters."""
    times: TimeLaw = TimeLaw()
    """Law of (r, t)."""

    def __post_init__(self):
        check_share("gamma", self.gamma)
        check_share("weight_gap", self.weight_gap)
        proxies.check(self.proxy)
        require(self.bank_size >= 0, "bank_size", self.bank_size, "0 (the batch) or more")
        if not self.has_bank and (self.bank_size or self.bank_from):
            raise UserError("bank_size and bank_from: only with the proxy bank or rao_blackwell")
        if self.proxy == "bank" and self.rao_blackwell:
            raise UserError("rao_blackwell: already averages what the proxy bank would; choose another proxy")
        require(0 <= self.bank_from <= 1, "bank_from", self.bank_from, "[0, 1]")
        self._check_guidance()
        require(self.anchor_every >= 1, "anchor_every", self.anchor_every, "1 or more")
        for name in ("anchor_range", "guidance_range", "label_dropout_range"):
            low, high = getattr(self, name)
            require(0 <= low <= high <= 1, name, f"{low}, {high}", "0 <= low <= high <= 1")
        check_share("pair_weight", self.pair_weight)
        if self.bank_memory and (self.bank_size or self.proxy == "bank" or not self.rao_blackwell):
            raise UserError("bank_memory: only with rao_blackwell, and without bank_size")
        if self.rectify_weight and self.proxy not in ("ema", "teacher", "oracle") and not callable(self.proxy):
            raise UserError(
                f"rectify_weight: needs the proxy ema, teacher or oracle for the data's velocity, not {self.proxy!r}"
            )
        for name in (
            "anchor_weight",
            "matching_weight",
            "head_weight",
            "weight_power",
            "bank_memory",
            "rectify_weight",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.weight_constant > 0, "weight_constant", self.weight_constant, "any number above 0")
        require(self.weight in weights.KINDS, "weight", self.weight, ", ".join(weights.KINDS))
        require(
            self.trace_scale in weights.TRACE_SCALES, "trace_scale", self.trace_scale, ", ".join(weights.TRACE_SCALES)
        )
        require(self.weight_velocity in ("none", "min_snr"), "weight_velocity", self.weight_velocity, "none, min_snr")
        require(self.matching_noise in ("same", "fresh"), "matching_noise", self.matching_noise, "same, fresh")
        require(self.reduction in ("sum", "mean"), "reduction", self.reduction, "sum, mean")
        require(self.head_pass in ("row", "diagonal"), "head_pass", self.head_pass, "row, diagonal")

    def _check_guidance(self) -> None:
        scale, mix = self.guidance, self.guidance_mix
        for value in (scale.start, scale.end) if isinstance(scale, Schedule) else (scale,):
            require(value >= 1, "guidance", scale, "1 (none) or more")
        if isinstance(mix, str):
            require(mix in ("unit", "capped"), "guidance_mix", mix, "[0, 1), unit, capped")
        elif mix is not None:
            require(0 <= mix < 1, "guidance_mix", mix, "[0, 1), unit, capped")
        if not self.guided:
            for name in ("guidance_power", "guidance_mix", "guidance_per_batch", "guidance_without_label"):
                if getattr(self, name):
                    raise UserError(f"{name}: needs guidance above 1, the largest scale")
        if self.guidance_power is not None:
            if self.guidance_per_batch or isinstance(scale, Schedule):
                raise UserError("guidance_power: draws a scale for each row; not with guidance_per_batch or a schedule")
            if self.proxy not in ("none", "bank", *proxies.OWN):
                raise UserError(f"guidance_power: mixes in the network's own velocity, not that of {self.proxy!r}")
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "[0, 1)")
        if self.guided and self.label_dropout == 0:
            raise UserError("guidance: needs label_dropout above 0, for rows without label")

    # ------------------------------------------------------------------------------------------- what a kind defines

    @abc.abstractmethod
    def off_diagonal(
        self, u: AverageVelocity, rows: Rows, step, proxy: AverageVelocity | None, memory: Memory | None
    ) -> Found:
        """The residual of the rows with r < t."""

    def noise(self, step: int) -> tuple[float, float] | None:
        """(a, b) of the noise operator N = a S + b I on the fluctuation of v_c for r < t; None where it is another, or
        where the kind does not say.

        At the exact u and without a weight the gradient's covariance given z is 4 g^T N Sigma N^T g.
        """
        return None

    @property
    def splits(self) -> bool:
        """Whether `Draw.share` is needed."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether v_hat is used off the diagonal."""
        return not is_zero(self.gamma)

    def probes(self, size: int) -> bool:
        """Whether `Draw.probe` is needed, for events of `size` numbers."""
        return self.weight == "trace"

    # ----------------------------------------------------------------------------------------------- for the trainer

    @property
    def guided(self) -> bool:
        """Whether labels guide the target."""
        return isinstance(self.guidance, Schedule) or self.guidance > 1

    @property
    def _largest_scale(self) -> float:
        scale = self.guidance
        return max(scale.start, scale.end) if isinstance(scale, Schedule) else scale

    @property
    def needs_average(self) -> bool:
        """Whether the moving average of the network is used, which the caller has to pass as `proxy`."""
        return self.proxy == "ema" and (self.mixes or self.rectify_weight > 0)

    @property
    def heads(self) -> tuple[str, ...]:
        """What the network needs beside u: `velocity` (z, t, label), `log_variance` (r, t), `fake` (z, t, label)."""
        wanted = {
            "velocity": self.proxy == "head",
            "log_variance": self.weight in ("cauchy", "learned"),
            "fake": self.rectify_weight > 0,
        }
        return tuple(name for name, needed in wanted.items() if needed)

    @property
    def adapts(self) -> bool:
        """Whether the objective has a memory, to be updated with `adapt` while training."""
        return self.bank_memory > 0

    @property
    def sampler(self) -> Literal["jumps", "heun", "ddim"]:
        """The named sampler (`vamf.sampling.named`) that asks for what is trained."""
        return "jumps"

    @property
    def has_bank(self) -> bool:
        """Whether v_c is averaged over data points, somewhere."""
        return self.proxy == "bank" or self.rao_blackwell

    def extra_points(self, batch: int) -> int:
        """How many data points beyond a batch the bank takes."""
        return max(0, self.bank_size - batch)

    def start(self, event_shape: tuple[int, ...] = (), classes: int = 0) -> Memory | None:
        """The memory before the first step; None for an objective without one."""
        return bank.Classes.empty(classes, self.bank_memory, event_shape) if self.bank_memory else None

    def adapt(self, memory, u, x, draw, label, step, proxy=None, equal=0, points=None):
        """The memory after a batch, for later batches."""
        return memory.remember(x, condition.label_of(label)) if isinstance(memory, bank.Classes) else memory

    def draw(self, key: Key[Array, ""], x: Float[Array, "batch *event"], e=None, step=0) -> Draw:
        """Noise, times and whatever else is random; the first `times.count_equal(batch)` rows have r = t.

        Args:
            e: noise (batch, *event) that belongs to x, where data come in pairs.
            step: training step, for laws that change over training.
        """
        noise_key, time_key, anchor_key = jax.random.split(key, 3)
        n = x.shape[0]
        if e is None:
            e = jax.random.normal(noise_key, x.shape, x.dtype)
        r, t = self.times.draw(time_key, n, step)
        found = {}
        if self.anchor_weight > 0:
            low, high = self.anchor_range
            found["delta"] = jax.random.uniform(anchor_key, t.shape, minval=low, maxval=high)
        if self.probes(x[0].size):
            found["probe"] = jax.random.rademacher(jax.random.fold_in(key, 3), x.shape, x.dtype)
        if self.splits:
            found["share"] = jax.random.uniform(jax.random.fold_in(key, 4), t.shape)
        if self.matching_weight > 0:
            found["matching_t"] = (self.matching_times or self.times).draw(jax.random.fold_in(key, 5), n, step)[1]
            if self.matching_noise == "fresh":
                found["matching_e"] = jax.random.normal(jax.random.fold_in(key, 6), x.shape, x.dtype)
        if self.label_dropout > 0:
            low, high = self.label_dropout_range
            dropped = jax.random.bernoulli(jax.random.fold_in(key, 7), self.label_dropout, (n,))
            found["dropped"] = dropped & (t >= low) & (t <= high)
        if self.rectify_weight > 0:
            found["renoised"] = rectification.renoise(jax.random.fold_in(key, 8), x)
        if self.guidance_power is not None:
            found["scale"] = guidance.draw(jax.random.fold_in(key, 9), r, t, self._largest_scale, self.guidance_power)
        if self.guidance_per_batch:
            found["share_of_scale"] = jnp.full_like(t, jax.random.uniform(jax.random.fold_in(key, 10), (), t.dtype))
        return Draw(e, r, t, **found)

    def __call__(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        label: Told,
        key: Key[Array, ""],
        step,
        proxy: AverageVelocity | None = None,
        points: Points | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """Per-sample losses of a batch, and what is worth logging about each sample.

        Args:
            u: the average velocity, parameters closed over.
            step: training step, for the schedules.
            proxy: average velocity whose diagonal is v_hat, where the objective needs one.
            points: data that joins the batch as the bank; the batch alone where none are given.
            memory: what the objective has learnt so far (`start`, `adapt`), where it learns.

        Returns:
            losses (batch,) and a dict of arrays (batch,): `r`, `t`, `residual` (||R||^2 without weight or anchor),
            `jvp_norm` (norm of the derivative, 0 where r = t), `beta` (0 where r = t) and, with a bank,
            `effective_size`.
        """
        equal = self.times.count_equal(x.shape[0])
        return self.evaluate(u, x, self.draw(key, x, step=step), label, step, proxy, equal, points, memory)

    def loss_at(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Told = None,
        proxy: AverageVelocity | None = None,
        delta: Float[Array, " batch"] | None = None,
        step=0,
        points: Points | None = None,
        memory: Memory | None = None,
        probe: Float[Array, "batch *event"] | None = None,
        share: Float[Array, " batch"] | None = None,
        matching_t: Float[Array, " batch"] | None = None,
        matching_e: Float[Array, "batch *event"] | None = None,
        dropped: Bool[Array, " batch"] | None = None,
        renoised: rectification.Renoised | None = None,
        scale: Scale | None = None,
        share_of_scale: Float[Array, " batch"] | None = None,
    ) -> Float[Array, " batch"]:
        """The losses (batch,) that training averages, at given noise and times: no randomness, weight included.

        Every term is there: what training draws for it and is not given has the value stated here.

        Args:
            delta: the anchor's offsets; the middle of `anchor_range` where none are given.
            probe: random signs, where the Jacobian is probed; ones where none are given.
            share: lambda of the kinds that split [r, t]; 1/2 where none is given.
            matching_t: time of the flow-matching term of its own; t where none is given.
            matching_e: its noise, where that is fresh; -e where none is given.
            dropped: rows whose label is hidden; none of them where none are given.
            renoised: noise and times of the rectification; -e and 1/2 where none are given.
            scale: the scale of each row and its times, where rows have their own; `guidance`, at all times, where none
                is given.
            share_of_scale: where in [1, `guidance`] the batch's scale lies, where it is drawn; 1/2 where none is given.
        """
        draw = Draw(e, r, t, delta, probe, share, matching_t, matching_e, dropped, renoised, scale, share_of_scale)
        return self.evaluate(u, x, self._complete(draw, x), label, step, proxy, None, points, memory)[0]

    def _complete(self, draw: Draw, x: Float[Array, "batch *event"]) -> Draw:
        """A draw with the values that `loss_at` states for what it lacks, as far as the objective uses it."""
        e, t = draw.e, draw.t
        stated: dict[str, Callable[[], Any]] = {
            "probe": lambda: jnp.ones_like(x),
            "share": lambda: jnp.full_like(t, 0.5),
        }
        if self.anchor_weight > 0:
            stated["delta"] = lambda: jnp.full_like(t, sum(self.anchor_range) / 2)
        if self.matching_weight > 0:
            stated["matching_t"] = lambda: t
            if self.matching_noise == "fresh":
                stated["matching_e"] = lambda: -e
        if self.rectify_weight > 0:
            stated["renoised"] = lambda: rectification.Renoised(-e, jnp.full_like(t, 0.5))
        if self.guidance_power is not None:
            stated["scale"] = lambda: Scale(*(jnp.full_like(t, value) for value in (self._largest_scale, 0.0, 1.0)))
        if self.guidance_per_batch:
            stated["share_of_scale"] = lambda: jnp.full_like(t, 0.5)
        return draw._replace(**{name: value() for name, value in stated.items() if getattr(draw, name) is None})

    def evaluate(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        draw: Draw,
        label: Told,
        step,
        proxy: AverageVelocity | None = None,
        equal: int | None = 0,
        points: Points | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """As a call, at a given draw whose first `equal` rows have r = t (these pay for no derivative).

        With `equal` None rows with r = t may be anywhere, and every row pays for both cases.
        """
        anywhere, equal = equal is None, equal or 0
        e, r, t = draw.e, draw.r, draw.t
        z = interpolate(x, e, t)
        off = slice(equal, None)
        on = slice(None) if anywhere else slice(None, equal)  # rows that are asked for u(z, t, t)
        label = self._told(label, draw)
        strength = self.strength(label, t, step, draw)
        diagonal = self._diagonal(u, z[on], t[on], _rows(label, on)) if anywhere or equal else None
        own = self._own(u, z, t, label, off, strength, diagonal, anywhere)
        raw, known = self._raw(u, x, e, t, label, strength, points, memory, own)
        aux = {"r": r, "t": t}
        if known is not None:
            aux["effective_size"] = known.effective_size

        def target(rows):
            return self._diagonal_target(u, proxy, z, t, label, strength, raw, known, step, rows, own)

        errors, heads, jvp_norm, beta, scale = [], [], [], [], []
        if equal and diagonal is not None:
            errors.append(diagonal.velocity - target(on))
            heads.append(diagonal.head)
            for column in (jvp_norm, beta):
                column.append(jnp.zeros(equal, x.dtype))
            scale.append(jnp.ones(equal, x.dtype))
        if equal < x.shape[0]:
            v_hat = self._v_hat(u, proxy, z, t, label, strength, known, off, own) if self.mixes else None
            y = mix(self.gamma, step, raw[off], v_hat)
            v_hat = self._tangent_proxy(u, proxy, z, t, label, known, off, v_hat)
            parts = (raw[off], v_hat, y, _rows(label, off), _rows(draw.probe, off), _rows(draw.share, off))
            found = self.off_diagonal(u, Rows(z[off], e[off], r[off], t[off], *parts), step, proxy, memory)
            head = found.head
            if self.proxy == "head" and head is None:
                head = self._head(u, z[off], t[off], _rows(label, off))
            if anywhere and diagonal is not None:
                apart = r < t
                error = jnp.where(expand(apart, z), found.error, diagonal.velocity - target(on))
                found = found._replace(error=error, scale=jnp.where(apart, found.scale, 1.0))
                if head is not None and diagonal.head is not None:
                    head = jnp.where(expand(apart, z), head, diagonal.head)
            errors.append(found.error)
            heads.append(head)
            jvp_norm.append(jnp.sqrt(_sum_squares(jax.lax.stop_gradient(found.dudt))))
            for column, value in ((beta, found.beta), (scale, found.scale)):
                column.append(jnp.broadcast_to(jnp.asarray(value, t.dtype), (x.shape[0] - equal,)))

        residual = jnp.concatenate([self._reduce(error) for error in errors])
        loss = self._weigh(u, residual, z, r, t, label, draw.probe) * jnp.concatenate(scale)
        loss = loss * self._emphasis(r, t, step)
        if self.anchor_weight > 0:
            loss = loss + self.anchor_weight * self._anchor(u, z, t, label, raw, known, draw, step)
        if self.matching_weight > 0:
            again = draw.e if draw.matching_e is None else draw.matching_e
            matching = self._matching(u, x, again, draw.matching_t, draw, label, step, proxy, points, memory)[0]
            loss = loss + self.matching_weight * matching
        if not is_zero(self.pair_weight):
            mirrored, velocity = self._matching(u, x, e, 1 - t, draw, label, step, proxy, points, memory)
            apart = self._reduce(instantaneous_velocity(u, z, t, label) - velocity)
            apart = self._weigh(u, apart, z, t, t, label, draw.probe)
            loss = loss + mirrored + value_at(self.pair_weight, step) * apart
        if self.rectify_weight > 0:
            assert draw.renoised is not None
            real = proxies.resolve(self.proxy, u, proxy)
            loss = loss + self.rectify_weight * rectification.loss(u, real, e, label, draw.renoised)
        if self.proxy == "head":
            head = self._reduce(jnp.concatenate(heads) - target(slice(None)))
            loss = loss + self.head_weight * self._weigh(u, head, z, t, t, label, draw.probe)
        aux |= {"residual": residual, "jvp_norm": jnp.concatenate(jvp_norm), "beta": jnp.concatenate(beta)}
        return loss, aux

    def strength(self, told: Told, t: Float[Array, " batch"], step=0, draw: Draw | None = None):
        """W and kappa of the guidance at each row's time (`guidance.Strength`); None where nothing is guided."""
        if not self.guided:
            return None
        own = condition.scale_of(told)
        scale = jnp.broadcast_to(jnp.asarray(value_at(self.guidance, step), t.dtype), t.shape)
        if own is not None:
            scale = own.omega
        elif self.guidance_per_batch and draw is not None and draw.share_of_scale is not None:
            scale = 1 + (scale - 1) * draw.share_of_scale
        rule = self.guidance_mix
        if rule is None:
            rule = 0.0 if self.guidance_power is None else "unit"
        if rule == "unit":
            kappa = 1 - 1 / scale
        elif rule == "capped":
            kappa = 1 - jnp.maximum(1.0, scale - 1) / scale
        else:
            kappa = None if rule == 0 else jnp.full_like(t, rule)
        return guidance.strength(told, t, scale, kappa, self.guidance_range, self.guidance_without_label)

    # ---------------------------------------------------------------------------------------------------- the parts

    def _told(self, label: Told, draw: Draw) -> Told:
        """What the network is told of the rows."""
        if draw.scale is not None:
            label = dataclasses.replace(label if isinstance(label, Condition) else Condition(label), scale=draw.scale)
        if draw.dropped is None:
            return label
        if condition.label_of(label) is None:
            raise UserError("label_dropout: the data has no labels")
        return (condition.drop_label if self.head_pass == "row" else condition.hide)(label, draw.dropped)

    def _diagonal(self, u, z, t, label) -> Diagonal:
        """u(z, t, t) of the rows, with the head where there is one."""
        if self.proxy != "head":
            return Diagonal(instantaneous_velocity(u, z, t, label), None)
        if self.head_pass == "row":
            return Diagonal(*proxies.with_head(u, z, t, t, condition.now(label, t)))
        return Diagonal(instantaneous_velocity(u, z, t, label), self._head(u, z, t, label))

    def _head(self, u, z, t, label):
        """The velocity head in a pass of its own, at r = t."""
        return instantaneous_velocity(proxies.head(u), z, t, label)

    def _own(self, u, z, t, label, off: slice, strength, diagonal: Diagonal | None, anywhere: bool):
        """The network's own velocity v(z, t) of all rows, without gradient, from what is known on the diagonal; None
        where nobody asks for it."""
        mixed = strength is not None and strength.mix is not None
        wanted = mixed or (self.proxy in proxies.OWN and (self.mixes or not is_zero(self.gamma)))
        if not wanted:
            return None
        known = [] if diagonal is None else [diagonal.velocity if diagonal.head is None else diagonal.head]
        if not anywhere and z[off].shape[0]:
            known.append(instantaneous_velocity(self._own_velocity(u), z[off], t[off], _rows(label, off)))
        return jax.lax.stop_gradient(jnp.concatenate(known))

    def _diagonal_target(self, u, proxy, z, t, label, strength, raw, known, step, rows: slice, own):
        """The target of rows with r = t."""
        if not self.mix_diagonal or is_zero(self.gamma):
            return raw[rows]
        v_hat = self._v_hat(u, proxy, z, t, label, strength, known, rows, own)
        return mix(self.gamma, step, raw[rows], v_hat)

    def _raw(self, u, x, e, t, label, strength, points: Points | None, memory=None, own=None):
        """v_c, averaged over the bank and guided where asked, and what the bank says."""
        raw, known = conditional_velocity(x, e), None
        if self.rao_blackwell or (self.proxy == "bank" and self.mixes):
            known = self._posterior(x, e, t, label, points, memory)
            if self.rao_blackwell:
                raw = known.velocity
        if strength is not None:
            raw = guidance.guide(self._own_velocity(u), interpolate(x, e, t), t, label, raw, strength, own)
        return raw, known

    def _own_velocity(self, u):
        """The network whose diagonal is the velocity without a label."""
        return proxies.head(u) if self.proxy == "head" else u

    def _posterior(self, x, e, t, label, points: Points | None, memory) -> bank.Posterior:
        """What the batch and the points beyond it say about each row, or what is remembered of earlier batches."""
        label = condition.label_of(label)
        if isinstance(memory, bank.Classes):
            known = memory.posterior(x, e, t, label)
        else:
            points = Points(x, label) if points is None else points
            if points.x is not x:
                merged = None if label is None or points.label is None else jnp.concatenate([label, points.label])
                points = Points(jnp.concatenate([x, points.x]), merged)
            known = bank.posterior(x, e, t, points.x, label, points.label)
        if self.bank_from > 0:
            late = t >= self.bank_from
            v_c = conditional_velocity(x, e)
            velocity = jnp.where(expand(late, x), known.velocity, v_c)
            known = bank.Posterior(velocity, jnp.where(late, known.effective_size, 1.0))
        return known

    def _v_hat(self, u, proxy, z, t, label, strength, known: bank.Posterior | None, rows: slice, own=None):
        if self.proxy in proxies.OWN and own is not None:
            return own[rows]
        z, t, label, own = z[rows], t[rows], _rows(label, rows), _rows(own, rows)
        if self.proxy == "bank":
            assert known is not None
            v_hat = known.velocity[rows]
        else:
            v_hat = proxies.marginal_velocity(proxies.resolve(self.proxy, u, proxy), z, t, label)
        if strength is not None and self.proxy in proxies.UNGUIDED:
            v_hat = guidance.guide(self._own_velocity(u), z, t, label, v_hat, strength[rows], own)
        return v_hat

    def _tangent_proxy(self, u, proxy, z, t, label, known, rows: slice, v_hat):
        """v_hat of the tangent, where it is another than the target's."""
        return v_hat

    def _matching(self, u, x, e, t, draw: Draw, label, step, proxy, points, memory):
        """The loss of flow matching at other times than the row's own, and the velocity it was asked of."""
        z, all_rows = interpolate(x, e, t), slice(None)
        strength = self.strength(label, t, step, draw)
        velocity = instantaneous_velocity(u, z, t, label)
        known_own = Diagonal(velocity, self._head(u, z, t, label) if self.proxy == "head" else None)
        own = self._own(u, z, t, label, all_rows, strength, known_own, anywhere=True)
        raw, known = self._raw(u, x, e, t, label, strength, points, memory, own)
        y = self._diagonal_target(u, proxy, z, t, label, strength, raw, known, step, all_rows, own)
        return self._weigh(u, self._reduce(velocity - y), z, t, t, label, draw.probe), velocity

    def _anchor(self, u, z, t, label, raw, known, draw: Draw, step):
        """The anchor's loss of every k-th row, k times over; 0 elsewhere."""
        rows = slice(None, None, self.anchor_every)
        y, at = raw, jnp.maximum(t - draw.delta, 0)
        if known is not None and not self.rao_blackwell:
            y = mix(self.gamma, step, raw, known.velocity)
        error = self._reduce(u(z[rows], at[rows], t[rows], _rows(label, rows)) - y[rows])
        asked = self._weigh(u, error, z[rows], at[rows], t[rows], _rows(label, rows), _rows(draw.probe, rows))
        return jnp.zeros_like(t).at[rows].set(asked * (t.size / asked.size))

    def _reduce(self, error: Float[Array, "rows *event"]) -> Float[Array, " rows"]:
        total = _sum_squares(error)
        return total if self.reduction == "sum" else total / error[0].size

    def _weigh(self, u, squared, z, r, t, label, probe):
        """The loss of each row from its squared error."""
        if self.weight == "power":
            return weights.power(squared, self.weight_power, self.weight_constant)
        if self.weight == "norm":
            return weights.norm(squared, self.weight_constant)
        if self.weight == "trace":
            return weights.trace(squared, u, z, r, t, label, probe, self.trace_scale)
        log_variance = proxies.log_variance(u)(r, t)
        if self.weight == "cauchy":
            return weights.cauchy(squared, log_variance, self.weight_constant)
        return weights.learned(squared, log_variance)

    def _emphasis(self, r, t, step):
        """Factors after the weight: long gaps less at first, and the velocity where it is learnt fastest."""
        factor = jnp.ones_like(t)
        if not is_zero(self.weight_gap):
            by_gap = weights.gap(t - r, value_at(self.weight_gap, step), self.times.mean_gap())
            factor = jnp.where(r < t, by_gap, factor)
        if self.weight_velocity == "min_snr":
            factor = jnp.where(r < t, factor, weights.min_snr(t, self.times))
        return factor


def _rows(values, rows):
    return None if values is None else values[rows]


def _sum_squares(error: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
