"""Train an agent."""

from agents.trainer import train
from agents.training_config import OPERATIONAL, TrainingConfig, settings_of_run
from experiment.command_line import parse_command_line, parse_flags
from experiment.distributed import launched_ranks, only_main_speaks
from experiment.errors import run_entry_point
from experiment.report import stage_report
from experiment.runs import continued

DESCRIPTION = """Train an agent with PPO on a Procgen game (or a Gymnasium environment).

Reads a preset from hyperparams/agents.yml (--param_name); every setting can be overridden by a
flag. Writes into the run folder: agents as model_STEPS/, log.csv, TensorBoard events, and the
state from which a killed training goes on (--run_dir or --resume). Under
`torchrun --nproc_per_node=N train.py ...` N processes train one agent together."""


def main() -> None:
    """Parse the command line, train, report."""
    config = parse_command_line(TrainingConfig, DESCRIPTION, "param_name", "agents.yml")
    if config.resume is not None:
        saved = settings_of_run(config, config.resume)
        config = parse_flags(TrainingConfig, DESCRIPTION, saved)
        config = continued(config, saved.run_dir, OPERATIONAL)
    ranks = launched_ranks()
    report_file = config.report if ranks.is_main else None
    with only_main_speaks(ranks), stage_report("train_agent", report_file) as report:
        train(config, report)


if __name__ == "__main__":
    run_entry_point(main)
