import math

import pytest
import torch

from generative import losses

VALID = torch.tensor([[True, True], [True, False]])


def test_only_valid_steps_count_and_windows_are_averaged():
    per_step = torch.tensor([[1.0, 10.0], [100.0, torch.inf]])
    assert losses.over_window(per_step, VALID).item() == (1 + 100 + 10) / 2


def test_squared_errors():
    images, target = torch.full((2, 2, 3, 4, 4), 0.5), torch.zeros(2, 2, 3, 4, 4)
    assert losses.image_loss(images, target, VALID).item() == 0.5 * 0.25 * 48 * 3 / 2
    assert losses.reward_loss(torch.full((2, 2), 3.0), torch.ones(2, 2), VALID).item() == 3.0
    hidden = torch.ones(2, 2, 4)
    assert losses.agent_hidden_loss(hidden, -hidden, VALID).item() == 0.5 * 16 * 3 / 2
    assert losses.initial_agent_hidden_loss(hidden[0], -hidden[0]).item() == 16


def test_cross_entropies():
    terminal = torch.tensor([[True, False], [False, True]])
    loss = losses.terminal_loss(torch.zeros(2, 2), terminal, VALID)
    assert loss.item() == pytest.approx(3 / 2 * math.log(2))
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert losses.initial_action_loss(logits, torch.tensor([1])).item() == pytest.approx(
        -math.log(0.75)
    )


def test_divergence_has_its_closed_form():
    left = torch.tensor([[[0.5, 0.5], [1 / 3, 2 / 3]]]).log()
    right = torch.tensor([[[0.25, 0.75], [1 / 3, 2 / 3]]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert losses.categorical_kl(left, right).item() == pytest.approx(expected)
    assert losses.categorical_kl(left, left).item() == pytest.approx(0.0, abs=1e-7)


def test_balancing_shares_out_the_gradient_but_not_the_value():
    posterior = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    prior = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    plain = losses.over_window(losses.categorical_kl(posterior, prior), VALID)
    balanced = losses.balanced_kl_loss(posterior, prior, VALID, balance=0.8)
    assert balanced.item() == pytest.approx(plain.item())
    expected = torch.autograd.grad(plain, (posterior, prior))
    found = torch.autograd.grad(balanced, (posterior, prior))
    torch.testing.assert_close(found[0], 0.2 * expected[0])
    torch.testing.assert_close(found[1], 0.8 * expected[1])


def test_free_nats_cost_and_teach_nothing_below_the_threshold():
    posterior = torch.randn(1, 2, 3, 4, requires_grad=True)
    prior = posterior.detach() + 0.01 * torch.randn(1, 2, 3, 4)
    loss = losses.balanced_kl_loss(posterior, prior, VALID[:1], free_nats=1.0)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, posterior)
    assert not gradient.any()


def test_state_updates_are_norms_of_differences_from_the_initial_state_on():
    deter = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    loss = losses.env_update_loss(deter, torch.zeros(1, 2), torch.ones(2, 1, dtype=torch.bool))
    assert loss.item() == 2.5


def test_an_unmoved_state_has_a_finite_gradient():
    deter = torch.zeros(2, 1, 2, requires_grad=True)
    loss = losses.env_update_loss(deter, torch.zeros(1, 2), torch.ones(2, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, deter)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], -4.0),
        ([[1.0, 0.0], [0.0, 1.0]], -2.0),
        ([[1.0, 0.0], [1.0, 0.0]], 0.0),
        (
            [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]],
            math.log((4 * math.exp(-2) + 2 * math.exp(-4)) / 6),
        ),
        ([[1.0, 0.0]], 0.0),
    ],
)
def test_spread_leaves_out_self_pairs(latents, expected):
    assert losses.spread_loss(torch.tensor(latents)).item() == pytest.approx(expected, abs=1e-6)


def test_equal_action_distributions_cost_nothing():
    logits = torch.randn(2, 2, 5)
    assert losses.action_log_prob_loss(logits, logits + 1.0, VALID).item() == pytest.approx(
        0.0, abs=1e-6
    )
    certain, uniform = torch.tensor([[[40.0, 0.0]]]), torch.zeros(1, 1, 2)
    valid = torch.ones(1, 1, dtype=torch.bool)
    loss = losses.action_log_prob_loss(uniform, certain, valid)
    assert loss.item() == pytest.approx(math.log(2))
