"""Records simulated rollouts: the simulator set up many times, rolled forward, and kept.

Sample i of a dataset has episode id i. Its window, or its random latent, and every draw are
functions of the seed and i. So the batch size changes nothing but the speed, a larger recording
begins with the smaller one, a killed one goes on with the samples that it lacks, and an
intervened recording shares start and noise with its unmodified twin.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.checkpoint import LoadedAgent
from agents.player import BehaviourConfig, behaviour_log_probs, full_float32
from experiment.errors import UserError, require_at_least
from experiment.files import require_free_space, write_json
from experiment.progress import Progress
from experiment.provenance import collect_provenance, to_plain
from generative.checkpoint import LoadedSimulator
from generative.recording_identity import FREE_SETTINGS
from generative.sample_actions import ActionSource
from generative.sample_starts import Starts, StartSource
from generative.simulator import SimulationNoise
from generative.types import InitialState, LatentChoice, SimulatedSteps
from projections.intervention import Intervention, descriptions_of
from projections.intervention_flags import NAMES_OF_FLAGS
from rollouts.description import METADATA_FILE, read_metadata
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.sealing import list_shards
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

RECORDING_FILE = "recording.json"
"""Beside the shards: what was measured on the whole recording."""
_ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class SamplingConfig:
    """How many samples to record, from where, and how they are drawn."""

    max_samples: int = 6000
    """Samples that the dataset shall have in all; those already there are not simulated again."""
    num_sim_steps: int = 10
    """Length of each sample; step 0 reconstructs the last frame given."""
    batch_size: int | None = None
    """Samples simulated together, which changes the speed only; by default as many as are fast and
    fit into the memory."""
    initialisation: Literal["informed", "random", "interpolated", "given"] = "informed"
    """Where samples start: in windows of real rollouts (informed), in random latents (random),
    between the latents of two windows (interpolated), or in the latents of --latent_file (given).
    """
    recording_rand_init: bool = False
    """The same as --initialisation random."""
    interpolation_points: int = 9
    """Samples on the way from one window to the other, both ends among them."""
    latent_file: Path | None = None
    """`.npy` file of (N, latent_dim) latents; implies --initialisation given."""
    recorded_actions: bool = False
    """Take the actions that were recorded after the window in place of the agent's own."""
    manual_actions: tuple[str, ...] = ()
    """Take these actions, by name or number, in place of the agent's own, and hold the last one;
    or `each`: as many copies of each start as there are different actions (nine in Procgen), each
    of which holds another one. A step counts from the reconstructed frame on."""
    latents: LatentChoice = "mode"
    """How the simulated environment's latents are picked: mode or sample."""
    agent_actions: LatentChoice = "mode"
    """How the agent picks its actions: mode or sample."""
    seed: int = 0
    """Decides windows, random latents and every draw."""

    @property
    def start_kind(self) -> Literal["informed", "random", "interpolated", "given"]:
        """Where samples start, whichever flag says it."""
        if self.recording_rand_init:
            return "random"
        return "given" if self.latent_file is not None else self.initialisation

    @property
    def needs_windows(self) -> bool:
        """Whether samples start in or between windows of real rollouts."""
        return self.start_kind in ("informed", "interpolated")


@dataclass(frozen=True)
class SamplingSummary:
    """What one recording holds, and how fast this call made its share."""

    samples: int
    rows: int
    earlier_samples: int
    """Samples that the dataset had before."""
    frames_per_second: float
    """Of this call; 0 when there was nothing to do."""
    share_of_steps_outside_unit_box: float
    """Share of steps where a hidden unit leaves [−1, 1], which a GRU's state cannot by itself."""
    mean_predicted_return: float
    share_ended: float
    """Share of samples whose predicted terminal probability exceeds one half somewhere."""


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """Everything that decides what is simulated."""

    simulator: LoadedSimulator
    """On the device where it shall run."""
    agent: LoadedAgent
    """The agent inside it."""
    source: StartSource
    """Where samples begin."""
    config: SamplingConfig
    given_actions: ActionSource | None = None
    """Actions taken in place of the agent's own."""
    intervention: Intervention | None = None
    """Changes the agent's state inside the recurrence."""
    twin_dataset: str = ""
    """Name of the folder beside this recording that holds its unmodified twin; empty without."""

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return next(self.simulator.simulator.parameters()).device

    @property
    def interventions(self) -> tuple[dict[str, Any], ...]:
        """Descriptions of the interventions, as rollouts store them."""
        return descriptions_of(self.intervention)

    @property
    def num_samples(self) -> int:
        """Samples to record: those asked for, or as many as there are starts."""
        available = self.source.num_available
        if available is None:
            return self.config.max_samples
        return min(self.config.max_samples, available * self.copies_per_start)

    @property
    def copies_per_start(self) -> int:
        """Samples that share a start and the noise, and differ in their actions."""
        return 1 if self.given_actions is None else self.given_actions.copies_per_start

    @property
    def batch_size(self) -> int:
        """Samples simulated together."""
        return self.config.batch_size or _fitting_batch_size(self)


@dataclass(frozen=True, eq=False)
class SimulatedSamples:
    """A batch of B samples as the simulator made it."""

    sample_ids: NDArray[np.int64]
    """(B,)"""
    starts: Starts
    initial: InitialState
    steps: SimulatedSteps


def simulate_samples(plan: SamplingPlan, sample_ids: NDArray[np.int64]) -> SimulatedSamples:
    """Roll the given (B,) samples forward from their starts, without gradients."""
    simulator, config = plan.simulator.simulator, plan.config
    with torch.no_grad(), full_float32():
        start_ids = sample_ids // plan.copies_per_start
        starts = plan.source.starts(simulator, start_ids)
        actions = None
        if plan.given_actions is not None:
            given = plan.given_actions.actions(sample_ids, starts, config.num_sim_steps)
            actions = torch.tensor(given, device=starts.latent.device)
        ids = torch.from_numpy(start_ids).to(starts.latent.device)
        noise = SimulationNoise(config.seed, ids)
        uniform = None
        if config.latents == "sample":
            uniform = noise.initial(simulator.config.num_categoricals)
        initial = simulator.decode_initial(starts.latent, config.latents, uniform)
        steps = simulator.simulate(
            initial,
            config.num_sim_steps,
            actions=actions,
            latents=config.latents,
            agent_actions=config.agent_actions,
            noise=noise,
            intervention=plan.intervention,
        )
    return SimulatedSamples(sample_ids, starts, initial, steps)


def to_rollouts(samples: SimulatedSamples, plan: SamplingPlan) -> list[Rollout]:
    """Turn a batch of K steps into rollouts of K rows, one per sample."""
    # Who is told what to do does it with certainty, like a greedy agent.
    is_certain = plan.given_actions is not None or plan.config.agent_actions == "mode"
    fields = _step_fields(samples.steps, is_certain)
    initial_states = samples.initial.agent_state.cpu().numpy()
    latents = samples.starts.latent.cpu().numpy()
    rollouts = []
    for index, sample_id in enumerate(samples.sample_ids.tolist()):
        rows = {name: values[index] for name, values in fields.items()}
        info = EpisodeInfo(
            episode_id=sample_id,
            agent_hash=plan.agent.hash,
            agent_initial_state=initial_states[index],
            cut=not rows["done"].any(),
            initialisation=plan.source.initialisation,
            source_episode_id=int(samples.starts.source_episode_id[index]),
            source_row=int(samples.starts.source_row[index]),
            simulator_hash=plan.simulator.hash,
            latent=latents[index],
            interventions=plan.interventions,
            twin_of=sample_id if plan.twin_dataset else -1,
        )
        rollouts.append(Rollout(**rows, info=info))
    return rollouts


def _step_fields(steps: SimulatedSteps, is_certain: bool) -> dict[str, NDArray[Any]]:
    """(B, K, ...) arrays by the name of the rollout's field."""
    action_logits = _sample_major(steps.action_logits)
    action = _sample_major(steps.action).argmax(axis=-1)
    chosen = np.zeros(action.shape)
    if not is_certain:
        log_probs = behaviour_log_probs(action_logits, BehaviourConfig())
        chosen = np.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]
    terminal_prob = _sample_major(tuple(torch.sigmoid(x) for x in steps.terminal_logit))
    return {
        "obs": _sample_major(tuple(_as_stored(image) for image in steps.images)),
        "agent_hidden": _sample_major(steps.agent_state),
        "action_logits": action_logits,
        "value": _sample_major(steps.value),
        "action": action.astype(np.int32),
        "behaviour_log_prob": chosen.astype(np.float32),
        "reward": _sample_major(steps.reward),
        "done": terminal_prob > 0.5,
        "env_deter": _sample_major(steps.deter),
        "env_stoch": _sample_major(tuple(x.argmax(dim=-1).to(torch.uint8) for x in steps.stoch)),
        "terminal_prob": terminal_prob,
    }


def _as_stored(images: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1], multiples of 1/255 → (B, H, W, C) uint8; (B, D) stays as it is."""
    if images.ndim == 2:
        return images
    return (images * 255.0).round().to(torch.uint8).movedim(-3, -1)


def _sample_major(steps: tuple[Tensor, ...]) -> NDArray[Any]:
    return torch.stack(steps, dim=1).cpu().numpy()


def record_samples(plan: SamplingPlan, folder: Path | str) -> SamplingSummary:
    """Simulate until the dataset `folder` has the samples that the plan asks for.

    A dataset that is there already is continued with the samples it lacks.

    Raises:
        UserError: the folder holds another recording, or the disk has too little room.
    """
    folder = Path(folder)
    missing = missing_samples(plan, folder)
    if plan.num_samples < plan.config.max_samples:
        print(
            f"--max_samples {plan.config.max_samples}: there are starts for {plan.num_samples}, "
            f"recording {plan.num_samples} samples",
            flush=True,
        )
    start = time.perf_counter()
    if len(missing):
        _write_samples(plan, folder, missing)
    seconds = time.perf_counter() - start
    summary = _summarise(
        RolloutDataset(folder),
        earlier_samples=plan.num_samples - len(missing),
        frames_per_second=len(missing) * plan.config.num_sim_steps / seconds,
    )
    write_json(folder / RECORDING_FILE, asdict(summary))
    return summary


def missing_samples(plan: SamplingPlan, folder: Path) -> NDArray[np.int64]:
    """(N,) ids of the samples that the plan asks for and the dataset `folder` lacks.

    Raises:
        UserError: a senseless count, another recording in the folder, or too little room.
    """
    require_at_least(plan.config, "max_samples", "num_sim_steps")
    if plan.config.batch_size is not None:
        require_at_least(plan.config, "batch_size")
    wanted = np.arange(plan.num_samples)
    missing = wanted[~np.isin(wanted, _samples_present(plan, folder))]
    require_free_space(folder, len(missing) * _bytes_per_sample(plan), "--data_save_dir")
    return missing


def _write_samples(plan: SamplingPlan, folder: Path, sample_ids: NDArray[np.int64]) -> None:
    batch_size = plan.batch_size
    with (
        RolloutWriter(folder, _dataset_metadata(plan)) as writer,
        Progress(len(sample_ids), "sample") as progress,
    ):
        for start in range(0, len(sample_ids), batch_size):
            batch = sample_ids[start : start + batch_size]
            for rollout in to_rollouts(simulate_samples(plan, batch), plan):
                writer.write(rollout)
            progress.advance(folder.name, len(batch))


def _dataset_metadata(plan: SamplingPlan) -> DatasetMetadata:
    policy, sizes = plan.agent.policy, plan.simulator.simulator.config
    inputs = {
        "agent": plan.agent.hash,
        "simulator": plan.simulator.hash,
        "dataset": plan.source.input_hash,
    }
    settings = {
        **asdict(plan.config),
        "interventions": list(plan.interventions),
        "twin_dataset": plan.twin_dataset,
        "copies_per_start": plan.copies_per_start,
    }
    return DatasetMetadata(
        environment=plan.simulator.environment,
        agent_hash=plan.agent.hash,
        agent_file=plan.agent.reference,
        state_dim=policy.state_dim,
        hidden_slice=(policy.hidden_slice.start, policy.hidden_slice.stop),
        num_actions=policy.num_actions,
        simulated=SimulatedDims(
            deter_dim=sizes.deter_dim,
            num_categoricals=sizes.num_categoricals,
            num_classes=sizes.num_classes,
            latent_dim=sizes.latent_dim,
        ),
        provenance=to_plain(collect_provenance(settings, plan.config.seed, inputs)),
    )


_INPUT_FLAGS = {"agent": "agent_file", "simulator": "model_file", "dataset": "data_dir"}


def _samples_present(plan: SamplingPlan, folder: Path) -> NDArray[np.int64]:
    """(N,) ids of the samples in `folder`, after checking that they belong to this recording."""
    if not (folder / METADATA_FILE).exists():
        return np.empty(0, np.int64)
    found, expected = read_metadata(folder).provenance, _dataset_metadata(plan).provenance
    for role, flag in _INPUT_FLAGS.items():
        _require_same(folder, flag, found.get("inputs", {}).get(role), expected["inputs"][role])
    for name, value in expected["config"].items():
        if name not in FREE_SETTINGS:
            _require_same(folder, name, found.get("config", {}).get(name), value)
    # A recording killed before its first shard was sealed has a description and no samples.
    if not list_shards(folder):
        return np.empty(0, np.int64)
    return RolloutDataset(folder).episodes["episode_id"].to_numpy(np.int64)


def _require_same(folder: Path, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        flag = f"--{NAMES_OF_FLAGS if name == 'interventions' else name}"
        raise UserError(
            f"{flag}: the dataset {folder} was recorded with {found}, now {expected} is asked "
            "for; choose another --data_save_dir or the same setting"
        )


_BATCH_BYTES = 2**30
_CPU_BATCH_SIZE = 64
"""On a CPU a larger batch is no faster: its activations leave the cache."""
_GPU_BATCH_SIZE = 2048
_ACTIVATIONS_PER_FRAME = 100
"""Floats per pixel that the networks hold at once, where no gradient is asked for."""


def _fitting_batch_size(plan: SamplingPlan) -> int:
    """Samples whose frames, states and activations take a GiB, or a quarter of a GPU's memory."""
    on_gpu = plan.device.type == "cuda"
    budget = torch.cuda.mem_get_info(plan.device)[0] // 4 if on_gpu else _BATCH_BYTES
    sizes, steps = plan.simulator.simulator.config, plan.config.num_sim_steps
    frame = int(np.prod(plan.simulator.environment.obs_shape))
    state = sizes.deter_dim + sizes.num_categoricals * sizes.num_classes
    needed = 4 * (steps * (frame + state) + _ACTIVATIONS_PER_FRAME * frame)
    return max(1, min(budget // needed, _GPU_BATCH_SIZE if on_gpu else _CPU_BATCH_SIZE))


def _bytes_per_sample(plan: SamplingPlan) -> int:
    sizes = plan.simulator.simulator.config
    # Simulated frames compress at least four times.
    environment = plan.simulator.environment
    numbers_shown = int(np.prod(environment.obs_shape))
    frame = numbers_shown // 4 if environment.shows_images else 4 * numbers_shown
    numbers = sizes.deter_dim + plan.agent.policy.state_dim + plan.agent.policy.num_actions + 8
    return plan.config.num_sim_steps * (frame + sizes.num_categoricals + 4 * numbers)


def _summarise(
    dataset: RolloutDataset, earlier_samples: int, frames_per_second: float
) -> SamplingSummary:
    start, stop = dataset.metadata.hidden_slice
    rows_outside = sum(
        int(np.sum(np.any(np.abs(states[:, start:stop]) > 1.0, axis=1)))
        for states in dataset.iter_field("agent_hidden", _ROWS_PER_CHUNK)
    )
    return SamplingSummary(
        samples=dataset.num_episodes,
        rows=dataset.num_rows,
        earlier_samples=earlier_samples,
        frames_per_second=frames_per_second,
        share_of_steps_outside_unit_box=rows_outside / dataset.num_rows,
        mean_predicted_return=float(dataset.episodes["return"].to_numpy().mean()),
        share_ended=float(1.0 - dataset.episodes["cut"].to_numpy().mean()),
    )
