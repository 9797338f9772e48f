"""What saliency needs, loaded and checked before any work."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.checkpoint import LoadedAgent
from analysis.integrated_gradients import NODES_TOGETHER
from analysis.saliency_config import (
    INTEGRATED,
    IntegrationFlags,
    SaliencyConfig,
    TargetSettings,
    parse_ids,
)
from analysis.saliency_integration import FRAME_BASELINES, IntegratedTargets
from analysis.saliency_interventions import load_interventions
from analysis.saliency_targets import DIRECTION_PREFIX, Target, TargetContext, make_targets
from analysis.sample_source import SampleSource, load_sample_source, num_given_steps
from analysis.sample_trust import read_sample_trust
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from generative.fidelity_windows import frame_statistics
from projections.hidden import (
    HiddenProjection,
    TorchProjection,
    has_projection,
    load_fitting_projection,
)
from projections.intervention import Intervention
from rollouts.store import RolloutDataset

CPU_SAMPLES = 8
"""Samples that a CPU computes together: with more it is no quicker."""

GPU_SAMPLES = 64
"""Samples that a GPU computes together where they fit: each step launches as many kernels for one
sample as for many."""

GPU_BYTES_PER_PIXEL = 1000
"""Of a simulated frame on a GPU: twice what the full-size networks keep for a backward pass."""


@dataclass(frozen=True, eq=False)
class SampleMeans:
    """Baselines of integrated gradients: means over all samples of the dataset."""

    frame: Tensor
    """(C, H, W) in [0, 1]"""
    latent: Tensor
    """(latent_dim,)"""


@dataclass(frozen=True, eq=False)
class SaliencyPlan:
    """Everything loaded and checked, before any work."""

    config: SaliencyConfig
    source: SampleSource
    projection: HiddenProjection | None
    targets: list[Target]
    sample_ids: NDArray[np.int64]
    interventions: dict[str, Intervention | None]
    """Those of the samples, by `intervention_key`."""
    trust: pd.Series
    """Trust of each sample against reality, by sample id; NaN where it was not measured."""

    @cached_property
    def means(self) -> SampleMeans:
        """Read only where integrated gradients are asked for."""
        latents = torch.from_numpy(self.source.dataset.read_episode_field("latent"))
        return SampleMeans(frame_statistics(self.source.dataset).mean, latents.mean(dim=0))

    @property
    def integrated_targets(self) -> IntegratedTargets:
        """What integrated gradients are taken of."""
        config = self.config
        return IntegratedTargets(
            self.targets, config.targets.target_steps, config.integration.settings
        )

    @property
    def batch_size(self) -> int:
        """Samples computed together: those asked for, or as many as suit the device."""
        if self.config.batch_size is not None:
            return self.config.batch_size
        if self.source.device.type != "cuda":
            return CPU_SAMPLES
        free_bytes, _ = torch.cuda.mem_get_info(self.source.device)
        return min(GPU_SAMPLES, max(1, free_bytes // 2 // self._gpu_bytes_per_sample))

    @property
    def _gpu_bytes_per_sample(self) -> int:
        """What the copies of a sample take until their gradients are there."""
        settings = self.config.targets
        num_frames = self.config.copies.num_copies * (max(settings.target_steps) + 1)
        num_pixels = prod(self.source.simulator.environment.obs_shape[:2])
        kept = num_frames * num_pixels * GPU_BYTES_PER_PIXEL
        if self.config.gradient_method == "loop":
            return kept
        # The gradients of all targets flow back side by side, each through a layer at a time.
        return kept * (1 + len(self.targets) // 4)

    def trust_of(self, ids: NDArray[np.int64], combined: bool) -> NDArray[np.float32]:
        """(S,) trust of samples; a combined one has no counterpart in reality."""
        if combined:
            return np.full(len(ids), np.nan, np.float32)
        return self.trust.loc[ids].to_numpy(np.float32)


def make_plan(config: SaliencyConfig, target_flag: str = "--target_steps") -> SaliencyPlan:
    """Load what the flags name; every mistake in them is found here, before any work.

    The plan's config has the number of steps that are simulated: under given actions no more than
    there are actions for.

    Args:
        config: the flags.
        target_flag: what the command calls that which sets the target steps.

    Raises:
        UserError: a mistake in the flags, or something that they name is missing.
    """
    _check_numbers(config, target_flag)
    source = load_sample_source(config)
    projection = _load_projection(config, source.agent)
    sample_ids = _select_samples(config, source.dataset)
    config = _within_given_steps(config, num_given_steps(source, sample_ids), target_flag)
    episode_id = source.dataset.episodes["episode_id"].to_numpy()
    return SaliencyPlan(
        config=config,
        source=source,
        projection=projection,
        targets=_make_targets(config, source, projection),
        sample_ids=sample_ids,
        interventions=_load_interventions(config, source, sample_ids),
        trust=pd.Series(read_sample_trust(source.dataset), episode_id),
    )


def _check_numbers(config: SaliencyConfig, target_flag: str) -> None:
    require_at_least(config, "saliency_batch_size")
    if config.batch_size is not None:
        require_at_least(config, "batch_size")
    require_at_least(config.targets, "num_sim_steps")
    if not config.drawing.fps > 0:
        raise UserError(f"--fps {config.drawing.fps}: must be above 0")
    num_steps = config.targets.num_sim_steps
    _check_steps(config.targets, num_steps, f"--num_sim_steps {num_steps}", target_flag)
    _check_integration(config.integration)


def _check_steps(settings: TargetSettings, num_steps: int, limit: str, target_flag: str) -> None:
    """Raise `UserError` unless the target steps are among `num_steps`, which `limit` explains."""
    words = " ".join(map(str, settings.target_steps))
    if len(set(settings.target_steps)) < len(settings.target_steps):
        raise UserError(f"{target_flag} {words}: a step is named twice")
    wrong = [t for t in settings.target_steps if not 0 <= t < num_steps]
    if wrong or not settings.target_steps:
        raise UserError(
            f"{target_flag} {words}: expected steps from 0 to {num_steps - 1} ({limit})"
        )


def _within_given_steps(
    config: SaliencyConfig, num_given: int | None, target_flag: str
) -> SaliencyConfig:
    """`config` with no more steps than there are given actions for; None sets no limit."""
    if num_given is None:
        return config
    limit = f"the samples' given actions end with step {num_given - 1}"
    _check_steps(config.targets, num_given, limit, target_flag)
    num_steps = at_most_available(config.targets.num_sim_steps, num_given, "--num_sim_steps")
    return replace(config, targets=replace(config.targets, num_sim_steps=num_steps))


def _check_integration(flags: IntegrationFlags) -> None:
    for flag, words, known in (
        ("--integrate", flags.integrate, INTEGRATED),
        ("--integration_baselines", flags.integration_baselines, FRAME_BASELINES),
    ):
        if not set(words) <= set(known) or len(set(words)) < len(words):
            raise UserError(f"{flag} {' '.join(words)}: expected some of {' '.join(known)}")
    if "frames" in flags.integrate and not flags.integration_baselines:
        raise UserError("--integration_baselines: --integrate frames needs at least one")
    if not flags.integration_tolerance > 0:
        raise UserError(f"--integration_tolerance {flags.integration_tolerance}: must be above 0")
    if flags.max_integration_nodes < NODES_TOGETHER:
        raise UserError(
            f"--max_integration_nodes {flags.max_integration_nodes}: must be at least "
            f"{NODES_TOGETHER}"
        )


def _load_projection(config: SaliencyConfig, agent: LoadedAgent) -> HiddenProjection | None:
    needed = DIRECTION_PREFIX in config.targets.saliency_func_type
    if not needed and (config.projection is None or not has_projection(config.projection)):
        return None
    if config.projection is None:
        raise UserError("--projection None: the target hx_direction needs a projection")
    return load_fitting_projection(config.projection, agent.policy.hidden_slice)


def _make_targets(
    config: SaliencyConfig, source: SampleSource, projection: HiddenProjection | None
) -> list[Target]:
    context = TargetContext(
        action_names=source.simulator.environment.action_names,
        hidden_slice=source.hidden_slice,
        projection=None if projection is None else TorchProjection(projection).to(source.device),
    )
    settings = config.targets
    ids = parse_ids(settings.saliency_direction_ids, "--saliency_direction_ids")
    return make_targets(settings.saliency_func_type, ids, context)


def _select_samples(config: SaliencyConfig, dataset: RolloutDataset) -> NDArray[np.int64]:
    wanted = parse_ids(config.sample_ids, "--sample_ids")
    available = set(dataset.episodes["episode_id"].tolist())
    existing = [sample for sample in wanted if sample in available]
    is_range = "to" in config.sample_ids
    words = " ".join(config.sample_ids)
    if not wanted:
        raise UserError(f"--sample_ids {words}: names no sample")
    if not existing or (len(existing) < len(wanted) and not is_range):
        raise UserError(
            f"--sample_ids {words}: {config.generated_data_dir} has {len(available)} samples, "
            f"not {sorted(set(wanted) - available)[:3]}"
        )
    if len(existing) < len(wanted):
        print(f"--sample_ids {words}: the dataset has {len(existing)} of these, all are used")
    return np.array(existing, np.int64)


def _load_interventions(
    config: SaliencyConfig, source: SampleSource, sample_ids: NDArray[np.int64]
) -> dict[str, Intervention | None]:
    interventions = load_interventions(
        source.dataset, config.generated_data_dir, sample_ids, source.device
    )
    if config.combine_samples_not_iterate and len(interventions) > 1:
        raise UserError("--combine_samples_not_iterate: the samples have different interventions")
    return interventions
