"""Computes saliency for many samples and keeps it: raw values in one file, pictures of a few."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from agents.checkpoint import LoadedAgent, load_agent
from agents.player import full_float32
from analysis.results import (
    SALIENCY_NAME,
    ResultStream,
    StreamedVariable,
    read_results,
    streamed_results,
)
from analysis.saliency import (
    Attributions,
    CopySettings,
    GradientMethod,
    SimulationChoices,
    attribute,
    perturbed_copies,
    resimulate,
)
from analysis.saliency_drawing import StripCaption, draw_strip, video_frames
from analysis.saliency_targets import DIRECTION_PREFIX, Target, TargetContext, make_targets
from experiment.devices import resolve_device
from experiment.errors import UserError
from experiment.files import atomic_file, require_free_space, require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.checkpoint import LoadedSimulator, load_simulator, newest_simulator
from generative.types import SimulatedSteps
from projections.hidden import HiddenProjection, TorchProjection
from projections.intervention import Intervention
from projections.interventions import swap_from_description
from rollouts.store import RolloutDataset
from rollouts.types import Rollout
from rollouts.video import VideoWriter

ENVIRONMENT_GRADIENTS = ("passed", "cut")
COMBINED_ID = -1
"""Sample id of the mean of several samples."""


@dataclass(frozen=True)
class UnusedFlags:
    """Flags that the reference system has, accepted so that its command lines work as typed."""

    exp_name: str = "test"
    """Without effect: --gen_mod_exp_name names the simulator's training."""
    agent_param_name: str = "hard-rec"
    """Without effect: an agent file says what network it holds."""
    start_level: int = 0
    """Without effect: no real environment is stepped."""
    num_levels: int = 0
    """Without effect: no real environment is stepped."""
    distribution_mode: str = "easy"
    """Without effect: no real environment is stepped."""
    num_threads: int = 8
    """Without effect: no real environment is stepped."""
    recording_rand_init: bool = False
    """Without effect: GENERATED_DATA_DIR says how its samples began."""
    epochs: int = 0
    """Without effect: nothing is trained."""
    num_timesteps: int = 0
    """Without effect: --num_sim_steps is the length of a sample."""
    num_checkpoints: int = 1
    """Without effect: nothing is trained."""
    log_level: int = 40
    """Without effect."""


@dataclass(frozen=True)
class TargetSettings:
    """What to take gradients of, and where."""

    saliency_func_type: tuple[str, ...] = ("value", "action", "hx_direction")
    """Targets: value; action (log-probability of the most probable action); leftwards,
    jumping_up, jumping_right (mean log-probability of those actions); value_delta (change of the
    value since the step before); hx_direction (every direction in SALIENCY_DIRECTION_IDS)."""
    saliency_direction_ids: tuple[str, ...] = ("0", "to", "16")
    """Directions of the hidden state: a list, or FIRST to END without END."""
    target_steps: Annotated[tuple[int, ...], tyro.conf.arg(aliases=("--common_timesteps",))] = (4,)
    """Simulated steps at which targets are read."""
    num_sim_steps: int = 10
    """Steps to simulate."""
    env_grads: bool = True
    """Whether gradients pass from an action to the environment that it changes."""
    both_env_grads: bool = False
    """Compute both, with and without passing gradients through the environment."""


@dataclass(frozen=True)
class DrawingSettings:
    """Which pictures to draw; they can be drawn from saliency.nc at any time."""

    num_drawn_samples: int = 20
    """Draw a PNG strip and an MP4 per target for so many samples."""
    fps: float = 4.0
    """Frames per second of the videos."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Flags of `saliency_experiments.py`."""

    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/saliency.yml: defaults (full size), demo, tiny."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: Path | None = None
    """The agent that the simulator was trained with: a folder of ours or a reference .pth; by
    default the one named in GENERATED_DATA_DIR."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated rollouts, made by record_gen_samples.py."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """Fitted projection that defines hidden directions, made by hidden_analysis_precompute.py."""
    output_dir: Path = Path("analysis/saliency_results")
    """Folder for saliency.nc, PNG strips and videos."""
    sample_ids: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--saliency_sample_ids",))] = (
        "0",
        "to",
        "4000",
    )
    """Samples: a list, e.g. `33 39 56 84`, or `FIRST to END`, e.g. `0 to 100`, without END."""
    combine_samples_not_iterate: bool = False
    """Combine the samples into one, by the mean of their latents, instead of iterating."""
    targets: Annotated[TargetSettings, tyro.conf.arg(name="")] = field(
        default_factory=TargetSettings
    )
    saliency_batch_size: int = 9
    """Copies of each sample whose gradients are averaged: the clean one and perturbed ones."""
    perturbation_scale: float = 1.25e-4
    """Standard deviation of the noise on the latents of the perturbed copies."""
    batch_size: int = 8
    """Samples computed together; changes the speed only."""
    gradient_method: GradientMethod = "loop"
    """Backward passes: one per target (loop), or all at once (batched), which takes more memory;
    changes the speed only."""
    drawing: Annotated[DrawingSettings, tyro.conf.arg(name="")] = field(
        default_factory=DrawingSettings
    )
    seed: int = 0
    """Seed of the noise on the copies."""
    env_name: str | None = None
    """Refuse a simulator of another game; by default the simulator's own is taken."""
    device: str = "auto"
    """Where to compute: auto, cpu, gpu, cuda or cuda:N."""
    gpu_device: int = 0
    """Index of the device that --device gpu means."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""
    unused: Annotated[UnusedFlags, tyro.conf.arg(name="")] = field(default_factory=UnusedFlags)

    @property
    def environment_gradients(self) -> tuple[str, ...]:
        """Variants to compute."""
        if self.targets.both_env_grads:
            return ENVIRONMENT_GRADIENTS
        return ENVIRONMENT_GRADIENTS[:1] if self.targets.env_grads else ENVIRONMENT_GRADIENTS[1:]

    @property
    def copies(self) -> CopySettings:
        """Perturbed copies of each sample."""
        return CopySettings(self.saliency_batch_size, self.perturbation_scale)


@dataclass(frozen=True, eq=False)
class SaliencyPlan:
    """Everything loaded and checked, before any work."""

    config: SaliencyConfig
    agent: LoadedAgent
    simulator: LoadedSimulator
    dataset: RolloutDataset
    projection: HiddenProjection | None
    targets: list[Target]
    choices: SimulationChoices
    sample_ids: NDArray[np.int64]
    device: torch.device

    @property
    def hidden_slice(self) -> slice:
        """The part of the agent's state that directions live in."""
        return self.agent.policy.hidden_slice


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


def parse_ids(words: Sequence[str], flag: str) -> list[int]:
    """Ids from `33 39 56` or `0 to 100`, which excludes 100.

    Raises:
        UserError: anything else.
    """
    try:
        if len(words) == 3 and words[1] == "to":
            return list(range(int(words[0]), int(words[2])))
        return [int(word) for word in words]
    except ValueError:
        raise UserError(
            f"{flag} {' '.join(words)}: expected ids, e.g. 33 39 56, or a range, e.g. 0 to 100"
        ) from None


def make_plan(config: SaliencyConfig) -> SaliencyPlan:
    """Load what the flags name; every mistake in them is found here, before any work."""
    device = resolve_device(config.device, config.gpu_device)
    _check_steps(config.targets)
    dataset = RolloutDataset(config.generated_data_dir)
    if dataset.metadata.simulated is None:
        raise UserError(
            f"--generated_data_dir {config.generated_data_dir}: holds real rollouts; expected "
            "simulated ones, made by record_gen_samples.py"
        )
    agent = load_agent(config.agent_file or Path(dataset.metadata.agent_file), device)
    model_file = config.model_file or newest_simulator(config.gen_mod_exp_name)
    simulator = load_simulator(model_file, agent, device)
    _check_origin(config, dataset, agent, simulator)
    simulator.simulator.requires_grad_(False)
    projection = _load_projection(config, agent)
    return SaliencyPlan(
        config=config,
        agent=agent,
        simulator=simulator,
        dataset=dataset,
        projection=projection,
        targets=_make_targets(config, agent, simulator, projection, device),
        choices=_recorded_choices(dataset),
        sample_ids=_select_samples(config, dataset),
        device=device,
    )


def _check_steps(settings: TargetSettings) -> None:
    wrong = [t for t in settings.target_steps if not 0 <= t < settings.num_sim_steps]
    if wrong or not settings.target_steps:
        raise UserError(
            f"--target_steps {' '.join(map(str, settings.target_steps))}: expected steps from 0 to "
            f"{settings.num_sim_steps - 1} (--num_sim_steps {settings.num_sim_steps})"
        )


def _check_origin(
    config: SaliencyConfig,
    dataset: RolloutDataset,
    agent: LoadedAgent,
    simulator: LoadedSimulator,
) -> None:
    recorded_with = dataset.metadata.provenance.get("inputs", {}).get("simulator")
    if dataset.metadata.agent_hash != agent.hash:
        raise UserError(
            f"--generated_data_dir {config.generated_data_dir}: recorded with agent "
            f"{dataset.metadata.agent_hash[:12]}, but {agent.path} is agent {agent.hash[:12]}"
        )
    if recorded_with not in (None, simulator.hash):
        raise UserError(
            f"--generated_data_dir {config.generated_data_dir}: recorded with simulator "
            f"{recorded_with[:12]}, but {simulator.path} is simulator {simulator.hash[:12]}"
        )
    if config.env_name not in (None, simulator.environment.name):
        raise UserError(
            f"--env_name {config.env_name}: the simulator {simulator.path} imitates "
            f"{simulator.environment.name}"
        )


def _load_projection(config: SaliencyConfig, agent: LoadedAgent) -> HiddenProjection | None:
    needed = DIRECTION_PREFIX in config.targets.saliency_func_type
    if not (config.projection / "projection.json").exists():
        if needed:
            raise UserError(
                f"--projection {config.projection}: no such projection; make it with: "
                "python analysis/hidden_analysis_precompute.py"
            )
        return None
    projection = HiddenProjection.load(config.projection)
    hidden = agent.policy.hidden_slice
    num_units, hidden_dim = len(projection.mean_), hidden.stop - hidden.start
    if num_units != hidden_dim:
        raise UserError(
            f"--projection {config.projection}: fitted on {num_units} hidden units, the agent has "
            f"{hidden_dim}"
        )
    return projection


def _make_targets(
    config: SaliencyConfig,
    agent: LoadedAgent,
    simulator: LoadedSimulator,
    projection: HiddenProjection | None,
    device: torch.device,
) -> list[Target]:
    context = TargetContext(
        action_names=simulator.environment.action_names,
        hidden_slice=agent.policy.hidden_slice,
        projection=None if projection is None else TorchProjection(projection).to(device),
        num_copies=config.copies.num_copies,
    )
    settings = config.targets
    ids = parse_ids(settings.saliency_direction_ids, "--saliency_direction_ids")
    return make_targets(settings.saliency_func_type, ids, context)


def _recorded_choices(dataset: RolloutDataset) -> SimulationChoices:
    recorded = dataset.metadata.provenance.get("config", {})
    names = SimulationChoices.__dataclass_fields__
    return SimulationChoices(**{name: recorded[name] for name in names if name in recorded})


def _select_samples(config: SaliencyConfig, dataset: RolloutDataset) -> NDArray[np.int64]:
    wanted = parse_ids(config.sample_ids, "--sample_ids")
    available = set(dataset.episodes["episode_id"].tolist())
    existing = [sample for sample in wanted if sample in available]
    is_range = "to" in config.sample_ids
    words = " ".join(config.sample_ids)
    if not existing or (len(existing) < len(wanted) and not is_range):
        raise UserError(
            f"--sample_ids {words}: {config.generated_data_dir} has {len(available)} samples, "
            f"not {sorted(set(wanted) - available)[:3]}"
        )
    if len(existing) < len(wanted):
        print(f"--sample_ids {words}: the dataset has {len(existing)} of these, all are used")
    return np.array(existing, np.int64)


def record_saliency(plan: SaliencyPlan, report: StageReport) -> Path:
    """Compute all gradients, write saliency.nc, draw the first samples.

    Raises:
        UserError: the output folder cannot be written, or its disk has too little room.
    """
    config = plan.config
    folder = require_writable_folder(config.output_dir, "--output_dir")
    path = folder / SALIENCY_NAME
    began = time.perf_counter()
    reproduced = _write_result(plan, path)
    seconds = time.perf_counter() - began
    report.outputs.append(str(path))
    report.outputs += [str(p) for p in draw_samples(path, config.drawing, folder)]
    report.metrics |= {
        "samples": len(reproduced),
        "targets": len(plan.targets),
        "seconds_per_sample": round(seconds / len(reproduced), 3),
        **_reproduction_metrics(reproduced),
    }
    return path


def _reproduction_metrics(shares: NDArray[np.float32]) -> dict[str, float]:
    compared = shares[np.isfinite(shares)]
    if not compared.size:
        return {}
    exact = int(np.sum(compared == 1.0))
    if exact < len(compared):
        print(
            f"re-simulated frames differ from the stored ones in {len(compared) - exact} of "
            f"{len(compared)} samples (mean share of frames reproduced {compared.mean():.4f})"
        )
    return {"share_of_frames_reproduced": round(float(compared.mean()), 4)}


def _write_result(plan: SaliencyPlan, path: Path) -> NDArray[np.float32]:
    """Returns (S,) shares of reproduced frames."""
    num_results = 1 if plan.config.combine_samples_not_iterate else len(plan.sample_ids)
    declared = _declare(plan, num_results)
    num_bytes = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in declared.values())
    require_free_space(path, num_bytes, "--output_dir")
    inputs = {
        "agent": plan.agent.hash,
        "simulator": plan.simulator.hash,
        "generated_dataset": plan.dataset.hash,
    }
    if plan.projection is not None:
        inputs["projection_data"] = plan.projection.data_hash
    provenance = collect_provenance(plan.config, plan.config.seed, inputs)
    shares = []
    progress = tqdm(total=num_results, desc="saliency", unit="sample", mininterval=1.0)
    dataset = _labels(plan)
    with progress, streamed_results(path, dataset, declared, provenance) as stream, full_float32():
        start = 0
        for batch in _batches(plan):
            values = _compute(plan, batch)
            _write_batch(stream, start, values)
            shares.append(values["frames_reproduced"])
            start += len(batch.ids)
            progress.update(len(batch.ids))
    return np.concatenate(shares)


def _write_batch(stream: ResultStream, start: int, values: dict[str, NDArray]) -> None:
    for name, value in values.items():
        stream.write(name, start, value)


def _batches(plan: SaliencyPlan) -> Iterator[SampleBatch]:
    """Samples in order, in batches that share their interventions."""
    config = plan.config
    rollouts = (plan.dataset.read_episode(plan.dataset.index_of(int(i))) for i in plan.sample_ids)
    if config.combine_samples_not_iterate:
        yield _combined(plan, list(rollouts))
        return
    for description, group in groupby(rollouts, lambda r: json.dumps(r.info.interventions)):
        intervention = _intervention(json.loads(description), plan.device)
        while batch := list(islice(group, config.batch_size)):
            yield _batch(plan, batch, intervention)


def _batch(
    plan: SaliencyPlan, rollouts: list[Rollout], intervention: Intervention | None
) -> SampleBatch:
    num_steps = min(plan.config.targets.num_sim_steps, *(len(r) for r in rollouts))
    return SampleBatch(
        ids=np.array([r.info.episode_id for r in rollouts], np.int64),
        latent=_latents(rollouts, plan.device),
        recorded_frames=np.stack([r.obs[:num_steps] for r in rollouts]),
        intervention=intervention,
    )


def _combined(plan: SaliencyPlan, rollouts: list[Rollout]) -> SampleBatch:
    descriptions = {json.dumps(r.info.interventions) for r in rollouts}
    if len(descriptions) > 1:
        raise UserError("--combine_samples_not_iterate: the samples have different interventions")
    mean = F.normalize(_latents(rollouts, plan.device).mean(dim=0, keepdim=True), dim=-1)
    # The draws of a combined sample are those of its first member.
    return SampleBatch(
        ids=np.array([rollouts[0].info.episode_id], np.int64),
        latent=mean,
        recorded_frames=None,
        intervention=_intervention(json.loads(descriptions.pop()), plan.device),
    )


def _latents(rollouts: list[Rollout], device: torch.device) -> Tensor:
    latents = [r.info.latent for r in rollouts]
    return torch.as_tensor(np.stack([x for x in latents if x is not None]), device=device)


def _intervention(
    descriptions: Sequence[dict[str, Any]], device: torch.device
) -> Intervention | None:
    swaps = [swap_from_description(description).to(device) for description in descriptions]
    if not swaps:
        return None

    class Chain:
        def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
            for swap in swaps:
                proposed = swap(previous, proposed, step)
            return proposed

        def describe(self) -> dict[str, Any]:
            return {"chain": [swap.describe() for swap in swaps]}

    return Chain()


def _compute(plan: SaliencyPlan, batch: SampleBatch) -> dict[str, NDArray]:
    """All variables of a batch, sample first."""
    config, num_copies = plan.config, plan.config.copies.num_copies
    attributions, clean = [], None
    for variant in config.environment_gradients:
        latent = perturbed_copies(batch.latent, batch.ids, config.copies, config.seed)
        latent.requires_grad_(True)
        steps = resimulate(
            plan.simulator.simulator,
            latent,
            batch.ids.repeat(num_copies),
            config.targets.num_sim_steps,
            plan.choices,
            batch.intervention,
            cut_environment_gradient=variant == "cut",
        )
        attributions.append(
            attribute(
                steps,
                latent,
                plan.targets,
                config.targets.target_steps,
                num_copies,
                config.gradient_method,
            )
        )
        clean = clean or _clean_rows(steps, num_copies)
    assert clean is not None
    combined = config.combine_samples_not_iterate
    return {
        **clean,
        **_gradient_arrays(plan, attributions),
        "sample_id": np.full_like(batch.ids, COMBINED_ID) if combined else batch.ids,
        "frames_reproduced": _share_reproduced(clean["frame"], batch.recorded_frames),
        "activation": _activations(plan, clean["agent_state"]),
    }


def _clean_rows(steps: SimulatedSteps, num_copies: int) -> dict[str, NDArray]:
    """What happened in the clean copies: (S, K, ...)."""

    def gather(sequence: Sequence[Tensor]) -> Tensor:
        return torch.stack([tensor.detach()[::num_copies] for tensor in sequence], dim=1)

    frames = (gather(steps.images) * 255.0).round().to(torch.uint8).movedim(2, -1)
    values = {
        "frame": frames,
        "agent_state": gather(steps.agent_state),
        "value": gather(steps.value),
        "action": gather(steps.action).argmax(dim=-1).to(torch.int16),
        "action_log_prob": gather(steps.action_logits).log_softmax(dim=-1),
    }
    return {name: tensor.cpu().numpy() for name, tensor in values.items()}


def _gradient_arrays(
    plan: SaliencyPlan, attributions: Sequence[Attributions]
) -> dict[str, NDArray]:
    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in attributions], dim=1)

    agent_state = stacked("agent_state").cpu().numpy()
    arrays = {
        "gradient_frame": stacked("images").movedim(-3, -1).cpu().numpy(),
        "gradient_agent_state": agent_state,
        "gradient_env_deter": stacked("env_deter").cpu().numpy(),
        "gradient_env_stoch": stacked("env_stoch").cpu().numpy(),
        "gradient_latent": stacked("latent").cpu().numpy(),
        "target_value": attributions[0].target_values.cpu().numpy(),
    }
    if plan.projection is not None:
        pulled = plan.projection.pullback(agent_state[..., plan.hidden_slice])
        arrays["gradient_component"] = np.asarray(pulled, np.float32)
    return arrays


def _activations(plan: SaliencyPlan, agent_state: NDArray[np.float32]) -> NDArray[np.float32]:
    hidden = agent_state[..., plan.hidden_slice]
    if plan.projection is None:
        return np.zeros((*hidden.shape[:-1], 0), np.float32)
    return np.asarray(plan.projection.transform(hidden), np.float32)


def _share_reproduced(
    frames: NDArray[np.uint8], recorded: NDArray[np.uint8] | None
) -> NDArray[np.float32]:
    """(S,) share of recorded frames that came out identical; NaN without a recording."""
    if recorded is None:
        return np.full(len(frames), np.nan, np.float32)
    same = frames[:, : recorded.shape[1]] == recorded
    return same.all(axis=(2, 3, 4)).mean(axis=1).astype(np.float32)


def _labels(plan: SaliencyPlan) -> xr.Dataset:
    config = plan.config
    attributes = {
        "num_copies": config.copies.num_copies,
        "perturbation_scale": config.perturbation_scale,
        "combined": int(config.combine_samples_not_iterate),
        "action_names": " ".join(plan.simulator.environment.action_names),
    }
    if plan.projection is not None:
        attributes["projection_data_hash"] = plan.projection.data_hash
    if config.combine_samples_not_iterate:
        attributes["combined_sample_ids"] = " ".join(map(str, plan.sample_ids))
    return xr.Dataset(
        coords={
            "target": [target.name for target in plan.targets],
            "target_step": list(config.targets.target_steps),
            "environment_gradient": list(config.environment_gradients),
        },
        attrs=attributes,
    )


def _declare(plan: SaliencyPlan, num_samples: int) -> dict[str, StreamedVariable]:
    config, simulator = plan.config, plan.simulator.simulator
    sizes, num_steps = simulator.config, config.targets.num_sim_steps
    height, width, channels = plan.simulator.environment.obs_shape
    state_dim, num_actions = plan.agent.policy.state_dim, plan.agent.policy.num_actions
    num_components = 0 if plan.projection is None else plan.projection.n_components_
    of_gradient = {
        "environment_gradient": len(config.environment_gradients),
        "target": len(plan.targets),
        "target_step": len(config.targets.target_steps),
    }
    frame = {"height": height, "width": width, "channel": channels}
    step = {"step": num_steps}

    def variable(dims: dict[str, int], dtype: type, description: str) -> StreamedVariable:
        dims = {"sample": num_samples, **dims}
        shape = tuple(dims.values())
        # One chunk is what one look at one sample and target needs.
        outer = tuple(1 for name in dims if name in ("sample", *of_gradient))
        chunks = (*outer, *(max(1, size) for size in shape[len(outer) :]))
        attributes = {"long_name": description}
        return StreamedVariable(tuple(dims), shape, dtype, attributes, chunks)

    def gradient(dims: dict[str, int], description: str) -> StreamedVariable:
        return variable({**of_gradient, **dims}, np.float32, f"d target / d {description}")

    stoch = {"categorical": sizes.num_categoricals, "class": sizes.num_classes}
    declared = {
        "sample_id": variable({}, np.int64, "id of the sample in its dataset"),
        "frames_reproduced": variable({}, np.float32, "share of stored frames reproduced exactly"),
        "frame": variable({**step, **frame}, np.uint8, "frame that the agent saw"),
        "agent_state": variable({**step, "state_unit": state_dim}, np.float32, "agent state"),
        "value": variable(step, np.float32, "value"),
        "action": variable(step, np.int16, "action taken"),
        "action_log_prob": variable(
            {**step, "action_index": num_actions}, np.float32, "log-probability of each action"
        ),
        "activation": variable(
            {**step, "component": num_components}, np.float32, "component of the hidden state"
        ),
        "target_value": variable(
            {name: of_gradient[name] for name in ("target", "target_step")},
            np.float32,
            "target in the clean copy",
        ),
        "gradient_frame": gradient({**step, **frame}, "frame, whose values run from 0 to 1"),
        "gradient_agent_state": gradient({**step, "state_unit": state_dim}, "agent state"),
        "gradient_env_deter": gradient({**step, "deter_unit": sizes.deter_dim}, "deter"),
        "gradient_env_stoch": gradient({**step, **stoch}, "stoch"),
        "gradient_latent": gradient({"latent_unit": sizes.latent_dim}, "latent"),
    }
    if plan.projection is None:
        return declared
    return declared | {
        "gradient_component": gradient(
            {**step, "component": num_components}, "component, the rest of the state held fixed"
        )
    }


def draw_samples(result: Path, settings: DrawingSettings, folder: Path) -> list[Path]:
    """Draw strips and videos of the first samples from a result file.

    Returns:
        The folders written to.
    """
    strips, videos = folder / "strips", folder / "videos"
    with read_results(result, "saliency") as dataset:
        for index in range(min(settings.num_drawn_samples, dataset.sizes["sample"])):
            sample = dataset.isel(sample=index)
            frames = sample["frame"].values
            for picture in _pictures(sample):
                gradient = picture.gradient["gradient_frame"].values
                with atomic_file(strips / f"{picture.name}.png") as path:
                    draw_strip(frames, gradient, picture.caption).save(path)
                with VideoWriter(videos / f"{picture.name}.mp4", settings.fps) as video:
                    for image in video_frames(frames, gradient):
                        video.write(image)
    return [strips, videos] if settings.num_drawn_samples else []


@dataclass(frozen=True, eq=False)
class _Picture:
    name: str
    caption: StripCaption
    gradient: xr.Dataset


def _pictures(sample: xr.Dataset) -> Iterator[_Picture]:
    """One per variant, target and target step at which the target is defined."""
    sample_id = int(sample["sample_id"])
    label = "combined" if sample_id == COMBINED_ID else f"sample_{sample_id:05d}"
    for variant in sample["environment_gradient"].values:
        for target in sample["target"].values:
            for step in sample["target_step"].values:
                chosen = sample.sel(environment_gradient=variant, target=target, target_step=step)
                if np.isnan(chosen["target_value"]):
                    continue
                suffix = "" if variant == "passed" else "_environment_cut"
                title = (
                    f"{label}: gradient of {target} at step {step}, environment gradient {variant}"
                )
                name = f"{label}_{target}_step{step}{suffix}"
                yield _Picture(name, StripCaption(title, int(step)), chosen)
