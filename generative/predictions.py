"""What the simulator predicts under given actions, without running the agent."""

import torch
from torch import Tensor

from generative.networks import in_one_batch
from generative.simulator import SimulationNoise, Simulator
from generative.straight_through import clamp_to_image, round_to_8_bits
from generative.types import EnvironmentState, LatentChoice


def imagined_states(
    simulator: Simulator,
    latent: Tensor,
    actions: Tensor,
    latents: LatentChoice = "mode",
    noise: SimulationNoise | None = None,
) -> EnvironmentState:
    """(K, B, ...) states that `simulate` would go through under given actions.

    Args:
        simulator: the simulator.
        latent: (B, latent_dim)
        actions: (K, B, num_actions) one-hot.
        latents: how the stochastic part is picked, also of the initial state.
        noise: keyed draws, needed for `sample`.
    """
    size = simulator.config.num_categoricals
    uniform, initial_uniform = None, None
    if noise is not None:
        initial_uniform = noise.initial(size).to(latent.device)
        steps = range(len(actions))
        uniform = torch.stack([noise.latents(step, size) for step in steps]).to(latent.device)
    initial = simulator.decode_initial(latent, latents, initial_uniform)
    return simulator.imagine(initial.environment, initial.action, actions, latents, uniform).state


def observed_states(
    simulator: Simulator, latent: Tensor, images: Tensor, actions: Tensor
) -> EnvironmentState:
    """(K, B, ...) most probable posterior states: each has seen the frame of its step.

    Args:
        simulator: the simulator.
        latent: (B, latent_dim)
        images: (K, B, C, H, W) true frames in [0, 1].
        actions: (K, B, num_actions) one-hot.
    """
    initial = simulator.decode_initial(latent)
    return simulator.observe(initial.environment, initial.action, images, actions, "mode").state


def decode(simulator: Simulator, states: EnvironmentState) -> Tensor:
    """(K, B, ...) states → (K, B, C, H, W) in [0, 1], rounded to 8 bits."""
    images = in_one_batch(simulator.image_decoder, states.features)
    return round_to_8_bits(clamp_to_image(images))
