"""Saved Procgen states against the frames, the environment's own answers and edited bytes."""

import struct
from dataclasses import asdict

import numpy as np
import pytest

from environments.procgen_adapter import ALL_GAMES, DISTRIBUTION_MODES
from environments.procgen_state import (
    ADAPTER_PREFIX_BYTES,
    ENTITY_FIELDS,
    PixelBoxes,
    StateFormatError,
    cell_boxes,
    entity_boxes,
    entity_rows,
    parse_procgen_bytes,
    parse_state,
    world_to_pixel,
)

LEFT, NULL, UP, RIGHT = 1, 4, 5, 7
GAMES_AND_MODES = [(game, mode) for mode, games in DISTRIBUTION_MODES.items() for game in games]
ENTITY = struct.Struct("<6f6i3f6if3i6f")

TAILS = {
    **{"bigfish": "..", "bossfight": "L" + 23 * ".", "caveflyer": "", "chaser": "LL" + 7 * "."},
    **{"climber": 7 * ".", "coinrun": 7 * ".", "dodgeball": 7 * ".", "fruitbot": "..."},
    **{"heist": "..L", "jumper": 7 * ".", "leaper": ".L.L.", "maze": "..", "miner": "."},
    **{"ninja": 8 * ".", "plunder": ".LLLL" + 9 * ".", "starpilot": "E"},
}
"""What each game saves after the grid: `.` one number, `L` a counted list of numbers, `E` a counted
list of entities."""

DRAWN_GRIDS = (
    *("caveflyer", "chaser", "climber", "coinrun", "heist", "jumper", "maze", "miner", "ninja"),
)
"""Games that draw cells of their grid."""

OVERHANG = {"leaper": 1.5}
"""Pixels by which a game's pictures may stand out of their boxes, where more than rounding: the
frog is wider than its box."""


def play(env, steps: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        env.send(rng.integers(0, 9, env.num_envs))
        env.observe()


def entity_offset(state: bytes) -> int:
    """Where the agent, the first entity, begins: its first six numbers occur nowhere else."""
    agent = entity_rows(parse_state(state).entities)[0, :6]
    assert state.count(agent.tobytes()) == 1
    return state.index(agent.tobytes())


def with_hidden_entity(state: bytes, index: int) -> bytes:
    """The same state, one entity being fully transparent."""
    at = entity_offset(state) + ENTITY.size * index + 4 * ENTITY_FIELDS.index("alpha")
    return state[:at] + struct.pack("<f", 0) + state[at + 4 :]


def with_cell(state: bytes, row: int, column: int, cell: int) -> bytes:
    """The same state, one cell of the grid being of another type."""
    grid = parse_state(state).grid
    assert state.count(grid.tobytes()) == 1
    at = state.index(grid.tobytes()) + 4 * (row * grid.shape[1] + column)
    return state[:at] + struct.pack("<i", cell) + state[at + 4 :]


def changed_pixels(env, state: bytes, edited: bytes) -> np.ndarray | None:
    """(left, top, right, bottom) of what the edit changes in the frame, None where nothing."""
    env.set_state([state])
    frame = env.observe().obs[0].copy()
    env.set_state([edited])
    rows, columns = np.nonzero((env.observe().obs[0] != frame).any(axis=-1))
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def visible_part(boxes: PixelBoxes, *index: int) -> np.ndarray:
    box = (boxes.left[index], boxes.top[index], boxes.right[index], boxes.bottom[index])
    return np.clip(box, 0, 64)


def overhang(drawn: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Pixels by which a drawing stands out of its box at each side; below 0 where it is inside."""
    return (drawn - box) * (-1, -1, 1, 1)


def words_of_tail(tail: bytes, layout: str) -> int:
    """How many 4-byte words of a tail its layout accounts for."""
    words = np.frombuffer(tail, "<i4")
    at = 0
    for kind in layout:
        at += 1 if kind == "." else 1 + words[at] * {"L": 1, "E": 31}[kind]
    return at


@pytest.mark.medium
@pytest.mark.parametrize(("game", "mode"), GAMES_AND_MODES)
def test_every_byte_of_every_game_is_accounted_for(make_env, game, mode) -> None:
    env = make_env(game, 4, distribution_mode=mode, use_backgrounds=True)
    for _ in range(4):
        play(env, 8)
        for saved in env.get_state():
            state = parse_state(saved)
            assert 4 * words_of_tail(state.tail, TAILS[game]) == len(state.tail)
            assert (state.header.game, state.header.distribution_mode) == (game, mode)
            assert state.header.options["use_backgrounds"] == 1
            assert state.step.time_limit == env.spec.time_limit
            assert state.agent["type"] == 0
            camera = state.camera
            assert camera.unit * camera.view == pytest.approx(64)


@pytest.mark.parametrize("game", ALL_GAMES)
def test_entities_equal_those_read_one_number_at_a_time(make_env, game) -> None:
    env = make_env(game, 2)
    play(env, 20)
    for saved in env.get_state():
        entities = parse_state(saved).entities
        begin = entity_offset(saved)
        slow = [ENTITY.unpack_from(saved, begin + ENTITY.size * i) for i in range(len(entities))]
        np.testing.assert_array_equal(entity_rows(entities), np.array(slow, np.float32))
        assert struct.unpack_from("<i", saved, begin - 4) == (len(entities),)
        np.testing.assert_array_equal(entities["type"], [row[6] for row in slow])


@pytest.mark.parametrize("option", ["use_backgrounds", "restrict_themes", "use_monochrome_assets"])
def test_options_are_those_of_the_environment(make_env, option) -> None:
    env = make_env("coinrun", 1, **{option: True}, start_level=50, num_levels=7)
    header = parse_state(env.get_state()[0]).header
    # Procgen itself sets that the camera follows the agent.
    assert {name for name, value in header.options.items() if value} == {option, "center_agent"}
    assert (header.level_start, header.level_stop) == (50, 57)


def test_step_data_equal_what_the_environment_tells(make_env) -> None:
    env = make_env("coinrun", 24)
    rng = np.random.default_rng(0)
    length, seeds = np.zeros(24, int), env.observe().level_seed
    num_ended = num_complete = 0
    for _ in range(150):
        actions = rng.choice([RIGHT, RIGHT + 1], 24)
        env.send(actions)
        told = env.observe()
        length = np.where(told.first, 0, length + 1)
        for index, saved in enumerate(env.get_state()):
            step = parse_state(saved).step
            assert step.reward == told.reward[index]
            assert step.done == told.first[index]
            assert (step.done and step.level_complete) == told.level_complete[index]
            assert (step.level_seed, step.step) == (told.level_seed[index], length[index])
            assert step.action == (NULL if step.done else actions[index])
            if step.done:
                assert step.previous_level_seed == seeds[index]
        seeds = told.level_seed
        num_ended, num_complete = num_ended + told.first.sum(), num_complete + told.reward.sum()
    assert num_ended > num_complete / 10 > 0


def test_the_adapters_prefix_is_all_that_is_skipped(make_env) -> None:
    env = make_env("coinrun", 1)
    play(env, 5)
    saved = env.get_state()[0]
    state, same = parse_state(saved), parse_procgen_bytes(saved[ADAPTER_PREFIX_BYTES:])
    assert struct.unpack_from("<i", saved) == (state.step.step,) == (5,)
    assert asdict(state.step) == asdict(same.step)
    np.testing.assert_array_equal(state.grid, same.grid)
    with pytest.raises(StateFormatError):
        parse_state(saved[ADAPTER_PREFIX_BYTES:])


def test_truncated_bytes_are_refused_wherever_they_end(make_env) -> None:
    saved = make_env("coinrun", 1).get_state()[0]
    lengths = [*range(0, 200), *range(200, len(saved), 211), len(saved) - 1]
    for length in lengths:
        with pytest.raises(StateFormatError, match=r"^saved state, .*: found .*, expected "):
            parse_state(saved[:length])


def test_foreign_bytes_are_refused_in_one_line(make_env) -> None:
    saved = make_env("coinrun", 1).get_state()[0]
    with pytest.raises(StateFormatError, match="version: found 7, expected 0"):
        parse_procgen_bytes(struct.pack("<i", 7) + bytes(1000))
    with pytest.raises(StateFormatError, match="name of the game: found b'coinbun', expected one"):
        parse_state(saved.replace(b"coinrun", b"coinbun"))
    with pytest.raises(StateFormatError, match="last bytes: found 00000000, expected fecafeca"):
        parse_state(saved + bytes(4))
    with pytest.raises(StateFormatError, match="found length -1, expected 0 or more"):
        parse_procgen_bytes(struct.pack("<2i", 0, -1) + bytes(100))
    with pytest.raises(StateFormatError, match="name of the game: found maze, expected coinrun"):
        _ = parse_state(make_env("maze", 1).get_state()[0]).coinrun
    rng = np.random.default_rng(0)
    for _ in range(100):
        with pytest.raises(StateFormatError):
            parse_state(rng.bytes(40_000))


def test_damaged_bytes_are_read_or_refused_but_nothing_else(make_env) -> None:
    saved = make_env("maze", 1).get_state()[0]
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(500):
        at = rng.integers(len(saved) - 4)
        try:
            parse_state(saved[:at] + rng.bytes(4) + saved[at + 4 :])
        except StateFormatError:
            num_refused += 1
    assert 0 < num_refused < 500


@pytest.mark.medium
@pytest.mark.parametrize("game", ALL_GAMES)
def test_entities_are_drawn_where_their_boxes_are(make_env, game) -> None:
    env = make_env(game, 1)
    tightest = np.full(4, -np.inf)
    for _ in range(4):
        play(env, 12)
        saved = env.get_state()[0]
        boxes = entity_boxes(parse_state(saved))
        for index in range(min(len(boxes.left), 25)):
            drawn = changed_pixels(env, saved, with_hidden_entity(saved, index))
            if drawn is not None:
                beyond = overhang(drawn, visible_part(boxes, index))
                assert beyond.max() <= OVERHANG.get(game, 0.5)
                tightest = np.maximum(tightest, beyond)
        env.set_state([saved])
    # Clear margins of a picture make it smaller than its box, at most by this much.
    assert (tightest > -1.6).all() or game == "maze"
    assert (tightest > -3).all()


def test_agent_enemy_saw_and_crate_of_coinrun_are_drawn_in_their_boxes(make_env) -> None:
    env = make_env("coinrun", 1, distribution_mode="hard")
    env.start_level([0], [21])
    saved = env.get_state()[0]
    at = entity_offset(saved)
    # Among the three, on the column between enemy, crate and saw.
    env.set_state([saved[:at] + struct.pack("<2f", 10.5, 9.5787) + saved[at + 8 :]])
    saved = env.get_state()[0]
    state = parse_state(saved)
    assert (state.agent["x"], state.camera.centre_x) == (10.5, 10.5)
    boxes = entity_boxes(state)
    seen = {}
    for index, kind in enumerate(state.entities["type"][:4]):
        drawn = changed_pixels(env, saved, with_hidden_entity(saved, index))
        assert drawn is not None
        seen[kind] = overhang(drawn, visible_part(boxes, index))
    assert set(seen) == {0, 2, 5, 20}
    # The enemy's picture fills the lower half of its box, the saw's the lower or the upper one.
    for kind, clear in ((0, 1), (20, 1), (2, 3.5), (5, 3.5)):
        assert seen[kind].max() <= 0.5
        assert seen[kind].min() >= -clear
        assert np.abs(seen[kind][[0, 2]]).max() <= 1


@pytest.mark.medium
@pytest.mark.parametrize("game", DRAWN_GRIDS)
def test_cells_are_drawn_where_their_boxes_are(make_env, game) -> None:
    env = make_env(game, 1)
    play(env, 10)
    saved = env.get_state()[0]
    state = parse_state(saved)
    rows, columns = np.indices(state.grid.shape)
    boxes = cell_boxes(state.camera, columns, rows)
    inside = (boxes.left > 0) & (boxes.top > 0) & (boxes.right < 64) & (boxes.bottom < 64)
    rng = np.random.default_rng(0)
    num_seen = 0
    for row, column in rng.permutation(np.argwhere(inside))[:40]:
        cell = rng.choice(np.setdiff1d(state.grid[inside], state.grid[row, column]))
        drawn = changed_pixels(env, saved, with_cell(saved, row, column, cell))
        if drawn is not None:
            num_seen += 1
            assert overhang(drawn, visible_part(boxes, row, column)).max() < 0.75
    assert num_seen >= 5


@pytest.mark.parametrize("cell", [1, 15, 18])
def test_coin_wall_and_lava_fill_their_cells(make_env, cell) -> None:
    env = make_env("coinrun", 1)
    saved = env.get_state()[0]
    camera = parse_state(saved).camera
    empty = with_cell(saved, 5, 4, 100)
    drawn = changed_pixels(env, empty, with_cell(saved, 5, 4, cell))
    assert drawn is not None
    beyond = overhang(drawn, visible_part(cell_boxes(camera, [4], [5]), 0))
    assert beyond.max() < 0.75
    # The picture of lava leaves its upper third clear, that of the coin a margin all around.
    assert beyond.min() > -2


def test_boxes_scale_with_the_high_resolution_frame(make_env) -> None:
    env = make_env("coinrun", 1)
    play(env, 15, seed=1)
    saved = env.get_state()[0]
    boxes = entity_boxes(parse_state(saved), frame_size=512)
    frame = env.render(0).copy()
    env.set_state([with_hidden_entity(saved, 0)])
    rows, columns = np.nonzero((env.render(0) != frame).any(axis=-1))
    drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    box = np.array([boxes.left[0], boxes.top[0], boxes.right[0], boxes.bottom[0]])
    assert (np.abs(drawn - box) <= 4).all()


def test_labels_fixed_to_the_frame_have_their_box_there(make_env) -> None:
    env, single = make_env("heist", 24, seed=4), make_env("heist", 1)
    play(env, 20)
    num_seen = 0
    for saved in env.get_state():
        state = parse_state(saved)
        boxes = entity_boxes(state)
        for index in np.flatnonzero(state.entities["use_abs_coords"]).tolist():
            drawn = changed_pixels(single, saved, with_hidden_entity(saved, index))
            # Keys not found yet are not drawn.
            if drawn is not None:
                num_seen += 1
                assert (np.abs(overhang(drawn, visible_part(boxes, index))) <= 1).all()
    assert num_seen > 0


def test_the_camera_follows_the_agent_and_the_corners_of_the_view_are_those_of_the_frame(
    make_env,
) -> None:
    env = make_env("coinrun", 8)
    play(env, 30)
    for saved in env.get_state():
        state = parse_state(saved)
        camera, agent = state.camera, state.agent
        assert (camera.centre_x, camera.centre_y) == (agent["x"], agent["y"])
        x = agent["x"] + np.array([-6.5, 0, 6.5])
        y = agent["y"] + np.array([6.5, 0, -6.5])
        column, row = world_to_pixel(camera, x, y)
        np.testing.assert_allclose(column, [0, 32, 64], atol=1e-3)
        np.testing.assert_allclose(row, [0, 32, 64], atol=1e-3)


def test_the_agent_moves_by_its_velocity_which_follows_the_games_physics(make_env) -> None:
    env = make_env("coinrun", 4)
    x, speed = 1.5, 0.0
    for _ in range(4):
        env.send(np.full(4, RIGHT))
        speed = 0.8 * speed + 0.2 * 0.5
        x += speed
        for saved in env.get_state():
            state = parse_state(saved)
            physics = state.physics
            assert (physics.max_speed, physics.mix_rate) == (0.5, pytest.approx(0.2))
            assert (physics.action_vx, physics.action_vy) == (1, 0)
            assert state.agent["vx"] == pytest.approx(speed, abs=1e-6)
            assert state.agent["x"] == pytest.approx(x, abs=1e-5)


def test_a_jump_rises_by_its_velocity_less_gravity_at_each_step(make_env) -> None:
    env = make_env("coinrun", 4)
    height, speed = 1.5787, 1.7
    for step in range(9):
        env.send(np.full(4, UP if step == 0 else NULL))
        speed -= 0.2
        height += speed
        for saved in env.get_state():
            state = parse_state(saved)
            assert state.physics.max_jump == 1.5
            assert state.coinrun.gravity == pytest.approx(0.2)
            assert state.agent["vy"] == pytest.approx(speed, abs=1e-5)
            assert state.agent["y"] == state.coinrun.last_y == pytest.approx(height, abs=1e-5)
            assert state.coinrun.has_support == (step == 0)


def test_facing_follows_the_last_action_with_a_side(make_env) -> None:
    env = make_env("coinrun", 1)
    for action, right in ((NULL, True), (LEFT, False), (UP, False), (RIGHT, True), (UP, True)):
        env.send(np.array([action]))
        assert parse_state(env.get_state()[0]).coinrun.facing_right == right


def test_the_same_level_and_actions_give_the_same_numbers(make_env) -> None:
    def states(env):
        env.start_level([0, 1, 2], [7, 8, 9])
        for _ in range(4):
            play(env, 10, seed=3)
            yield from map(parse_state, env.get_state())

    for first, second in zip(
        states(make_env("coinrun", seed=1)), states(make_env("coinrun", seed=2)), strict=True
    ):
        np.testing.assert_array_equal(entity_rows(first.entities), entity_rows(second.entities))
        np.testing.assert_array_equal(first.grid, second.grid)
        assert first.coinrun == second.coinrun
        assert (first.camera, first.physics) == (second.camera, second.physics)


def test_a_restored_state_reads_as_it_was_saved(make_env) -> None:
    env = make_env("coinrun", 2)
    play(env, 20)
    saved = env.get_state()
    play(env, 20, seed=1)
    env.set_state(saved)
    for before, after in zip(saved, env.get_state(), strict=True):
        first, second = parse_state(before), parse_state(after)
        assert (first.step, first.camera) == (second.step, second.camera)
        np.testing.assert_array_equal(entity_rows(first.entities), entity_rows(second.entities))
        assert first.tail == second.tail
