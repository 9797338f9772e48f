"""Draw which components of the hidden state drive which action, and the value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import tyro

from agents.checkpoint import LoadedAgent, load_chosen_agent
from analysis.figure_style import save_figure
from analysis.readout_weights import draw_readout, read_components, read_heads, readout_dataset
from analysis.results import READOUT_NAME, read_results, write_results
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.reference_flags import ReferenceFlags
from projections.hidden import HiddenProjection, Method
from rollouts.description import read_metadata

DESCRIPTION = """Express the agent's action and value heads in the components of a projection and
draw them as heat maps: OUTPUT_DIR/act_and_val_weights.png and .pdf, and the numbers in
act_and_val_weights.nc. Biases are those at the origin of the components, the mean hidden state."""


@dataclass(frozen=True)
class ReadoutReferenceFlags(ReferenceFlags):
    """Flags of the reference system's script without effect here."""

    gen_mod_exp_name: str = "test_tgm"
    """Without effect: the heads are the agent's own."""
    model_file: Path | None = None
    """Without effect: the heads are the agent's own."""
    recording_rand_init: bool = False
    """Without effect: nothing is simulated."""
    generated_data_dir: Path | None = None
    """Without effect: nothing simulated is read."""
    env_name: str | None = None
    """Without effect: the environment is that of the rollouts."""
    seed: int = 0
    """Without effect: nothing is drawn at random."""


@dataclass(frozen=True)
class ReadoutConfig:
    """Flags of `plot_value_and_action_weights.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/readout_weights.yml that the other values are taken from."""
    agent_file: str | None = None
    """The agent, as record.py's --model_file takes it; by default the one that DATA_DIR names."""
    data_dir: Path = Path("data")
    """Rollouts of the agent, which name it and its actions."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """The projection, fitted to hidden states of the same agent."""
    direction_type: Method = "ica"
    """ica, nmf: as the projection was fitted; pca."""
    output_dir: Path = Path("analysis/plot_act_and_val_weights")
    """Folder for figure and numbers."""
    dpi: int = 130
    """Resolution of the PNG."""
    device: str = "auto"
    """Where the agent is loaded: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""
    unused: Annotated[ReadoutReferenceFlags, tyro.conf.arg(name="")] = field(
        default_factory=ReadoutReferenceFlags
    )
    """Flags of the reference system without effect here."""


def plot_weights(config: ReadoutConfig, report: StageReport) -> Path:
    """Write the numbers and the figure; returns the PNG.

    Raises:
        UserError: agent, rollouts or projection are missing or do not belong together.
    """
    require_at_least(config, "dpi")
    device = resolve_device(config.device, config.gpu_device)
    projection = HiddenProjection.load(config.projection)
    metadata = read_metadata(config.data_dir)
    source = f"--data_dir {config.data_dir}"
    agent = load_chosen_agent(
        config.agent_file, metadata.agent_file, source, metadata.environment, device
    )
    _require_same_agent(config, projection, agent)
    readout = read_components(read_heads(agent), projection, config.direction_type)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    results = readout_dataset(readout, metadata.environment.action_names)
    inputs = {"agent": agent.hash, "projection": projection.data_hash}
    path = folder / READOUT_NAME
    write_results(path, results, collect_provenance(config, 0, inputs))
    with read_results(path) as written, mpl.rc_context({"font.size": 8, "pdf.fonttype": 42}):
        picture = save_figure(draw_readout(written.load()), path.with_suffix(""), config.dpi)
    report.outputs += [str(path), str(picture)]
    report.metrics["least_variance_share"] = round(float(readout.variance_share.min()), 4)
    return picture


def _require_same_agent(
    config: ReadoutConfig, projection: HiddenProjection, agent: LoadedAgent
) -> None:
    fitted_on = (projection.provenance_ or {}).get("inputs", {}).get("agent", agent.hash)
    if fitted_on != agent.hash:
        raise UserError(
            f"--projection {config.projection}: fitted to hidden states of agent "
            f"{fitted_on[:12]}, the agent {agent.path} is {agent.hash[:12]}"
        )


def main() -> None:
    """Parse the command line, draw."""
    config = parse_command_line(
        ReadoutConfig, DESCRIPTION, "interpreting_params_name", "readout_weights.yml"
    )
    with stage_report("readout_weights", config.report) as report:
        plot_weights(config, report)


if __name__ == "__main__":
    run_entry_point(main)
