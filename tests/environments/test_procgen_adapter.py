"""What only Procgen does: time limits, completed levels, sixteen games, its messages."""

import struct
import subprocess
import sys

import numpy as np
import pytest

from environments.procgen_adapter import DISTRIBUTION_MODES, ProcgenEnvironment

NULL, RIGHT, JUMP_RIGHT = 4, 7, 8
PREFIX_BYTES = 5


def stated_time_limit(state: bytes) -> int:
    """The time limit that a saved state itself names, read field by field."""
    offset = PREFIX_BYTES + 4
    offset += 4 + struct.unpack_from("<i", state, offset)[0] + 17 * 4
    for _ in range(2):
        offset += 4
        offset += 4 + struct.unpack_from("<i", state, offset)[0]
    return struct.unpack_from("<fiiii", state, offset)[4]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("game", "mode"), [(game, mode) for mode, games in DISTRIBUTION_MODES.items() for game in games]
)
def test_every_game_runs_and_has_the_time_limit_it_states(make_env, game, mode) -> None:
    env = make_env(game, 2, distribution_mode=mode)
    for action in range(env.spec.num_actions):
        env.send(np.full(2, action))
        assert env.observe().obs.shape == (2, 64, 64, 3)
    assert stated_time_limit(env.get_state()[0]) == env.spec.time_limit
    assert env.spec.options["distribution_mode"] == mode


def test_action_names_are_those_of_the_game(make_env) -> None:
    coinrun = make_env("coinrun", 1).spec
    assert coinrun.action_names[:9] == (
        *("downleft", "left", "upleft", "down", "null", "up", "downright", "right", "upright"),
    )
    assert coinrun.action_names[9:] == tuple(f"null{action}" for action in range(9, 15))
    assert coinrun.action_names[coinrun.null_action] == "null"
    assert make_env("starpilot", 1).spec.action_names[9] == "fire"


@pytest.mark.medium
@pytest.mark.parametrize("game", ["coinrun", "bossfight", "ninja", "starpilot", "maze"])
def test_actions_called_null_do_nothing_and_the_others_something(make_env, game) -> None:
    env = make_env(game, 16)
    for action in np.random.default_rng(0).integers(0, 9, (8, 16)):
        env.send(action)
    saved = env.get_state()
    shown = {}
    for action in (NULL, *range(9, 15)):
        env.set_state(saved)
        env.send(np.full(16, action))
        env.send(np.full(16, NULL))
        shown[action] = env.observe().obs
    for action in range(9, 15):
        same = np.array_equal(shown[action], shown[NULL])
        assert same == env.spec.action_names[action].startswith("null")


def test_standing_still_ends_at_the_time_limit_and_is_called_truncated(make_env) -> None:
    env = make_env("coinrun", 16)
    outcome = env.observe()
    num_truncated = 0
    for step in range(1, 1001):
        env.send(np.full(16, NULL))
        outcome = env.observe()
        if step < 1000:
            assert not outcome.truncated.any()
        num_truncated += outcome.truncated.sum()
        assert not outcome.level_complete.any()
    assert num_truncated > 0
    assert outcome.first[outcome.truncated].all()
    assert not outcome.reward[outcome.truncated].any()


def test_a_death_is_neither_complete_nor_truncated_and_a_coin_completes(make_env) -> None:
    env = make_env("coinrun", 32)
    rng = np.random.default_rng(0)
    completed = died = 0
    for _ in range(400):
        env.send(np.where(rng.random(32) < 0.7, JUMP_RIGHT, RIGHT))
        outcome = env.observe()
        ended = outcome.first
        assert (outcome.level_complete <= ended).all()
        assert (outcome.reward[outcome.level_complete] == 10).all()
        assert not outcome.reward[~outcome.level_complete].any()
        assert not outcome.truncated.any()
        completed += outcome.level_complete.sum()
        died += (ended & ~outcome.level_complete).sum()
    assert completed > 0
    assert died > 0


def test_restored_episode_is_truncated_at_its_own_step_1000(make_env) -> None:
    env = make_env("coinrun", 8)
    for _ in range(990):
        env.send(np.full(8, NULL))
    outcome = env.observe()
    late = env.get_state()
    other = make_env("coinrun", 8)
    other.set_state(late)
    truncated = np.zeros(8, bool)
    for _ in range(10):
        other.send(np.full(8, NULL))
        outcome = other.observe()
        truncated |= outcome.truncated
    assert outcome.truncated.any()
    np.testing.assert_array_equal(truncated, outcome.truncated)
    again = make_env("coinrun", 8)
    again.set_state(other.get_state())
    np.testing.assert_array_equal(again.observe().truncated, outcome.truncated)


def test_environment_options_reach_the_game(make_env) -> None:
    plain = make_env("coinrun", 1, start_level=3, num_levels=1)
    with_backgrounds = make_env("coinrun", 1, start_level=3, num_levels=1, use_backgrounds=True)
    assert with_backgrounds.spec.options["use_backgrounds"] is True
    assert plain.observe().level_seed == with_backgrounds.observe().level_seed
    assert (plain.observe().obs != with_backgrounds.observe().obs).mean() > 0.1


def test_high_resolution_frame_shows_the_same_scene(make_env) -> None:
    env = make_env("coinrun", 2)
    for _ in range(20):
        env.send(np.full(2, RIGHT))
    small = env.observe().obs[1].astype(float)
    large = env.render(1)
    assert large.shape == (512, 512, 3)
    shrunk = large.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.9


def test_step_runs_while_the_caller_goes_on(make_env) -> None:
    env = make_env("coinrun", 64)
    assert isinstance(env, ProcgenEnvironment)
    env.send(np.full(64, RIGHT))
    env.send(np.full(64, RIGHT))
    assert not env.observe().first.all()


def test_importing_procgen_prints_nothing() -> None:
    code = (
        "from environments.factory import EnvironmentConfig, make_environment;"
        "make_environment(EnvironmentConfig(num_threads=1), 1).close()"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
