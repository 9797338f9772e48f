import numpy as np
import pytest
import torch

from agents.collection import Collector, EpisodeStatistics, RewardNormaliser, sample_actions
from agents.evaluation import evaluate, held_out_levels
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.ppo import PPOConfig
from environments.factory import EnvironmentConfig, make_environment
from environments.protocol import TRAINING_LEVELS

NETWORK = NetworkConfig(width=0.25, num_features=8)
FAKE = EnvironmentConfig(env_name="fake")
PLAIN = PPOConfig(
    num_envs=5, num_steps=7, normalise_reward=False, normalise_advantage=False, gamma=0.9
)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return RecurrentPolicy(NETWORK)


def make_collector(policy, config=PLAIN, sizes=(3, 2), seed=0) -> Collector:
    groups = [make_environment(FAKE, size, seed + number) for number, size in enumerate(sizes)]
    return Collector(policy, groups, config, seed)


def test_sample_actions_inverts_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.9999999])
    assert sample_actions(logits, uniform).tolist() == [0, 0, 1, 1, 2]


def test_sample_actions_never_draws_an_impossible_action():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert sample_actions(logits, torch.tensor([0.0, 0.99999994])).tolist() == [1, 1]


def test_draws_that_round_to_one_take_the_last_possible_action():
    uniform = torch.from_numpy(np.full(50, 1 - 2.0**-32).astype(np.float32))
    assert (uniform == 1).all()
    logits = torch.randn(50, 15, generator=torch.Generator().manual_seed(0)) * 5
    assert (sample_actions(logits, uniform) <= 14).all()
    logits[:, 9:] = -torch.inf
    assert (sample_actions(logits, uniform) <= 8).all()


def test_rollouts_replay_and_see_every_frame_once(policy):
    """Over three rollouts the learner's unroll gives what the actor computed, and the state goes
    on from the last frame of one rollout to the first of the next without a repetition."""
    collector = make_collector(policy)
    state, saw_reset = policy.initial_state(5), False
    for iteration in range(3):
        batch = collector.collect(iteration).batch
        torch.testing.assert_close(batch.initial_state, state)
        with torch.no_grad():
            output = policy.unroll(batch.obs, batch.initial_state, batch.first)
        log_prob = output.action_logits.log_softmax(-1).gather(-1, batch.action[..., None])
        torch.testing.assert_close(log_prob.squeeze(-1), batch.log_prob, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.value, batch.value, rtol=1e-4, atol=1e-5)
        state = output.state[-1]
        saw_reset |= bool(batch.first[1:].any())
    assert saw_reset


def test_frames_rewards_and_ends_line_up_with_the_actions(policy):
    """Replays the actions in a second environment: obs[t] and first[t] are what the player saw,
    and the one-step advantage (λ = 0) shows which reward answers which action."""
    config = PPOConfig(
        num_envs=3,
        num_steps=40,
        normalise_reward=False,
        normalise_advantage=False,
        gamma=0.9,
        gae_lambda=0.0,
    )
    batch = make_collector(policy, config, sizes=(3,)).collect(0).batch
    twin = make_environment(FAKE, 3, 0)
    reward, first = np.zeros((40, 3)), np.zeros((41, 3), bool)
    for t in range(40):
        transition = twin.observe()
        np.testing.assert_array_equal(batch.obs[t].numpy(), transition.obs)
        first[t] = transition.first
        twin.send(batch.action[t].numpy())
        reward[t] = twin.observe().reward
    np.testing.assert_array_equal(batch.first.numpy(), first[:-1])
    assert reward.any()
    value = batch.value.numpy()
    expected = reward[:-1] + 0.9 * value[1:] * ~first[1:-1] - value[:-1]
    np.testing.assert_allclose(batch.advantage[:-1].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(
        batch.value_target.numpy(), (batch.advantage + batch.value).numpy(), atol=1e-6
    )


def test_time_outs_are_bootstrapped_on_request_and_only_they(policy):
    """The fake world ends at 24 decisions; with λ = 0 the option adds γ V(s_t) there alone."""
    plain = PPOConfig(**{**vars(PLAIN), "gae_lambda": 0.0, "num_steps": 60})
    optimistic = PPOConfig(**{**vars(plain), "bootstrap_timeouts": True})
    without, with_option = (
        make_collector(policy, config).collect(0).batch for config in (plain, optimistic)
    )
    twins = [make_environment(FAKE, size, number) for number, size in enumerate((3, 2))]
    timed_out, ended = torch.zeros(60, 5, dtype=torch.bool), torch.zeros(60, 5, dtype=torch.bool)
    for t in range(60):
        for twin, slots in zip(twins, (slice(0, 3), slice(3, 5)), strict=True):
            twin.send(without.action[t, slots].numpy())
            seen = twin.observe()
            timed_out[t, slots] = torch.from_numpy(seen.truncated)
            ended[t, slots] = torch.from_numpy(seen.first)
    assert timed_out.any()
    assert (ended & ~timed_out).any()
    added = with_option.advantage - without.advantage
    expected = torch.where(timed_out, 0.9 * without.value, 0.0)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_bootstrap_uses_the_next_frame(policy):
    config = PPOConfig(**{**vars(PLAIN), "gae_lambda": 0.0, "num_steps": 2})
    collector = make_collector(policy, config)
    now = collector.collect(0).batch
    advantage, value = now.advantage.clone(), now.value.clone()
    later = collector.collect(1).batch
    goes_on = ~later.first[0]
    assert goes_on.any()
    # No reward was paid in these first steps, so the advantage is all discount and bootstrap.
    expected = 0.9 * later.value[0] - value[-1]
    torch.testing.assert_close(advantage[-1][goes_on], expected[goes_on], rtol=1e-4, atol=1e-5)


def test_saved_collector_goes_on_bit_for_bit(policy):
    uninterrupted = make_collector(policy)
    uninterrupted.collect(0)
    saved = uninterrupted.state_dict()
    expected = uninterrupted.collect(1).batch

    resumed = make_collector(policy, seed=0)
    resumed.load_state_dict(saved)
    batch = resumed.collect(1).batch
    for name in vars(expected):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_reward_normaliser_divides_by_the_deviation_of_the_discounted_return():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(30, 4)).astype(np.float32)
    done = rng.random((30, 4)) < 0.1
    normaliser = RewardNormaliser(4)
    parts = [normaliser(reward[:20], done[:20]), normaliser(reward[20:], done[20:])]

    running, returns = np.zeros(4), []
    for t in range(30):
        running = 0.99 * running + reward[t]
        returns.append(running.copy())
        running[done[t]] = 0
    assert normaliser.variance == pytest.approx(np.var(returns), rel=1e-3)
    np.testing.assert_allclose(parts[0], reward[:20] / np.std(returns[:20]), rtol=1e-3)
    np.testing.assert_allclose(parts[1], reward[20:] / np.std(returns), rtol=1e-3)


def test_normalised_rewards_are_clipped_at_ten():
    normaliser = RewardNormaliser(1)
    reward = np.zeros((1000, 1), np.float32)
    reward[500] = 1000
    done = np.ones((1000, 1), bool)
    assert normaliser(reward, done).max() == 10


def test_statistics_count_whole_episodes_with_raw_rewards():
    statistics = EpisodeStatistics(2)
    reward = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    done = np.array([[0, 0], [1, 0], [0, 1], [1, 0]], bool)
    statistics.add(reward[:2], done[:2])
    statistics.add(reward[2:], done[2:])
    assert list(statistics.returns) == [4, 12, 12]
    assert list(statistics.lengths) == [2, 3, 2]
    assert statistics.num_episodes == 3


def test_evaluation_does_not_depend_on_the_number_of_slots(policy):
    """Each level once, whatever the slots: early finishers are not favoured."""
    levels = held_out_levels(9)
    results = [evaluate(policy, make_environment(FAKE, slots), levels, 0) for slots in (1, 4, 20)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.returns, results[0].returns)
        np.testing.assert_array_equal(result.lengths, results[0].lengths)
    assert (results[0].lengths > 0).all()
    assert set(results[0].returns) <= {0.0, 10.0}


def test_evaluation_plays_each_level_exactly_once():
    levels = list(held_out_levels(6))
    environment = make_environment(FAKE, 2)
    started = []
    start_level = environment.start_level

    def recording_start(indices, level_seeds):
        started.extend(level_seeds)
        start_level(indices, level_seeds)

    environment.start_level = recording_start
    evaluate(None, environment, levels, 0)
    assert started == levels
    assert min(levels) >= TRAINING_LEVELS
