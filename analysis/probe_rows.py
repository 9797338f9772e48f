"""The rows that probes are fitted on: representations of real decisions, and the game's truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from agents.execution import Execution
from agents.networks import NetworkConfig, make_policy
from analysis.probe_targets import ProbeTargets, probe_targets
from environments.game_steps import Variable
from environments.game_variables import game_variables
from experiment.counts import at_most_available
from experiment.errors import UserError
from projections.hidden import HiddenProjection
from rollouts.independent_units import levels_of_episodes
from rollouts.store import RolloutDataset

REPRESENTATIONS = {
    "hidden": "the agent's hidden state",
    "components": "independent components of the hidden state",
    "pixels": "baseline: the frame that the agent sees, as means over blocks of pixels",
    "untrained": "baseline: hidden state of an agent with random weights, over the same frames",
}
"""What is read of real decisions, each with what it is."""
BASELINES = ("pixels", "untrained")


@dataclass(frozen=True, eq=False)
class Readers:
    """What turns decisions into representations."""

    projection: HiddenProjection
    pixel_block: int
    """Side of the blocks of pixels that are averaged."""
    untrained: Execution | None
    """Runs an agent with random weights; None without that baseline."""


@dataclass(frozen=True, eq=False)
class ProbeRows:
    """N decisions of real rollouts."""

    representations: dict[str, NDArray[np.float32]]
    """(N, F) by the names of `REPRESENTATIONS`."""
    targets: ProbeTargets
    step: NDArray[np.int64]
    """(N,) row within the episode."""
    level: NDArray[np.int64]
    """(N,) what is independent of what: level seeds, or episode ids where there are no levels."""


def untrained_agent(network: NetworkConfig, seed: int, device: torch.device) -> Execution:
    """An agent of the same shape that has learnt nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = make_policy(network)
    return Execution(policy.eval().requires_grad_(False).to(device), precision="float32")


def require_game_variables(dataset: RolloutDataset, flag: str) -> dict[str, Variable]:
    """The game's variables that the dataset records, in the order of their columns.

    Raises:
        UserError: it records none.
    """
    metadata = dataset.metadata
    if metadata.game is None:
        raise UserError(
            f"{flag} {dataset.folder}: the rollouts were recorded without game variables, which "
            "probes are asked for; record them anew (record.py keeps them with --with_state)"
        )
    known = game_variables(metadata.environment.name)
    return {name: known.get(name, Variable("", "")) for name in metadata.game.variables}


def read_probe_rows(
    dataset: RolloutDataset,
    readers: Readers,
    max_distance: float,
    num_episodes: int,
    max_rows: int,
    seed: int,
) -> ProbeRows:
    """Read rows drawn at random from random episodes, one episode at a time.

    Args:
        dataset: real rollouts with game variables.
        readers: what makes the representations.
        max_distance: as for `probe_targets`.
        num_episodes: at most so many, drawn at random: the first of a store are the short ones.
        max_rows: at most about so many rows, the same share of each episode.
        seed: draws episodes and rows.
    """
    rng = np.random.default_rng(seed)
    num_episodes = at_most_available(num_episodes, dataset.num_episodes, "--num_episodes")
    chosen = rng.permutation(dataset.num_episodes)[:num_episodes]
    lengths = dataset.episodes["length"].to_numpy(np.int64)[chosen]
    share = min(1.0, max_rows / lengths.sum())
    episodes = []
    for index, length in tqdm(
        list(zip(chosen.tolist(), lengths.tolist(), strict=True)),
        desc="read rollouts",
        unit="episode",
        disable=None,
    ):
        kept = np.sort(rng.permutation(length)[: max(1, round(share * length))])
        episodes.append(_read_episode(dataset, readers, index, kept))
    levels = levels_of_episodes(dataset)[chosen]
    variables = np.concatenate([episode.variables for episode in episodes])
    table = require_game_variables(dataset, "--data_dir")
    return ProbeRows(
        representations={
            name: np.concatenate([episode.representations[name] for episode in episodes])
            for name in episodes[0].representations
        },
        targets=probe_targets(variables, table, max_distance),
        step=np.concatenate([episode.step for episode in episodes]),
        level=np.repeat(levels, [len(episode.step) for episode in episodes]),
    )


@dataclass(frozen=True, eq=False)
class _EpisodeRows:
    representations: dict[str, NDArray[np.float32]]
    variables: NDArray[np.float32]
    step: NDArray[np.int64]


def _read_episode(
    dataset: RolloutDataset, readers: Readers, index: int, kept: NDArray[np.int64]
) -> _EpisodeRows:
    start = int(dataset.episodes["offset"].to_numpy()[index])
    stop = start + int(dataset.episodes["length"].to_numpy()[index])
    obs = dataset.read_field("obs", start, stop)
    state = dataset.read_field("agent_hidden", start, stop)[kept]
    representations = represent(state, obs[kept], dataset.metadata.hidden_slice, readers)
    if readers.untrained is not None:
        representations["untrained"] = untrained_states(readers.untrained, obs)[kept]
    variables = dataset.read_field("game_variables", start, stop)[kept]
    return _EpisodeRows(representations, variables, kept)


def represent(
    agent_state: NDArray[np.float32],
    obs: NDArray[np.uint8],
    hidden_slice: tuple[int, int],
    readers: Readers,
) -> dict[str, NDArray[np.float32]]:
    """(N, F) representations of decisions, real or simulated, that need no other rows.

    Args:
        agent_state: (N, state_dim)
        obs: (N, H, W, C)
        hidden_slice: the part of the state that analyses look at.
        readers: what makes the representations.
    """
    hidden = agent_state[:, slice(*hidden_slice)]
    return {
        "hidden": hidden,
        "components": np.asarray(readers.projection.transform(hidden), np.float32),
        "pixels": block_means(obs, readers.pixel_block),
    }


def block_means(frames: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    """(N, H, W, C) frames → (N, H/block · W/block · C) means over square blocks, in [0, 1]."""
    count, height, width, channels = frames.shape
    blocks = frames.reshape(count, height // block, block, width // block, block, channels)
    # Small integers first, along the axis that is nearest in memory: many times faster.
    sums = blocks.sum(axis=4, dtype=np.uint16).sum(axis=2, dtype=np.uint32)
    return (sums / (255.0 * block**2)).reshape(count, -1).astype(np.float32)


def require_fitting_block(obs_shape: Sequence[int], block: int) -> None:
    """Raise `UserError` unless blocks of that side fill a frame."""
    height, width, *_ = obs_shape
    if block < 1 or height % block or width % block:
        raise UserError(
            f"--pixel_block {block}: blocks of that side do not fill frames of {height} × {width}"
        )


@torch.no_grad()
def untrained_states(
    execution: Execution,
    obs: NDArray[np.uint8 | np.float32],
    before: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(T, H, W, C) consecutive frames → (T, num_features) hidden states.

    Args:
        execution: runs the untrained agent.
        obs: frames of one episode, or of a sample.
        before: (num_features,) state in which the agent sees the first of them; by default its
            initial one.
    """
    frames = torch.from_numpy(obs).to(execution.device)[:, None]
    first = torch.zeros(frames.shape[:2], dtype=torch.bool, device=execution.device)
    state = execution.policy.initial_state(1)
    if before is not None:
        state = torch.from_numpy(before)[None].to(state)
    return execution.unroll(frames, state, first).state[:, 0].float().cpu().numpy()
