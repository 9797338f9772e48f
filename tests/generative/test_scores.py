"""Scores against closed forms and against slow references."""

import numpy as np
import pytest
import torch

from generative.scores import (
    RISING_SCORES,
    SCORES,
    SSIM_C1,
    SSIM_C2,
    SSIM_WINDOW,
    MeanReaction,
    Reaction,
    describe_true_images,
    embed,
    peak_signal_to_noise,
    policy_divergence,
    react,
    read_reaction,
    score_images,
    score_reaction,
    structural_similarity,
)


def images(seed: int, side: int = 12) -> torch.Tensor:
    return torch.rand(2, 3, 3, side, side, generator=torch.Generator().manual_seed(seed))


def reaction(seed: int) -> Reaction:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 5, generator=generator)
    value = torch.randn(2, 3, generator=generator)
    hidden = torch.randn(2, 3, 6, generator=generator)
    return Reaction(logits.log_softmax(-1), value, hidden)


def all_scores(seed: int, true_seed: int) -> torch.Tensor:
    """(len(SCORES), K, B)"""
    of_images = score_images(images(seed), describe_true_images(images(true_seed)))
    return torch.cat([of_images, score_reaction(reaction(seed), reaction(true_seed))])


def slow_similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window."""
    values = []
    for channel_x, channel_y in zip(x, y, strict=True):
        for top in range(x.shape[1] - SSIM_WINDOW + 1):
            for left in range(x.shape[2] - SSIM_WINDOW + 1):
                window = np.s_[top : top + SSIM_WINDOW, left : left + SSIM_WINDOW]
                a, b = channel_x[window].ravel(), channel_y[window].ravel()
                covariance = np.cov(a, b)
                values.append(
                    (2 * a.mean() * b.mean() + SSIM_C1)
                    * (2 * covariance[0, 1] + SSIM_C2)
                    / (a.mean() ** 2 + b.mean() ** 2 + SSIM_C1)
                    / (covariance[0, 0] + covariance[1, 1] + SSIM_C2)
                )
    return float(np.mean(values))


def test_structural_similarity_equals_the_equation_written_out():
    x, y = images(0, 9).double(), images(1, 9).double()
    found = structural_similarity(x, describe_true_images(y))
    for k in range(2):
        for b in range(3):
            expected = slow_similarity(x[k, b].numpy(), y[k, b].numpy())
            assert float(found[k, b]) == pytest.approx(expected, rel=1e-9)


def test_the_divergence_of_two_policies_is_the_closed_form():
    true, predicted = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    found = policy_divergence(true.log(), predicted.log())
    # 0.5 ln 2 + 0.25 ln 0.5
    assert float(found) == pytest.approx(0.25 * np.log(2), rel=1e-6)


def test_a_perfect_prediction_has_perfect_scores():
    found = dict(zip(SCORES, all_scores(0, 0), strict=True))
    expected = {
        "mse": 0.0,
        # 10 log10(12 · 255²): as if it had been rounded to 8 bits.
        "psnr": 58.9226,
        "ssim": 1.0,
        "policy_kl": 0.0,
        "greedy_agreement": 1.0,
        "value_error": 0.0,
        "hidden_cosine": 1.0,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.full((2, 3), value), atol=1e-4, rtol=0)


def test_every_score_tells_a_wrong_prediction():
    perfect, wrong = all_scores(0, 0).mean((1, 2)), all_scores(1, 0).mean((1, 2))
    sign = torch.tensor([-1 if name in RISING_SCORES else 1 for name in SCORES])
    assert (sign * (wrong - perfect) > 0.05).all()


def test_the_peak_signal_to_noise_ratio_is_the_closed_form():
    found = peak_signal_to_noise(torch.tensor([1.0, 0.1, 0.001, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 10.0, 30.0, 58.9226]))


def test_the_mean_of_reactions_mixes_probabilities_not_logits():
    first, second = reaction(0), reaction(1)
    mixture = MeanReaction()
    mixture.add(first)
    mixture.add(second)
    mean = mixture.mean()
    expected = (first.log_probs.exp() + second.log_probs.exp()) / 2
    torch.testing.assert_close(mean.log_probs.exp(), expected)
    torch.testing.assert_close(mean.value, (first.value + second.value) / 2)
    torch.testing.assert_close(mean.hidden, (first.hidden + second.hidden) / 2)


@torch.no_grad()
def test_the_agent_sees_predicted_frames_one_after_the_other(small_simulator):
    agent, frames = small_simulator.agent, images(0, 64)
    state = torch.rand(3, 6) - 0.5
    found = react(agent, embed(agent, frames), state)
    for step in range(2):
        output = agent.step(frames[step], state)
        state = output.state
        expected = read_reaction(agent, state[None])
        torch.testing.assert_close(found.log_probs[step], expected.log_probs[0])
        torch.testing.assert_close(found.value[step], output.value)
        torch.testing.assert_close(found.hidden[step], state)
