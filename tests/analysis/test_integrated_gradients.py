"""Integrated gradients against closed forms, completeness, and their own refusal to converge."""

import numpy as np
import pytest
import torch

from agents.networks import NetworkConfig, make_policy
from analysis.integrated_gradients import (
    NODES_TOGETHER,
    IntegrationSettings,
    integrate,
    lobatto,
)
from analysis.saliency_integration import (
    IntegratedTargets,
    frame_baseline,
    integrate_frames,
    watch,
)
from analysis.saliency_targets import TargetContext, make_targets

NUM_ACTIONS = 5


def point_and_baseline(size=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, size, generator=generator, dtype=torch.float64)


def test_a_quadratic_form_has_its_closed_form():
    point, baseline = point_and_baseline()
    matrix = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    matrix = matrix + matrix.T
    weights = torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64)

    def function(batch):
        return torch.stack([(batch @ matrix * batch).sum(-1), batch @ weights])

    found = integrate(function, point, baseline, IntegrationSettings())
    # The gradient 2 M x is linear along the line, so its integral is its mean at the ends.
    expected = (point + baseline) @ matrix * (point - baseline)
    torch.testing.assert_close(found.attribution[0], expected)
    torch.testing.assert_close(found.attribution[1], weights * (point - baseline))
    torch.testing.assert_close(found.convergence_delta, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("num_nodes", [3, 8])
def test_lobattos_rule_has_both_ends_and_integrates_polynomials(num_nodes):
    nodes, weights = lobatto(num_nodes)
    assert (nodes[0], nodes[-1]) == (0.0, 1.0)
    for degree in range(2 * num_nodes - 2):
        assert weights @ nodes**degree == pytest.approx(1 / (degree + 1))


def test_a_kink_is_found_and_only_what_has_missed_is_computed_again():
    """A jump of the gradient: halving the pieces around it is exponentially exact."""
    point, baseline = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    asked = []

    def function(batch):
        asked.append(batch)
        kinked = 50.0 * (batch[:, 0] - 0.617).clamp(min=0) - 19.0 * batch[:, 1]
        return torch.stack([batch.square().sum(-1), kinked])

    found = integrate(function, point, baseline, IntegrationSettings(tolerance=1e-3))
    torch.testing.assert_close(found.attribution[0], torch.ones(3, dtype=torch.float64))
    expected = torch.tensor([50 * 0.383, -19.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.attribution[1], expected, atol=2e-4, rtol=0)
    assert abs(found.convergence_delta[1]) <= 1e-3 * abs(found.difference[1])
    # One call for the ends; evenly spaced nodes would take thousands for 1e-3 of 0.15.
    assert len(asked) - 1 <= 16


def test_nodes_are_added_until_the_sum_is_met():
    point, baseline = point_and_baseline()
    calls = []

    def kinked(batch):
        calls.append(len(batch))
        return (batch - 0.3137 * point).clamp(min=0).pow(0.75).sum(-1)[None]

    settings = IntegrationSettings(tolerance=1e-3)
    found = integrate(kinked, point, baseline, settings)
    assert abs(found.convergence_delta[0]) <= 1e-3 * abs(found.difference[0])
    assert len(calls) > 2
    assert set(calls) == {1 + NODES_TOGETHER}


def test_a_step_function_is_reported_as_not_converged():
    point, baseline = point_and_baseline()

    def step(batch):
        return (batch[:, 0] > point[0] - 1e-9).to(batch.dtype)[None] + 0.0 * batch.sum(-1)[None]

    found = integrate(step, point, baseline, IntegrationSettings(max_nodes=32))
    assert found.difference[0] == 1.0
    assert found.convergence_delta[0] == -1.0


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    network = NetworkConfig(width=0.25, num_features=6, num_actions=NUM_ACTIONS)
    return make_policy(network).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def frames():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["black", "mean", "blurred"])
def test_attributions_of_frames_sum_to_the_change_of_the_target(agent, frames, name):
    names = tuple("abcde")
    targets = make_targets(
        ["value", "action", "value_delta"], [], TargetContext(names, slice(0, 6), None)
    )
    state = torch.full((6,), 0.1)
    baseline = frame_baseline(name, frames, torch.full((3, 64, 64), 0.25))
    wanted = IntegratedTargets(targets, (0, 1), IntegrationSettings())
    found = integrate_frames(agent, frames, baseline, state, wanted)

    clean, empty = (watch(agent, x[None], state[None]) for x in (frames, baseline))
    expected = float(clean.value[1] - empty.value[1])
    assert found.difference[0, 1] == pytest.approx(expected, abs=1e-6)
    sums = found.attribution.reshape(3, 2, -1).sum(axis=-1)
    assert sums[0, 1] == pytest.approx(expected, rel=0.01)
    greedy = int(clean.action_logits[1].argmax())
    log_probs = (rows.action_logits[1].log_softmax(-1)[0, greedy] for rows in (clean, empty))
    assert found.difference[1, 1] == pytest.approx(float(next(log_probs) - next(log_probs)))
    assert np.isnan(found.attribution[2, 0]).all()
    assert np.count_nonzero(found.attribution[:2, 0, 1:]) == 0
    assert np.count_nonzero(found.attribution[0, 1, 0]) > 0


def test_baselines_have_no_content(frames):
    mean = torch.full((3, 64, 64), 0.25)
    assert frame_baseline("black", frames, mean).abs().max() == 0
    assert torch.equal(frame_baseline("mean", frames, mean), mean.expand(3, 3, 64, 64))
    blurred = frame_baseline("blurred", frames, mean)
    assert blurred.std() < 0.1 * frames.std()
    torch.testing.assert_close(blurred.mean((2, 3)), frames.mean((2, 3)), atol=0.05, rtol=0)
