"""Interventions in the real environment, in agents of several kinds, and how strong they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.checkpoint import LoadedAgent, hash_agent
from agents.images import to_float_observations
from agents.intervening import UNTOUCHED, Intervening
from agents.intervention_choice import load_intervention
from agents.intervention_strength import measure_strength, write_strength
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.player import BehaviourConfig, Player
from agents.protocol import Agent
from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig
from environments.fake import fake_spec
from experiment.errors import UserError
from experiment.files import read_json
from projections.descriptions import interventions_from_descriptions
from projections.directions import DirectionChoice, load_directions
from projections.intervention import Intervention, descriptions_of
from projections.intervention_flags import InterventionConfig
from projections.interventions import Add, Clamp, DirectionIntervention, Swap
from projections.steps import ALL_STEPS, StepRange, Steps
from rollouts.store import RolloutDataset
from rollouts.types import Rollout

FAKE = fake_spec()
RECORDING = RecordingConfig(max_episodes=4, num_envs=3, seed=3, num_threads=0)
AMOUNT = 0.4


@pytest.fixture(params=["gru", "lstm"])
def agent(request: pytest.FixtureRequest, cell_first_lstm) -> LoadedAgent:
    if request.param == "lstm":
        return LoadedAgent(cell_first_lstm, FAKE, "lstm-hash", Path("agent"), 0)
    torch.manual_seed(0)
    policy = RecurrentPolicy(NetworkConfig(width=0.1, num_features=16))
    policy.policy_head.weight.data *= 100
    policy.requires_grad_(False).eval()
    return LoadedAgent(policy, FAKE, hash_agent(policy), Path("agent"), 0)


def hidden_dim(policy: Agent) -> int:
    return policy.hidden_slice.stop - policy.hidden_slice.start


@pytest.fixture
def directions_file(agent: LoadedAgent, tmp_path: Path) -> Path:
    """Two oblique directions, the second of length 1."""
    rows = np.random.default_rng(0).normal(size=(2, hidden_dim(agent.policy)))
    rows[1] /= np.linalg.norm(rows[1])
    np.save(tmp_path / "directions.npy", rows)
    return tmp_path / "directions.npy"


def intervene(
    agent: LoadedAgent, file: Path, rule: Any, steps: Steps = ALL_STEPS
) -> DirectionIntervention:
    choice = DirectionChoice("file", directions_file=str(file))
    directions = load_directions(choice, hidden_dim(agent.policy))
    return DirectionIntervention(rule, directions, agent.policy.hidden_slice, steps)


def record(agent: LoadedAgent, folder: Path, intervention: Intervention | None) -> RolloutDataset:
    intervening = UNTOUCHED if intervention is None else Intervening(intervention, "twin")
    record_episodes(agent, FAKE, folder, RECORDING, intervening=intervening)
    return RolloutDataset(folder)


def episodes(dataset: RolloutDataset) -> list[Rollout]:
    rollouts = (dataset.read_episode(index) for index in range(dataset.num_episodes))
    return sorted(rollouts, key=lambda rollout: rollout.info.episode_id)


def test_hidden_part_alone_is_changed_carried_on_and_read(agent, directions_file, tmp_path) -> None:
    policy, rule = agent.policy, Swap((0,), (1,))
    dataset = record(agent, tmp_path / "out", intervene(agent, directions_file, rule))
    directions = np.load(directions_file)
    linear = np.linalg.pinv(directions.T)
    for rollout in episodes(dataset):
        state = torch.as_tensor(rollout.info.agent_initial_state)[None]
        for t in range(len(rollout)):
            proposed = policy.advance(
                policy.embed(to_float_observations(rollout.obs[t : t + 1])), state
            )
            hidden = policy.hidden_slice
            update = linear @ (proposed - state)[0, hidden].numpy()
            expected = proposed.clone()
            moved = update[0] * (directions[1] - directions[0])
            expected[0, hidden] += torch.as_tensor(moved).float()
            np.testing.assert_allclose(rollout.agent_hidden[t], expected[0], atol=1e-5)
            logits = policy.read_out(expected).action_logits
            np.testing.assert_allclose(rollout.action_logits[t], logits[0], atol=1e-4)
            state = expected


def test_no_pairs_is_the_twin_to_the_last_bit(agent, directions_file, tmp_path) -> None:
    idle = record(agent, tmp_path / "out", intervene(agent, directions_file, Swap((), ())))
    for found, twin in zip(
        episodes(idle), episodes(record(agent, tmp_path / "twin", None)), strict=True
    ):
        for name in ("obs", "agent_hidden", "action_logits", "value", "action", "reward"):
            np.testing.assert_array_equal(getattr(found, name), getattr(twin, name), err_msg=name)


def test_steps_count_from_the_beginning_of_the_episode(agent, directions_file, tmp_path) -> None:
    late = intervene(agent, directions_file, Add((1,), (AMOUNT,), "coordinate"), StepRange(2))
    changed = episodes(record(agent, tmp_path / "out", late))
    twins = episodes(record(agent, tmp_path / "twin", None))
    assert max(len(rollout) for rollout in changed) > 2
    for found, twin in zip(changed, twins, strict=True):
        # The policy is run on batches of another composition.
        np.testing.assert_allclose(found.agent_hidden[:2], twin.agent_hidden[:2], atol=1e-5)
        np.testing.assert_array_equal(found.obs[:3], twin.obs[:3])
        assert (np.abs(found.agent_hidden[2:3] - twin.agent_hidden[2:3]).max(axis=1) > 0.01).all()


def test_strength_of_an_addition_is_its_length(agent, directions_file, tmp_path) -> None:
    steps = StepRange(1, 3)
    added = intervene(agent, directions_file, Add((1,), (AMOUNT,), "coordinate"), steps)
    dataset = record(agent, tmp_path / "out", added)
    strength = write_strength(agent.policy, tmp_path / "out")
    assert strength.mean_change_norm == pytest.approx(AMOUNT, rel=1e-5)
    assert strength.standard_error == pytest.approx(0.0, abs=1e-6)
    lengths = dataset.episodes["length"].to_numpy()
    expected = np.clip(lengths - 1, 0, 2).sum() / lengths.sum()
    assert strength.share_of_rows_changed == pytest.approx(expected)
    hidden = dataset.read_field("agent_hidden")[:, agent.policy.hidden_slice]
    outside = np.mean(np.abs(hidden).max(axis=1) > 1)
    assert strength.share_of_rows_outside_unit_box == pytest.approx(outside)
    assert read_json(tmp_path / "out/intervention.json")["measured_episodes"] == 4
    first = measure_strength(agent.policy, dataset, max_rows=1)
    assert (first.measured_episodes, first.standard_error) == (1, None)


def test_strength_of_a_clamp_equals_a_slow_reference(agent, directions_file, tmp_path) -> None:
    clamp = intervene(agent, directions_file, Clamp((0,), (0.5,), "coordinate"))
    dataset = record(agent, tmp_path / "out", clamp)
    norms = []
    for rollout in episodes(dataset):
        state = torch.as_tensor(rollout.info.agent_initial_state)[None]
        for t in range(len(rollout)):
            images = to_float_observations(rollout.obs[t : t + 1])
            proposed = agent.policy.advance(agent.policy.embed(images), state)
            state = torch.as_tensor(rollout.agent_hidden[t])[None]
            norms.append(float((state - proposed).norm()))
    strength = measure_strength(agent.policy, dataset)
    assert strength.mean_change_norm == pytest.approx(np.mean(norms), rel=1e-4)
    assert strength.share_of_rows_changed == 1.0


def flags(file: Path, **changes: Any) -> InterventionConfig:
    settings: dict[str, Any] = {
        "clamp_directions": (0,),
        "clamp_values": (0.5,),
        "amount_unit": "coordinate",
        "direction_type": "file",
        "directions_file": file,
    }
    return InterventionConfig(**{**settings, **changes})


def test_a_control_is_as_strong_as_the_recorded_intervention(
    agent, directions_file, tmp_path
) -> None:
    device = torch.device("cpu")
    tested = load_intervention(flags(directions_file), agent, device)
    dataset = record(agent, tmp_path / "tested", tested)
    expected = measure_strength(agent.policy, dataset)
    norm_of = {"intervention_control": "random", "control_norm_of": tmp_path / "tested"}
    control = load_intervention(flags(directions_file, **norm_of), agent, device)
    (description,) = descriptions_of(control)
    assert description["norm"]["dataset_hash"] == dataset.hash
    assert interventions_from_descriptions([description]) is not None
    controlled = record(agent, tmp_path / "control", control)
    found = measure_strength(agent.policy, controlled)
    assert found.mean_change_norm == pytest.approx(expected.mean_change_norm, rel=1e-3)
    assert found.share_of_rows_changed == expected.share_of_rows_changed == 1.0
    # Without a measured norm the clamped coordinate's distance, never closed, counts anew.
    unmatched = flags(directions_file, intervention_control="random")
    unmatched = record(agent, tmp_path / "unmatched", load_intervention(unmatched, agent, device))
    assert measure_strength(agent.policy, unmatched).mean_change_norm > expected.mean_change_norm


def test_the_norm_of_something_else_is_refused(agent, directions_file, tmp_path) -> None:
    device = torch.device("cpu")
    record(agent, tmp_path / "twin", None)
    tested = load_intervention(flags(directions_file), agent, device)
    record(agent, tmp_path / "tested", tested)
    control: dict[str, Any] = {"intervention_control": "random"}
    config = flags(directions_file, **control, control_norm_of=tmp_path / "twin")
    with pytest.raises(UserError, match="is no recording of the intervention"):
        load_intervention(config, agent, device)
    other = flags(
        directions_file, **control, control_norm_of=tmp_path / "tested", clamp_values=(0.6,)
    )
    with pytest.raises(UserError, match="is no recording of the intervention"):
        load_intervention(other, agent, device)
    stranger = LoadedAgent(agent.policy, FAKE, "stranger", Path("agent"), 0)
    config = flags(directions_file, **control, control_norm_of=tmp_path / "tested")
    with pytest.raises(UserError, match=r"recorded with agent .*, now it is stranger"):
        load_intervention(config, stranger, device)
    with pytest.raises(UserError, match="was recorded without an intervention"):
        measure_strength(agent.policy, RolloutDataset(tmp_path / "twin"))


class Failing:
    def __call__(self, previous: torch.Tensor, proposed: torch.Tensor, step: int) -> torch.Tensor:
        proposed.add_(1.0)
        raise RuntimeError("midway")

    def describe(self) -> dict[str, Any]:
        return {"kind": "failing"}


def test_nothing_stays_attached_after_an_exception(agent) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *FAKE.obs_shape), np.uint8)
    ids = rows = np.arange(2)

    def decide(intervention: Intervention | None) -> np.ndarray:
        player = Player(agent.policy, BehaviourConfig(), intervention=intervention)
        state = torch.full((2, agent.policy.state_dim), 0.1)
        return player.decide(frames, state, ids, rows).agent_hidden

    before = decide(None)
    with pytest.raises(RuntimeError, match="midway"):
        decide(Failing())
    np.testing.assert_array_equal(decide(None), before)
