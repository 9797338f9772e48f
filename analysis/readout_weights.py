"""The agent's heads in the coordinates of a projection: which components drive which action.

With h = origin + M s + residual, a head W h + b is W M s + W residual + (b + W origin): the weights
are those of the components, and the bias is what the head says at the origin of the coordinates.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.protocol import Agent
from experiment.errors import UserError
from projections.hidden import HiddenProjection, Method

VALUE_NAME = "Value out"
_AFFINITY_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Heads:
    """Affine maps from the hidden state to the logits of A actions and to the value."""

    weights: NDArray[np.float64]
    """(A + 1, H) rows of the actions, then that of the value."""
    bias: NDArray[np.float64]
    """(A + 1,) at the hidden state zero."""


@dataclass(frozen=True, eq=False)
class ComponentReadout:
    """The same maps from K components."""

    weights: NDArray[np.float64]
    """(A + 1, K)"""
    bias: NDArray[np.float64]
    """(A + 1,) at the origin of the coordinates."""
    variance_share: NDArray[np.float64]
    """(A + 1,) share of a head's variance over hidden states that the components carry."""


def read_heads(agent: LoadedAgent) -> Heads:
    """Find the heads of any agent by asking what they say at zero and one unit further.

    Raises:
        UserError: the heads are not affine in the hidden state.
    """
    policy = agent.policy
    first, last = policy.hidden_slice.start, policy.hidden_slice.stop
    unit_states = np.zeros((last - first, policy.state_dim))
    unit_states[np.arange(last - first), np.arange(first, last)] = 1.0
    bias = _read_out(policy, np.zeros((1, policy.state_dim)))[0]
    weights = (_read_out(policy, unit_states) - bias).T
    probes = np.random.default_rng(0).normal(size=(8, policy.state_dim)) * unit_states.sum(axis=0)
    expected = probes[:, first:last] @ weights.T + bias
    error = np.abs(_read_out(policy, probes) - expected).max()
    if error > _AFFINITY_TOLERANCE * (1 + np.abs(expected).max()):
        raise UserError(
            f"--agent_file {agent.path}: its logits or value are no linear function of the hidden "
            "state, so they have no weights to draw"
        )
    return Heads(weights, bias)


@torch.no_grad()
def _read_out(policy: Agent, states: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, state_dim) → (N, A + 1)"""
    device = policy.initial_state(1).device
    readout = policy.read_out(torch.tensor(states, dtype=torch.float32, device=device))
    return torch.cat([readout.action_logits, readout.value[:, None]], 1).double().cpu().numpy()


def read_components(
    heads: Heads, projection: HiddenProjection, direction_type: Method
) -> ComponentReadout:
    """Express the heads in the components of a projection.

    Raises:
        UserError: the projection is of another hidden size, or has no such directions.
    """
    coordinates = projection.coordinates(direction_type)
    if heads.weights.shape[1] != len(coordinates.origin):
        raise UserError(
            f"--projection: of {len(coordinates.origin)} hidden units, the agent has "
            f"{heads.weights.shape[1]}"
        )
    weights = heads.weights @ coordinates.directions
    components = projection.components_ * projection.component_deviations_[:, None]
    covariance = (components * projection.scale_).T @ (components * projection.scale_)
    total = np.einsum("ah,hg,ag->a", heads.weights, covariance, heads.weights)
    of_coordinates = coordinates.linear @ covariance @ coordinates.linear.T
    carried = np.einsum("ak,kl,al->a", weights, of_coordinates, weights)
    return ComponentReadout(
        weights, heads.bias + heads.weights @ coordinates.origin, carried / np.maximum(total, 1e-30)
    )


def readout_dataset(readout: ComponentReadout, action_names: tuple[str, ...]) -> xr.Dataset:
    """Label weights and biases."""
    return xr.Dataset(
        {
            "weight": (
                ("output", "component"),
                readout.weights,
                {"long_name": "change of the output per unit of the component"},
            ),
            "bias": (
                "output",
                readout.bias,
                {"long_name": "output at the origin of the components"},
            ),
            "variance_share": (
                "output",
                readout.variance_share,
                {"long_name": "share of the output's variance that the components carry"},
            ),
        },
        coords={
            "output": [*action_names, VALUE_NAME],
            "component": np.arange(readout.weights.shape[1]),
        },
    )


def draw_readout(results: xr.Dataset) -> Figure:
    """Heat maps: weights of the actions and of the value, their biases in numbers beside them.

    Each map has its own symmetric scale: a logit is in nats, a value in returns, and one scale for
    weights and biases would leave nothing to see of the weights.
    """
    count = results.sizes["component"]
    parts = (results.drop_sel(output=VALUE_NAME), results.sel(output=[VALUE_NAME]))
    figure = Figure(figsize=(4.2 + 0.34 * count, 5.6), layout="constrained")
    rows = figure.subplots(
        2,
        2,
        gridspec_kw={
            "width_ratios": [count, 1.6],
            "height_ratios": [parts[0].sizes["output"], 1.4],
        },
    )
    for axes, part, unit in zip(rows, parts, ("nats", "return"), strict=True):
        picture = _draw_map(axes[0], part["weight"].values)
        figure.colorbar(picture, ax=axes[0], label=unit, pad=0.01)
        _draw_map(axes[1], part["bias"].values[:, None])
        for row, value in enumerate(part["bias"].values):
            axes[1].text(0, row, f"{value:+.2f}", ha="center", va="center", fontsize=7)
        shares = zip(part["output"].values, part["variance_share"].values, strict=True)
        names = [f"{name} ({share:.0%})" for name, share in shares]
        axes[0].set_yticks(np.arange(len(names)), names)
        axes[0].set_xticks(np.arange(count))
        axes[1].set_yticks([])
        axes[1].set_xticks([])
    rows[0, 0].set_title("weights of the components")
    rows[0, 1].set_title("bias")
    rows[1, 0].set_xlabel("component")
    figure.suptitle(
        "The agent's heads, per standard deviation of each component\n"
        "(in brackets: share of the output's variance that the components carry)"
    )
    return figure


def _draw_map(axis: Axes, values: NDArray[np.float64]) -> AxesImage:
    # Biases lie behind their numbers, so that blue is never too dark for them.
    limit = float(np.abs(values).max()) * (1.6 if values.shape[1] == 1 else 1.0)
    return axis.imshow(values, cmap="bwr_r", vmin=-limit, vmax=limit, aspect="auto")
