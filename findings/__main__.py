"""`python -m findings --results FOLDER`: write the report on what a chain made."""

from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report
from findings.report import ReportConfig, write_report


def main() -> None:
    """Write the report."""
    config = parse_flags(
        ReportConfig,
        "Write one page of figures and numbers on an agent and its simulator, read from the result "
        "files of a chain: what the main directions encode, which causal statements survive, what "
        "swapping and collapsing them does in simulation and in reality, and how far simulator and "
        "saliency can be trusted.",
    )
    with stage_report("report", config.report) as report:
        write_report(config, report)


if __name__ == "__main__":
    run_entry_point(main)
