"""Does an object keep the promises of `agents.protocol.Agent`? Asked on a batch of noise.

Every analysis relies on these promises silently: an agent that remembers something outside its
state, or whose rows depend on their batch, would give recordings that cannot be replayed.
"""

import numpy as np
import torch
from torch import Tensor

from agents.images import to_float_images
from agents.player import full_float32
from agents.protocol import Agent, AgentOutput
from experiment.errors import UserError
from experiment.randomness import keyed_normal, keyed_uniform

BATCH = 4
TOLERANCE = 1e-4
"""Largest relative difference between two ways of computing the same."""


def require_agent(
    agent: Agent, obs_shape: tuple[int, ...], name: str, device: torch.device | str = "cpu"
) -> None:
    """Raise `UserError`, naming the agent `name`, for the first promise that it breaks.

    Args:
        agent: the object, on `device`.
        obs_shape: (H, W, C) of the frames, or (D,) of the vectors, that it is to see.
        name: what the user called it.
        device: where it computes.
    """
    _require_dimensions(agent, name)
    with torch.no_grad(), full_float32():
        _Probe(agent, obs_shape, name, device).run()


def require_differentiable(
    agent: Agent, obs_shape: tuple[int, ...], name: str, device: torch.device | str = "cpu"
) -> None:
    """Raise `UserError` unless gradients flow from all that the agent says to image and state."""
    images = probe_images(obs_shape, device).requires_grad_(True)
    state = agent.initial_state(BATCH).detach().clone().requires_grad_(True)
    output = agent.step(images, state)
    says = output.state.sum() + output.action_logits.sum() + output.value.sum()
    gradient = None
    if says.requires_grad:
        (gradient,) = torch.autograd.grad(says, images, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        raise UserError(
            f"{name}: no gradient flows from this agent's output to its images, which a simulator "
            "with the agent inside needs (is there a no_grad, a detach or numpy in its step?)"
        )


def probe_images(obs_shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """(BATCH, C, H, W) images, or (BATCH, D) vectors, of noise, always the same."""
    if len(obs_shape) == 1:
        normal = keyed_normal(0, "agent-probe", np.arange(BATCH), size=obs_shape[0])
        return torch.from_numpy(normal).to(device, torch.float32)
    uniform = keyed_uniform(0, "agent-probe", np.arange(BATCH), size=int(np.prod(obs_shape)))
    frames = (uniform * 256).astype(np.uint8).reshape(BATCH, *obs_shape)
    return to_float_images(frames, device)


def _require_dimensions(agent: Agent, name: str) -> None:
    for attribute in ("state_dim", "num_actions"):
        found = getattr(agent, attribute)
        if not isinstance(found, int) or found < 1:
            raise UserError(f"{name}: {attribute} is {found!r}; a positive integer is expected")
    hidden = agent.hidden_slice
    if not isinstance(hidden, slice) or hidden.step is not None:
        raise UserError(f"{name}: hidden_slice is {hidden!r}; expected slice(start, stop)")
    if not (
        isinstance(hidden.start, int)
        and isinstance(hidden.stop, int)
        and 0 <= hidden.start < hidden.stop <= agent.state_dim
    ):
        raise UserError(
            f"{name}: hidden_slice is {hidden!r}; expected a part of the {agent.state_dim} numbers "
            "of the state, with explicit bounds"
        )


class _Probe:
    """One agent, one batch of images, one batch of states."""

    def __init__(
        self, agent: Agent, obs_shape: tuple[int, ...], name: str, device: torch.device | str
    ) -> None:
        self.agent, self.name = agent, name
        self.images = probe_images(obs_shape, device)
        self.none, self.all = (
            torch.full((BATCH,), value, dtype=torch.bool, device=device) for value in (False, True)
        )

    def run(self) -> None:
        """All questions, the simplest first."""
        agent, images = self.agent, self.images
        initial = agent.initial_state(BATCH)
        self._check_tensor("initial_state", initial, (BATCH, agent.state_dim))
        output = agent.step(images, initial, self.all)
        self._check_output(output)
        state = output.state
        expected = agent.step(images.flip(0), state, self.none)
        again = agent.step(images.flip(0), state, self.none)
        self._compare(
            "the same step, done twice (is it random, or does it remember?)", again, expected
        )
        self._compare("a step without `first`", agent.step(images.flip(0), state), expected)
        restarted = agent.step(images, state, self.all)
        self._compare(
            "a step with `first` from another state than the initial one", restarted, output
        )
        self._check_parts(images.flip(0), state, expected)
        self._check_rows(images.flip(0), state, expected)

    def _check_parts(self, images: Tensor, state: Tensor, expected: AgentOutput) -> None:
        advanced = self.agent.advance(self.agent.embed(images), state, self.none)
        readout = self.agent.read_out(advanced)
        parts = AgentOutput(advanced, readout.action_logits, readout.value)
        self._compare("read_out(advance(embed(images), ...)) instead of step", parts, expected)
        twice = self.agent.read_out(torch.stack([advanced, advanced]))
        shape = (2, BATCH, self.agent.num_actions)
        self._check_tensor("read_out of (2, B, state_dim): logits", twice.action_logits, shape)
        self._check_tensor("read_out of (2, B, state_dim): value", twice.value, shape[:2])

    def _check_rows(self, images: Tensor, state: Tensor, expected: AgentOutput) -> None:
        rows = [
            self.agent.step(images[i : i + 1], state[i : i + 1], self.none[i : i + 1])
            for i in range(BATCH)
        ]
        alone = AgentOutput(
            torch.cat([row.state for row in rows]),
            torch.cat([row.action_logits for row in rows]),
            torch.cat([row.value for row in rows]),
        )
        self._compare("a row alone instead of in a batch", alone, expected)

    def _check_output(self, output: AgentOutput) -> None:
        self._check_tensor("step: state", output.state, (BATCH, self.agent.state_dim))
        shape = (BATCH, self.agent.num_actions)
        self._check_tensor("step: action_logits", output.action_logits, shape)
        self._check_tensor("step: value", output.value, (BATCH,))

    def _check_tensor(self, what: str, found: object, shape: tuple[int, ...]) -> None:
        if not isinstance(found, Tensor):
            raise UserError(f"{self.name}: {what} is a {type(found).__name__}, not a torch.Tensor")
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise UserError(
                f"{self.name}: {what} is {tuple(found.shape)} of {found.dtype}, "
                f"expected {shape} of torch.float32"
            )
        if not found.isfinite().all():
            raise UserError(f"{self.name}: {what} has entries that are not finite")

    def _compare(self, what: str, found: AgentOutput, expected: AgentOutput) -> None:
        for part in ("state", "action_logits", "value"):
            one, other = getattr(found, part), getattr(expected, part)
            self._check_tensor(f"{what}: {part}", one, tuple(other.shape))
            if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE):
                difference = float((one - other).abs().max())
                raise UserError(f"{self.name}: {what} changes {part} by {difference:.2g}")
