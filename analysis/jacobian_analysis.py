"""Computes Jacobians of many samples, and clusters of them, and keeps them in one file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
import xarray as xr
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from agents.player import full_float32
from analysis.behaviour_clusters import RowOrigin, compress, measure_agreement
from analysis.clustering import Clustering, fit_clusters
from analysis.embedding import EmbeddingMethod, fit_embedding, judge_layout
from analysis.jacobians import PushSettings, component_jacobians, push_effects
from analysis.results import (
    JACOBIAN_NAME,
    ResultStream,
    StreamedVariable,
    streamed_results,
)
from analysis.rollout_rows import select_episodes
from analysis.saliency import CopySettings, perturbed_copies, resimulate
from analysis.saliency_config import ENVIRONMENT_GRADIENTS
from analysis.saliency_interventions import load_interventions
from analysis.sample_source import (
    SampleBatch,
    SampleSource,
    load_sample_source,
    num_given_steps,
    sample_batches,
)
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.files import require_free_space, require_writable_folder
from experiment.progress import Progress
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.types import SimulatedSteps
from projections.hidden import HiddenProjection, TorchProjection, load_fitting_projection
from projections.intervention import Intervention, InterventionChain
from rollouts.independent_units import units_of_episodes


@dataclass(frozen=True)
class JacobianClusters:
    """Which Jacobians are clustered, and how."""

    grad_timestep: int = 3
    """Source step of the Jacobians that are clustered; their target is the step after. It is also
    the step at which the hidden state is pushed."""
    num_pca: int = 128
    """Principal components of the standardised Jacobians that are clustered."""
    num_clusters: int = 32
    """Ward clusters of samples."""
    num_cluster_neighbours: int = 32
    """Neighbours of each sample in the graph that restricts merges."""
    num_stability_repeats: int = 10
    """How often random halves of the source episodes are clustered anew to measure stability; 0 for
    not."""
    embedding: EmbeddingMethod = "tsne"
    """How samples are laid out in two dimensions."""
    embedding_neighbours: int = 15
    """Neighbourhood size of the layout; t-SNE's perplexity is twice this."""


@dataclass(frozen=True)
class JacobianConfig:
    """Flags of `jacobian_analysis_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent that the simulator was trained with, as record.py's --model_file takes it; by
    default the one named in GENERATED_DATA_DIR."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated rollouts, made by record_gen_samples.py."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """Fitted projection that defines components, made by hidden_analysis_precompute.py."""
    output_dir: Path = Path("analysis/jacob_analysis_precomp")
    """Folder for jacobians.nc."""
    num_samples: int = 4000
    """Samples to take Jacobians of."""
    num_components: int = 16
    """Leading components of the projection."""
    num_sim_steps: int = 10
    """Steps to simulate."""
    heed_ends: bool = True
    """Whether steps after the predicted end of a sample are left out; not to heed ends is for
    simulators that predict them badly."""
    num_copies: int = 9
    """Copies of each sample over which Jacobians are averaged; the first is clean."""
    perturbation_scale: float = 1.25e-4
    """Standard deviation of the noise on the latents of the other copies."""
    push_size: float = 1.0
    """Finite push along each component, in units of the coordinates, whose effects in the discrete
    simulator are measured; 0 for none."""
    clusters: Annotated[JacobianClusters, tyro.conf.arg(name="")] = field(
        default_factory=JacobianClusters
    )
    batch_size: int = 2
    """Samples computed together; changes speed and memory only."""
    seed: int = 0
    """Seed of the noise on the copies, of clusters and layout."""
    env_name: str | None = None
    """Refuse a simulator of another game; by default the simulator's own is taken."""
    device: str = "auto"
    """Where to compute: auto, cpu, gpu, cuda or cuda:N."""
    gpu_device: int = 0
    """Index of the device that --device gpu means."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""

    @property
    def copies(self) -> CopySettings:
        """Perturbed copies of each sample."""
        return CopySettings(self.num_copies, self.perturbation_scale)


@dataclass(frozen=True, eq=False)
class JacobianPlan:
    """Everything loaded and checked, before any work."""

    config: JacobianConfig
    source: SampleSource
    projection: HiddenProjection
    torch_projection: TorchProjection
    num_components: int
    sample_ids: NDArray[np.int64]
    interventions: dict[str, Intervention | None]

    @property
    def push(self) -> PushSettings:
        """The finite push."""
        config = self.config
        return PushSettings(config.clusters.grad_timestep, config.push_size, self.num_components)

    def batches(self) -> Iterator[SampleBatch]:
        """All samples."""
        config = self.config
        return sample_batches(
            self.source, self.sample_ids, self.interventions, config.num_sim_steps,
            config.batch_size,
        )  # fmt: skip


def make_plan(config: JacobianConfig) -> JacobianPlan:
    """Load what the flags name; every mistake in them is found here, before any work.

    The plan's config has the number of steps that are simulated: under given actions no more than
    there are actions for.

    Raises:
        UserError: a mistake in the flags, or something that they name is missing.
    """
    _check_numbers(config)
    source = load_sample_source(config)
    folder = config.generated_data_dir
    rows = select_episodes(
        source.dataset, config.num_samples, f"--generated_data_dir {folder}", "--num_samples"
    )
    config = _within_given_steps(config, num_given_steps(source, rows.episode_ids))
    projection = load_fitting_projection(config.projection, source.hidden_slice)
    return JacobianPlan(
        config=config,
        source=source,
        projection=projection,
        torch_projection=TorchProjection(projection).to(source.device),
        num_components=at_most_available(
            config.num_components, projection.n_components_, "--num_components"
        ),
        sample_ids=rows.episode_ids,
        interventions=load_interventions(source.dataset, folder, rows.episode_ids, source.device),
    )


def _check_numbers(config: JacobianConfig) -> None:
    require_at_least(config, "num_samples", "num_components", "num_copies", "batch_size")
    require_at_least(config, "num_sim_steps", least=2)
    require_at_least(config, "perturbation_scale", "push_size", least=0)
    clusters = config.clusters
    require_at_least(clusters, "num_pca", "num_clusters", "num_cluster_neighbours")
    require_at_least(clusters, "embedding_neighbours")
    require_at_least(clusters, "num_stability_repeats", least=0)
    num_steps = config.num_sim_steps
    _check_source_step(clusters.grad_timestep, num_steps, f"--num_sim_steps {num_steps}")


def _check_source_step(step: int, num_steps: int, limit: str) -> None:
    """Raise `UserError` unless the step after is among `num_steps`, which `limit` explains."""
    if not 0 <= step < num_steps - 1:
        raise UserError(
            f"--grad_timestep {step}: expected a step from 0 to {num_steps - 2}, since the step "
            f"after is the target ({limit})"
        )


def _within_given_steps(config: JacobianConfig, num_given: int | None) -> JacobianConfig:
    """`config` with no more steps than there are given actions for; None sets no limit."""
    if num_given is None:
        return config
    limit = f"the samples' given actions end with step {num_given - 1}"
    _check_source_step(config.clusters.grad_timestep, num_given, limit)
    num_steps = at_most_available(config.num_sim_steps, num_given, "--num_sim_steps")
    return replace(config, num_sim_steps=num_steps)


def record_jacobians(plan: JacobianPlan, report: StageReport) -> Path:
    """Compute all Jacobians, cluster them, write jacobians.nc; returns its path.

    Raises:
        UserError: the output folder cannot be written, or its disk has too little room.
    """
    config = plan.config
    folder = require_writable_folder(config.output_dir, "--output_dir")
    path = folder / JACOBIAN_NAME
    declared = _declare(plan)
    num_bytes = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in declared.values())
    require_free_space(path, num_bytes, "--output_dir")
    inputs = plan.source.input_hashes | {"projection_data": plan.projection.data_hash}
    provenance = collect_provenance(config, config.seed, inputs)
    stream_to = streamed_results(path, _labels(plan), declared, provenance)
    progress = Progress(len(plan.sample_ids), "sample")
    with stream_to as stream, progress, full_float32():
        one_step = _write_samples(plan, stream, progress)
        units = units_of_episodes(plan.source.dataset, plan.sample_ids)
        clusters = _cluster(one_step, units, config)
        for name, values in clusters.variables.items():
            stream.write(name, 0, values)
        for name, value in clusters.attributes.items():
            stream.set_attribute(name, value)
    report.outputs.append(str(path))
    report.metrics |= {"samples": len(plan.sample_ids), **clusters.attributes}
    return path


def _write_samples(
    plan: JacobianPlan, stream: ResultStream, progress: Progress
) -> NDArray[np.float32]:
    """Returns (N, D · D) the Jacobians that are to be clustered."""
    source_step = plan.config.clusters.grad_timestep
    kept, start = [], 0
    for batch in plan.batches():
        values = _compute(plan, batch)
        for name, array in values.items():
            stream.write(name, start, array)
        passed = values["jacobian"][:, 0]
        kept.append(passed[:, source_step + 1, :, source_step].reshape(len(passed), -1))
        start += len(batch.ids)
        for _ in batch.ids:
            progress.advance("")
    return np.concatenate(kept)


def _compute(plan: JacobianPlan, batch: SampleBatch) -> dict[str, NDArray]:
    """All variables of a batch, sample first."""
    clean = _simulate(plan, batch, batch.latent, 1)
    values = {
        "sample_id": batch.ids,
        "unit": units_of_episodes(plan.source.dataset, batch.ids),
        "component": _coordinates(plan, clean),
        "length": _lengths(clean, plan.config.heed_ends),
        "frames_reproduced": _share_reproduced(clean, batch),
        "jacobian": _both(plan, batch, _jacobians),
    }
    if plan.config.push_size > 0:
        values["push_effect"] = _both(plan, batch, _pushed)
    return values


Compute = Callable[[JacobianPlan, SampleBatch, bool], Tensor]
"""(plan, batch, whether the environment is cut) → (S, ...)"""


def _both(plan: JacobianPlan, batch: SampleBatch, compute: Compute) -> NDArray[np.float32]:
    """(S, 2, ...) with and without what passes through the environment."""
    found = [compute(plan, batch, name == "cut") for name in ENVIRONMENT_GRADIENTS]
    return torch.stack(found, dim=1).float().cpu().numpy()


def _jacobians(plan: JacobianPlan, batch: SampleBatch, is_cut: bool) -> Tensor:
    config = plan.config
    latent = perturbed_copies(
        plan.source.simulator.simulator.bottleneck,
        batch.latent, batch.ids, config.copies, config.seed,
    ).requires_grad_(True)  # fmt: skip

    def simulate(intervention: Intervention) -> SimulatedSteps:
        return _simulate(plan, batch, latent, config.num_copies, intervention, is_cut)

    found = component_jacobians(
        simulate, plan.torch_projection, plan.source.hidden_slice, plan.num_components, is_cut
    )
    return found.unflatten(0, (-1, config.num_copies)).mean(dim=1)


def _pushed(plan: JacobianPlan, batch: SampleBatch, is_cut: bool) -> Tensor:
    """Effects of pushes; without the environment, every copy takes the clean sample's actions."""
    num_copies = 2 * plan.num_components
    latent = batch.latent.repeat_interleave(num_copies, dim=0)
    actions = None
    if is_cut:
        with torch.no_grad():
            clean = _simulate(plan, batch, batch.latent, 1)
        taken = torch.stack([action.argmax(dim=-1) for action in clean.action])
        actions = taken.repeat_interleave(num_copies, dim=1)

    def simulate(intervention: Intervention) -> SimulatedSteps:
        return _simulate(plan, batch, latent, num_copies, intervention, actions=actions)

    state_dim = plan.source.agent.policy.state_dim
    return push_effects(
        simulate, plan.torch_projection, state_dim, plan.source.hidden_slice, plan.push
    )


def _simulate(
    plan: JacobianPlan,
    batch: SampleBatch,
    latent: Tensor,
    num_copies: int,
    intervention: Intervention | None = None,
    is_cut: bool = False,
    actions: Tensor | None = None,
) -> SimulatedSteps:
    """Run adjacent copies of a batch again; `intervention` acts after the recorded one."""
    chain = [one for one in (batch.intervention, intervention) if one is not None]
    return resimulate(
        plan.source.simulator.simulator,
        latent,
        batch.ids.repeat(num_copies),
        plan.config.num_sim_steps,
        plan.source.choices,
        InterventionChain(chain) if chain else None,
        cut_environment_gradient=is_cut,
        actions=batch.actions_for(num_copies) if actions is None else actions,
    )


def _coordinates(plan: JacobianPlan, steps: SimulatedSteps) -> NDArray[np.float32]:
    """(S, K, D)"""
    state = torch.stack(steps.agent_state, dim=1).detach()[..., plan.source.hidden_slice]
    transformed = plan.projection.transform(state.cpu().numpy())
    return np.asarray(transformed[..., : plan.num_components], np.float32)


def _lengths(steps: SimulatedSteps, heed_ends: bool) -> NDArray[np.int64]:
    """(S,) steps until the episode is predicted to end, that one included; or else all steps."""
    if not heed_ends:
        return np.full(len(steps.terminal_logit[0]), len(steps.terminal_logit))
    done = torch.stack(steps.terminal_logit, dim=1).detach().cpu().numpy() > 0
    return np.where(done.any(axis=1), done.argmax(axis=1) + 1, done.shape[1])


def _share_reproduced(steps: SimulatedSteps, batch: SampleBatch) -> NDArray[np.float32]:
    """(S,) share of the stored frames that came out identical."""
    recorded = batch.recorded_frames
    assert recorded is not None
    images = torch.stack(steps.images, dim=1).detach()[:, : recorded.shape[1]]
    frames = (images * 255.0).round().to(torch.uint8).movedim(2, -1).cpu().numpy()
    return (frames == recorded).all(axis=(2, 3, 4)).mean(axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Clusters:
    variables: dict[str, NDArray]
    attributes: dict[str, float | int]


def _cluster(
    one_step: NDArray[np.float32], units: NDArray[np.int64], config: JacobianConfig
) -> _Clusters:
    """Cluster samples by their standardised one-step Jacobians.

    Args:
        one_step: (N, D · D)
        units: (N,) which samples depend on each other.
        config: numbers of clusters and repetitions.
    """
    settings = config.clusters
    deviation = one_step.std(axis=0)
    standardised = (one_step - one_step.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    num_pca = at_most_available(settings.num_pca, min(standardised.shape), "--num_pca")
    points = compress(standardised, num_pca, config.seed)
    num_clusters = at_most_available(settings.num_clusters, len(points), "--num_clusters")
    # A single sample has no neighbour.
    if len(points) == 1:
        clustering = Clustering(points, np.zeros(1, np.int32))
    else:
        clustering = fit_clusters(points, num_clusters, settings.num_cluster_neighbours)
    variables: dict[str, NDArray] = {"cluster": clustering.labels}
    attributes = {"num_clusters": clustering.num_clusters, **_stability(clustering, units, config)}
    if settings.embedding != "none":
        variables["embedding"] = places = _lay_out(points, config)
        attributes |= judge_layout(points, places, settings.embedding_neighbours, config.seed)
    return _Clusters(variables, attributes)


def _lay_out(points: NDArray[np.float32], config: JacobianConfig) -> NDArray[np.float32]:
    settings = config.clusters
    # Neighbourhoods need a few samples.
    method = settings.embedding if len(points) >= 10 else "pca"
    embedder = fit_embedding(method, points, settings.embedding_neighbours, config.seed)
    assert embedder is not None
    return embedder.transform(points)


def _stability(
    clustering: Clustering, units: NDArray[np.int64], config: JacobianConfig
) -> dict[str, float]:
    settings = config.clusters
    if settings.num_stability_repeats == 0 or len(clustering.features) < 10:
        return {}
    agreement = measure_agreement(
        clustering,
        RowOrigin(np.arange(len(units)), units),
        settings.num_cluster_neighbours,
        settings.num_stability_repeats,
        config.seed,
    )
    return agreement.attributes()


def _labels(plan: JacobianPlan) -> xr.Dataset:
    components = np.arange(plan.num_components)
    steps = np.arange(plan.config.num_sim_steps)
    return xr.Dataset(
        coords={
            "environment_gradient": list(ENVIRONMENT_GRADIENTS),
            "target_step": steps,
            "source_step": steps,
            "target": components,
            "source": components,
        },
        attrs={
            "grad_timestep": plan.config.clusters.grad_timestep,
            "num_copies": plan.config.num_copies,
            "push_size": plan.config.push_size,
            "projection_data_hash": plan.projection.data_hash,
        },
    )


def _declare(plan: JacobianPlan) -> dict[str, StreamedVariable]:
    config, num = plan.config, len(plan.sample_ids)
    size, num_steps = plan.num_components, config.num_sim_steps
    sample = {"sample": num}
    variant = sample | {"environment_gradient": len(ENVIRONMENT_GRADIENTS)}
    pairs = {"target_step": num_steps, "target": size, "source_step": num_steps, "source": size}
    f32 = np.float32
    declared = {
        "sample_id": _variable(sample, np.int64, "id of the sample in its dataset"),
        "unit": _variable(sample, np.int64, "equal for samples of one source episode"),
        "component": _variable(
            sample | {"target_step": num_steps, "target": size}, f32, "component coordinate"
        ),
        "length": _variable(sample, np.int64, "steps until the episode ends"),
        "frames_reproduced": _variable(sample, f32, "share of stored frames reproduced exactly"),
        "jacobian": _variable(
            variant | pairs, f32,
            "d target component at target step / d source component at source step, the rest of "
            "the agent's state held fixed",
        ),
        "cluster": _variable(sample, np.int32, "Ward cluster of the one-step Jacobian"),
    }  # fmt: skip
    if config.clusters.embedding != "none":
        declared["embedding"] = _variable(sample | {"axis": 2}, f32, "layout of the samples")
    if config.push_size > 0:
        declared["push_effect"] = _variable(
            variant | {"target_step": num_steps, "target": size, "source": size}, f32,
            "change of the target component per unit of a finite push of the source component",
        )  # fmt: skip
    return declared


def _variable(dims: dict[str, int], dtype: DTypeLike, description: str) -> StreamedVariable:
    """One chunk is what one look at one sample and variant needs."""
    single = ("sample", "environment_gradient")
    chunks = tuple(1 if name in single and len(dims) > 2 else size for name, size in dims.items())
    attributes = {"long_name": description}
    return StreamedVariable(tuple(dims), tuple(dims.values()), dtype, attributes, chunks)
