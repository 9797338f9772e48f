import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from agents.execution import Execution
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.ppo import (
    EnvironmentShare,
    PPOConfig,
    PPOLearner,
    RolloutBatch,
    generalised_advantages,
    normalise,
    ppo_losses,
    require_usable,
    split_frames,
    split_trajectories,
    value_loss,
)
from agents.protocol import AgentOutput
from experiment.distributed import Ranks
from experiment.errors import UserError

NETWORK = NetworkConfig(width=0.25, num_features=8, obs_shape=(16, 16, 3), num_actions=5)


def slow_advantages(reward, value, done, last_value, gamma, lam, timed_out=None):
    """Equation 16 of Schulman et al. 2016, summed term by term for every t."""
    timed_out = np.zeros_like(done) if timed_out is None else timed_out
    num_steps, num_envs = reward.shape
    values = np.concatenate([value, last_value[None]])
    advantage = np.zeros((num_steps, num_envs))
    for env in range(num_envs):
        for t in range(num_steps):
            weight = 1.0
            for k in range(t, num_steps):
                bootstrap = 0.0 if done[k, env] else gamma * values[k + 1, env]
                if timed_out[k, env]:
                    bootstrap = gamma * values[k, env]
                advantage[t, env] += weight * (reward[k, env] + bootstrap - values[k, env])
                if done[k, env]:
                    break
                weight *= gamma * lam
    return advantage


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_advantages_equal_the_slow_sum(gamma, lam):
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 12, 5))
    done, last_value = rng.random((12, 5)) < 0.25, rng.normal(size=5)
    done[-1] = [True, False, True, False, False]
    fast = generalised_advantages(
        torch.from_numpy(reward),
        torch.from_numpy(value),
        torch.from_numpy(done),
        torch.from_numpy(last_value),
        gamma,
        lam,
    )
    np.testing.assert_allclose(
        fast.numpy(), slow_advantages(reward, value, done, last_value, gamma, lam), atol=1e-10
    )


def test_time_outs_go_on_with_the_last_value_seen_and_other_ends_do_not():
    rng = np.random.default_rng(1)
    reward, value = rng.normal(size=(2, 12, 5))
    last_value = rng.normal(size=5)
    done = rng.random((12, 5)) < 0.3
    timed_out = done & (rng.random((12, 5)) < 0.5)
    done[-1] = [True, True, False, False, True]
    timed_out[-1] = [True, False, False, False, True]
    assert timed_out[:-1].any()
    assert (done & ~timed_out)[:-1].any()
    fast = generalised_advantages(
        torch.from_numpy(reward),
        torch.from_numpy(value),
        torch.from_numpy(done),
        torch.from_numpy(last_value),
        0.9,
        0.8,
        torch.from_numpy(timed_out),
    )
    slow = slow_advantages(reward, value, done, last_value, 0.9, 0.8, timed_out)
    np.testing.assert_allclose(fast.numpy(), slow, atol=1e-10)


def test_last_value_does_not_leak_into_a_finished_episode():
    reward, value = torch.zeros(2, 2, 3)
    done = torch.tensor([[False] * 3, [True, False, True]])
    low, high = (
        generalised_advantages(reward, value, done, torch.full((3,), last), 0.99, 0.95)
        for last in (0.0, 100.0)
    )
    assert ((low != high).any(0) == torch.tensor([False, True, False])).all()


def make_batch(num_steps=6, num_envs=4, seed=0) -> RolloutBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_envs)
    return RolloutBatch(
        obs=torch.randint(0, 256, (*shape, 16, 16, 3), generator=generator, dtype=torch.uint8),
        first=torch.rand(shape, generator=generator) < 0.2,
        initial_state=torch.randn(num_envs, 8, generator=generator),
        action=torch.randint(0, 5, shape, generator=generator),
        log_prob=-torch.rand(shape, generator=generator) - 1,
        value=torch.randn(shape, generator=generator),
        advantage=torch.randn(shape, generator=generator),
        value_target=torch.randn(shape, generator=generator),
    )


def test_losses_equal_the_formulas_written_out():
    batch = make_batch()
    logits = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))
    value = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    losses = ppo_losses(AgentOutput(torch.zeros(6, 4, 8), logits, value), batch, clip=0.2)

    policy, value_loss, entropy = [], [], []
    for t in range(6):
        for env in range(4):
            probability = np.exp(logits[t, env].double().numpy())
            probability /= probability.sum()
            ratio = probability[batch.action[t, env]] / np.exp(float(batch.log_prob[t, env]))
            advantage = float(batch.advantage[t, env])
            policy.append(-min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
            old, new = float(batch.value[t, env]), float(value[t, env])
            target = float(batch.value_target[t, env])
            clipped = np.clip(new, old - 0.2, old + 0.2)
            value_loss.append(0.5 * max((new - target) ** 2, (clipped - target) ** 2))
            entropy.append(-(probability * np.log(probability)).sum())
    assert float(losses.policy) == pytest.approx(np.mean(policy), rel=1e-5)
    assert float(losses.value) == pytest.approx(np.mean(value_loss), rel=1e-5)
    assert float(losses.entropy) == pytest.approx(np.mean(entropy), rel=1e-5)
    config = PPOConfig(value_coefficient=0.5, entropy_coefficient=0.01)
    expected = np.mean(policy) + 0.5 * np.mean(value_loss) - 0.01 * np.mean(entropy)
    assert float(losses.total(config)) == pytest.approx(expected, rel=1e-5)


def test_clipping_stops_the_gradient_where_the_ratio_has_moved_far_enough():
    batch = make_batch(1, 1)
    logits = torch.zeros(1, 1, 5, requires_grad=True)
    # The policy says 1/5; it was far less likely when it acted, so the ratio is above 1.2.
    clipped = dataclasses.replace(
        batch, log_prob=torch.log(torch.full((1, 1), 0.1)), advantage=torch.ones(1, 1)
    )
    output = AgentOutput(torch.zeros(1, 1, 8), logits, torch.zeros(1, 1))
    (gradient,) = torch.autograd.grad(ppo_losses(output, clipped, 0.2).policy, logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    pulled_back = dataclasses.replace(clipped, advantage=-torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(ppo_losses(output, pulled_back, 0.2).policy, logits)
    assert gradient.abs().max() > 0.1


def test_value_loss_without_movement_is_half_the_squared_error():
    value, target = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])
    assert float(value_loss(value, value, target, 0.2)) == pytest.approx(1.0)


def test_a_value_loss_without_clipping_is_half_the_squared_error_wherever_the_value_moves():
    value, old_value, target = torch.tensor([1.0]), torch.tensor([9.0]), torch.tensor([0.0])
    assert float(value_loss(value, old_value, target, math.inf)) == pytest.approx(0.5)
    # Clipped, the value may not come nearer to the target than 8.8.
    assert float(value_loss(value, old_value, target, 0.2)) == pytest.approx(0.5 * 8.8**2)


@pytest.mark.parametrize(("clip_value", "expected"), [(True, 0.5 * 8.8**2), (False, 0.5)])
def test_losses_clip_the_value_as_asked(clip_value, expected):
    batch = dataclasses.replace(
        make_batch(num_steps=1, num_envs=1),
        value=torch.full((1, 1), 9.0),
        value_target=torch.zeros(1, 1),
    )
    output = AgentOutput(torch.zeros(1, 1, 8), torch.zeros(1, 1, 5), torch.ones(1, 1))
    losses = ppo_losses(output, batch, 0.2, clip_value)
    assert float(losses.value) == pytest.approx(expected)


def test_normalised_advantages_have_mean_0_and_deviation_1():
    advantage = normalise(3 + 2 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    assert float(advantage.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantage.square().mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("split", [split_trajectories, split_frames])
@pytest.mark.parametrize("mini_batch_size", [1, 8, 100])
def test_minibatches_hold_every_frame_once(split, mini_batch_size):
    batch = make_batch(num_steps=6, num_envs=5)
    labels = torch.arange(30).reshape(6, 5)
    batch = dataclasses.replace(batch, action=labels)
    config = PPOConfig(num_minibatches=2, mini_batch_size=mini_batch_size)
    everything = EnvironmentShare(range(5), 5)
    minibatches = [m.chunks for m in split(batch, config, 0, 0, everything)]
    assert len(minibatches) == 2
    seen = torch.cat([chunk.action.flatten() for chunks in minibatches for chunk in chunks])
    assert torch.equal(seen.sort().values, labels.flatten())
    for chunks in minibatches:
        for chunk in chunks:
            assert chunk.action.numel() <= max(
                mini_batch_size, 6 if split is split_trajectories else 1
            )
            expected = batch.obs.flatten(0, 1)[chunk.action.flatten()]
            assert torch.equal(chunk.obs.flatten(0, 1), expected)
    other_epoch = [m.chunks for m in split(batch, config, 0, 1, everything)]
    assert not torch.equal(other_epoch[0][0].action, minibatches[0][0].action)


def test_trajectories_keep_their_order_and_their_state():
    batch = make_batch()
    share = EnvironmentShare(range(4), 4)
    for minibatch in split_trajectories(batch, PPOConfig(num_minibatches=2), 0, 0, share):
        for chunk in minibatch.chunks:
            for env in range(chunk.action.shape[1]):
                source = next(
                    e
                    for e in range(4)
                    if torch.equal(batch.initial_state[e], chunk.initial_state[env])
                )
                assert torch.equal(chunk.obs[:, env], batch.obs[:, source])
                assert torch.equal(chunk.first[:, env], batch.first[:, source])


def test_every_minibatch_has_one_environment_of_each_block():
    """So processes, which hold neighbouring environments, have equally much to do."""
    batch = dataclasses.replace(make_batch(2, 12), action=torch.arange(12).repeat(2, 1))
    config, share = PPOConfig(num_minibatches=3), EnvironmentShare(range(12), 12)
    for key in range(5):
        for minibatch in split_trajectories(batch, config, 0, key, share):
            envs = torch.cat([chunk.action[0] for chunk in minibatch.chunks])
            assert sorted((envs // 3).tolist()) == [0, 1, 2, 3]
    few = [m.num_frames for m in split_trajectories(make_batch(2, 5), config, 0, 0, share_of(5))]
    assert few == [4, 4, 2]


def share_of(num_envs: int) -> EnvironmentShare:
    return EnvironmentShare(range(num_envs), num_envs)


@pytest.mark.parametrize("split", [split_trajectories, split_frames])
def test_two_shares_make_up_the_minibatches_of_the_whole(split):
    """Each frame is with the process that has it, in the minibatch where a single one has it."""
    labels = torch.arange(24).reshape(4, 6)
    batch = dataclasses.replace(make_batch(4, 6), action=labels)
    config = PPOConfig(num_minibatches=3, mini_batch_size=5)
    halves = []
    for own in (range(3), range(3, 6)):
        part = {
            field.name: getattr(batch, field.name)[:, own.start : own.stop]
            for field in dataclasses.fields(batch)
            if field.name != "initial_state"
        }
        part["initial_state"] = batch.initial_state[own.start : own.stop]
        halves.append(split(RolloutBatch(**part), config, 7, 2, EnvironmentShare(own, 6)))
    for whole, first, second in zip(split(batch, config, 7, 2, share_of(6)), *halves, strict=True):
        assert whole.num_frames == first.num_frames == second.num_frames

        def frames(*minibatches):
            chunks = [chunk for minibatch in minibatches for chunk in minibatch.chunks]
            return sorted(torch.cat([chunk.action.flatten() for chunk in chunks]).tolist())

        assert frames(whole) == frames(first, second)


def test_accumulated_gradients_equal_one_large_minibatch():
    def updated(mini_batch_size):
        torch.manual_seed(0)
        policy = RecurrentPolicy(NETWORK)
        # Plain gradient descent, so that the difference is that of the gradients.
        config = PPOConfig(
            num_epochs=1, num_minibatches=2, mini_batch_size=mini_batch_size, max_grad_norm=1e9
        )
        learner = PPOLearner(policy, config, seed=0)
        learner.optimiser = torch.optim.SGD(policy.parameters(), lr=1.0)
        losses = learner.update(make_batch(num_envs=5), 0, remaining=1.0)
        return losses, torch.cat([p.detach().flatten() for p in policy.parameters()])

    (losses, parameters), (expected_losses, expected) = updated(6), updated(100)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("recurrent", "num_processes", "expected"),
    [(True, 2, True), (False, 1, True), (False, 2, False)],
)
def test_no_graph_is_recorded_for_every_number_of_frames(recurrent, num_processes, expected):
    """A process of several has, of a minibatch of single frames, another number each time."""
    policy = RecurrentPolicy(dataclasses.replace(NETWORK, recurrent=recurrent))
    execution = Execution(policy)
    execution.uses_graphs = True
    ranks = Ranks(size=num_processes)
    assert PPOLearner(policy, PPOConfig(), 0, execution, ranks).uses_graphs == expected


def test_learning_rate_falls_with_what_remains():
    learner = PPOLearner(RecurrentPolicy(NETWORK), PPOConfig(num_epochs=1), seed=0)
    learner.update(make_batch(), 0, remaining=0.25)
    assert learner.optimiser.param_groups[0]["lr"] == pytest.approx(0.25 * 5e-4)


def test_update_makes_rewarded_actions_likelier():
    torch.manual_seed(0)
    policy = RecurrentPolicy(NETWORK)
    learner = PPOLearner(policy, PPOConfig(num_epochs=4, num_minibatches=1), seed=0)
    batch = make_batch()

    def log_prob_of_action_2():
        output = policy.unroll(batch.obs, batch.initial_state, batch.first)
        return float(output.action_logits.detach().log_softmax(-1)[..., 2].mean())

    log_prob = policy.unroll(batch.obs, batch.initial_state, batch.first).action_logits
    log_prob = log_prob.detach().log_softmax(-1).gather(-1, batch.action[..., None]).squeeze(-1)
    good = dataclasses.replace(
        batch, log_prob=log_prob, advantage=(batch.action == 2).float() * 2 - 1
    )
    history = [log_prob_of_action_2()]
    for iteration in range(3):
        learner.update(good, iteration, remaining=1.0)
        history.append(log_prob_of_action_2())
    assert all(later > earlier for earlier, later in pairwise(history))


def test_senseless_settings_are_refused():
    with pytest.raises(UserError, match="--num_envs 0"):
        require_usable(PPOConfig(num_envs=0))
    with pytest.raises(UserError, match="--gamma"):
        require_usable(PPOConfig(gamma=1.5))
