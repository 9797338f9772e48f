"""Trust against closed forms, and comparisons against a plain computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from generative.reality import ReplayPlan, record_replays
from generative.scores import SCORES
from generative.trust import (
    COMPARED,
    AverageErrors,
    RealityScores,
    average_errors,
    compare_with_reality,
    no_reality,
    trust,
)
from rollouts.store import RolloutDataset, RolloutWriter

NAMES = list(SCORES)
AVERAGES = AverageErrors(torch.zeros(3, 4, 4), image=0.2, policy=0.5)


def scores_of(mse: list[float], policy_kl: list[float]) -> RealityScores:
    """One sample whose rows have these errors."""
    scores = np.zeros((len(SCORES), len(COMPARED), 1, len(mse)))
    scores[NAMES.index("mse"), 0, 0] = mse
    scores[NAMES.index("policy_kl"), 0, 0] = policy_kl
    scores[..., np.isnan(mse)] = np.nan
    return RealityScores(np.array([0]), scores, np.array([0]))


def test_trust_is_one_without_errors_and_one_half_for_those_of_the_averages():
    assert trust(scores_of([0.9, 0, 0], [0.9, 0, 0]), AVERAGES) == pytest.approx([1.0])
    assert trust(scores_of([0, 0.2, 0.2], [0, 0.5, 0.5]), AVERAGES) == pytest.approx([0.5])
    # 1 / (1 + (0.1 / 0.2 + 1.5 / 0.5) / 2), row 2 does not exist in reality.
    found = trust(scores_of([0, 0.1, np.nan], [0, 1.5, np.nan]), AVERAGES)
    assert found == pytest.approx([1 / (1 + 1.75)])


def test_trust_falls_with_either_error_and_stays_within_its_bounds():
    errors = [0.0, 0.01, 0.3, 5.0, 1e6]
    for make in (lambda e: scores_of([0, e], [0, 0.1]), lambda e: scores_of([0, 0.1], [0, e])):
        found = np.array([trust(make(error), AVERAGES)[0] for error in errors])
        assert (np.diff(found) < 0).all()
        assert ((found > 0) & (found <= 1)).all()


def test_there_is_no_trust_without_a_row_to_compare():
    nothing = trust(scores_of([0.1, np.nan, np.nan], [0.1, np.nan, np.nan]), AVERAGES)
    assert np.isnan(nothing).all()


def test_average_errors_equal_a_plain_computation(fake_chain):
    dataset = RolloutDataset(fake_chain.data)
    found = average_errors(dataset)
    frames = dataset.read_field("obs") / 255
    assert found.image == pytest.approx(np.square(frames - frames.mean(axis=0)).mean())
    log_probs = log_softmax(dataset.read_field("action_logits").astype(float), axis=-1)
    mean = np.exp(log_probs).mean(axis=0)
    divergence = (np.exp(log_probs) * (log_probs - np.log(mean))).sum(axis=-1)
    assert found.policy == pytest.approx(divergence.mean())


@pytest.fixture
def samples_and_replays(fake_chain, tmp_path):
    folder = fake_chain.record("compared", max_samples=24, agent_actions="sample")
    samples = RolloutDataset(folder)
    source = RolloutDataset(fake_chain.data)
    plan = ReplayPlan(samples, source, fake_chain.agent, {"[]": None}, 4, 0)
    record_replays(plan, tmp_path / "replays")
    return samples, RolloutDataset(tmp_path / "replays")


def compare(fake_chain, samples, replays, batch_size=3) -> RealityScores:
    policy, mean_image = fake_chain.agent.policy, torch.full((3, 64, 64), 0.25)
    return compare_with_reality(samples, replays, policy, mean_image, {"[]": None}, batch_size)


def test_samples_and_baselines_are_scored_row_by_row(fake_chain, samples_and_replays):
    samples, replays = samples_and_replays
    found = compare(fake_chain, samples, replays)
    shorter = 0
    for index, sample_id in enumerate(found.sample_id):
        sample = samples.read_episode(index)
        replay = replays.read_episode(replays.index_of(int(sample_id)))
        count = len(replay)
        shorter += count < len(sample)
        assert np.isnan(found.scores[:, :, index, count:]).all()
        assert found.num_compared_rows[index] == count - 1
        assert found.level[index] == replay.info.level_seed
        truth = replay.obs / 255
        shown = {
            "sample": sample.obs[:count] / 255,
            "mean_frame": np.full_like(truth, 0.25),
            "last_frame": np.broadcast_to(truth[0], truth.shape),
        }
        for column, name in enumerate(COMPARED):
            expected = np.square(shown[name] - truth).mean(axis=(1, 2, 3))
            rows = found.scores[NAMES.index("mse"), column, index, :count]
            np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-9)
        true, own = (log_softmax(r.action_logits, axis=-1) for r in (replay, sample))
        expected = (np.exp(true) * (true - own[:count])).sum(axis=-1)
        rows = found.scores[NAMES.index("policy_kl"), 0, index, :count]
        np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-6)
        # The last frame given is the first true one, so the agent makes the same of it.
        first = found.scores[:, list(COMPARED).index("last_frame"), index, 0]
        assert first[NAMES.index("policy_kl")] == pytest.approx(0, abs=1e-5)
        assert first[NAMES.index("value_error")] == pytest.approx(0, abs=1e-5)
    assert shorter, "no real episode ended early: this tells nothing of ends"


def test_the_batch_size_changes_nothing(fake_chain, samples_and_replays):
    small, whole = (compare(fake_chain, *samples_and_replays, batch_size=b) for b in (1, 8))
    np.testing.assert_allclose(small.scores, whole.scores, rtol=1e-4, atol=1e-5)


def test_a_sample_that_is_reality_is_trusted_fully(fake_chain, samples_and_replays, tmp_path):
    """Samples whose rows are replaced by those of their replays."""
    samples, replays = samples_and_replays
    with RolloutWriter(tmp_path / "perfect", samples.metadata) as writer:
        for index in range(samples.num_episodes):
            sample = samples.read_episode(index)
            real = replays.read_episode(replays.index_of(sample.info.episode_id))
            names = ("obs", "agent_hidden", "action_logits", "value")
            rows = {name: getattr(sample, name).copy() for name in names}
            for name in names:
                rows[name][: len(real)] = getattr(real, name)
            writer.write(replace(sample, **rows))
    perfect = RolloutDataset(tmp_path / "perfect")
    found = trust(compare(fake_chain, perfect, replays), AVERAGES)
    known = np.isfinite(found)
    assert known.sum() >= 5
    np.testing.assert_allclose(found[known], 1.0, atol=1e-6)
    imperfect = trust(compare(fake_chain, samples, replays), AVERAGES)
    assert (imperfect[known] < 0.99).all()


def test_samples_without_reality_have_no_scores(fake_chain):
    folder = fake_chain.record("latents", initialisation="random", max_samples=2)
    found = no_reality(RolloutDataset(folder))
    assert np.isnan(found.scores).all()
    assert np.isnan(trust(found, AVERAGES)).all()
