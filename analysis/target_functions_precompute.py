"""Search latents whose simulations drive the agent as far as possible."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
import xarray as xr
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent, load_chosen_agent
from analysis.results import TARGET_FUNCTIONS_NAME, write_results
from analysis.target_functions import (
    AscentConfig,
    AscentResult,
    LatentAscent,
    TargetFunction,
    make_target_functions,
)
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import require_at_least, run_entry_point
from experiment.files import atomic_file, require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.checkpoint import (
    LoadedSimulator,
    load_simulator,
    newest_simulator,
    read_environment,
)
from generative.sample_starts import GivenStarts
from generative.sample_videos import write_sample_videos
from generative.sampling import SamplingConfig, SamplingPlan, record_samples
from projections.hidden import TorchProjection, load_fitting_projection
from rollouts.description import read_metadata

DESCRIPTION = """Search latents whose simulations drive the agent as far as possible.

For each target function, latents climb along the gradient of the whole simulation, on the latents
that can occur, and are compared with the best of as many random latents. Writes
OUTPUT_DIR/target_functions.nc; the best latents, their simulations and videos go to
OUTPUT_DIR/TARGET/, whose latents.npy record_gen_samples.py takes as --latent_file."""


@dataclass(frozen=True)
class TargetFunctionsCommand:
    """Flags of `target_functions_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/target_functions.yml: defaults, demo, tiny."""
    target_functions: tuple[str, ...] = (
        *("increase_value", "decrease_value", "increase_value_delta", "decrease_value_delta"),
        *("increase_hx_direction_0", "decrease_hx_direction_0"),
    )
    """What to maximise: increase_ or decrease_ before value, value_delta, hx_direction_D or
    hx_neuron_U; or action_A, by name or number."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent, as record.py's --model_file takes it; by default the one that recorded DATA_DIR.
    """
    data_dir: Path = Path("data")
    """Real rollouts, which name the agent where no --agent_file does."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """Fitted projection, for directions; not read without any."""
    output_dir: Path = Path("analysis/target_functions")
    """Folder for the result, latents and videos."""
    ascent: Annotated[AscentConfig, tyro.conf.arg(name="")] = field(default_factory=AscentConfig)
    """How latents are searched for."""
    num_videos: int = 4
    """Videos of each target function, its best latents first."""
    seed: int = 0
    """Decides random latents, and which worse ones are kept."""
    device: str = "auto"
    """Where the networks run: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""


def precompute(config: TargetFunctionsCommand, report: StageReport) -> Path:
    """Load what the flags name, climb, write; returns the result's path."""
    require_at_least(config, "num_videos", least=0)
    model_file = config.model_file or newest_simulator(config.gen_mod_exp_name)
    device = resolve_device(config.device, config.gpu_device)
    recorded = None if config.agent_file else read_metadata(config.data_dir).agent_file
    agent = load_chosen_agent(
        config.agent_file,
        recorded or "",
        f"--data_dir {config.data_dir}",
        read_environment(model_file),
        device,
    )
    simulator = load_simulator(model_file, agent, device)
    targets = _targets(config, agent, simulator)
    require_writable_folder(config.output_dir, "--output_dir")
    results: list[AscentResult] = []
    for number, target in enumerate(targets, start=1):
        print(f"{target.name} ({number} of {len(targets)})", flush=True)
        result = LatentAscent(simulator.simulator, target, config.ascent, config.seed).run()
        _keep_simulations(config, target.name, result, simulator, agent)
        results.append(result)
        print(_describe(target.name, result), flush=True)
    path = config.output_dir / TARGET_FUNCTIONS_NAME
    hashes = {"agent": agent.hash, "simulator": simulator.hash}
    dataset = to_dataset([target.name for target in targets], results)
    write_results(path, dataset, collect_provenance(config, config.seed, hashes))
    report.outputs.append(str(path))
    report.metrics.update(
        {t.name: _describe(t.name, r) for t, r in zip(targets, results, strict=True)}
    )
    return path


def _targets(
    config: TargetFunctionsCommand, agent: LoadedAgent, simulator: LoadedSimulator
) -> list[TargetFunction]:
    hidden_slice, projection = agent.policy.hidden_slice, None
    if any("hx_direction" in name for name in config.target_functions):
        projection = TorchProjection(load_fitting_projection(config.projection, hidden_slice))
        projection.to(next(simulator.simulator.parameters()).device)
    return make_target_functions(
        config.target_functions,
        simulator.environment.action_names,
        hidden_slice,
        projection,
        config.ascent.target_step,
    )


def _keep_simulations(
    config: TargetFunctionsCommand,
    name: str,
    result: AscentResult,
    simulator: LoadedSimulator,
    agent: LoadedAgent,
) -> None:
    """Latents, best first, with their simulations as rollouts and as videos."""
    folder = config.output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(-result.best_score)
    latents = folder / "latents.npy"
    with atomic_file(latents) as path, path.open("wb") as file:
        np.save(file, result.latent[order])
    plan = SamplingPlan(
        simulator,
        agent,
        GivenStarts(latents, simulator),
        SamplingConfig(len(order), config.ascent.num_sim_steps, latent_file=latents),
    )
    # Other latents are other simulations: each set has a folder of its own.
    samples = folder / f"samples-{plan.source.input_hash[:8]}"
    record_samples(plan, samples)
    write_sample_videos(samples, config.num_videos)


def _describe(name: str, result: AscentResult) -> str:
    start, best, control = (
        float(scores.mean())
        for scores in (result.history[0], result.best_score, result.control_score)
    )
    won = int(np.sum(result.best_score > result.control_score.max()))
    return (
        f"{name}: {start:.3f} at random, {best:.3f} found in {len(result.history) - 1} steps; best "
        f"of as many random latents {control:.3f}; {won} of {len(result.best_score)} copies are "
        "above all of these"
    )


def to_dataset(names: list[str], results: list[AscentResult]) -> xr.Dataset:
    """Label everything; a search that stopped early has NaN for the iterations that it saved."""
    length = max(len(result.history) for result in results)
    history = np.stack([_padded(result.history, length) for result in results])
    per_copy = ("target", "copy")
    return xr.Dataset(
        {
            "score": (
                ("target", "iteration", "copy"),
                history,
                {"long_name": "score of the latent that a copy stands at; higher is better"},
            ),
            "best_score": (per_copy, np.stack([result.best_score for result in results])),
            "control_score": (
                per_copy,
                np.stack([result.control_score for result in results]),
                {"long_name": "best score of as many random latents"},
            ),
            "latent": (
                (*per_copy, "latent_dim"),
                np.stack([result.latent for result in results]),
                {"long_name": "best latent of each copy"},
            ),
        },
        coords={"target": names, "iteration": np.arange(length)},
    )


def _padded(history: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.pad(history, ((0, length - len(history)), (0, 0)), constant_values=np.nan)


def main() -> None:
    """Parse the command line, search, report."""
    config = parse_command_line(
        TargetFunctionsCommand,
        DESCRIPTION,
        preset_flag="interpreting_params_name",
        preset_file="target_functions.yml",
    )
    with stage_report("target_functions", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
