"""Latents whose simulations drive something in the agent as far as possible.

Activation maximisation (Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009)
over the simulator's latent. Each copy climbs its own way: a step along the gradient, back onto the
latents that can occur, then the Metropolis rule (Metropolis et al., 1953) on the score itself,
which is higher where it is better: better latents are always kept, worse ones with probability
exp((new − old) / T). T falls to 0, and a copy's step grows where it is kept and shrinks where not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.player import full_float32
from experiment.errors import UserError, require_at_least
from experiment.progress import Progress
from experiment.randomness import keyed_normal, keyed_uniform
from generative.simulator import Simulator
from generative.types import SimulatedSteps
from projections.hidden import TorchProjection

STEP_GROWTH, STEP_SHRINKAGE, SMALLEST_STEP = 1.2, 0.5, 1e-4


@dataclass(frozen=True)
class TargetFunction:
    """What is maximised."""

    name: str
    score: Callable[[SimulatedSteps], Tensor]
    """Simulated steps → (B,), higher is better."""


@dataclass(frozen=True)
class AscentConfig:
    """How latents are searched for."""

    num_copies: int = 16
    """Latents that climb side by side, each from a random one of its own."""
    num_iterations: int = 200
    """At most so many steps of each."""
    step_size: float = 0.2
    """First step, as a share of the latent's norm."""
    temperature: float = 0.1
    """First temperature of the accept rule, in standard deviations of the random latents' scores;
    it falls to 0 in a straight line. With 0 no worse latent is ever kept."""
    patience: int = 25
    """Stop when no copy has found a better latent for so many steps."""
    num_sim_steps: int = 10
    """Length of the simulations."""
    target_step: int = 4
    """Simulated step at which a direction is read."""

    def __post_init__(self) -> None:
        require_at_least(self, "num_iterations", "patience", "num_sim_steps")
        require_at_least(self, "num_copies", least=2)
        require_at_least(self, "temperature", "target_step", least=0)
        if not self.step_size > 0:
            raise UserError(f"--step_size {self.step_size}: a positive number is needed")
        if self.target_step >= self.num_sim_steps:
            raise UserError(
                f"--target_step {self.target_step}: steps are 0 to {self.num_sim_steps - 1} "
                f"(--num_sim_steps {self.num_sim_steps})"
            )


@dataclass(frozen=True, eq=False)
class AscentResult:
    """What N copies found in I iterations."""

    latent: NDArray[np.float32]
    """(N, latent_dim) the best of each copy."""
    best_score: NDArray[np.float64]
    """(N,) their scores."""
    history: NDArray[np.float64]
    """(I + 1, N) score of the latent that each copy stands at, the random one first."""
    control_score: NDArray[np.float64]
    """(N,) best of I + 1 random latents each: the same number of simulations, without gradients."""


def make_target_functions(
    names: Sequence[str],
    action_names: Sequence[str],
    hidden_slice: slice,
    projection: TorchProjection | None,
    target_step: int,
) -> list[TargetFunction]:
    """Target functions by their names, which are those of the reference system.

    `increase_` or `decrease_` before `value` (mean over all steps), `value_delta` (mean of the
    second half less that of the first), `hx_direction_D` (a component at `target_step`) or
    `hx_neuron_U` (a hidden unit, mean over all steps); or `action_A`, by number or name (mean
    log-probability over all steps).

    Raises:
        UserError: a name that means nothing here, or is given twice.
    """
    context = _Context(tuple(action_names), hidden_slice, projection, target_step)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"--target_functions {name}: named twice")
    return [_make_target_function(name, context) for name in names]


@dataclass(frozen=True)
class _Context:
    action_names: tuple[str, ...]
    hidden_slice: slice
    projection: TorchProjection | None
    target_step: int


def _make_target_function(name: str, context: _Context) -> TargetFunction:
    kind, _, rest = name.partition("_")
    if kind == "action":
        return TargetFunction(name, _action_score(name, rest, context))
    sign = {"increase": 1.0, "decrease": -1.0}.get(kind)
    if sign is None:
        raise UserError(
            f"--target_functions {name}: expected increase_ or decrease_ and value, value_delta, "
            "hx_direction_D or hx_neuron_U; or action_A"
        )
    score = _quantity(name, rest, context)
    return TargetFunction(name, lambda steps: sign * score(steps))


def _action_score(name: str, word: str, context: _Context) -> Callable[[SimulatedSteps], Tensor]:
    known = context.action_names
    action = known.index(word) if word in known else _number(name, word, len(known))

    def score(steps: SimulatedSteps) -> Tensor:
        return torch.stack(steps.action_logits).log_softmax(-1)[..., action].mean(0)

    return score


def _quantity(name: str, what: str, context: _Context) -> Callable[[SimulatedSteps], Tensor]:
    if what == "value":
        return lambda steps: torch.stack(steps.value).mean(0)
    if what == "value_delta":
        return _value_delta
    kind, _, word = what.rpartition("_")
    hidden, projection, step = context.hidden_slice, context.projection, context.target_step
    if kind == "hx_neuron":
        unit = _number(name, word, hidden.stop - (hidden.start or 0))
        return lambda steps: torch.stack(steps.agent_state)[..., hidden][..., unit].mean(0)
    if kind == "hx_direction":
        if projection is None:
            raise UserError(f"--target_functions {name}: needs --projection")
        direction = _number(name, word, projection.linear.shape[0])
        return lambda steps: projection.transform(steps.agent_state[step][:, hidden])[:, direction]
    raise UserError(f"--target_functions {name}: no such quantity as {what!r}")


def _value_delta(steps: SimulatedSteps) -> Tensor:
    value = torch.stack(steps.value)
    half = len(value) // 2
    return value[-half:].mean(0) - value[:half].mean(0) if half else torch.zeros_like(value[0])


def _number(name: str, word: str, count: int) -> int:
    if not word.isdecimal() or int(word) >= count:
        raise UserError(f"--target_functions {name}: expected a number from 0 to {count - 1}")
    return int(word)


class LatentAscent:
    """Climbs one target function from random latents.

    Args:
        simulator: in evaluation mode.
        target: what to maximise.
        config: how.
        seed: of random latents and of the accept rule.
    """

    def __init__(
        self, simulator: Simulator, target: TargetFunction, config: AscentConfig, seed: int
    ) -> None:
        self._simulator = simulator
        self._target = target
        self._config = config
        self._seed = seed
        self._device = next(simulator.parameters()).device

    def run(self) -> AscentResult:
        """Climb until nothing better is found, then draw as many random latents."""
        config = self._config
        latent = self._random_latents(0)
        score, gradient = self._score_and_gradient(latent)
        scale = float(score.std())
        step = torch.full((len(latent), 1), config.step_size, device=self._device)
        best_latent, best_score = latent.clone(), score.clone()
        history, last_better = [score], 0
        with Progress(config.num_iterations, "step") as progress:
            for iteration in range(1, config.num_iterations + 1):
                proposed = self._propose(latent, gradient, step)
                new_score, new_gradient = self._score_and_gradient(proposed)
                temperature = config.temperature * scale * (1 - iteration / config.num_iterations)
                kept = self._is_kept(new_score - score, temperature, iteration)
                latent = torch.where(kept[:, None], proposed, latent)
                gradient = torch.where(kept[:, None], new_gradient, gradient)
                score = torch.where(kept, new_score, score)
                step = torch.where(kept[:, None], step * STEP_GROWTH, step * STEP_SHRINKAGE)
                step = step.clamp(SMALLEST_STEP, config.step_size)
                is_better = score > best_score
                best_latent = torch.where(is_better[:, None], latent, best_latent)
                best_score = torch.where(is_better, score, best_score)
                history.append(score)
                last_better = iteration if bool(is_better.any()) else last_better
                progress.advance(f"{self._target.name} {float(best_score.mean()):.3f}")
                if iteration - last_better >= config.patience:
                    break
        return AscentResult(
            best_latent.cpu().numpy(),
            best_score.double().cpu().numpy(),
            torch.stack(history).double().cpu().numpy(),
            self._best_random(len(history)),
        )

    def _propose(self, latent: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """A step along the gradient, back onto the latents that can occur."""
        length = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        ahead = gradient / length * latent.norm(dim=-1, keepdim=True)
        return self._simulator.bottleneck.project(latent + step * ahead)

    def _is_kept(self, gain: Tensor, temperature: float, iteration: int) -> Tensor:
        """(N,) gains in score → (N,) by the Metropolis rule."""
        if temperature <= 0:
            return gain >= 0
        draws = keyed_uniform(self._seed, "target-accept", range(len(gain)), iteration, 1)[:, 0]
        # A gain's exponential may overflow; it is kept whatever was drawn.
        probability = torch.exp(gain.clamp_max(0) / temperature)
        return torch.from_numpy(draws).to(gain) < probability

    def _score_and_gradient(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) scores and (N, latent_dim) their gradients."""
        latent = latent.detach().requires_grad_()
        with torch.enable_grad(), full_float32():
            score = self._target.score(self._simulate(latent))
            (gradient,) = torch.autograd.grad(score.sum(), latent)
        return score.detach(), gradient

    def _simulate(self, latent: Tensor) -> SimulatedSteps:
        initial = self._simulator.decode_initial(latent)
        return self._simulator.simulate(initial, self._config.num_sim_steps)

    def _random_latents(self, round_number: int) -> Tensor:
        dim, count = self._simulator.config.latent_dim, self._config.num_copies
        draws = keyed_normal(self._seed, "target-latent", range(count), round_number, dim)
        latent = self._simulator.bottleneck.from_normal(torch.from_numpy(draws))
        return latent.to(self._device, self._simulator.dtype)

    def _best_random(self, num_rounds: int) -> NDArray[np.float64]:
        """(N,) best score of `num_rounds` random latents each; the first are not the starts."""
        best = np.full(self._config.num_copies, -np.inf)
        with torch.no_grad(), full_float32():
            for round_number in range(1, num_rounds + 1):
                score = self._target.score(self._simulate(self._random_latents(round_number)))
                best = np.maximum(best, score.double().cpu().numpy())
        return best
