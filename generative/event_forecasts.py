"""Rewards and ends of episodes as the simulator predicts them, beside what happened.

The reward and terminal heads read the state and the action taken, and no image: so many more
windows can be judged than those whose frames are predicted, which rare events need.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from generative.fidelity_windows import ChosenWindows, FidelityConfig, WindowPairs, window_pairs
from generative.predictions import imagined_states, observed_states
from generative.simulator import SimulationNoise, Simulator
from generative.types import EnvironmentState
from rollouts.store import RolloutDataset

EVENTS = {"reward": "a reward is paid", "terminal": "the episode ends"}
"""What is predicted at each row. An end by the time limit is none."""
FORECASTS = {
    "mode": "the simulator's most probable future",
    "mean_of_samples": "mean over sampled futures",
    "single_sample": "one sampled future",
    "observed": "upper bound: states that have seen the true frames",
    "shuffled_actions": "most probable future under another window's actions",
    "base_rate": "baseline: how often it happens in the training data",
}
"""Who predicts it."""


@dataclass(frozen=True, eq=False)
class EventRates:
    """Events of the training data."""

    share: NDArray[np.float64]
    """(num_events,) share of rows at which each happens."""
    reward_amount: float
    """The largest reward paid, 1 where none is: a predicted reward divided by it is taken for the
    probability of a reward."""
    is_reward_binary: bool
    """Whether nothing but 0 and `reward_amount` is paid. Otherwise an expected reward is no
    probability, and only the order of predictions can be judged."""


def event_rates(dataset: RolloutDataset) -> EventRates:
    """Count the events of a dataset."""
    amounts: set[float] = set()
    num_rewards = 0
    for reward in dataset.iter_field("reward"):
        paid = reward[reward > 0]
        num_rewards += len(paid)
        amounts.update(np.unique(reward[reward != 0]).tolist())
    table = dataset.episodes
    num_ends = int((~table["truncated"] & ~table["cut"]).sum())
    return EventRates(
        share=np.array([num_rewards, num_ends]) / dataset.num_rows,
        reward_amount=max((a for a in amounts if a > 0), default=1.0),
        is_reward_binary=len(amounts) <= 1 and all(amount > 0 for amount in amounts),
    )


@dataclass(frozen=True, eq=False)
class EventForecasts:
    """Predicted and true events of W windows at horizons 0 .. horizon."""

    forecast: NDArray[np.float64]
    """(num_events, num_forecasts, W, horizon + 1) probabilities, or where `is_probability` is
    false, any numbers that grow with it; not clipped to [0, 1]; NaN past the end of an episode."""
    happened: NDArray[np.bool_]
    """(num_events, W, horizon + 1)"""
    level: NDArray[np.int64]
    """(W,)"""
    is_probability: NDArray[np.bool_]
    """(num_events,)"""


@torch.no_grad()
def measure_forecasts(
    simulator: Simulator,
    windows: ChosenWindows,
    rates: EventRates,
    config: FidelityConfig,
    device: torch.device | str,
) -> EventForecasts:
    """Predict the events of chosen windows under their recorded actions."""
    forecasts, happened = [], []
    batch_size = config.fidelity_batch_size
    for pairs in window_pairs(windows, simulator, config.horizon, batch_size, device):
        by_name = _forecasts(simulator, pairs, rates, config)
        stacked = torch.stack([by_name[name] for name in FORECASTS], dim=1)
        stacked = torch.where(pairs.own.valid, stacked, torch.nan)
        forecasts.append(stacked.transpose(2, 3).double().cpu().numpy())
        events = torch.stack([pairs.own.reward > 0, pairs.own.terminal])
        happened.append(events.transpose(1, 2).cpu().numpy())
    return EventForecasts(
        np.concatenate(forecasts, axis=2),
        np.concatenate(happened, axis=1),
        windows.level,
        np.array([rates.is_reward_binary, True]),
    )


def _forecasts(
    simulator: Simulator, pairs: WindowPairs, rates: EventRates, config: FidelityConfig
) -> dict[str, Tensor]:
    """(num_events, K, B) by the name of who predicts."""
    windows = pairs.own
    latent = simulator.encode(windows.initial_frames)
    actions = simulator.one_hot_actions(windows.action)
    other_actions = simulator.one_hot_actions(pairs.other.action)
    images = to_float_images(windows.frames).to(simulator.dtype)

    def read(states: EnvironmentState, actions: Tensor) -> Tensor:
        reward = simulator.reward_head(states.features, actions) / rates.reward_amount
        end = simulator.terminal_head(states.features, actions).sigmoid()
        return torch.stack([reward, end])

    # All samples in one batch: the states are small.
    count = config.num_samples
    sampled_actions = actions.repeat_interleave(count, dim=1)
    ids = (pairs.ids[:, None] * count + torch.arange(count)).flatten()
    sampled = imagined_states(
        simulator,
        latent.repeat_interleave(count, dim=0),
        sampled_actions,
        "sample",
        SimulationNoise(config.seed, ids),
    )
    samples = read(sampled, sampled_actions).unflatten(-1, (-1, count))
    mode = read(imagined_states(simulator, latent, actions), actions)
    shuffled = imagined_states(simulator, latent, other_actions)
    return {
        "mode": mode,
        "mean_of_samples": samples.mean(-1),
        "single_sample": samples[..., 0],
        "observed": read(observed_states(simulator, latent, images, actions), actions),
        "shuffled_actions": read(shuffled, other_actions),
        "base_rate": torch.tensor(rates.share)[:, None, None].to(mode).expand_as(mode),
    }
