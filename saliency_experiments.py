"""Ask what in its frames, its memory and its environment moves the agent's value and actions."""

from analysis.saliency_config import SaliencyConfig
from analysis.saliency_plan import make_plan
from analysis.saliency_recording import record_saliency
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Compute saliency of simulated samples."""
    config = parse_command_line(
        SaliencyConfig,
        "Simulate recorded samples again and take gradients of the agent's value, action and "
        "hidden directions with respect to frames, agent state and environment state. Raw signed "
        "values go to saliency.nc; strips and videos are drawn from it.",
        preset_flag="interpreting_params_name",
        preset_file="saliency.yml",
    )
    with stage_report("saliency", config.report) as report:
        record_saliency(make_plan(config), report)


if __name__ == "__main__":
    run_entry_point(main)
