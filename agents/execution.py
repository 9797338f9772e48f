"""How a policy's network is run in training: precision, CUDA graphs, frames at once.

Playing and learning both go through here, so that the ratio between the policy that learns and
the policy that acted begins at 1 up to rounding, whatever the precision.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from agents.gru_sequence import gru_sequence
from agents.images import to_float_images
from agents.networks import IMPALA_CHANNELS, RecurrentPolicy
from agents.protocol import AgentOutput
from experiment.cuda_graphs import CapturedFunction

Precision = Literal["auto", "float32", "bf16"]

CPU_ACTIVATION_BYTES = 24 * 2**20
"""Largest activation that a CPU should make: the C library returns buffers of 32 MiB and more to
the system each time they are freed, and mapping them anew costs more than computing in parts."""

CPU_FRAMES_PER_BACKWARD = 512
"""Frames whose activations a CPU should keep at a time: more of them are long out of its cache
when the backward pass reads them."""

GPU_FRAMES_PER_BACKWARD = 8192
"""Frames that a GPU should take at a time where its memory holds their activations: its recurrence
takes as long for few environments as for many."""

GPU_BYTES_PER_PIXEL_AND_CHANNEL = 50
"""What the activations of a frame take in float32, gradients included, per pixel and channel of the
first convolution: an upper bound. In bfloat16 it is half as much."""


class Execution:
    """Runs a policy's network on uint8 frames."""

    def __init__(
        self, policy: RecurrentPolicy, precision: Precision = "auto", uses_graphs: bool = True
    ) -> None:
        """Choose how to run.

        Args:
            policy: on the device where it shall run.
            precision: `bf16` runs the convolutions in bfloat16, recurrence and heads stay in
                float32; `auto` is bf16 on CUDA and float32 elsewhere.
            uses_graphs: on CUDA, launch steps of playing and of learning as CUDA graphs.
        """
        self.policy = policy
        self.device = next(policy.parameters()).device
        on_cuda = self.device.type == "cuda"
        self.uses_bf16 = precision == "bf16" or (precision == "auto" and on_cuda)
        self.frames_at_once = None if on_cuda else cpu_frames_at_once(policy)
        self.uses_graphs = on_cuda and uses_graphs
        self._step: Callable[[Tensor, Tensor, Tensor], AgentOutput] = self._step_eagerly
        if self.uses_graphs:
            self._step = CapturedFunction(self._step_eagerly)

    def frames_per_backward(self, asked: int) -> int:
        """How many frames learning should take at a time, where it may be asked for `asked`.

        Fewer on a CPU. On a GPU more, unless that takes more than half of its free memory.
        """
        if self.device.type != "cuda":
            return min(asked, CPU_FRAMES_PER_BACKWARD)
        height, width, _ = self.policy.config.obs_shape
        channels = first_channels(self.policy)
        pixels = GPU_FRAMES_PER_BACKWARD * height * width
        needed = pixels * channels * GPU_BYTES_PER_PIXEL_AND_CHANNEL // (1 + self.uses_bf16)
        free = torch.cuda.mem_get_info(self.device)[0]
        return max(asked, GPU_FRAMES_PER_BACKWARD) if needed <= free // 2 else asked

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


def cpu_frames_at_once(policy: RecurrentPolicy) -> int:
    """Frames whose largest activation, the first convolution's, stays within the limit."""
    height, width, _ = policy.config.obs_shape
    return max(1, CPU_ACTIVATION_BYTES // (4 * first_channels(policy) * height * width))


def first_channels(policy: RecurrentPolicy) -> int:
    """Of the first convolution, whose activation is the largest."""
    return max(1, round(IMPALA_CHANNELS[0] * policy.config.width))
