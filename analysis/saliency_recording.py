"""Computes saliency for many samples and keeps it: raw values in one file, pictures of a few."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from agents.player import full_float32
from analysis.results import SALIENCY_NAME, ResultStream, streamed_results
from analysis.saliency import Attributions, attribute, perturbed_copies, resimulate
from analysis.saliency_file import COMBINED_ID, declare_variables, file_labels
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
from experiment.provenance import Provenance, collect_provenance
from experiment.report import StageReport
from generative.types import SimulatedSteps


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
    declared = declare_variables(plan, num_results)
    num_bytes = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in declared.values())
    require_free_space(path, num_bytes, "--output_dir")
    shares = []
    progress = tqdm(total=num_results, desc="saliency", unit="sample", mininterval=1.0)
    stream_to = streamed_results(path, file_labels(plan), declared, _provenance(plan))
    with progress, stream_to as stream, full_float32():
        start = 0
        for batch in _batches(plan):
            values = _compute(plan, batch)
            _write_batch(stream, start, values)
            shares.append(values["frames_reproduced"])
            start += len(batch.ids)
            progress.update(len(batch.ids))
    return np.concatenate(shares)


def _provenance(plan: SaliencyPlan) -> Provenance:
    inputs = plan.source.input_hashes
    if plan.projection is not None:
        inputs["projection_data"] = plan.projection.data_hash
    return collect_provenance(plan.config, plan.config.seed, inputs)


def _write_batch(stream: ResultStream, start: int, values: dict[str, NDArray]) -> None:
    for name, value in values.items():
        stream.write(name, start, value)


def _batches(plan: SaliencyPlan) -> Iterator[SampleBatch]:
    config, source = plan.config, plan.source
    if config.combine_samples_not_iterate:
        return iter([_combined(plan)])
    num_steps = config.targets.num_sim_steps
    return sample_batches(source, plan.sample_ids, plan.interventions, num_steps, config.batch_size)


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
    config = plan.config
    attributions, clean = [], {}
    for variant in config.environment_gradients:
        steps, found = _attribute(plan, batch, is_cut=variant == "cut")
        attributions.append(found)
        # Cutting changes gradients only, so every variant has the same clean rows.
        clean = clean or _clean_rows(steps, config.copies.num_copies)
    combined = config.combine_samples_not_iterate
    return {
        **clean,
        **_gradient_arrays(plan, attributions),
        "sample_id": np.full_like(batch.ids, COMBINED_ID) if combined else batch.ids,
        "frames_reproduced": _share_reproduced(clean["frame"], batch.recorded_frames),
        "activation": _activations(plan, clean["agent_state"]),
    }


def _attribute(
    plan: SaliencyPlan, batch: SampleBatch, is_cut: bool
) -> tuple[SimulatedSteps, Attributions]:
    """Simulate the copies of a batch again and take the gradients of all targets."""
    config, settings = plan.config, plan.config.targets
    num_copies = config.copies.num_copies
    simulator = plan.source.simulator.simulator
    latent = perturbed_copies(
        simulator.bottleneck, batch.latent, batch.ids, config.copies, config.seed
    )
    latent.requires_grad_(True)
    steps = resimulate(
        simulator,
        latent,
        batch.ids.repeat(num_copies),
        settings.num_sim_steps,
        plan.source.choices,
        batch.intervention,
        cut_environment_gradient=is_cut,
        actions=batch.actions_for(num_copies),
    )
    found = attribute(
        steps, latent, plan.targets, settings.target_steps, num_copies, config.gradient_method
    )
    return steps, found


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
