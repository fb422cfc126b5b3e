"""Log densities of data under a run, in the data's units; the mean log-likelihood of held-out rows.

The density is that of the network, of its EMA weights and with the guidance of its training. Where samples are rounded
to integers (images of bytes, integer columns), rows get uniform noise of width 1, since a density at integers alone
means nothing: with n ~ U(-1/2, 1/2) Jensen's inequality gives E_n log p(b + n) <= log P(b), the log-probability that a
rounded sample is b. Bits per dimension of images are -log p(b + n) / (d log 2), an upper bound.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Shaped

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond
from vamf.data import mixtures, toys
from vamf.data.classes import decode_labels
from vamf.data.conditions import LABEL, NO_CONDITIONS
from vamf.data.network_units import are_bytes, to_network, uniform_noise
from vamf.errors import UserError, require
from vamf.likelihood import ODE, FewStep, LogDensity, log_density
from vamf.likelihood.gaussian import Gaussian
from vamf.likelihood.ode import MAX_EXACT
from vamf.objectives.terms import Cycle
from vamf.path import StraightLine
from vamf.progress import Progress
from vamf.theory import GaussianMixture
from vamf.training import ema_weights
from vamf.training.ema_weights import Ema
from vamf.training.run import Run
from vamf.training.step import State

ROWS, MANY_DIM_ROWS = 1000, 100
"""Held-out rows by default, up to MAX_EXACT dimensions and above."""
JUMPS = (1, 2, 4)
"""Numbers of jumps whose density is measured."""
FIT_ROWS, FIT_NUMBERS = 2**15, 2**25
"""Most training rows for the Gaussian, and most numbers in them."""
BLURRED = ("checkerboard",)
"""Toys of whose density a mixture is no good approximation."""


def run_log_density(
    run: Run,
    state: State,
    x: Shaped[np.ndarray, "n *sample"],
    condition: Any = None,
    method: ODE | FewStep = ODE(),
    ema: Ema = None,
    key: Key[Array, ""] | None = None,
    block: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> LogDensity:
    """log p(x) in nats of rows in original units, and with respect to them; constant columns have none.

    Args:
        state: as `Run.load` returns it.
        x: rows in original units `(n, *sample_shape)`.
        condition: the condition of each row, in the data's units, as `Run.draw` takes it; the classes by their names.
        ema: which weights, as for `vamf evaluate`.
        method, key, block, on_rows: of `log_density`.

    Raises:
        UserError: the path's prior has no known density, the run's method trains no jumps, rows or conditions that do
            not fit the run, or an unknown EMA.
    """
    _check(run, method)
    values, log_det = to_network(run.dataset_info, np.asarray(x))
    result = log_density(
        _network(run, state, ema),
        values.astype(np.float32),
        _conditioning(run, len(values), condition),
        method,
        key,
        block,
        on_rows,
    )
    return result._replace(log_p=np.asarray(result.log_p, np.float64) + log_det)


def evaluate(
    run: Run,
    state: State,
    rows: int | None = None,
    probes: int = 8,
    seed: int = 0,
    ema: Ema = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Mean log-likelihood of held-out rows under the ODE, and under the jumps where their determinants are exact.

    Beside them stand a Gaussian that was fitted to the training rows and, where it is known, the data's own density.

    Args:
        rows: of the held-out rows, or of the training rows where none are; by default 1,000, above 64 dimensions 100.
        probes: Hutchinson's probes of each row, above 64 dimensions.
        seed: of the choice of rows, noise and probes.

    Raises:
        UserError: as `run_log_density`, or rows whose classes are not known.
    """
    dataset, dim = run.dataset, math.prod(run.dataset.event_shape)
    rows = (ROWS if dim <= MAX_EXACT else MANY_DIM_ROWS) if rows is None else rows
    require(rows >= 2, "likelihood-rows", rows, "2 or more")
    require(probes >= 2, "probes", probes, "2 or more, so that their error is known")
    tolerance = max(0.01, 1e-3 * dim)
    methods: dict[str, ODE | FewStep] = {
        "ODE of u(z, t, t)": ODE(32 if dim <= MAX_EXACT else 16, probes=probes, tolerance=tolerance)
    }
    objective = run.inference.train_step.objective
    if objective.sampler == "flow_map" and dim <= MAX_EXACT:
        methods |= {f"{count} jump{'s' * (count > 1)}": FewStep(count) for count in JUMPS}
        if any(isinstance(term, Cycle) for term in objective.terms):
            methods |= {f"{count} of the inverse": FewStep(count, "reverse") for count in JUMPS}
    for method in methods.values():
        _check(run, method)
    condition = _held_out_condition(run, rows, seed)
    x, noisy = uniform_noise(dataset, dataset.reference(rows, seed), seed)
    bits = are_bytes(dataset)
    progress = progress or Progress(show=False)
    densities, counts = {}, {"dimensions": dim, "rows": len(x)}
    for name, method in methods.items():
        with progress.task(f"likelihood: {name}", len(x), unit="rows") as task:
            result = run_log_density(run, state, x, condition, method, ema, jax.random.key(seed), on_rows=task.update)
        densities[name] = _summary(result.log_p, dim, bits) | _accuracy(method, result, dim)
    values, log_det = to_network(dataset, x)
    gaussian = Gaussian.fit(_training_values(run, seed))
    densities["Gaussian"] = _summary(gaussian.log_density(values.reshape(len(x), -1)) + log_det, dim, bits)
    mixture = _mixture(run)
    if mixture is not None:
        with jax.enable_x64(True):
            exact = mixture.log_density(jnp.asarray(x, jnp.float64), jnp.zeros(len(x)))
        densities["the data's own"] = _summary(np.asarray(exact), dim, bits)
    weights = "none" if ema == "none" else ema_weights.resolve(ema, run.config.all_ema_decays)
    notes = _notes(run, noisy, dim, condition is not None, densities, gaussian)
    return {**counts, "unseen": dataset.unseen, "ema": weights, "noisy": noisy, "densities": densities, "notes": notes}


def _check(run: Run, method: ODE | FewStep) -> None:
    objective = run.inference.train_step.objective
    if type(objective.path) is not StraightLine or run.dataset_info.has_start:
        raise UserError("likelihood: the prior of this run is that of its data's starts, whose density is not known")
    if isinstance(method, FewStep) and objective.sampler != "flow_map":
        raise UserError(f"likelihood of jumps: {run.config.method} trains none; take the ODE")


def _network(run: Run, state: State, ema: Ema) -> AverageVelocity:
    return run.average_velocity(state, ema)


def _conditioning(run: Run, n: int, condition: Any) -> Cond:
    dataset = run.dataset_info
    parsed = (dataset.conditions or NO_CONDITIONS).parse(n, condition, None, None, dataset.class_names)
    return jax.tree.map(jnp.asarray, dataset.encode(parsed)[0])


def _held_out_condition(run: Run, rows: int, seed: int) -> Mapping[str, np.ndarray] | None:
    """The conditions of the rows of `reference` in the data's units; None where the run has none."""
    dataset = run.dataset
    names = (*((LABEL,) if dataset.num_classes else ()), *(dataset.conditions.units if dataset.conditions else ()))
    if not names:
        return None
    stored = {} if dataset.reference_rows is None else dict(dataset.reference_rows(rows, seed))
    if missing := [name for name in names if name not in stored]:
        raise UserError(f"likelihood: the {missing[0]} of each held-out row is not known to these data")
    if LABEL in names:
        stored[LABEL] = decode_labels(stored[LABEL], dataset.class_names)
    return {name: stored[name] for name in names}


def _training_values(run: Run, seed: int) -> np.ndarray:
    """Training rows as the network sees them (m, d), with the noise of the held-out ones."""
    dataset = run.dataset
    count = max(64, min(FIT_ROWS, FIT_NUMBERS // math.prod(dataset.event_shape)))
    drawn = np.asarray(dataset.draw(dataset.arrays, jax.random.fold_in(jax.random.key(seed), 1), count)[0])
    values, _ = to_network(dataset, uniform_noise(dataset, dataset.to_original(drawn), seed + 1)[0])
    return values.reshape(count, -1)


def _mixture(run: Run) -> GaussianMixture | None:
    """The exact density of the data, in their units, where it is known."""
    name = run.config.data
    if mixtures.is_name(name):
        return run.dataset.mixture or mixtures.load(name).mixture
    return mixtures.toy_mixture(name) if name in toys.NAMES and name not in BLURRED else None


def _summary(log_p: np.ndarray, dim: int, bits: bool) -> dict[str, Any]:
    """Mean and standard error over the rows that have a density."""
    valid = log_p[np.isfinite(log_p)]
    mean = float(valid.mean()) if len(valid) else math.nan
    error = float(valid.std(ddof=1) / math.sqrt(len(valid))) if len(valid) > 1 else math.nan
    result = {"log_likelihood": mean, "std_error": error, "not_inverted": len(log_p) - len(valid)}
    if not bits:
        return result
    return result | {"bits_per_dim": -mean / (dim * math.log(2)), "bits_std_error": error / (dim * math.log(2))}


def _accuracy(method: ODE | FewStep, result: LogDensity, dim: int) -> dict[str, Any]:
    """What the numbers of a method are worth."""
    error: dict[str, float] = {"iterations": int(result.iterations.max())}
    if isinstance(method, FewStep):
        return error | {"round_trip": float(np.nanmean(result.error))}
    error["step_error"] = float(np.mean(result.error))
    if not method.is_exact(dim):
        error["trace_std_error"] = float(np.sqrt(np.mean(result.std_error**2) / len(result.std_error)))
    return error


def _notes(run: Run, noisy: int, dim: int, conditioned: bool, densities: dict, gaussian: Gaussian) -> list[str]:
    """What was computed, in sentences."""
    dataset, objective = run.dataset, run.inference.train_step.objective
    ode = next(iter(densities.values()))
    trace = f"exact divergence, {dim} derivatives"
    if "trace_std_error" in ode:
        trace = f"Hutchinson's estimate of the divergence, whose part of the error is {ode['trace_std_error']:.2g} nats"
    accuracy = f"{ode['iterations']} steps, half of which change a row by {ode['step_error']:.2g} nats"
    notes = [f"log p in nats, of rows in the data's units; ODE: {trace}; {accuracy}"]
    if noisy:
        notes.append(
            f"uniform noise of width 1 on {noisy:,} numbers of a row that samples round to integers: bounds of the "
            "log-probability of the integers from below" + " (bits from above)" * are_bytes(dataset)
        )
    if dataset.table is not None and dataset.table.constants:
        notes.append(f"{len(dataset.table.constants)} constant columns have no density and are left out")
    if conditioned:
        notes.append("given the condition of each row, of which the Gaussian knows nothing")
    if objective.guidance.acts:
        notes.append("the guidance of its training is part of the density")
    if dataset.latents is not None:
        notes.append("of latents, not of images")
    if gaussian.axes is None:
        notes.append("the Gaussian has variances only")
    if objective.sampler == "flow_map" and dim > MAX_EXACT:
        notes.append(f"no density of jumps: their determinants are exact, for up to {MAX_EXACT} dimensions here")
    if "1 jump" in densities:
        notes.append("jumps: bounds from below where several points of noise land on a row")
    if any(row["not_inverted"] for row in densities.values()):
        notes.append(
            "rows left out: no point of noise was found that lands on them, so that their density is 0 or unknown; the "
            "mean of the others flatters"
        )
    if trips := [row["round_trip"] for name, row in densities.items() if name.endswith("inverse")]:
        notes.append(
            f"of the inverse: the density of the network's own jumps from data to noise, and that of samples only as "
            f"far as jumping back hits the row; it misses it by {trips[0]:.2g} on average with one jump"
        )
    if not dataset.unseen:
        notes.append("of training rows, since none were held out")
    return notes


def describe(result: dict[str, Any], sign: str = "±") -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table."""
    bits = any("bits_per_dim" in row for row in result["densities"].values())
    columns = ["density", "mean log-likelihood", *(["bits per dimension"] if bits else [])]
    lines = []
    for name, row in result["densities"].items():
        left_out = f" ({row['not_inverted']} rows left out)" if row["not_inverted"] else ""
        line = [name, f"{row['log_likelihood']:.3f} {sign} {row['std_error']:.3f}{left_out}"]
        if bits:
            line.append(f"{row['bits_per_dim']:.3f} {sign} {row['bits_std_error']:.3f}")
        lines.append(line)
    return columns, lines
