import math

import numpy as np
import pytest
import torch

from generative.bottleneck import GaussianBottleneck, SphereBottleneck, make_bottleneck


def test_the_sphere_keeps_directions_and_drops_lengths():
    latents = SphereBottleneck(2).project(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    torch.testing.assert_close(latents, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_random_latents_of_the_sphere_have_no_preferred_direction():
    latents = SphereBottleneck(3).from_normal(torch.randn(20_000, 3, generator=_generator()))
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(20_000))
    covariance = latents.T @ latents / len(latents)
    torch.testing.assert_close(covariance, torch.eye(3) / 3, atol=0.01, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_way_between_points_of_the_sphere_is_an_arc_at_even_speed(share):
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = SphereBottleneck(2).interpolate(start, end, torch.tensor([share]))
    angle = share * math.pi / 2
    expected = torch.tensor([[math.cos(angle), math.sin(angle)]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_way_from_a_point_to_itself_stays_there():
    point = SphereBottleneck(3).project(torch.tensor([[0.3, -2.0, 1.0]]))
    found = SphereBottleneck(3).interpolate(point, point, torch.tensor([0.5]))
    torch.testing.assert_close(found, point)


def test_a_gaussian_latent_has_the_moments_that_the_encoder_gives():
    outputs = torch.tensor([[2.0, -1.0, 0.0, math.log(0.5)]])
    distribution = GaussianBottleneck(2).distribution(outputs)
    draws = distribution.draw(torch.randn(100_000, 2, generator=_generator()))
    np.testing.assert_allclose(draws.mean(0), [2.0, -1.0], atol=0.02)
    np.testing.assert_allclose(draws.std(0), [1.0, 0.5], atol=0.01)
    assert torch.equal(distribution.mode, outputs[:, :2])


def test_the_way_between_gaussian_latents_is_straight():
    found = make_bottleneck("vae", 2).interpolate(
        torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([0.25])
    )
    torch.testing.assert_close(found, torch.tensor([[0.5, 3.0]]))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
