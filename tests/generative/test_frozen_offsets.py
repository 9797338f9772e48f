"""Gradients of the simulator are derivatives of the simulator with frozen offsets."""

import copy

import pytest
import torch

from generative.gradient_edges import GradientEdges
from generative.straight_through import StraightThroughOffsets, clamp_to_image, round_to_8_bits

STEP = 2
EPSILON = 1e-6


@pytest.fixture
def simulator(small_simulator):
    return copy.deepcopy(small_simulator).double().eval().requires_grad_(False)


@pytest.fixture
def latent(simulator):
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(2, simulator.config.latent_dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(raw, dim=-1)


def values(simulator, latent, edges=None):
    """(B,) something that reads the agent and, past rounding and clamping, the last image."""
    steps = simulator.simulate(simulator.decode_initial(latent), STEP + 1, edges=edges)
    weights = torch.linspace(-1, 1, steps.images[STEP][0].numel(), dtype=torch.float64)
    pixels = (steps.images[STEP].flatten(1) * weights).sum(-1)
    return steps.value[STEP] + steps.action_logits[STEP].log_softmax(-1)[:, 1] + pixels


def directions(latent, count=6):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, *latent.shape, generator=generator, dtype=torch.float64)
    return noise / noise.norm(dim=-1, keepdim=True)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_finite_differences_equal_autograd_where_offsets_are_frozen(simulator, latent):
    offsets, point = StraightThroughOffsets(), latent.clone().requires_grad_(True)
    with offsets.recorded():
        clean = values(simulator, point)
    (gradient,) = torch.autograd.grad(clean.sum(), point)

    def frozen(at):
        with offsets.frozen(), torch.no_grad():
            return values(simulator, at)

    torch.testing.assert_close(frozen(latent), clean.detach(), rtol=0, atol=1e-12)
    chosen = directions(latent)
    predicted = (chosen * gradient).sum(-1)
    changes = [frozen(latent + EPSILON * d) - frozen(latent - EPSILON * d) for d in chosen]
    assert relative_error(torch.stack(changes) / (2 * EPSILON), predicted) < 1e-4
    # The discrete program's own changes are another matter, so the check above can fail.
    with torch.no_grad():
        discrete = [
            values(simulator, latent + EPSILON * d) - values(simulator, latent - EPSILON * d)
            for d in chosen
        ]
    assert relative_error(torch.stack(discrete) / (2 * EPSILON), predicted) > 0.1


def test_shut_edges_equal_edges_that_are_not_there(simulator, latent):
    initial = simulator.decode_initial(latent.clone().requires_grad_(True))
    edges = GradientEdges()
    gated = simulator.simulate(initial, STEP + 1, edges=edges)
    detached = simulator.simulate(initial, STEP + 1, cut_environment_gradient=True)
    edges.action_to_environment = False
    for steps_of_input in range(STEP + 1):
        found, expected = (
            torch.autograd.grad(
                steps.value[STEP].sum(), steps.images[steps_of_input], retain_graph=True
            )[0]
            for steps in (gated, detached)
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_frozen_offsets_serve_larger_batches_and_count_their_sites():
    pixels = torch.tensor([[-0.5, 0.2], [0.7, 1.5]], dtype=torch.float64)
    offsets = StraightThroughOffsets()
    with offsets.recorded():
        image = round_to_8_bits(clamp_to_image(pixels))
    with offsets.frozen():
        moved = round_to_8_bits(clamp_to_image(pixels.repeat_interleave(3, dim=0) + 0.25))
    torch.testing.assert_close(moved, image.repeat_interleave(3, dim=0) + 0.25)
    with pytest.raises(RuntimeError, match="fewer"), offsets.frozen():
        clamp_to_image(pixels)
    with offsets.recorded():
        pass
    with pytest.raises(RuntimeError, match="more"), offsets.frozen():
        clamp_to_image(pixels)
    assert torch.equal(clamp_to_image(pixels), pixels.clamp(0, 1))
