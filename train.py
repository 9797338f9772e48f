"""Train an agent."""

from agents.trainer import TrainingConfig, train
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report

DESCRIPTION = """Train an agent with PPO on a Procgen game (or a Gymnasium environment).

Reads a preset from hyperparams/agents.yml (--param_name); every setting can be overridden by a
flag. Writes into the run folder: agents as model_STEPS/, log.csv, TensorBoard events, and the
state from which a killed training goes on (--run_dir or --resume)."""


def main() -> None:
    """Parse the command line, train, report."""
    config = parse_command_line(TrainingConfig, DESCRIPTION, "param_name", "agents.yml")
    with stage_report("train_agent", config.report) as report:
        train(config, report)


if __name__ == "__main__":
    run_entry_point(main)
