"""Flags of the reference system that mean nothing here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CommonReferenceFlags:
    """Flags without effect wherever a simulator is trained or used.

    They are accepted so that the reference system's command lines work as typed.
    """

    exp_name: str = "test"
    """Without effect: --gen_mod_exp_name names the simulator's training."""
    agent_param_name: str = "hard-rec"
    """Without effect: an agent file says what network it holds."""
    start_level: int = 0
    """Without effect: the levels are those of the rollouts that are read."""
    num_levels: int = 0
    """Without effect: the levels are those of the rollouts that are read."""
    distribution_mode: str = "easy"
    """Without effect: the environment is that of the rollouts that are read."""
    num_threads: int = 8
    """Without effect: no real environment is stepped."""
    log_level: int = 40
    """Without effect."""


@dataclass(frozen=True)
class ReferenceFlags(CommonReferenceFlags):
    """Flags without effect where a trained simulator is used."""

    epochs: int = 0
    """Without effect: nothing is trained."""
    num_timesteps: int = 0
    """Without effect: --num_sim_steps is the length of a sample."""
    num_checkpoints: int = 1
    """Without effect: nothing is trained."""
