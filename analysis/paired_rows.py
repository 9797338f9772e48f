"""What is measured on each row of a recording, and the differences to its unmodified twin.

Pairs are sorted by episode id. Rows that either of a pair no longer has are NaN; a simulated
rollout has none after its predicted end.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from analysis.effect_names import (
    ACTION_PREFIX,
    CLUSTER_PREFIX,
    COMPONENT_PREFIX,
    DONE,
    POLICY_KL,
    RETURN,
    VALUE,
)
from analysis.episode_stacks import is_before_end, lengths_until_done
from analysis.rollout_rows import RolloutRows
from environments.protocol import EnvironmentSpec
from generative.sample_actions import distinct_actions
from rollouts.store import RolloutDataset


class Coordinates(Protocol):
    """What turns hidden states into components."""

    def transform(self, states: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., H) → (..., K)"""
        ...


@dataclass(frozen=True, eq=False)
class ActionGroups:
    """Actions that do the same, as one."""

    names: tuple[str, ...]
    membership: NDArray[np.float64]
    """(num_actions, G) 1 where an action belongs to a group."""

    @classmethod
    def of(cls, environment: EnvironmentSpec) -> "ActionGroups":
        """All actions that do nothing are one group."""
        distinct = distinct_actions(environment)
        membership = np.zeros((environment.num_actions, len(distinct)))
        for action in range(environment.num_actions):
            representative = action if action in distinct else environment.null_action
            membership[action, distinct.index(representative)] = 1.0
        return cls(tuple(environment.action_names[action] for action in distinct), membership)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What an agent's states and heads say at each row."""

    log_probs: NDArray[np.float64]
    """(N, K, num_actions)"""
    value: NDArray[np.float64]
    """(N, K)"""
    hidden: NDArray[np.float64]
    """(N, K, H)"""


@dataclass(frozen=True, eq=False)
class PairRows:
    """The first K rows of N episodes, and figures of each whole episode."""

    outputs: Outputs
    """NaN after an episode's end."""
    state: NDArray[np.float32]
    """(N, K, state_dim) agent states; zero after an episode's end."""
    initial_state: NDArray[np.float32]
    """(N, state_dim)"""
    episode_return: NDArray[np.float64]
    """(N,) sum of the recorded rewards up to the episode's end."""
    is_done: NDArray[np.float64]
    """(N,) 1 where the environment ended the episode at a recorded row."""

    @property
    def is_row(self) -> NDArray[np.bool_]:
        """(N, K) whether the episode has such a row."""
        return np.isfinite(self.outputs.value)


@dataclass(frozen=True, eq=False)
class MeasureNames:
    """Names of what is measured, in the order of the arrays."""

    groups: ActionGroups
    num_components: int
    num_clusters: int

    @property
    def by_row(self) -> list[str]:
        """Measures that each row has."""
        return [
            *(VALUE, POLICY_KL),
            *(f"{ACTION_PREFIX}{name}" for name in self.groups.names),
            *(f"{COMPONENT_PREFIX}{number}" for number in range(self.num_components)),
        ]

    @property
    def by_pair(self) -> list[str]:
        """Measures that each pair has: the means of those by row, and figures of episodes."""
        clusters = (f"{CLUSTER_PREFIX}{number}" for number in range(self.num_clusters))
        return [*self.by_row, RETURN, DONE, *clusters]


def read_pair_rows(dataset: RolloutDataset, num_rows: int) -> PairRows:
    """Read the first `num_rows` rows of every episode up to its end, and its return."""
    order = np.argsort(dataset.episodes["episode_id"].to_numpy())
    offsets = dataset.episodes["offset"].to_numpy(np.int64)[order]
    all_rows = RolloutRows(dataset, dataset.num_episodes)
    lengths = lengths_until_done(all_rows)[order]
    is_row = np.arange(num_rows) < lengths[:, None]
    index = np.where(is_row, offsets[:, None] + np.arange(num_rows), 0)

    def read(field: str) -> NDArray:
        values = dataset.read_field(field)[index]
        return np.where(is_row.reshape(*is_row.shape, *[1] * (values.ndim - 2)), values, 0)

    def or_nan(values: NDArray) -> NDArray[np.float64]:
        shape = (*is_row.shape, *[1] * (values.ndim - 2))
        return np.where(is_row.reshape(shape), values.astype(np.float64), np.nan)

    state = read("agent_hidden")
    first, last = dataset.metadata.hidden_slice
    log_probs = log_softmax(read("action_logits").astype(np.float64), axis=-1)
    # Sums over episodes; `reduceat` wants starts in ascending order, as the store has them.
    starts = dataset.episodes["offset"].to_numpy(np.int64)
    reward = np.where(is_before_end(all_rows), dataset.read_field("reward"), 0.0)
    returns = np.add.reduceat(reward, starts)[order]
    ends = np.logical_or.reduceat(dataset.read_field("done"), starts)[order]
    return PairRows(
        Outputs(or_nan(log_probs), or_nan(read("value")), or_nan(state[..., first:last])),
        state,
        dataset.read_episode_field("agent_initial_state")[order],
        returns,
        ends.astype(np.float64),
    )


def row_differences(
    changed: Outputs, twin: Outputs, groups: ActionGroups, coordinates: Coordinates
) -> NDArray[np.float64]:
    """(S, N, K) effects in the order of `MeasureNames.by_row`.

    The policy's is KL(twin ‖ changed) in nats, all others are changed − twin.
    """
    kl = np.sum(np.exp(twin.log_probs) * (twin.log_probs - changed.log_probs), axis=-1)
    probs = (np.exp(changed.log_probs) - np.exp(twin.log_probs)) @ groups.membership
    # The map is affine: the difference of coordinates is that of its linear part.
    components = coordinates.transform(changed.hidden) - coordinates.transform(twin.hidden)
    return np.concatenate(
        [
            np.stack([changed.value - twin.value, kl]),
            np.moveaxis(probs, -1, 0),
            np.moveaxis(components, -1, 0),
        ]
    )


def twin_levels(
    twin: Outputs, groups: ActionGroups, coordinates: Coordinates
) -> NDArray[np.float64]:
    """(S, N, K) what the twin has in place of each effect; it does not diverge from itself: 0."""
    probs = np.exp(twin.log_probs) @ groups.membership
    return np.concatenate(
        [
            np.stack([twin.value, np.zeros_like(twin.value)]),
            np.moveaxis(probs, -1, 0),
            np.moveaxis(coordinates.transform(twin.hidden), -1, 0),
        ]
    )


def occupancy(
    cluster: NDArray[np.integer], is_row: NDArray[np.bool_], num_clusters: int
) -> NDArray[np.float64]:
    """(N, K) cluster of each row → (num_clusters, N) share of an episode's rows in each."""
    shares = [np.sum((cluster == c) & is_row, axis=1) for c in range(num_clusters)]
    return np.array(shares).reshape(num_clusters, len(is_row)) / is_row.sum(axis=1)
