"""What every adapter must do, whatever the game."""

import numpy as np
import pytest

from environments.protocol import Transition, VectorEnvironment
from experiment.errors import UserError

TRANSITION_FIELDS = ("obs", "reward", "first", "level_seed", "level_complete", "truncated")
NUM_ENVS = 3


@pytest.fixture(params=["fake", "coinrun", "starpilot", "gymnasium"])
def game(request: pytest.FixtureRequest) -> str:
    if request.param == "gymnasium":
        return request.getfixturevalue("pixel_world")
    return request.param


def draw_actions(num_steps: int, env: VectorEnvironment, seed: int = 0) -> np.ndarray:
    shape = (num_steps, env.num_envs)
    return np.random.default_rng(seed).integers(0, env.spec.num_actions, shape)


def play(env: VectorEnvironment, actions: np.ndarray) -> list[Transition]:
    """What each row of `actions` (T, N) led to."""
    transitions = []
    for row in actions:
        env.send(row)
        transitions.append(env.observe())
    return transitions


def assert_same_slot(left: Transition, left_slot: int, right: Transition, right_slot: int) -> None:
    for name in TRANSITION_FIELDS:
        np.testing.assert_array_equal(
            getattr(left, name)[left_slot], getattr(right, name)[right_slot], err_msg=name
        )


def test_transition_has_the_shapes_and_types_of_the_protocol(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    env.send(np.zeros(NUM_ENVS, np.int64))
    transition = env.observe()
    assert transition.obs.shape == (NUM_ENVS, *env.spec.obs_shape)
    assert [getattr(transition, name).dtype.name for name in TRANSITION_FIELDS] == [
        *("uint8", "float32", "bool", "int64", "bool", "bool")
    ]
    assert len(env.spec.action_names) == env.spec.num_actions


def test_first_frames_end_no_episode(make_env, game) -> None:
    transition = make_env(game, NUM_ENVS).observe()
    assert transition.first.all()
    assert not transition.reward.any()
    assert not transition.level_complete.any()
    assert not transition.truncated.any()


def test_observe_is_idempotent_and_results_are_not_overwritten(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    env.send(np.ones(NUM_ENVS, np.int64))
    before = env.observe()
    kept = before.obs.copy()
    assert_same_slot(before, 0, env.observe(), 0)
    play(env, draw_actions(5, env))
    np.testing.assert_array_equal(before.obs, kept)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_same_seed_and_actions_give_the_same_episodes(make_env, game, num_threads) -> None:
    one = make_env(game, NUM_ENVS, seed=5)
    other = make_env(game, NUM_ENVS, seed=5, num_threads=num_threads)
    actions = draw_actions(60, one)
    for left, right in zip(play(one, actions), play(other, actions), strict=True):
        for slot in range(NUM_ENVS):
            assert_same_slot(left, slot, right, slot)


def test_another_seed_gives_other_levels(make_env, game) -> None:
    one, other = make_env(game, NUM_ENVS, seed=5), make_env(game, NUM_ENVS, seed=6)
    assert set(one.observe().level_seed) != set(other.observe().level_seed)


def test_started_level_equals_a_fresh_environment(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    play(env, draw_actions(40, env))
    env.start_level([1], [77])
    fresh = make_env(game, 1, start_level=77, num_levels=1)
    started = env.observe()
    assert_same_slot(started, 1, fresh.observe(), 0)
    assert started.level_seed[1] == 77
    actions = draw_actions(80, env, seed=1)
    for left, right in zip(play(env, actions), play(fresh, actions[:, 1:2]), strict=True):
        if right.first[0]:
            np.testing.assert_array_equal(left.reward[1], right.reward[0])
            break
        assert_same_slot(left, 1, right, 0)


def test_starting_a_level_leaves_the_other_slots_alone(make_env, game) -> None:
    one, other = make_env(game, NUM_ENVS), make_env(game, NUM_ENVS)
    actions = draw_actions(60, one)
    play(one, actions[:20])
    play(other, actions[:20])
    one.start_level([1], [77])
    assert_same_slot(one.observe(), 0, other.observe(), 0)
    for left, right in zip(play(one, actions[20:]), play(other, actions[20:]), strict=True):
        assert_same_slot(left, 0, right, 0)
        assert_same_slot(left, 2, right, 2)


def test_starting_a_level_reports_no_outcome_twice(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    outcome = env.observe()
    for actions in draw_actions(2000, env):
        env.send(actions)
        outcome = env.observe()
        if outcome.first.any():
            break
    assert outcome.first.any()
    env.start_level(range(NUM_ENVS), range(NUM_ENVS))
    started = env.observe()
    assert started.first.all()
    assert not started.reward.any()
    assert not started.level_complete.any()
    assert not started.truncated.any()


def test_levels_after_a_started_one_come_from_the_range(make_env, game) -> None:
    env = make_env(game, 1, start_level=100, num_levels=50)
    env.start_level([0], [7])
    num_ends = 0
    for _ in range(4000):
        env.send(np.full(1, 2 if game.startswith("gymnasium") else 7))
        outcome = env.observe()
        if outcome.first[0]:
            num_ends += 1
            assert 100 <= outcome.level_seed[0] < 150
            if num_ends == 3:
                return
    pytest.fail("no episode ended")


def test_restored_state_continues_bit_for_bit_in_another_slot(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    play(env, draw_actions(25, env))
    saved, shown = env.get_state(), env.observe()
    actions = draw_actions(300, env, seed=1)
    continuation = play(env, actions)
    other = make_env(game, NUM_ENVS, seed=9, start_level=4, num_levels=3)
    play(other, draw_actions(7, other))
    other.set_state([saved[2], None, saved[0]])
    assert_same_slot(other.observe(), 0, shown, 2)
    assert_same_slot(other.observe(), 2, shown, 0)
    swapped = actions[:, [2, 1, 0]]
    for left, right in zip(play(other, swapped), continuation, strict=True):
        assert_same_slot(left, 0, right, 2)
        assert_same_slot(left, 2, right, 0)
    if game != "coinrun":
        assert np.any([transition.first[[0, 2]] for transition in continuation])


def test_none_in_set_state_leaves_a_slot_as_it_is(make_env, game) -> None:
    env = make_env(game, NUM_ENVS)
    play(env, draw_actions(10, env))
    before = env.observe()
    env.set_state([None, env.get_state()[0], None])
    assert_same_slot(env.observe(), 0, before, 0)
    assert_same_slot(env.observe(), 1, before, 0)
    assert_same_slot(env.observe(), 2, before, 2)


def test_held_out_levels_are_none_of_the_training_levels(make_env, game) -> None:
    training = make_env(game, 64).observe().level_seed
    held_out = make_env(game, 64, start_level=10**9).observe().level_seed
    assert training.min() >= 0
    assert training.max() < 10**9 <= held_out.min()
    assert len(set(training)) == len(set(held_out)) == 64


def test_render_shows_a_larger_frame_and_disturbs_nothing(make_env, game) -> None:
    env, other = make_env(game, NUM_ENVS), make_env(game, NUM_ENVS)
    frame = env.render(1)
    assert frame.dtype == np.uint8
    assert frame.shape[0] > env.spec.obs_shape[0]
    assert frame.std() > 0
    actions = draw_actions(10, env)
    for left, right in zip(play(env, actions), play(other, actions), strict=True):
        assert_same_slot(left, 1, right, 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"env_name": "coinrum"}, "--env_name.*coinrum"),
        ({"env_name": "coinrun", "distribution_mode": "extreme"}, "--distribution_mode.*coinrun"),
        ({"env_name": "coinrun", "start_level": -1}, "--start_level -1"),
        ({"env_name": "coinrun", "start_level": 2 * 10**9}, "--start_level 2000000000"),
        ({"env_name": "coinrun", "num_threads": -2}, "--num_threads -2"),
        ({"env_name": "gymnasium:FrozenLake-v1"}, "FrozenLake-v1: observations are Discrete"),
        ({"env_name": "gymnasium:Nonsense-v1"}, "Nonsense"),
    ],
)
def test_unknown_environments_are_refused_by_name(make_env, options, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        make_env(**options)
