"""How far a simulated sample can be trusted: its distance from what really happens.

Over the rows k ≥ 1 that sample and replay (`generative.reality`) share,

    trust = 1 / (1 + (E_image / B_image + E_policy / B_policy) / 2),

where E_image is the mean squared error of the frames, E_policy the mean KL(policy in reality ‖
policy in the sample), and B_image, B_policy the same errors of someone who knows the averages of
the real rollouts alone: their mean frame and their mean policy. So trust lies in (0, 1], is 1 only
for a sample that shows the agent what really happens, ½ for errors as large as not knowing, and
falls with either error. It is the harmonic mean of B / (B + E) of frames and policy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from agents.player import full_float32
from agents.protocol import Agent
from experiment.errors import UserError
from experiment.progress import Progress
from generative.fidelity_windows import frame_statistics
from generative.reality import has_reality
from generative.scores import (
    SCORES,
    Reaction,
    describe_true_images,
    react,
    score_images,
    score_reaction,
)
from projections.intervention import Intervention
from rollouts.store import RolloutDataset
from rollouts.types import Rollout

COMPARED = {
    "sample": "the simulated sample",
    "mean_frame": "mean frame of the real rollouts",
    "last_frame": "last frame given, repeated",
}
"""What is set beside reality, each with what it is. The baselines are shown to the agent in its
recorded state; the sample's agent began in its decoded one."""
_ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class AverageErrors:
    """Errors of someone who knows the averages of real rollouts alone."""

    mean_image: Tensor
    """(C, H, W) in [0, 1]."""
    image: float
    """Mean squared error of the mean frame."""
    policy: float
    """Mean KL(policy ‖ mean policy), nats."""


def average_errors(dataset: RolloutDataset) -> AverageErrors:
    """Of real rollouts: the mean frame's, and those of the mean policy.

    Raises:
        UserError: the frames, or the policies, are all the same, so that there is no scale.
    """
    frames = frame_statistics(dataset)
    policy = _policy_divergence_from_mean(dataset)
    if not (frames.squared_deviation > 0 and policy > 0):
        raise UserError(
            f"--data_dir {dataset.folder}: all frames, or all policies, are the same; errors have "
            "no scale there"
        )
    return AverageErrors(frames.mean, frames.squared_deviation, policy)


def _policy_divergence_from_mean(dataset: RolloutDataset) -> float:
    """Mean KL(π ‖ π̄) = entropy of the mean policy − mean entropy."""
    total, negative_entropy = np.zeros(dataset.metadata.num_actions), 0.0
    for logits in dataset.iter_field("action_logits", _ROWS_PER_CHUNK):
        log_probs = torch.from_numpy(logits).double().log_softmax(-1)
        total += log_probs.exp().sum(0).numpy()
        negative_entropy += float((log_probs.exp() * log_probs).sum())
    mean = total / dataset.num_rows
    used = mean[mean > 0]
    return negative_entropy / dataset.num_rows - float((used * np.log(used)).sum())


@dataclass(frozen=True, eq=False)
class RealityScores:
    """Scores of N simulated samples against their replays, and of baselines."""

    sample_id: NDArray[np.int64]
    """(N,)"""
    scores: NDArray[np.float64]
    """(num_scores, num_compared, N, K) in the order of `SCORES` and `COMPARED`; NaN from the end of
    the real episode on, and where there is no replay."""
    level: NDArray[np.int64]
    """(N,) level seed of the replay; −1 without one."""

    @property
    def num_compared_rows(self) -> NDArray[np.int64]:
        """(N,) rows k ≥ 1 that sample and replay share."""
        return np.isfinite(self.scores[0, 0, :, 1:]).sum(axis=-1)


def trust(scores: RealityScores, averages: AverageErrors) -> NDArray[np.float64]:
    """(N,) in (0, 1]; NaN where no row k ≥ 1 can be compared."""
    names = list(SCORES)
    count = scores.num_compared_rows
    relative = np.zeros(len(count))
    for name, scale in (("mse", averages.image), ("policy_kl", averages.policy)):
        errors = np.nan_to_num(scores.scores[names.index(name), 0, :, 1:])
        # Rounding makes a divergence of equal policies a little negative.
        relative += np.maximum(errors.sum(axis=-1), 0.0) / scale / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, 1 / (1 + relative / count), np.nan)


def no_reality(samples: RolloutDataset) -> RealityScores:
    """What is known before anything is compared: nothing."""
    table = samples.episodes
    shape = (len(SCORES), len(COMPARED), len(table), int(table["length"].to_numpy().max()))
    unknown_level = np.full(len(table), -1, np.int64)
    ids = table["episode_id"].to_numpy(np.int64)
    return RealityScores(ids, np.full(shape, np.nan), unknown_level)


def compare_with_reality(
    samples: RolloutDataset,
    replays: RolloutDataset,
    agent: Agent,
    mean_image: Tensor,
    interventions: Mapping[str, Intervention | None],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> RealityScores:
    """Set every sample that has a replay beside it.

    Args:
        samples: simulated rollouts.
        replays: as `record_replays` made them.
        agent: that of the samples; it looks at the baselines.
        mean_image: (C, H, W) in [0, 1].
        interventions: those of the samples, by the text of their column `interventions`.
        batch_size: samples at a time.
        device: where it is computed.

    Raises:
        UserError: a replay is missing, or is not of its sample.
    """
    result, keys = no_reality(samples), samples.episodes["interventions"].to_numpy()
    num_rows = result.scores.shape[-1]
    chosen = np.flatnonzero(has_reality(samples))
    comparison = _Comparison(agent, mean_image.to(device), samples.metadata.hidden_slice)
    with Progress(len(chosen), "sample") as progress, torch.no_grad(), full_float32():
        for positions in _batches(keys[chosen], batch_size):
            indices = chosen[positions]
            pairs = [_read_pair(samples, replays, index) for index in indices.tolist()]
            intervention = interventions[str(keys[indices[0]])]
            result.scores[:, :, indices] = comparison.scores(pairs, num_rows, intervention, device)
            result.level[indices] = [pair.replay.info.level_seed for pair in pairs]
            for _ in pairs:
                progress.advance("compared with reality")
    return result


def _batches(keys: NDArray, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Positions of samples that share their interventions, at most `batch_size` at a time."""
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key)
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


@dataclass(frozen=True, eq=False)
class _Pair:
    sample: Rollout
    replay: Rollout


def _read_pair(samples: RolloutDataset, replays: RolloutDataset, index: int) -> _Pair:
    sample = samples.read_episode(index)
    replay = replays.read_episode(replays.index_of(sample.info.episode_id))
    begins = (replay.info.source_episode_id, replay.info.source_row)
    if begins != (sample.info.source_episode_id, sample.info.source_row) or not np.array_equal(
        replay.action, sample.action[: len(replay)]
    ):
        raise UserError(
            f"--replay_dir {replays.folder}: episode {sample.info.episode_id} is not the replay of "
            f"that sample of {samples.folder}; choose another folder"
        )
    return _Pair(sample, replay)


@dataclass(frozen=True, eq=False)
class _Comparison:
    agent: Agent
    mean_image: Tensor
    """(C, H, W)"""
    hidden_slice: tuple[int, int]

    def scores(
        self,
        pairs: list[_Pair],
        num_rows: int,
        intervention: Intervention | None,
        device: torch.device | str,
    ) -> NDArray[np.float64]:
        """(num_scores, num_compared, B, num_rows) of samples with the same intervention."""
        samples = [pair.sample for pair in pairs]
        replays = [pair.replay for pair in pairs]
        images, true_images = (self._images(r, num_rows, device) for r in (samples, replays))
        truth = describe_true_images(true_images)
        true_reaction = self._reaction(replays, num_rows, device)
        states = np.stack([replay.info.agent_initial_state for replay in replays])
        state = torch.from_numpy(states).to(device)

        def still(image: Tensor) -> Tensor:
            """(num_scores, K, B) of one image, (B, C, H, W), shown at every step."""
            shown = image.expand_as(true_images)
            embeddings = self.agent.embed(image)
            reaction = react(
                self.agent, embeddings.expand(num_rows, *embeddings.shape), state, intervention
            )
            return _join(score_images(shown, truth), score_reaction(reaction, true_reaction))

        by_name = {
            "sample": _join(
                score_images(images, truth),
                score_reaction(self._reaction(samples, num_rows, device), true_reaction),
            ),
            "mean_frame": still(self.mean_image.expand_as(true_images[0])),
            "last_frame": still(true_images[0]),
        }
        lengths = [min(len(p.sample), len(p.replay)) for p in pairs]
        valid = torch.arange(num_rows)[:, None] < torch.tensor(lengths)
        stacked = torch.stack([by_name[name] for name in COMPARED], dim=1).cpu()
        stacked = torch.where(valid, stacked, torch.nan)
        return stacked.transpose(2, 3).double().numpy()

    def _images(self, rollouts: list[Rollout], num_rows: int, device: torch.device | str) -> Tensor:
        """(K, B, C, H, W) in [0, 1], zero after the end of a rollout."""
        return to_float_images(_padded([r.obs for r in rollouts], num_rows), device)

    def _reaction(
        self, rollouts: list[Rollout], num_rows: int, device: torch.device | str
    ) -> Reaction:
        """As it was recorded."""

        def read(name: str) -> Tensor:
            rows = _padded([getattr(r, name) for r in rollouts], num_rows)
            return torch.from_numpy(rows).to(device)

        hidden = read("agent_hidden")[..., slice(*self.hidden_slice)]
        return Reaction(read("action_logits").log_softmax(-1), read("value"), hidden)


def _join(image_scores: Tensor, reaction_scores: Tensor) -> Tensor:
    return torch.cat([image_scores, reaction_scores])


def _padded(arrays: list[NDArray], num_rows: int) -> NDArray:
    """B arrays of (T_b, ...) → (num_rows, B, ...), zero after the end."""
    padded = np.zeros((num_rows, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    for column, array in enumerate(arrays):
        padded[: len(array), column] = array
    return padded
