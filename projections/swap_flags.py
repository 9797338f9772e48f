"""The flags by which a command intervenes in the agent's hidden state."""

from dataclasses import dataclass
from pathlib import Path

import torch

from projections.hidden import DirectionType
from projections.interventions import DirectionSwap, SwapOn, make_direction_swap

DEFAULT_PROJECTIONS = Path("analysis/hx_analysis_precomp")


@dataclass(frozen=True)
class SwapConfig:
    """Which directions of the agent's hidden state to redirect, and how."""

    swap_directions_from: tuple[int, ...] = ()
    """Directions to redirect or drop, e.g. `10 5`. The unmodified twin of the recording is written
    beside it, to a folder of the same name with `_twin` added."""
    swap_directions_to: tuple[int | None, ...] = ()
    """For each of them the direction that receives what it loses, or None to drop it, e.g.
    `12 None`. An exchange of two directions needs both pairs."""
    direction_type: DirectionType = "ica"
    """What a direction is: a component of the projection (ica, nmf), one of its standardised
    principal components (pca), or a single hidden unit (unit)."""
    swap_on: SwapOn = "updates"
    """Redirect what each step adds to the state (updates), or the state itself (states)."""
    projection: Path | None = None
    """Fitted projection that defines the directions, made by hidden_analysis_precompute.py; by
    default analysis/hx_analysis_precomp/projection, or projection_nmf for --direction_type nmf."""


def make_swap(
    config: SwapConfig, hidden_slice: slice, device: torch.device | str
) -> DirectionSwap | None:
    """The intervention that the flags ask for; None when they ask for none.

    Args:
        config: the flags.
        hidden_slice: the part of the agent's flat state that holds its hidden state.
        device: where the states to change will be.

    Raises:
        UserError: see `make_direction_swap`.
    """
    if not config.swap_directions_from and not config.swap_directions_to:
        return None
    name = "projection_nmf" if config.direction_type == "nmf" else "projection"
    return make_direction_swap(
        config.projection or DEFAULT_PROJECTIONS / name,
        config.swap_directions_from,
        config.swap_directions_to,
        hidden_slice,
        config.direction_type,
        config.swap_on,
    ).to(device)


def twin_folder(folder: Path) -> Path:
    """Where the unmodified twin of an intervened recording goes: beside it."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}_twin")
