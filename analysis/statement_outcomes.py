"""How often the effects of pushes come out as causal statements say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

SIGNIFICANT = 0.05
"""Effects with a smaller q-value are seen."""
GROUPS = {
    "supported": "all evidence for them",
    "others": "not all evidence for them (control)",
}
"""Statements between different components that are told apart."""


@dataclass(frozen=True)
class Outcome:
    """How often the effects of a group of statements come out as predicted."""

    num_statements: int
    num_seen: int
    """Effects that differ from zero (q below the rate) and have the sign of the gradient."""
    num_opposite: int
    """Effects that differ from zero and have the opposite sign."""
    num_beyond_controls: int
    """Of those seen, the ones larger in size than every random control: a random direction may as
    well point the other way."""

    @property
    def share_seen(self) -> float:
        """NaN without statements."""
        return self.num_seen / self.num_statements if self.num_statements else float("nan")


def statement_group(dataset: xr.Dataset, group: str) -> NDArray[np.bool_]:
    """(S, L, D) which statements belong to a group of GROUPS."""
    largest = dataset.attrs["largest_possible_score"]
    is_supported = dataset["score"].values == largest
    is_pair = dataset["source"].values[:, None, None] != dataset["target"].values
    is_known = np.isfinite(dataset["gradient"].values) & is_pair
    return is_known & (is_supported if group == "supported" else ~is_supported)


@dataclass(frozen=True, eq=False)
class SignedEffects:
    """What came of each statement in one world; (S, L, D) each."""

    is_seen: NDArray[np.bool_]
    """Differs from zero and has the predicted sign."""
    is_opposite: NDArray[np.bool_]
    """Differs from zero and has the opposite sign."""
    along: NDArray[np.float64]
    """Effect in the predicted direction; negative where the sign is the opposite one."""


def signed_effects(dataset: xr.Dataset, world: str) -> SignedEffects:
    """The effects of one world by the signs of their predictions."""
    at = dataset.sel(world=world).transpose("source", "lag", "target", ...)
    gradient = dataset["gradient"].transpose("source", "lag", "target").values
    along = at["effect"].values * np.sign(gradient)
    is_effect = at["effect_q"].values < SIGNIFICANT
    return SignedEffects(is_effect & (along > 0), is_effect & (along < 0), along)


def largest_control(at: xr.Dataset) -> NDArray[np.float64]:
    """Size of the largest effect that a random control has."""
    return np.maximum(np.abs(at["control_low"].values), np.abs(at["control_high"].values))


def outcome(dataset: xr.Dataset, world: str, group: str) -> Outcome:
    """Count what the pushes of a world say of a group of statements."""
    chosen = statement_group(dataset, group)
    found = signed_effects(dataset, world)
    is_larger = np.abs(found.along) > largest_control(dataset.sel(world=world))
    return Outcome(
        int(chosen.sum()),
        int((chosen & found.is_seen).sum()),
        int((chosen & found.is_opposite).sum()),
        int((chosen & found.is_seen & is_larger).sum()),
    )


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """Plain numbers for a report."""
    numbers: dict[str, Any] = {"statements_tested": int(dataset.attrs["num_candidates"])}
    for world in dataset["world"].values.tolist():
        for group in GROUPS:
            found = outcome(dataset, world, group)
            numbers[f"{group}_{world}"] = (
                f"{found.num_seen} of {found.num_statements} seen, {found.num_opposite} opposite"
            )
        seen = dataset["matched_rate"].sel(world=world, rate="seen")
        numbers[f"matched_{world}"] = (
            f"seen: {float(seen.sel(compared='supported')):.0%} of the supported, "
            f"{float(seen.sel(compared='matched')):.0%} of others of the same predicted size"
        )
    return numbers
