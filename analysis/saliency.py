"""Saliency: gradients of what the agent thinks with respect to what led to it.

A simulated sample is run again from its stored latent, in several copies with slightly perturbed
latents; the gradient of each target is averaged over the copies (compare SmoothGrad, Smilkov et
al., 2017). Every target of a sample shares one forward pass.

Straight-through sites (stochastic state, action, 8-bit rounding) pass gradients as if they were
the identity, so these are gradients of the relaxed simulator, not of the discrete program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.player import tf32
from analysis.saliency_targets import Target, evaluate_targets
from experiment.randomness import keyed_normal
from generative.bottleneck import Bottleneck
from generative.gradient_edges import GradientEdges
from generative.simulator import SimulationNoise, Simulator
from generative.types import LatentChoice, SimulatedSteps
from projections.intervention import Intervention

GradientMethod = Literal["loop", "batched"]
"""One backward pass per target on a retained graph, or all targets in one vectorised pass."""
GradientPrecision = Literal["float32", "tf32"]
"""Of products in backward passes on a GPU. Forward passes are in full float32, so that the sample
that was recorded comes out again."""

PATHS = {
    "passed": (True, True),
    "cut": (False, True),
    "only": (True, False),
    "neither": (False, False),
}
"""What the environment's gradient may do, and by that which edges are open: action → environment,
and the agent's memory. *Both* paths are open where it is passed, the *agent*'s alone where it is
cut, the *environment*'s alone where nothing else is; with neither, only what needs no recurrence
of the agent remains."""
MIXED = "mixed"
"""Both − agent − environment."""


@dataclass(frozen=True)
class BackwardPasses:
    """How gradients are computed."""

    method: GradientMethod = "loop"
    """Changes the speed only."""
    precision: GradientPrecision = "float32"
    """Rounding is for a GPU; a CPU takes float32 always."""


@dataclass(frozen=True)
class CopySettings:
    """Perturbed copies that gradients are averaged over."""

    num_copies: int = 9
    """Copies of each sample; the first is clean."""
    perturbation_scale: float = 1.25e-4
    """Standard deviation of the noise added to the latents of the others."""


@dataclass(frozen=True)
class SimulationChoices:
    """How the samples were recorded, so that the same steps come out again."""

    latents: LatentChoice = "mode"
    agent_actions: LatentChoice = "mode"
    seed: int = 0
    """Seed of the recording, used where anything was sampled."""
    copies_per_start: int = 1
    """Samples with adjacent ids that share their draws."""
    recorded_actions: bool = False
    """Whether the actions were those of real rollouts, in place of the agent's own."""
    manual_actions: tuple[str, ...] = ()
    """The actions that were asked for, in place of the agent's own."""

    @property
    def are_actions_given(self) -> bool:
        """Whether the agent did not act itself."""
        return self.recorded_actions or bool(self.manual_actions)


@dataclass(frozen=True, eq=False)
class Attributions:
    """Gradients of Q targets at R target steps, averaged over copies, for S samples.

    Rows (the K axis) after the target step are exactly zero: nothing later can matter. Where a
    target is not defined, its gradients are NaN.
    """

    images: Tensor
    """(S, Q, R, K, C, H, W)"""
    agent_state: Tensor
    """(S, Q, R, K, state_dim)"""
    env_deter: Tensor
    """(S, Q, R, K, deter_dim)"""
    env_stoch: Tensor
    """(S, Q, R, K, num_categoricals, num_classes)"""
    latent: Tensor
    """(S, Q, R, latent_dim)"""
    target_values: Tensor
    """(S, Q, R) values of the clean copies; NaN where a target is not defined."""


def perturbed_copies(
    bottleneck: Bottleneck,
    latent: Tensor,
    ids: NDArray[np.integer],
    settings: CopySettings,
    seed: int,
) -> Tensor:
    """Copies of each latent, adjacent, the clean one first; the others perturbed.

    Args:
        bottleneck: knows which latents can occur.
        latent: (S, latent_dim)
        ids: (S,) sample ids; noise is keyed by them, so it does not depend on the batch.
        settings: number of copies and size of the noise.
        seed: of the noise.

    Returns:
        (S · num_copies, latent_dim)
    """
    copies = np.arange(1, settings.num_copies)
    normal = keyed_normal(seed, "saliency-copies", ids[:, None], copies, latent.shape[-1])
    noise = torch.from_numpy(normal).to(latent)
    shifted = latent[:, None] + settings.perturbation_scale * noise
    perturbed = bottleneck.project(shifted)
    return torch.cat([latent[:, None], perturbed], dim=1).flatten(0, 1)


def resimulate(
    simulator: Simulator,
    latent: Tensor,
    ids: NDArray[np.integer],
    num_steps: int,
    choices: SimulationChoices,
    intervention: Intervention | None = None,
    cut_environment_gradient: bool = False,
    actions: Tensor | None = None,
    edges: GradientEdges | None = None,
) -> SimulatedSteps:
    """Run samples again from their latents, by the choices and draws of their recording.

    Args:
        simulator: in evaluation mode.
        latent: (B, latent_dim)
        ids: (B,) sample ids, which key the draws; copies of a sample share its id.
        num_steps: K.
        choices: how latents and actions were picked.
        intervention: the one that was applied, if any.
        cut_environment_gradient: cut the edge from action to environment.
        actions: (K, B) int64, those of the recording where they were given.
        edges: switches of the paths that gradients take.
    """
    start_ids = torch.as_tensor(ids // choices.copies_per_start, device=latent.device)
    noise = SimulationNoise(choices.seed, start_ids)
    uniform = None
    if choices.latents == "sample":
        uniform = noise.initial(simulator.config.num_categoricals)
    return simulator.simulate(
        simulator.decode_initial(latent, choices.latents, uniform),
        num_steps,
        actions=actions,
        latents=choices.latents,
        agent_actions=choices.agent_actions,
        noise=noise,
        intervention=intervention,
        cut_environment_gradient=cut_environment_gradient,
        edges=edges,
    )


def attribute_paths(
    edges: GradientEdges, paths: Sequence[str], compute: Callable[[], Attributions]
) -> list[Attributions]:
    """Attributions by the path that gradients take, all on one simulation.

    Args:
        edges: switches that the simulation was run with; left open.
        paths: names, of `PATHS` and `mixed`.
        compute: takes the gradients, by the edges as they are.

    Returns:
        One per path. `mixed` = both − agent − environment: what goes through both edges, less what
        goes through neither, since that is part of all three.
    """
    needed = [path for path in PATHS if path in paths or MIXED in paths]
    found: dict[str, Attributions] = {}
    try:
        for path in needed:
            edges.action_to_environment, edges.agent_memory = PATHS[path]
            found[path] = compute()
    finally:
        edges.action_to_environment = edges.agent_memory = True
    if MIXED in paths:
        found[MIXED] = _mixed(found["passed"], found["cut"], found["only"])
    return [found[path] for path in paths]


def _mixed(both: Attributions, agent: Attributions, environment: Attributions) -> Attributions:
    gradients = {
        name: getattr(both, name) - getattr(agent, name) - getattr(environment, name)
        for name in (field.name for field in fields(Attributions) if field.name != "target_values")
    }
    return Attributions(**gradients, target_values=both.target_values)


def attribute(
    steps: SimulatedSteps,
    latent: Tensor,
    targets: Sequence[Target],
    target_steps: Sequence[int],
    num_copies: int,
    passes: BackwardPasses = BackwardPasses(),
    num_rows: int | None = None,
) -> Attributions:
    """Gradients of all targets with respect to every step, averaged over copies.

    Args:
        steps: K simulated steps of B = S · num_copies elements, in one autograd graph.
        latent: (B, latent_dim) leaf that the steps were simulated from.
        targets: Q of them.
        target_steps: R of them, each below K.
        num_copies: adjacent copies of each sample, the clean one first.
        passes: how gradients are computed.
        num_rows: length of the K axis of the result, by default K. Rows that were not simulated
            come after every target, so they are zero like all such rows.
    """
    rows = len(steps.images) if num_rows is None else num_rows
    per_step = [
        _attribute_at(steps, latent, targets, t, num_copies, passes, rows) for t in target_steps
    ]
    return Attributions(
        **{
            name: torch.stack([getattr(one, name) for one in per_step], dim=2)
            for name in Attributions.__dataclass_fields__
        }
    )


def _attribute_at(
    steps: SimulatedSteps,
    latent: Tensor,
    targets: Sequence[Target],
    t: int,
    num_copies: int,
    passes: BackwardPasses,
    num_rows: int,
) -> Attributions:
    """The same for one target step, without the R axis."""
    defined = [i for i, target in enumerate(targets) if t >= target.first_step]
    outputs = evaluate_targets([targets[i] for i in defined], steps, t, num_copies)
    sequences = (steps.images, steps.agent_state, steps.deter, steps.stoch)
    inputs = [tensor for sequence in sequences for tensor in sequence[: t + 1]]
    # Element b of the batch reaches only its own targets: the gradient of the sum over the batch
    # holds the gradients of all elements.
    with tf32(is_allowed=passes.precision == "tf32"):
        gradients = _gradients(outputs, [*inputs, latent], num_copies, passes.method)
    values = outputs.new_full((len(targets), outputs.shape[1]), torch.nan)
    values[defined] = outputs.detach()

    def place(gradient: Tensor) -> Tensor:
        shape = (len(gradient), len(targets), *gradient.shape[2:])
        placed = gradient.new_full(shape, torch.nan)
        placed[:, defined] = gradient
        return placed

    def sequence_gradient(position: int) -> Tensor:
        rows = gradients[position * (t + 1) : (position + 1) * (t + 1)]
        later = [torch.zeros_like(rows[0])] * (num_rows - t - 1)
        return place(torch.stack([*rows, *later], dim=2))

    return Attributions(
        images=sequence_gradient(0),
        agent_state=sequence_gradient(1),
        env_deter=sequence_gradient(2),
        env_stoch=sequence_gradient(3),
        latent=place(gradients[-1]),
        target_values=values[:, ::num_copies].T,
    )


def _gradients(
    outputs: Tensor, inputs: Sequence[Tensor], num_copies: int, method: GradientMethod
) -> list[Tensor]:
    """Per input (S, Q, ...): gradients of (Q, B) outputs, averaged over copies."""
    if method == "batched":
        return _batched_gradients(outputs, inputs, num_copies)
    looped = [_looped_gradients(output, inputs, num_copies) for output in outputs]
    return [torch.stack(of_one_input, dim=1) for of_one_input in zip(*looped, strict=True)]


def _looped_gradients(output: Tensor, inputs: Sequence[Tensor], num_copies: int) -> list[Tensor]:
    """Per input (S, ...): gradients of one (B,) output."""
    found = torch.autograd.grad(
        output.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [_mean_over_copies(gradient, num_copies) for gradient in found]


def _batched_gradients(outputs: Tensor, inputs: Sequence[Tensor], num_copies: int) -> list[Tensor]:
    num_targets, batch_size = outputs.shape
    one_hot = torch.eye(num_targets, device=outputs.device, dtype=outputs.dtype)
    cotangents = one_hot[:, :, None].expand(-1, -1, batch_size)
    found = torch.autograd.grad(
        outputs, inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    gradients = [
        tensor.new_zeros(num_targets, *tensor.shape) if gradient is None else gradient
        for gradient, tensor in zip(found, inputs, strict=True)
    ]
    return [_mean_over_copies(gradient.transpose(0, 1), num_copies) for gradient in gradients]


def _mean_over_copies(gradient: Tensor, num_copies: int) -> Tensor:
    """(S · num_copies, ...) → (S, ...)"""
    return gradient.unflatten(0, (-1, num_copies)).mean(dim=1)
