"""What can be said of an intervention before it is made, to be held against what then happens.

*Readout*: the heads applied to each state of the twin, changed by the one change that the
intervention would make to it there. Nothing is carried on: this is what weights alone say.

*Gradient*: the derivative of everything that is simulated with respect to the strength α of
h' = h̃ + α δ at α = 0, where δ is the change that the intervention would make. So it holds the
change of every step, carried on by agent and simulator, to first order; α = 1 is the intervention.
It is one pass in forward mode through the simulated twin (Wengert, "A simple automatic derivative
evaluation program", 1964), and shares the straight-through derivatives of saliency.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.autograd.forward_ad as forward_mode
from numpy.typing import NDArray
from torch import Tensor

from agents.player import full_float32
from agents.protocol import Agent
from analysis.paired_rows import ActionGroups, Coordinates, Outputs, PairRows
from experiment.progress import Progress
from generative.sampling import SamplingPlan, simulate_samples
from projections.intervention import Intervention, MovableIntervention


class Infinitesimal:
    """An intervention of strength 0 whose derivative by its strength is 1.

    Only within `torch.autograd.forward_ad.dual_level`.

    Args:
        tested: the intervention; it gives the change of the unmodified state.
    """

    def __init__(self, tested: MovableIntervention) -> None:
        self.tested = tested

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place."""
        self.tested.to(device)
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """The proposed state, with the change added to its tangent."""
        state, tangent = forward_mode.unpack_dual(proposed)
        change = self.tested(forward_mode.unpack_dual(previous).primal, state, step) - state
        return forward_mode.make_dual(state, change if tangent is None else tangent + change)

    def describe(self) -> dict:
        """It is never recorded, but a plan asks for it."""
        return {"kind": "infinitesimal"}


@dataclass(frozen=True, eq=False)
class Tangents:
    """Derivatives by the strength of an intervention, and where they are taken."""

    probs: NDArray[np.float64]
    """(N, K, num_actions) the twin's policy."""
    d_probs: NDArray[np.float64]
    """(N, K, num_actions)"""
    d_value: NDArray[np.float64]
    """(N, K)"""
    d_hidden: NDArray[np.float64]
    """(N, K, H)"""


def predict_by_readout(agent: Agent, twin: PairRows, intervention: Intervention) -> Outputs:
    """(N, K) outputs of the heads on each row's state after that row's change alone.

    Args:
        agent: whose heads read.
        twin: the unmodified recording.
        intervention: on the agent's device.
    """
    parameter = next(iter(getattr(agent, "parameters", lambda: [])()), torch.zeros(0))
    before = np.concatenate([twin.initial_state[:, None], twin.state[:, :-1]], axis=1)
    previous, proposed = (torch.as_tensor(x).to(parameter.device) for x in (before, twin.state))
    with torch.no_grad(), full_float32():
        changed = torch.stack(
            [intervention(previous[:, k], proposed[:, k], k) for k in range(proposed.shape[1])],
            dim=1,
        )
        readout = agent.read_out(changed)
        log_probs = readout.action_logits.double().log_softmax(-1)
    hidden = changed[..., agent.hidden_slice]

    def rows_alone(values: Tensor) -> NDArray[np.float64]:
        is_row = twin.is_row.reshape(*twin.is_row.shape, *[1] * (values.ndim - 2))
        return np.where(is_row, values.double().cpu().numpy(), np.nan)

    return Outputs(rows_alone(log_probs), rows_alone(readout.value), rows_alone(hidden))


def differentiate(plan: SamplingPlan, intervention: MovableIntervention) -> Tangents:
    """Derivatives of the plan's simulated twins by the strength of an intervention.

    Args:
        plan: of the twin, whose samples are simulated again.
        intervention: on the plan's device.
    """
    plan = replace(plan, intervention=Infinitesimal(intervention))
    size = plan.batch_size
    parts = []
    with Progress(-(-plan.num_samples // size), "batch of derivatives") as progress:
        for start in range(0, plan.num_samples, size):
            ids = np.arange(start, min(start + size, plan.num_samples))
            parts.append(_differentiate_batch(plan, ids))
            progress.advance("forward mode")
    names = Tangents.__dataclass_fields__
    return Tangents(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def _differentiate_batch(plan: SamplingPlan, sample_ids: NDArray[np.int64]) -> Tangents:
    hidden_slice = plan.agent.policy.hidden_slice
    # Recurrent kernels of cuDNN have no forward mode; without them the plain ones are taken.
    with (
        warnings.catch_warnings(),
        torch.backends.cudnn.flags(enabled=False),
        forward_mode.dual_level(),
    ):
        # torch compiles some of its own formulas by what it has deprecated itself.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        steps = simulate_samples(plan, sample_ids).steps
        probs = [forward_mode.unpack_dual(x.softmax(-1)) for x in steps.action_logits]
        values = [forward_mode.unpack_dual(x) for x in steps.value]
        states = [forward_mode.unpack_dual(x) for x in steps.agent_state]
        return Tangents(
            probs=_sample_major([dual.primal for dual in probs]),
            d_probs=_sample_major([_tangent(dual) for dual in probs]),
            d_value=_sample_major([_tangent(dual) for dual in values]),
            d_hidden=_sample_major([_tangent(dual)[:, hidden_slice] for dual in states]),
        )


def _tangent(dual: "forward_mode.UnpackedDualTensor") -> Tensor:
    """What nothing has changed yet has no tangent."""
    return torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent


def _sample_major(steps: list[Tensor]) -> NDArray[np.float64]:
    return torch.stack(steps, dim=1).double().cpu().numpy()


def gradient_effects(
    tangents: Tangents, groups: ActionGroups, coordinates: Coordinates
) -> NDArray[np.float64]:
    """(S, N, K) predicted effects in the order of `MeasureNames.by_row`.

    The policy's divergence has no first order; its second is ½ Σ_a dπ_a² / π_a (Kullback,
    "Information Theory and Statistics", 1959).
    """
    smallest = np.finfo(np.float64).tiny
    kl = 0.5 * np.sum(tangents.d_probs**2 / np.maximum(tangents.probs, smallest), axis=-1)
    origin = np.zeros_like(tangents.d_hidden)
    components = coordinates.transform(tangents.d_hidden) - coordinates.transform(origin)
    return np.concatenate(
        [
            np.stack([tangents.d_value, kl]),
            np.moveaxis(tangents.d_probs @ groups.membership, -1, 0),
            np.moveaxis(components, -1, 0),
        ]
    )
