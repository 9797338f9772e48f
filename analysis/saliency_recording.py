"""Computes saliency for many samples and keeps it: raw values in one file, pictures of a few."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from agents.player import full_float32
from analysis.results import SALIENCY_NAME, ResultStream, read_results, streamed_results
from analysis.saliency import (
    Attributions,
    BackwardPasses,
    attribute,
    attribute_paths,
    perturbed_copies,
    resimulate,
)
from analysis.saliency_file import COMBINED_ID, declare_variables, file_labels
from analysis.saliency_integration import (
    IntegratedSample,
    frame_baseline,
    integrate_frames,
    integrate_latent,
)
from analysis.saliency_interventions import intervention_key
from analysis.saliency_pictures import draw_samples
from analysis.saliency_plan import SaliencyPlan
from analysis.sample_source import (
    SampleBatch,
    given_actions,
    read_samples,
    recorded_latents,
    sample_batches,
)
from experiment.files import require_free_space, require_writable_folder
from experiment.progress import Progress
from experiment.provenance import Provenance, collect_provenance
from experiment.report import StageReport
from generative.gradient_edges import GradientEdges
from generative.types import SimulatedSteps
from rollouts.independent_units import units_of_episodes


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
        **_integration_metrics(path),
    }
    return path


def _integration_metrics(path: Path) -> dict[str, float]:
    """Convergence deltas, as shares of what attributions have to sum to; a line warns of those
    that miss it."""
    metrics: dict[str, float] = {}
    with read_results(path, "saliency") as results:
        for name in ("integrated_frame", "integrated_latent"):
            if name not in results:
                continue
            shares = abs(results[f"{name}_delta"]) / abs(results[f"{name}_difference"])
            shares = shares.assign_coords(sample=results["sample_id"].values)
            metrics[f"{name}_largest_delta"] = round(float(shares.max()), 5)
            metrics[f"{name}_median_delta"] = round(float(shares.median()), 5)
            met = results[f"{name}_met"].values
            metrics[f"{name}_not_met"] = int(np.sum(met == 0))
            if (met == 0).any():
                print(_warn_of_deltas(name, shares, met))
    return metrics


def _warn_of_deltas(name: str, shares: xr.DataArray, met: NDArray[np.int8]) -> str:
    """One line that names the worst."""
    worst = shares.isel(shares.argmax(...))
    at = ", ".join(f"{dim} {worst[dim].item()}" for dim in shares.dims)
    return (
        f"warning: {np.sum(met == 0)} of {np.sum(met >= 0)} attributions of {name} do not sum to "
        f"the change of their target within the tolerance: by {float(worst):.1%} at worst "
        f"({at}). They are marked by 0 in {name}_met; more --max_integration_nodes, or a "
        "baseline whose target differs more, may help"
    )


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
    declared = declare_variables(plan, num_results)
    num_bytes = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in declared.values())
    require_free_space(path, num_bytes, "--output_dir")
    shares = []
    progress = Progress(num_results, "sample")
    stream_to = streamed_results(path, file_labels(plan), declared, _provenance(plan))
    with progress, stream_to as stream, full_float32():
        start = 0
        for batch in batches_of_plan(plan):
            values = _compute(plan, batch)
            _write_batch(stream, start, values)
            shares.append(values["frames_reproduced"])
            start += len(batch.ids)
            progress.advance("saliency", len(batch.ids))
    return np.concatenate(shares)


def _provenance(plan: SaliencyPlan) -> Provenance:
    inputs = plan.source.input_hashes
    if plan.projection is not None:
        inputs["projection_data"] = plan.projection.data_hash
    return collect_provenance(plan.config, plan.config.seed, inputs)


def _write_batch(stream: ResultStream, start: int, values: dict[str, NDArray]) -> None:
    for name, value in values.items():
        stream.write(name, start, value)


def batches_of_plan(plan: SaliencyPlan) -> Iterator[SampleBatch]:
    """The plan's samples in order, in batches that share their interventions."""
    config, source = plan.config, plan.source
    if config.combine_samples_not_iterate:
        return iter([_combined(plan)])
    num_steps = config.targets.num_sim_steps
    return sample_batches(source, plan.sample_ids, plan.interventions, num_steps, plan.batch_size)


def _combined(plan: SaliencyPlan) -> SampleBatch:
    source = plan.source
    rollouts = list(read_samples(source, plan.sample_ids))
    latents = recorded_latents(rollouts, source.device)
    mean = source.simulator.simulator.bottleneck.project(latents.mean(dim=0, keepdim=True))
    # The draws of a combined sample are those of its first member.
    return SampleBatch(
        ids=np.array([rollouts[0].info.episode_id], np.int64),
        latent=mean,
        recorded_frames=None,
        intervention=plan.interventions[intervention_key(rollouts[0].info)],
        actions=given_actions(source, rollouts[:1], plan.config.targets.num_sim_steps),
    )


def _compute(plan: SaliencyPlan, batch: SampleBatch) -> dict[str, NDArray]:
    """All variables of a batch, sample first."""
    steps = _simulate_clean(plan, batch)
    clean = _clean_rows(steps)
    combined = plan.config.combine_samples_not_iterate
    units = units_of_episodes(plan.source.dataset, batch.ids)
    return {
        **clean,
        **_gradient_arrays(plan, _attribute(plan, batch)),
        **_integrated_frames(plan, batch, steps),
        **_integrated_latents(plan, batch),
        "sample_id": np.full_like(batch.ids, COMBINED_ID) if combined else batch.ids,
        "unit": np.full_like(batch.ids, COMBINED_ID) if combined else units,
        "simulator_trust": plan.trust_of(batch.ids, combined),
        "frames_reproduced": _share_reproduced(clean["frame"], batch.recorded_frames),
        "activation": _activations(plan, clean["agent_state"]),
    }


@torch.no_grad()
def _simulate_clean(plan: SaliencyPlan, batch: SampleBatch) -> SimulatedSteps:
    """All steps of the clean samples.

    In a batch as large as with perturbed copies: in a small one other kernels multiply matrices,
    whose rounding moves pixels by one level.
    """
    num_copies = plan.config.copies.num_copies
    latent = batch.latent.repeat_interleave(num_copies, dim=0)
    steps = simulate_batch(plan, batch, latent, plan.config.targets.num_sim_steps)
    return SimulatedSteps(
        **{
            name: tuple(tensor[::num_copies] for tensor in getattr(steps, name))
            for name in SimulatedSteps.__dataclass_fields__
        }
    )


def _attribute(plan: SaliencyPlan, batch: SampleBatch) -> list[Attributions]:
    """Simulate the copies of a batch once and take the gradients of all targets, by path.

    Nothing is simulated beyond the last target step: it could not matter.
    """
    config, settings = plan.config, plan.config.targets
    bottleneck = plan.source.simulator.simulator.bottleneck
    latent = perturbed_copies(bottleneck, batch.latent, batch.ids, config.copies, config.seed)
    latent.requires_grad_(True)
    edges = GradientEdges()
    steps = simulate_batch(plan, batch, latent, max(settings.target_steps) + 1, edges)

    def compute() -> Attributions:
        return attribute(
            steps,
            latent,
            plan.targets,
            settings.target_steps,
            config.copies.num_copies,
            BackwardPasses(config.gradient_method, config.gradient_precision),
            num_rows=settings.num_sim_steps,
        )

    return attribute_paths(edges, config.environment_gradients, compute)


def simulate_batch(
    plan: SaliencyPlan,
    batch: SampleBatch,
    latent: Tensor,
    num_steps: int,
    edges: GradientEdges | None = None,
) -> SimulatedSteps:
    """Run a batch again from `latent`, which holds equally many adjacent copies of each sample."""
    num_copies = len(latent) // len(batch.ids)
    actions = None
    if batch.actions is not None:
        given = batch.actions[:, :num_steps].repeat(num_copies, axis=0).T
        actions = torch.from_numpy(given).to(latent.device)
    return resimulate(
        plan.source.simulator.simulator,
        latent,
        batch.ids.repeat(num_copies),
        num_steps,
        plan.source.choices,
        batch.intervention,
        actions=actions,
        edges=edges,
    )


def _integrated_frames(
    plan: SaliencyPlan, batch: SampleBatch, steps: SimulatedSteps
) -> dict[str, NDArray]:
    """By sample and baseline."""
    flags, simulator = plan.config.integration, plan.source.simulator.simulator
    if "frames" not in flags.integrate:
        return {}
    states = simulator.initial_agent_state(batch.latent)
    found = []
    for state, frames in zip(states, torch.stack(steps.images, dim=1), strict=True):
        for name in flags.integration_baselines:
            baseline = frame_baseline(name, frames, plan.means.frame)
            found.append(
                integrate_frames(
                    simulator.agent,
                    frames,
                    baseline,
                    state,
                    plan.integrated_targets,
                    batch.intervention,
                )
            )
    shape = (len(batch.ids), len(flags.integration_baselines))
    arrays = _integrated_arrays("frame", found, shape, flags.integration_tolerance)
    return arrays | {"integrated_frame": np.moveaxis(arrays["integrated_frame"], -3, -1)}


def _integrated_latents(plan: SaliencyPlan, batch: SampleBatch) -> dict[str, NDArray]:
    if "latent" not in plan.config.integration.integrate:
        return {}
    baseline = plan.means.latent.to(batch.latent)
    found = [
        integrate_latent(
            partial(simulate_batch, plan, batch.only(index)),
            latent,
            baseline,
            plan.integrated_targets,
        )
        for index, latent in enumerate(batch.latent)
    ]
    tolerance = plan.config.integration.integration_tolerance
    return _integrated_arrays("latent", found, (len(batch.ids),), tolerance)


def _integrated_arrays(
    name: str, found: Sequence[IntegratedSample], shape: tuple[int, ...], tolerance: float
) -> dict[str, NDArray]:
    def gather(arrays: Iterator[NDArray]) -> NDArray:
        stacked = np.stack(list(arrays))
        return stacked.reshape(*shape, *stacked.shape[1:])

    return {
        f"integrated_{name}": gather(one.attribution for one in found),
        f"integrated_{name}_difference": gather(one.difference for one in found),
        f"integrated_{name}_delta": gather(one.convergence_delta for one in found),
        f"integrated_{name}_met": gather(one.meets(tolerance) for one in found),
    }


def _clean_rows(steps: SimulatedSteps) -> dict[str, NDArray]:
    """What happened in the clean samples: (S, K, ...)."""

    def gather(sequence: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(sequence), dim=1)

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
        pulled = plan.projection.pullback(agent_state[..., plan.source.hidden_slice])
        arrays["gradient_component"] = np.asarray(pulled, np.float32)
    return arrays


def _activations(plan: SaliencyPlan, agent_state: NDArray[np.float32]) -> NDArray[np.float32]:
    hidden = agent_state[..., plan.source.hidden_slice]
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
