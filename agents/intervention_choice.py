"""The intervention that a command's flags ask for, made for the agent that is loaded."""

from pathlib import Path

import torch

from agents.checkpoint import LoadedAgent
from agents.intervention_strength import measure_strength
from experiment.errors import UserError
from projections.controls import MeasuredNorm
from projections.intervention import MovableIntervention, descriptions_of
from projections.intervention_flags import InterventionConfig, make_control, make_intervention
from rollouts.store import RolloutDataset


def load_intervention(
    config: InterventionConfig, agent: LoadedAgent, device: torch.device
) -> MovableIntervention | None:
    """The intervention, or its control, that the flags describe; None when they ask for none.

    Args:
        config: the flags.
        agent: whose hidden state it changes.
        device: where the agent is.

    Raises:
        UserError: see `make_intervention`; or the recording that --control_norm_of names is of
            another agent or intervention, or changes nothing.
    """
    hidden_slice = agent.policy.hidden_slice
    tested = make_intervention(config, hidden_slice)
    if tested is None:
        return None
    norm = None
    if config.control_norm_of is not None:
        norm = _measure_norm(config.control_norm_of, tested, agent, device)
    return make_control(config, tested, hidden_slice, norm).to(device)


def _measure_norm(
    folder: Path, tested: MovableIntervention, agent: LoadedAgent, device: torch.device
) -> MeasuredNorm:
    dataset = RolloutDataset(folder)
    flag = f"--control_norm_of {folder}"
    if dataset.metadata.agent_hash != agent.hash:
        raise UserError(
            f"{flag}: recorded with agent {dataset.metadata.agent_hash[:12]}, now it is "
            f"{agent.hash[:12]}"
        )
    recorded = dataset.metadata.provenance.get("config", {}).get("interventions")
    if recorded != list(descriptions_of(tested)):
        raise UserError(
            f"{flag}: is no recording of the intervention that the other flags describe; expected "
            "one made with the same flags and --intervention_control none"
        )
    strength = measure_strength(agent.policy, dataset, device)
    if strength.mean_change_norm == 0.0:
        raise UserError(f"{flag}: the intervention changed nothing there")
    # Devices differ in the last digits; a recording that is continued must ask for the same.
    return MeasuredNorm(float(f"{strength.mean_change_norm:.4g}"), dataset.hash)
