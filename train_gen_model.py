"""Train a simulator of an agent's environment."""

from experiment.command_line import parse_command_line, parse_flags
from experiment.distributed import launched_ranks, only_main_speaks
from experiment.errors import run_entry_point
from experiment.report import stage_report
from experiment.runs import continued
from generative.trainer import (
    OPERATIONAL,
    SimulatorTrainingConfig,
    settings_of_run,
    train_simulator,
)

DESCRIPTION = """Train a simulator: a model that, from a few frames, sets up an environment state
and an agent state and rolls both forward, the frozen agent acting on the simulator's own images.

Reads rollouts made by record.py (--data_dir), the agent that made them, and a preset from
hyperparams/simulator.yml (--interpreting_params_name); every setting can be overridden by a flag.
Writes into the run folder: simulators as model_STEP/, log.csv, TensorBoard events, and the state
from which a killed training goes on (--run_dir or --resume). Under
`torchrun --nproc_per_node=N train_gen_model.py ...` N processes train one simulator together."""


def main() -> None:
    """Parse the command line, train, report."""
    config = parse_command_line(
        SimulatorTrainingConfig,
        DESCRIPTION,
        "interpreting_params_name",
        "simulator.yml",
        "training",
    )
    if config.resume is not None:
        saved = settings_of_run(config, config.resume)
        config = parse_flags(SimulatorTrainingConfig, DESCRIPTION, saved)
        config = continued(config, saved.run_dir, OPERATIONAL)
    ranks = launched_ranks()
    report_file = config.report if ranks.is_main else None
    with only_main_speaks(ranks), stage_report("train_simulator", report_file) as report:
        train_simulator(config, report)


if __name__ == "__main__":
    run_entry_point(main)
