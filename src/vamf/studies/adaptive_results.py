"""What the study of adaptive coefficients finds: verdicts against the best fixed beta, and what the bank knows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf import data
from vamf.objectives.posterior_mean import posterior
from vamf.studies.comparison import row_of

BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BANK = 2048
FIXED = tuple(f"beta_{beta:g}" for beta in BETAS)
OURS = ("binned", "per_sample", "per_direction", "rao_blackwell", "rao_blackwell_rest", "rao_blackwell_2048",
        "rao_blackwell_2048_rest")  # fmt: skip
"""Arms with nothing to tune."""


def verdict(name: str, rows: Sequence[dict]) -> dict[str, Any]:
    """How every arm with nothing to tune compares with the best fixed beta of a data set, in SW1."""
    fixed = [row for row in rows if row["data"] == name and row["arm"] in FIXED]
    best = min(fixed, key=lambda row: row["sw1"])
    quietest = min(fixed, key=lambda row: row["gradient_variance"])
    compared = {}
    for arm in OURS:
        for equal in ("steps", "time"):
            row = row_of(rows, name, arm, equal)
            if row is not None:
                spread = np.hypot(row["sw1_std"], best["sw1_std"]) / np.sqrt(row["seeds"])
                gain = best["sw1"] - row["sw1"]
                compared[arm if equal == "steps" else f"{arm}, equal time"] = {
                    "gain": gain,
                    "error": float(spread),
                    "outcome": "wins" if gain > spread else "loses" if gain < -spread else "ties",
                    "variance_ratio": quietest["gradient_variance"] / row["gradient_variance"],
                }
    return {"data": name, "best_arm": best["arm"], "best_sw1": best["sw1"], "best_sw1_std": best["sw1_std"],
            "quietest_arm": quietest["arm"], "compared": compared}  # fmt: skip


def sentence(found: dict) -> str:
    """A verdict in words."""
    groups: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
    for arm, result in found["compared"].items():
        if "equal time" not in arm:
            change = round(-100 * result["gain"] / found["best_sw1"])
            groups[result["outcome"]].append(f"{arm.replace('_', ' ')} ({change:+d} %)")
    said = "; ".join(f"{outcome}: {', '.join(arms)}" for outcome, arms in groups.items() if arms)
    text = (
        f"{found['data'].replace('_', ' ')}: against the best fixed beta ({found['best_arm'][5:]}, SW1 "
        f"{found['best_sw1']:.3f}) {said}."
    )
    bank_ratio = found["compared"].get("rao_blackwell", {}).get("variance_ratio")
    if bank_ratio:
        text += f" The batch as bank has {bank_ratio:.1f} times less gradient variance than the quietest fixed beta."
    return text


def effective_sizes(name: str, count: int = 256) -> dict[str, list[float]]:
    """Median effective number of points against t, for the batch alone and for `BANK` points."""
    dataset = data.load(name)
    keys = jax.random.split(jax.random.key(7), 3)
    x, label = dataset.draw(dataset.arrays, keys[0], count)
    more, more_label = dataset.draw(dataset.arrays, keys[1], BANK - count)
    e = jax.random.normal(keys[2], x.shape)
    times = np.round(np.concatenate([[0.02], np.linspace(0.05, 1, 20)]), 2)
    if dataset.num_classes == 0:
        label = more_label = None
    merged = None if label is None or more_label is None else jnp.concatenate([label, more_label])
    banks = {str(count): (x, label), str(BANK): (jnp.concatenate([x, more]), merged)}

    @jax.jit
    def median(points, point_label, t):
        return jnp.median(posterior(x, e, jnp.full(count, t), points, label, point_label).effective_size)

    found = {size: [float(median(*points, t)) for t in times] for size, points in banks.items()}
    return {"t": times.tolist(), **found}
