"""How a policy's network is run in training: precision, compilation, frames at once.

Playing and learning both go through here, so that the ratio between the policy that learns and
the policy that acted begins at 1 up to rounding, whatever the precision.
"""

import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from agents.gru_sequence import gru_sequence
from agents.images import to_float_images
from agents.networks import IMPALA_CHANNELS, RecurrentPolicy
from agents.protocol import AgentOutput
from experiment.errors import UserError

Precision = Literal["auto", "float32", "bf16"]

CPU_ACTIVATION_BYTES = 24 * 2**20
"""Largest activation that a CPU should make: the C library returns buffers of 32 MiB and more to
the system each time they are freed, and mapping them anew costs more than computing in parts."""

CPU_FRAMES_PER_BACKWARD = 512
"""Frames whose activations a CPU should keep at a time: more of them are long out of its cache
when the backward pass reads them."""


class Execution:
    """Runs a policy's network on uint8 frames."""

    def __init__(
        self, policy: RecurrentPolicy, precision: Precision = "auto", compiled: bool = False
    ) -> None:
        """Choose how to run.

        Args:
            policy: on the device where it shall run.
            precision: `bf16` runs the convolutions in bfloat16, recurrence and heads stay in
                float32; `auto` is bf16 on CUDA and float32 elsewhere.
            compiled: compile the step of playing into a CUDA graph.

        Raises:
            UserError: compilation without CUDA.
        """
        self.policy = policy
        self.device = next(policy.parameters()).device
        on_cuda = self.device.type == "cuda"
        self.uses_bf16 = precision == "bf16" or (precision == "auto" and on_cuda)
        self.frames_at_once = None if on_cuda else cpu_frames_at_once(policy)
        self.frames_per_backward = sys.maxsize if on_cuda else CPU_FRAMES_PER_BACKWARD
        self._step: Callable[[Tensor, Tensor, Tensor], AgentOutput] = self._step_eagerly
        if compiled:
            if not on_cuda:
                raise UserError(f"--compile: needs a CUDA device, not {self.device}")
            self._compiled = torch.compile(self._step_eagerly, mode="reduce-overhead")
            self._step = self._step_compiled

    def embed(self, frames: Tensor) -> Tensor:
        """(B, H, W, C) uint8 → (B, num_features) float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.uses_bf16):
            parts = frames.split(self.frames_at_once or len(frames))
            return torch.cat([self.policy.embed(to_float_images(p)) for p in parts]).float()

    def step(self, frames: Tensor, state: Tensor, first: Tensor) -> AgentOutput:
        """One decision: (B, H, W, C) uint8, (B, state_dim), (B,) bool."""
        return self._step(frames, state, first)

    def unroll(self, frames: Tensor, state: Tensor, first: Tensor) -> AgentOutput:
        """T decisions: (T, B, H, W, C) uint8, (B, state_dim), (T, B) bool."""
        embeddings = self.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        gru = self.policy.gru
        states = embeddings if gru is None else gru_sequence(gru, embeddings, state, first)
        readout = self.policy.read_out(states)
        return AgentOutput(states, readout.action_logits, readout.value)

    def _step_eagerly(self, frames: Tensor, state: Tensor, first: Tensor) -> AgentOutput:
        state = self.policy.advance(self.embed(frames), state, first)
        readout = self.policy.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)

    def _step_compiled(self, frames: Tensor, state: Tensor, first: Tensor) -> AgentOutput:
        torch.compiler.cudagraph_mark_step_begin()
        output = self._compiled(frames, state, first)
        # The graph writes its next result over this one.
        return AgentOutput(output.state.clone(), output.action_logits.clone(), output.value.clone())


def cpu_frames_at_once(policy: RecurrentPolicy) -> int:
    """Frames whose largest activation, the first convolution's, stays within the limit."""
    height, width, _ = policy.config.obs_shape
    channels = max(1, round(IMPALA_CHANNELS[0] * policy.config.width))
    return max(1, CPU_ACTIVATION_BYTES // (4 * channels * height * width))
