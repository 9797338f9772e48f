"""Simulated samples with the agent and the simulator that made them, ready to be run again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.checkpoint import LoadedAgent, load_chosen_agent
from analysis.saliency import SimulationChoices
from analysis.saliency_interventions import intervention_key
from experiment.devices import resolve_device
from experiment.errors import UserError
from generative.checkpoint import LoadedSimulator, load_simulator, newest_simulator
from projections.intervention import Intervention
from rollouts.store import RolloutDataset
from rollouts.types import Rollout


class SampleFlags(Protocol):
    """The flags of a command that runs samples again."""

    @property
    def generated_data_dir(self) -> Path:
        """Simulated rollouts."""
        ...

    @property
    def agent_file(self) -> str | None:
        """The agent, when it is not the one that the rollouts name."""
        ...

    @property
    def model_file(self) -> Path | None:
        """The simulator's folder."""
        ...

    @property
    def gen_mod_exp_name(self) -> str:
        """Training whose newest simulator is taken without a `model_file`."""
        ...

    @property
    def env_name(self) -> str | None:
        """The only game that is accepted."""
        ...

    @property
    def device(self) -> str:
        """Where to compute."""
        ...

    @property
    def gpu_device(self) -> int:
        """Index of the GPU."""
        ...


@dataclass(frozen=True, eq=False)
class SampleSource:
    """Simulated samples and what made them."""

    dataset: RolloutDataset
    agent: LoadedAgent
    simulator: LoadedSimulator
    choices: SimulationChoices
    device: torch.device

    @property
    def hidden_slice(self) -> slice:
        """The part of the agent's state that directions live in."""
        return self.agent.policy.hidden_slice

    @property
    def input_hashes(self) -> dict[str, str]:
        """Hashes of agent, simulator and samples, by role."""
        return {
            "agent": self.agent.hash,
            "simulator": self.simulator.hash,
            "generated_dataset": self.dataset.hash,
        }


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Samples that are simulated together."""

    ids: NDArray[np.int64]
    """(S,)"""
    latent: Tensor
    """(S, latent_dim)"""
    recorded_frames: NDArray[np.uint8] | None
    """(S, K', H, W, C) as stored, K' the shorter of both lengths; None for a combined sample."""
    intervention: Intervention | None
    actions: NDArray[np.int64] | None
    """(S, K) as recorded, where they were given to the agent; None where it acted itself."""

    def actions_for(self, num_copies: int) -> Tensor | None:
        """(K, S · num_copies) given actions of adjacent copies, where there are any."""
        if self.actions is None:
            return None
        return torch.from_numpy(self.actions.repeat(num_copies, axis=0).T).to(self.latent.device)

    def only(self, index: int) -> "SampleBatch":
        """The batch of one of its samples."""
        at = slice(index, index + 1)
        return SampleBatch(
            ids=self.ids[at],
            latent=self.latent[at],
            recorded_frames=None if self.recorded_frames is None else self.recorded_frames[at],
            intervention=self.intervention,
            actions=None if self.actions is None else self.actions[at],
        )


def open_simulated_rollouts(folder: Path, flag: str = "--generated_data_dir") -> RolloutDataset:
    """Open the folder that `flag` named.

    Raises:
        UserError: no dataset, or one of real rollouts.
    """
    dataset = RolloutDataset(folder)
    if dataset.metadata.simulated is None:
        raise UserError(
            f"{flag} {folder}: holds real rollouts; expected simulated ones, made by "
            "record_gen_samples.py"
        )
    return dataset


def load_sample_source(flags: SampleFlags) -> SampleSource:
    """Load what the flags name; the simulator is frozen.

    Raises:
        UserError: something is missing, or the samples were recorded with another agent or
            simulator, or the simulator imitates another game.
    """
    device = resolve_device(flags.device, flags.gpu_device)
    dataset = open_simulated_rollouts(flags.generated_data_dir)
    metadata = dataset.metadata
    metadata.environment.require_images("running samples again")
    source = f"--generated_data_dir {flags.generated_data_dir}"
    agent = load_chosen_agent(
        flags.agent_file, metadata.agent_file, source, metadata.environment, device
    )
    model_file = flags.model_file or newest_simulator(flags.gen_mod_exp_name)
    simulator = load_simulator(model_file, agent, device)
    _check_origin(flags, dataset, agent, simulator)
    simulator.simulator.requires_grad_(False)
    return SampleSource(dataset, agent, simulator, _recorded_choices(dataset), device)


def _check_origin(
    flags: SampleFlags, dataset: RolloutDataset, agent: LoadedAgent, simulator: LoadedSimulator
) -> None:
    recorded_with = dataset.metadata.provenance.get("inputs", {}).get("simulator")
    if dataset.metadata.agent_hash != agent.hash:
        raise UserError(
            f"--generated_data_dir {flags.generated_data_dir}: recorded with agent "
            f"{dataset.metadata.agent_hash[:12]}, but {agent.path} is agent {agent.hash[:12]}"
        )
    if recorded_with not in (None, simulator.hash):
        raise UserError(
            f"--generated_data_dir {flags.generated_data_dir}: recorded with simulator "
            f"{recorded_with[:12]}, but {simulator.path} is simulator {simulator.hash[:12]}"
        )
    if flags.env_name not in (None, simulator.environment.name):
        raise UserError(
            f"--env_name {flags.env_name}: the simulator {simulator.path} imitates "
            f"{simulator.environment.name}"
        )


def _recorded_choices(dataset: RolloutDataset) -> SimulationChoices:
    recorded = dataset.metadata.provenance.get("config", {})
    names = SimulationChoices.__dataclass_fields__
    return SimulationChoices(**{name: recorded[name] for name in names if name in recorded})


def sample_batches(
    source: SampleSource,
    sample_ids: NDArray[np.int64],
    interventions: Mapping[str, Intervention | None],
    num_steps: int,
    batch_size: int,
) -> Iterator[SampleBatch]:
    """Samples in order, in batches that share their interventions.

    Args:
        source: where they are from.
        sample_ids: (N,)
        interventions: those of the samples, by `intervention_key`.
        num_steps: K, steps to be simulated again; at most `num_given_steps`.
        batch_size: at most so many samples together.
    """
    rollouts = read_samples(source, sample_ids)
    for key, group in groupby(rollouts, lambda rollout: intervention_key(rollout.info)):
        while batch := list(islice(group, batch_size)):
            stored = min(num_steps, *(len(r) for r in batch))
            yield SampleBatch(
                ids=np.array([r.info.episode_id for r in batch], np.int64),
                latent=recorded_latents(batch, source.device),
                recorded_frames=np.stack([r.obs[:stored] for r in batch], dtype=np.uint8),
                intervention=interventions[key],
                actions=given_actions(source, batch, num_steps),
            )


def read_samples(source: SampleSource, sample_ids: NDArray[np.int64]) -> Iterator[Rollout]:
    """The samples of these ids, in this order."""
    dataset = source.dataset
    return (dataset.read_episode(dataset.index_of(int(i))) for i in sample_ids)


def recorded_latents(rollouts: list[Rollout], device: torch.device) -> Tensor:
    """(S, latent_dim) bottleneck vectors of simulated rollouts."""
    latents = [r.info.latent for r in rollouts]
    return torch.as_tensor(np.stack([x for x in latents if x is not None]), device=device)


def num_given_steps(source: SampleSource, sample_ids: NDArray[np.int64]) -> int | None:
    """Steps for which each of (N,) samples was given its action; None where the agent acted itself.

    Under given actions nobody says what would be done after them, so these are all the steps that
    can be simulated again.
    """
    if not source.choices.are_actions_given:
        return None
    lengths = source.dataset.episodes.set_index("episode_id")["length"]
    return int(lengths.loc[sample_ids].min())


def given_actions(
    source: SampleSource, rollouts: list[Rollout], num_steps: int
) -> NDArray[np.int64] | None:
    """(S, num_steps) actions that the agent was given; None where it acted itself.

    `num_steps` is at most `num_given_steps`.
    """
    if not source.choices.are_actions_given:
        return None
    return np.stack([rollout.action[:num_steps] for rollout in rollouts]).astype(np.int64)
