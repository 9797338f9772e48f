"""Branches of recorded episodes: the same situation, and only what was asked for differs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.branching import BranchConfig, BranchPlan, noise_id, record_branches
from agents.checkpoint import LoadedAgent, hash_agent
from agents.intervening import Intervening
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig
from agents.replay import SourceRow, restore_points
from environments.factory import EnvironmentConfig, environment_spec
from environments.fake import FakeEnvironment
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.randomness import keyed_uniform, sample_categorical
from rollouts.schema import SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import Rollout

FAKE = environment_spec(EnvironmentConfig(env_name="fake"))
COINRUN = environment_spec(EnvironmentConfig(env_name="coinrun"))
STARPILOT = environment_spec(EnvironmentConfig(env_name="starpilot"))
ONE_BY_ONE = RecordingConfig(max_episodes=3, num_envs=1, seed=8, num_threads=0)
EXACT_FIELDS = ("obs", "action", "reward", "done")
AGENT_FIELDS = ("agent_hidden", "action_logits", "value", "behaviour_log_prob")


def make_agent(spec: EnvironmentSpec, seed: int = 0) -> LoadedAgent:
    torch.manual_seed(seed)
    policy = RecurrentPolicy(NetworkConfig(width=0.25, num_features=16))
    # The initial heads are all but uniform, which would hide mistakes.
    policy.policy_head.weight.data *= 100
    policy.policy_head.bias.data[7:9] += 3
    policy.requires_grad_(False).eval()
    return LoadedAgent(policy, spec, hash_agent(policy), Path("agent"), 0)


def record_sources(
    folder: Path, spec: EnvironmentSpec, intervening: Intervening | None = None, **changes: Any
) -> Path:
    config = replace(ONE_BY_ONE, **changes)
    how = intervening or Intervening()
    record_episodes(make_agent(spec), spec, folder, config, intervening=how)
    return folder


@pytest.fixture(scope="module", params=[FAKE, COINRUN, STARPILOT], ids=lambda spec: spec.name)
def source_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Episodes of a real game are long: one is enough.
    count = 3 if request.param is FAKE else 1
    folder = tmp_path_factory.mktemp("sources") / "data"
    return record_sources(folder, request.param, max_episodes=count)


@pytest.fixture(scope="module")
def fake_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_sources(tmp_path_factory.mktemp("fakes") / "data", FAKE, max_episodes=8)


def make_plan(
    source: Path,
    episode: int | tuple[int, ...],
    step: int | tuple[int, ...],
    recording: RecordingConfig = ONE_BY_ONE,
    intervening: Intervening | None = None,
    **settings: Any,
) -> BranchPlan:
    config = BranchConfig(
        branch_from=source,
        episode=(episode,) if isinstance(episode, int) else episode,
        step=(step,) if isinstance(step, int) else step,
        **settings,
    )
    dataset = RolloutDataset(source)
    agent = make_agent(dataset.metadata.environment)
    return BranchPlan(agent, dataset, config, recording, intervening or Intervening())


def read_episodes(folder: Path) -> dict[int, Rollout]:
    dataset = RolloutDataset(folder)
    rollouts = [dataset.read_episode(index) for index in range(dataset.num_episodes)]
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def branch(plan: BranchPlan, folder: Path) -> dict[int, Rollout]:
    record_branches(plan, folder)
    return read_episodes(folder)


def assert_equal_rows(
    left: Rollout, right: Rollout, names: tuple[str, ...] = EXACT_FIELDS + AGENT_FIELDS
) -> None:
    for name in names:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def rows_from(rollout: Rollout, start: int, stop: int | None = None) -> Rollout:
    names = EXACT_FIELDS + AGENT_FIELDS
    return replace(rollout, **{name: getattr(rollout, name)[start:stop] for name in names})


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_replayed_actions_reproduce_the_episode_bit_for_bit(
    source_folder: Path, place: str, tmp_path: Path
) -> None:
    metadata = RolloutDataset(source_folder).metadata
    for episode_id, source in read_episodes(source_folder).items():
        step = {"first": 0, "middle": len(source) // 2, "last": len(source) - 1}[place]
        plan = make_plan(source_folder, episode_id, step, branch_actions="recorded")
        (found,) = branch(plan, tmp_path / str(episode_id)).values()
        assert_equal_rows(found, rows_from(source, step))
        assert found.info.initialisation == "branched"
        assert (found.info.source_episode_id, found.info.source_row) == (episode_id, step)
        expected_state = source.agent_hidden[step - 1] if step else source.info.agent_initial_state
        np.testing.assert_array_equal(found.info.agent_initial_state, expected_state)
        for name in ("level_seed", "level_complete", "truncated", "cut"):
            assert getattr(found.info, name) == getattr(source.info, name), name
        assert (found.game is None) == (source.game is None) == (metadata.environment == FAKE)
        if found.game is not None and source.game is not None:
            for name in ("variables", "camera", "num_entities"):
                expected = getattr(source.game, name)[step:]
                np.testing.assert_array_equal(getattr(found.game, name), expected, err_msg=name)
            num_rows = len(found.game.entities)
            np.testing.assert_array_equal(found.game.entities, source.game.entities[-num_rows:])


def test_batch_changes_environment_nowhere_and_agent_by_rounding(
    source_folder: Path, tmp_path: Path
) -> None:
    source = read_episodes(source_folder)[0]
    recording, steps = replace(ONE_BY_ONE, num_envs=5), (1, 0, 3)
    plan = make_plan(
        source_folder, 0, steps, recording, branches=2, branch_actions="recorded", branch_steps=40
    )
    for episode_id, found in branch(plan, tmp_path).items():
        step = steps[episode_id % 3]
        assert found.info.source_row == step
        expected = rows_from(source, step, step + 40)
        assert_equal_rows(found, expected, EXACT_FIELDS)
        for name in AGENT_FIELDS:
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name
            )


def test_branches_draw_by_keys_of_their_own(fake_folder: Path, tmp_path: Path) -> None:
    episodes = branch(make_plan(fake_folder, 1, 2, branches=12), tmp_path)
    for branch_index, rollout in episodes.items():
        noise = noise_id(SourceRow(1, 2), branch_index)
        uniform = keyed_uniform(ONE_BY_ONE.seed, "action", noise, 2 + np.arange(len(rollout)))[:, 0]
        logits = rollout.action_logits.astype(np.float64)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(rollout.action, sample_categorical(probabilities, uniform))
    assert len({tuple(rollout.action) for rollout in episodes.values()}) > 6
    for rollout in episodes.values():
        np.testing.assert_array_equal(rollout.obs[0], episodes[0].obs[0])
        np.testing.assert_array_equal(rollout.agent_hidden[0], episodes[0].agent_hidden[0])


def test_number_of_points_branches_and_environments_changes_no_branch(
    fake_folder: Path, tmp_path: Path
) -> None:
    alone = branch(make_plan(fake_folder, 4, 1, branches=2), tmp_path / "alone")
    together = branch(
        make_plan(fake_folder, (2, 4, 5), (3, 1, 0), replace(ONE_BY_ONE, num_envs=7), branches=4),
        tmp_path / "together",
    )
    assert sorted(together) == list(range(12))
    for branch_index, rollout in alone.items():
        assert_equal_rows(rollout, together[branch_index * 3 + 1], EXACT_FIELDS)


def test_each_action_is_forced_once_and_changes_what_follows(
    source_folder: Path, tmp_path: Path
) -> None:
    plan = make_plan(source_folder, 0, 4, force_action="each", branch_steps=8)
    episodes = branch(plan, tmp_path)
    num_actions = plan.environment.num_actions
    assert sorted(episodes) == list(range(num_actions))
    for action, rollout in episodes.items():
        assert rollout.action[0] == action
        assert rollout.behaviour_log_prob[0] == 0
        assert rollout.info.interventions == (
            {"kind": "forced_action", "row": 4, "action": action},
        )
        assert len(rollout) <= 8
        assert rollout.info.cut == (not rollout.done[-1])
        np.testing.assert_array_equal(rollout.obs[0], episodes[0].obs[0])
    left, right = (plan.environment.action_names.index(name) for name in ("left", "right"))
    assert (episodes[left].obs[1] != episodes[right].obs[1]).any()


def test_equal_actions_from_one_state_lead_to_equal_frames_in_games_with_chance(
    tmp_path: Path,
) -> None:
    """StarPilot draws enemies as it goes: its generator is part of the restored state."""
    source = record_sources(tmp_path / "data", STARPILOT, max_episodes=1)
    step = 5
    recorded = read_episodes(source)[0]
    plan = make_plan(source, 0, step, branches=2, branch_actions="recorded")
    two = branch(plan, tmp_path / "same")
    assert_equal_rows(two[0], two[1])
    assert len(two[0]) == len(recorded) - step > 40
    taken = int(recorded.action[step])
    other = "left" if taken != 1 else "right"
    forced = make_plan(source, 0, step, branch_actions="recorded", force_action=other)
    (changed,) = branch(forced, tmp_path / "other").values()
    np.testing.assert_array_equal(
        changed.action[1:], recorded.action[step + 1 :][: len(changed) - 1]
    )
    np.testing.assert_array_equal(changed.obs[0], recorded.obs[step])
    assert (changed.obs[1] != recorded.obs[step + 1]).any()


def test_forced_action_by_name_and_by_number_is_the_same(fake_folder: Path, tmp_path: Path) -> None:
    number = FAKE.action_names.index("up")
    named = branch(make_plan(fake_folder, 1, 1, force_action="up", branches=2), tmp_path / "a")
    counted = make_plan(fake_folder, 1, 1, force_action=str(number), branches=2)
    for episode_id, rollout in branch(counted, tmp_path / "b").items():
        assert_equal_rows(rollout, named[episode_id])


class AddRow:
    """Adds the row's number, scaled, to the first hidden unit."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        self.rows.append(step)
        modified = proposed.clone()
        modified[:, 0] += 0.01 * step
        return modified

    def describe(self) -> dict[str, Any]:
        return {"kind": "add_row"}


def test_intervention_acts_on_what_is_carried_on_and_read(
    fake_folder: Path, tmp_path: Path
) -> None:
    intervention = AddRow()
    step, intervening = 2, Intervening(intervention, "out_twin")
    settings: dict[str, Any] = {"branches": 3, "branch_steps": 5}
    plan = make_plan(fake_folder, 1, step, intervening=intervening, **settings)
    policy = plan.agent.policy
    twins = branch(make_plan(fake_folder, 1, step, **settings), tmp_path / "out_twin")
    for episode_id, rollout in branch(plan, tmp_path / "out").items():
        assert rollout.info.twin_of == episode_id
        assert rollout.info.interventions == ({"kind": "add_row"},)
        state = torch.as_tensor(rollout.info.agent_initial_state)[None]
        for t in range(len(rollout)):
            images = torch.as_tensor(rollout.obs[t : t + 1]).permute(0, 3, 1, 2) / 255
            state = policy.advance(policy.embed(images), state).clone()
            state[:, 0] += 0.01 * t
            np.testing.assert_allclose(rollout.agent_hidden[t], state[0], atol=1e-5)
            logits = policy.read_out(state).action_logits
            np.testing.assert_allclose(rollout.action_logits[t], logits[0], atol=1e-5)
        twin = twins[episode_id]
        assert twin.info.twin_of == -1
        assert not twin.info.interventions
        np.testing.assert_array_equal(twin.obs[0], rollout.obs[0])
        np.testing.assert_array_equal(
            twin.info.agent_initial_state, rollout.info.agent_initial_state
        )
    # Rows are those of the branch: its first decision is row 0, whatever row it branches from.
    assert (min(intervention.rows), max(intervention.rows)) == (0, 4)


def test_sources_recorded_under_an_intervention_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    record_sources(folder, FAKE, max_episodes=3, intervening=Intervening(AddRow()))
    branch(make_plan(folder, (0, 2), (1, 1), branches=1), tmp_path / "out")
    assert "recorded under an intervention: 0, 2." in capsys.readouterr().out


def test_an_intervention_that_does_nothing_leaves_its_twin(
    fake_folder: Path, tmp_path: Path
) -> None:
    class Nothing(AddRow):
        def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
            return proposed

    plan = make_plan(fake_folder, (0, 1), (1, 2), branches=3)
    twins = branch(plan, tmp_path / "twin")
    intervened = replace(plan, intervening=Intervening(Nothing(), "twin"))
    for episode_id, rollout in branch(intervened, tmp_path / "out").items():
        assert_equal_rows(rollout, twins[episode_id])


def test_more_branches_are_added_and_present_ones_left(fake_folder: Path, tmp_path: Path) -> None:
    points: dict[str, Any] = {"episode": (1, 2), "step": (1, 0)}
    whole = branch(make_plan(fake_folder, branches=5, **points), tmp_path / "whole")
    record_branches(make_plan(fake_folder, branches=2, **points), tmp_path / "parts")
    first = {path: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    parts = branch(make_plan(fake_folder, branches=5, **points), tmp_path / "parts")
    assert {path: path.read_bytes() for path in first} == first
    assert sorted(parts) == sorted(whole) == list(range(10))
    for episode_id, rollout in whole.items():
        assert_equal_rows(rollout, parts[episode_id])


def test_shards_record_the_branches_of_one_process(fake_folder: Path, tmp_path: Path) -> None:
    points: dict[str, Any] = {"episode": (1, 2), "step": (1, 0), "branches": 3}
    whole = branch(make_plan(fake_folder, **points), tmp_path / "whole")
    for index in range(2):
        # The totals of new episodes, which presets set, are none of branches.
        shard = replace(ONE_BY_ONE, shard_index=index, num_shards=2, max_episodes=1, max_steps=1)
        record_branches(make_plan(fake_folder, recording=shard, **points), tmp_path / "parts")
    parts = read_episodes(tmp_path / "parts")
    assert sorted(parts) == sorted(whole)
    for episode_id, rollout in whole.items():
        assert_equal_rows(rollout, parts[episode_id])


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 4}, "--seed 4"),
        ({"step": 1}, r"--step \[1\]"),
        ({"force_action": "up"}, "--force_action up"),
        ({"branch_actions": "recorded"}, "--branch_actions recorded"),
        ({"intervening": Intervening(AddRow(), "x")}, "--swap_directions_from/to"),
    ],
)
def test_other_branches_do_not_go_into_the_same_dataset(
    fake_folder: Path, tmp_path: Path, change: dict[str, Any], flag: str
) -> None:
    record_branches(make_plan(fake_folder, 1, 2), tmp_path)
    recording = replace(ONE_BY_ONE, seed=change.pop("seed", ONE_BY_ONE.seed))
    settings = {"episode": 1, "step": 2, **change}
    with pytest.raises(UserError, match=flag):
        record_branches(make_plan(fake_folder, recording=recording, **settings), tmp_path)


def test_branches_do_not_go_into_their_source(fake_folder: Path) -> None:
    with pytest.raises(UserError, match=r"--data_dir .*: is the dataset to branch from"):
        record_branches(make_plan(fake_folder, 1, 2), fake_folder)


def test_branches_do_not_go_into_an_ordinary_recording(fake_folder: Path, tmp_path: Path) -> None:
    record_sources(tmp_path, FAKE)
    with pytest.raises(UserError, match=r"--episode \[1\]: the dataset .* was recorded with None"):
        record_branches(make_plan(fake_folder, 1, 2), tmp_path)
    record_branches(make_plan(fake_folder, 1, 2), tmp_path / "branches")
    with pytest.raises(UserError, match="was recorded with None"):
        record_sources(tmp_path / "branches", FAKE)


def test_gymnasium_environments_are_branched_too(pixel_world: str, tmp_path: Path) -> None:
    spec = environment_spec(EnvironmentConfig(env_name=pixel_world))
    torch.manual_seed(0)
    network = NetworkConfig(width=0.25, num_features=16, obs_shape=(8, 8, 3), num_actions=3)
    policy = RecurrentPolicy(network).requires_grad_(False).eval()
    policy.policy_head.bias.data[2] -= 2
    agent = LoadedAgent(policy, spec, hash_agent(policy), Path("agent"), 0)
    record_episodes(agent, spec, tmp_path / "data", ONE_BY_ONE)
    dataset = RolloutDataset(tmp_path / "data")
    source = max(read_episodes(tmp_path / "data").values(), key=len)
    step = len(source) // 2
    assert step > 1
    config = BranchConfig(
        branch_from=tmp_path / "data",
        episode=(source.info.episode_id,),
        step=(step,),
        branches=2,
        branch_actions="recorded",
    )
    plan = BranchPlan(agent, dataset, config, ONE_BY_ONE)
    for found in branch(plan, tmp_path / "out").values():
        assert_equal_rows(found, rows_from(source, step))


def damaged_copy(source: Path, folder: Path, episode_id: int, name: str, row: int) -> Path:
    """The dataset with one value of one episode changed."""
    dataset = RolloutDataset(source)
    with RolloutWriter(folder, dataset.metadata) as writer:
        for rollout in read_episodes(source).values():
            if rollout.info.episode_id == episode_id:
                values = getattr(rollout, name).copy()
                values[row : row + 1].reshape(-1)[0] += 1
                rollout = replace(rollout, **{name: values})
            writer.write(rollout)
    return folder


@pytest.mark.parametrize(("name", "row"), [("obs", 0), ("obs", 3), ("obs", 4), ("reward", 2)])
def test_an_episode_that_does_not_happen_again_is_named(
    fake_folder: Path, tmp_path: Path, name: str, row: int
) -> None:
    damaged = damaged_copy(fake_folder, tmp_path / "damaged", 1, name, row)
    with pytest.raises(UserError, match=f"episode 1 does not happen again.* row {row} the"):
        record_branches(make_plan(damaged, (0, 1), (4, 4)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_episode_that_ends_earlier_this_time_is_named(
    fake_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where frames and rewards are the same nevertheless."""
    step = FakeEnvironment._step

    def end_after_three_rows(environment: FakeEnvironment, actions: np.ndarray) -> None:
        step(environment, actions)
        environment._first |= environment._length == 3

    monkeypatch.setattr(FakeEnvironment, "_step", end_after_three_rows)
    with pytest.raises(UserError, match="at row 2 `done` is True, recorded False"):
        record_branches(make_plan(fake_folder, 1, 4), tmp_path / "out")


def test_rows_after_the_branch_point_are_not_looked_at(fake_folder: Path, tmp_path: Path) -> None:
    damaged = damaged_copy(fake_folder, tmp_path / "damaged", 1, "reward", 4)
    record_branches(make_plan(damaged, 1, 4), tmp_path / "out")


def test_points_hold_what_the_recording_says(fake_folder: Path) -> None:
    dataset = RolloutDataset(fake_folder)
    sources = [SourceRow(1, 3), SourceRow(1, 0), SourceRow(2, 1)]
    points = restore_points(dataset, sources, 0)
    assert set(points) == set(sources)
    episodes = read_episodes(fake_folder)
    for source, point in points.items():
        np.testing.assert_array_equal(point.frame, episodes[source.episode_id].obs[source.row])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"episode": (99,)}, "--episode 99: .* no such episode"),
        ({"step": (500,)}, r"--step 500: episode 1 has rows 0 to \d+"),
        ({"step": (-1,)}, "--step -1: episode 1 has rows"),
        ({"step": (1, 1)}, "--step 1: named twice for --episode 1"),
        ({"step": (1, 2, 3), "episode": (1, 2)}, "--step has 3 rows, --episode 2"),
        ({"step": ()}, "--branch_from: needs --episode and --step"),
        ({"branches": 0}, "--branches 0"),
        ({"branch_steps": 0}, "--branch_steps 0"),
        ({"force_action": "fly"}, "--force_action fly: expected `each`, a number from 0 to 14"),
        ({"force_action": "15"}, "--force_action 15"),
        ({"branch_from": None}, "--episode: branches need --branch_from"),
    ],
)
def test_bad_requests_are_refused_and_write_nothing(
    fake_folder: Path, tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    plan = make_plan(fake_folder, 1, 1)
    with pytest.raises(UserError, match=complaint):
        record_branches(
            replace(plan, config=replace(plan.config, **settings)), tmp_path / "branches"
        )
    assert not (tmp_path / "branches").exists()


@pytest.mark.parametrize(
    "choice", [{"start_level": 10**9}, {"num_levels": 5}, {"sequential_levels": True}], ids=str
)
def test_a_choice_of_levels_is_refused(
    fake_folder: Path, tmp_path: Path, choice: dict[str, Any]
) -> None:
    plan = replace(make_plan(fake_folder, 1, 1), recording=replace(ONE_BY_ONE, **choice))
    ((name, value),) = choice.items()
    with pytest.raises(UserError, match=f"--{name} {value}: branches are of the levels of"):
        record_branches(plan, tmp_path / "branches")
    assert not (tmp_path / "branches").exists()


def test_more_shards_than_branches_are_refused(fake_folder: Path, tmp_path: Path) -> None:
    recording = replace(ONE_BY_ONE, shard_index=0, num_shards=3)
    with pytest.raises(UserError, match="--num_shards 3: more than the 2 branches"):
        record_branches(make_plan(fake_folder, 1, 1, recording, branches=2), tmp_path / "branches")
    assert not (tmp_path / "branches").exists()


def test_another_agent_is_refused(fake_folder: Path, tmp_path: Path) -> None:
    plan = replace(make_plan(fake_folder, 1, 1), agent=make_agent(FAKE, seed=1))
    with pytest.raises(UserError, match=r"--model_file agent: this agent .* is not the one"):
        record_branches(plan, tmp_path / "branches")
    assert not (tmp_path / "branches").exists()


def test_simulated_rollouts_are_refused(fake_folder: Path, tmp_path: Path) -> None:
    plan = make_plan(fake_folder, 1, 1)
    plan.dataset.metadata = replace(plan.dataset.metadata, simulated=SimulatedDims(1, 1, 1, 1))
    with pytest.raises(UserError, match="holds simulated rollouts"):
        record_branches(plan, tmp_path / "branches")


def test_a_branch_of_a_branch_is_refused(fake_folder: Path, tmp_path: Path) -> None:
    record_branches(make_plan(fake_folder, 1, 1), tmp_path / "one")
    with pytest.raises(UserError, match="--episode 0: is itself a branch, of episode 1"):
        record_branches(make_plan(tmp_path / "one", 0, 1), tmp_path / "two")


def test_provenance_names_the_source_by_hash(fake_folder: Path, tmp_path: Path) -> None:
    plan = make_plan(fake_folder, 1, 2)
    record_branches(plan, tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["provenance"]["inputs"] == {
        "agent": plan.agent.hash,
        "dataset": plan.dataset.hash,
    }
    assert description["provenance"]["config"]["step"] == [2]
