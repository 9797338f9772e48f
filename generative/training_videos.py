"""What a simulator makes of a few windows, as one video: the truth beside four ways to run it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from experiment.randomness import keyed_normal
from generative.objective import WindowTensors, draw_training_noise
from generative.simulator import Simulator
from generative.straight_through import clamp_to_image, round_to_8_bits
from generative.types import SimulatedSteps
from rollouts.video import VideoWriter, draw_text, enlarge

FPS = 6.0
_SCALE = 3
_TITLE_HEIGHT = 24
_TITLE_SIZE = 16

COLUMNS = ("true", "observed", "imagined", "simulated", "random")
"""True frames; frames decoded from posterior states; simulated frames under true actions; both
simulated, the agent acting on what it is shown; the same from a random latent."""


def write_training_video(
    path: Path | str, simulator: Simulator, windows: WindowTensors, seed: int
) -> None:
    """Write a video with one row of pictures per window and one column per entry of `COLUMNS`.

    Args:
        path: file name, ends in `.mp4`.
        simulator: the simulator.
        windows: B windows of K simulated steps; past the end of an episode the truth is black.
        seed: of the posterior's draws and of the random latents.
    """
    pictures = make_pictures(simulator, windows, seed)
    with VideoWriter(path, FPS) as video:
        for step in range(len(pictures["true"])):
            video.write(_draw_step({name: rows[step] for name, rows in pictures.items()}))


@torch.no_grad()
def make_pictures(
    simulator: Simulator, windows: WindowTensors, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """(K, B, H, W, C) frames by column.

    Actions and imagined states are modes; the posterior is sampled as in training.
    """
    num_steps, num_windows = windows.valid.shape
    noise = draw_training_noise(num_steps, np.arange(num_windows), simulator.config, seed).to(
        windows.valid.device
    )
    latent = simulator.encode(windows.initial_frames)
    initial = simulator.decode_initial(latent)
    actions = simulator.one_hot_actions(windows.action)
    observed = simulator.observe(
        initial.environment,
        simulator.one_hot_actions(windows.initial_action),
        to_float_images(windows.frames).to(simulator.dtype),
        actions,
        "sample",
        noise.posterior,
    )
    normal = keyed_normal(seed, "video-latent", np.arange(num_windows), 0, latent.shape[1])
    random = simulator.bottleneck.from_normal(torch.from_numpy(normal).to(latent))
    return {
        "true": windows.frames.cpu().numpy(),
        "observed": _to_bytes(simulator.decode_images(observed.state.features)),
        "imagined": _frames(simulator.simulate(initial, num_steps, actions=windows.action)),
        "simulated": _frames(simulator.simulate(initial, num_steps)),
        "random": _frames(simulator.simulate(simulator.decode_initial(random), num_steps)),
    }


def _frames(steps: SimulatedSteps) -> NDArray[np.uint8]:
    return _to_bytes(torch.stack(steps.images))


def _to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(K, B, C, H, W), not clamped → (K, B, H, W, C)."""
    shown = round_to_8_bits(clamp_to_image(images)).movedim(-3, -1) * 255
    return shown.round().to(torch.uint8).cpu().numpy()


def _draw_step(frames: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(B, H, W, C) frames of one step by column → one picture, titles on top."""
    columns = []
    for name, rows in frames.items():
        column = enlarge(np.concatenate(list(rows)), _SCALE)
        column = np.broadcast_to(column, (*column.shape[:2], 3))
        title = np.zeros((_TITLE_HEIGHT, column.shape[1], 3), np.uint8)
        columns.append(np.concatenate([draw_text(title, name, _TITLE_SIZE), column]))
    return np.concatenate(columns, axis=1)
