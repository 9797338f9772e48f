"""Take Jacobians between the components of the agent's hidden state over all pairs of steps.

Runs the samples in `--generated_data_dir` again; writes `jacobians.nc` to `--output_dir`.
"""

from analysis.jacobian_analysis import JacobianConfig, make_plan, record_jacobians
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        JacobianConfig,
        "Take the Jacobians between all components of the agent's hidden state over all pairs of "
        "simulated steps, with and without what passes through the environment, and the effects "
        "of finite pushes; cluster the samples by their one-step Jacobians.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="jacobian",
    )
    with stage_report("jacobians", config.report) as report:
        record_jacobians(make_plan(config), report)


if __name__ == "__main__":
    run_entry_point(main)
