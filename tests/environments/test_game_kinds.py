"""Things do what their names say when they meet the agent.

One thing of a state that was played is put onto the agent, or a shot onto it, or one cell under the
agent is exchanged; then the game itself answers with reward and end. What to expect is told by the
rules of the games (Cobbe et al. 2020, appendix B), and by the same step without the edit, so that a
type under a wrong name is found out. CoinRun's names are tested with its variables.
"""

import struct
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from environments.factory import EnvironmentConfig, make_environment
from environments.game_variables import KINDS
from environments.procgen_state import ENTITY_FIELDS, GameState, entity_rows, parse_state

pytestmark = pytest.mark.medium

NULL, FIRE = 4, 9
ENTITY_BYTES = 4 * len(ENTITY_FIELDS)
NUM_SCENES = 4
"""Meetings with things of a type, each from another state."""

SCENERY = {
    "bossfight": {"own shot": 1, "laser trail": 5, "explosion": 54},
    "caveflyer": {"own shot": 4, "exhaust": 9, "explosion": 54},
    "dodgeball": {"dust": 8},
    "fruitbot": {"own shot": 3},
    "heist": {"key on the ring": 11},
    "jumper": {"dust": 59},
    "ninja": {"explosion": 54},
    "plunder": {"legend": 2, "panel": 3, "explosion": 54},
    "starpilot": {"explosion": 54},
}
"""Entities that no variable tells of."""

NOT_MET = {
    "dodgeball": {7},
    "starpilot": {2, 3, 9},
}
"""Types of `KINDS` that a few steps do not show: a door that is open, and what comes late."""

MODES = {"fruitbot": "hard", "starpilot": "hard"}
"""Where the easy mode lacks some things, or shows them late."""


@dataclass(frozen=True)
class Outcome:
    """What a meeting led to that the same step without it did not."""

    reward: float = 0
    is_over: bool = False
    is_complete: bool = False


NOTHING, DEATH, GOAL = Outcome(), Outcome(is_over=True), Outcome(10, True, True)

TOUCHED: dict[str, dict[str, Outcome]] = {
    "bossfight": {
        **{"boss": DEATH, "bullet": DEATH, "barrier": DEATH},
        **{"shield": NOTHING, "reflected_bullet": NOTHING},
    },
    "caveflyer": {"goal": GOAL, "obstacle": DEATH, "target": DEATH, "enemy": DEATH},
    "chaser": {"large_orb": Outcome(0.04), "egg": NOTHING},
    "climber": {"enemy": DEATH},
    "dodgeball": {
        **{"wall": DEATH, "enemy": DEATH, "enemy_ball": DEATH},
        # As long as there are enemies the door is closed.
        **{"ball": NOTHING, "door": NOTHING},
    },
    "fruitbot": {
        **{"barrier": DEATH, "bad_food": Outcome(-4), "good_food": Outcome(1), "present": GOAL},
        **{"door": DEATH, "lock": NOTHING},
    },
    "heist": {"door": NOTHING, "key": NOTHING, "exit": GOAL},
    "jumper": {"goal": GOAL, "spike": DEATH},
    "leaper": {"log": NOTHING, "car": DEATH, "finish": GOAL},
    "miner": {"exit": GOAL},
    "ninja": {"goal": GOAL, "star": NOTHING},
    "plunder": {"cannonball": NOTHING},
    "starpilot": {
        **{"own_bullet": NOTHING, "cloud": NOTHING},
        **{"enemy_bullet": DEATH, "flyer": DEATH, "meteor": DEATH, "turret": DEATH},
    },
}

TAKEN = {("chaser", "large_orb"), ("fruitbot", "bad_food"), ("fruitbot", "good_food")}
TAKEN |= {("heist", "key")}
"""What is gone once the agent has touched it."""

ONLY_ONE = (
    *(("bossfight", "boss"), ("caveflyer", "goal"), ("dodgeball", "door"), ("heist", "exit")),
    *(("jumper", "goal"), ("leaper", "finish"), ("miner", "exit"), ("ninja", "goal")),
)
"""What a level has one of, at every step."""


@dataclass(frozen=True)
class Scene:
    """A thing in a state that was played."""

    saved: bytes
    index: int


@cache
def played_states(game: str) -> tuple[bytes, ...]:
    """States of a few levels under random moves and shots."""
    config = EnvironmentConfig(
        env_name=game, num_threads=1, distribution_mode=MODES.get(game, "easy")
    )
    env = make_environment(config, 6, seed=0)
    rng, states = np.random.default_rng(0), []
    for step in range(90):
        if step % 6 == 0:
            states += env.get_state()
        env.send(rng.choice([*range(9), FIRE, FIRE, FIRE], 6))
    env.close()
    return tuple(states)


@cache
def scenes_of(game: str) -> dict[int, list[Scene]]:
    """The last thing of each type in each state."""
    scenes = defaultdict(list)
    for saved in played_states(game):
        types = parse_state(saved).entities["type"].astype(int)
        for kind in set(types.tolist()):
            scenes[kind].append(Scene(saved, int(np.flatnonzero(types == kind)[-1])))
    return dict(scenes)


def of_kind(game: str, name: str) -> list[Scene]:
    return [scene for kind in KINDS[game][name].types for scene in scenes_of(game).get(kind, [])]


def moved_to(saved: bytes, index: int, place: np.void, **fields: float) -> bytes:
    """The same state, one entity lying still at another's place."""
    rows = entity_rows(parse_state(saved).entities)
    begin = saved.index(rows[0, :6].tobytes()) + ENTITY_BYTES * index
    for name, value in {"x": place["x"], "y": place["y"], "vx": 0, "vy": 0, **fields}.items():
        at = begin + 4 * ENTITY_FIELDS.index(name)
        saved = saved[:at] + struct.pack("<f", value) + saved[at + 4 :]
    return saved


def with_cell(saved: bytes, cell: int, above: int = 0) -> bytes:
    """The same state, the cell that the agent is on, or one above, being of another type."""
    state = parse_state(saved)
    row, column = int(state.agent["y"]) + above, int(state.agent["x"])
    saved = moved_to(saved, 0, state.agent, x=column + 0.5)
    at = saved.index(state.grid.tobytes()) + 4 * (row * state.grid.shape[1] + column)
    return saved[:at] + struct.pack("<i", cell) + saved[at + 4 :]


class Stage:
    """One slot, in which a state is shown and goes on by one step without an action."""

    def __init__(self, env) -> None:
        self.env = env

    def step(self, saved: bytes) -> tuple[Outcome, GameState]:
        self.env.set_state([saved])
        self.env.send(np.array([NULL]))
        told = self.env.observe()
        outcome = Outcome(
            round(float(told.reward[0]), 4), bool(told.first[0]), bool(told.level_complete[0])
        )
        return outcome, parse_state(self.env.get_state()[0])

    def meetings(self, scenes: list[Scene], put) -> list[tuple[Outcome, GameState, GameState]]:
        """Outcome, state after and state without, of scenes in which nothing else would happen."""
        found = []
        for scene in scenes:
            untouched, without = self.step(scene.saved)
            if untouched == NOTHING:
                found.append((*self.step(put(scene)), without))
            if len(found) == NUM_SCENES:
                break
        assert found
        return found

    def touch(self, scenes: list[Scene]) -> list[tuple[Outcome, GameState, GameState]]:
        def put(scene: Scene) -> bytes:
            agent = parse_state(scene.saved).agent
            return moved_to(moved_to(scene.saved, 0, agent), scene.index, agent)

        return self.meetings(scenes, put)


@pytest.fixture
def stage(make_env):
    return lambda game: Stage(make_env(game, 1, distribution_mode=MODES.get(game, "easy")))


def count(state: GameState, *types: int) -> int:
    return int(np.isin(state.entities["type"], types).sum())


@pytest.mark.parametrize("game", KINDS)
def test_every_entity_has_a_name_and_the_agent_is_there_once(game) -> None:
    met = set(scenes_of(game))
    named = {kind for k in KINDS[game].values() if not k.is_cell for kind in k.types}
    scenery = set(SCENERY.get(game, {}).values())
    assert met <= {0} | named | scenery
    assert named - met <= NOT_MET.get(game, set())
    assert not named & scenery
    for saved in played_states(game):
        assert count(parse_state(saved), 0) == 1


@pytest.mark.parametrize(("game", "name"), ONLY_ONE)
def test_what_a_level_has_one_of(game, name) -> None:
    for saved in played_states(game):
        assert count(parse_state(saved), *KINDS[game][name].types) == 1


@pytest.mark.parametrize(("game", "name"), [(g, n) for g in TOUCHED for n in TOUCHED[g]])
def test_touched_it_does_what_its_name_says(stage, game, name) -> None:
    types = KINDS[game][name].types
    for outcome, after, without in stage(game).touch(of_kind(game, name)):
        assert outcome == TOUCHED[game][name]
        if not outcome.is_over:
            is_gone = count(after, *types) < count(without, *types)
            assert is_gone == ((game, name) in TAKEN)


@pytest.mark.parametrize(
    ("game", "kind"),
    [(game, kind) for game, kinds in SCENERY.items() for kind in kinds.values()],
)
def test_scenery_does_nothing_but_for_ninjas_explosions(stage, game, kind) -> None:
    for outcome, *_ in stage(game).touch(scenes_of(game)[kind]):
        assert outcome == (DEATH if game == "ninja" else NOTHING)


def test_smaller_fish_are_eaten_and_larger_ones_eat(stage) -> None:
    sizes = set()
    for scene in of_kind("bigfish", "fish")[::4]:
        fish, agent = (parse_state(scene.saved).entities[i] for i in (scene.index, 0))
        (outcome, *_), *_ = stage("bigfish").touch([scene])
        is_smaller = bool(fish["rx"] < agent["rx"])
        assert outcome == (Outcome(1) if is_smaller else DEATH)
        sizes.add(is_smaller)
    assert sizes == {True, False}


def test_the_last_coin_completes_a_climb(stage) -> None:
    (coin,) = KINDS["climber"]["coin"].types
    left = set()
    for scene in of_kind("climber", "coin")[::3]:
        ((outcome, *_),) = stage("climber").touch([scene])
        is_last = count(parse_state(scene.saved), coin) == 1
        assert outcome == (Outcome(11, True, True) if is_last else Outcome(1))
        left.add(is_last)
    assert left == {True, False}


def with_last_orb_at(saved: bytes, step: int) -> bytes:
    """A state of chaser whose last large orb was eaten at another step: its tail's fifth last."""
    at = len(saved) - 4 - 4 * 5
    return saved[:at] + struct.pack("<i", step) + saved[at + 4 :]


def test_an_enemy_of_chaser_is_eaten_for_a_while_after_a_large_orb(stage) -> None:
    on_stage = stage("chaser")
    (orb,), (enemy, *_) = (KINDS["chaser"][name].types for name in ("large_orb", "enemy"))
    num_met = 0
    for scene in of_kind("chaser", "enemy")[::4]:
        state = parse_state(scene.saved)
        orbs = np.flatnonzero(state.entities["type"] == orb)
        if on_stage.step(scene.saved)[0] != NOTHING or not len(orbs):
            continue
        hungry = with_last_orb_at(scene.saved, -1000)
        fatal, _ = on_stage.step(moved_to(hungry, scene.index, state.agent))
        assert fatal == DEATH
        fed, after = on_stage.step(moved_to(scene.saved, int(orbs[0]), state.agent))
        assert fed == Outcome(0.04)
        last = int(np.flatnonzero(after.entities["type"] == enemy)[-1])
        (saved,) = on_stage.env.get_state()
        eating, later = on_stage.step(moved_to(saved, last, after.agent))
        assert not eating.is_over
        assert count(later, enemy) < count(after, enemy)
        num_met += 1
    assert num_met > 0


def test_a_shot_at_a_target_pays_and_at_an_obstacle_does_not(stage) -> None:
    """What tells caveflyer's three deadly things apart; enemies are those that move."""
    shots = {s.saved: s.index for s in scenes_of("caveflyer")[SCENERY["caveflyer"]["own shot"]]}

    def shoot(scene: Scene) -> bytes:
        place = parse_state(scene.saved).entities[scene.index]
        weak = moved_to(scene.saved, scene.index, place, health=1)
        return moved_to(weak, shots[scene.saved], place)

    for name in ("obstacle", "target"):
        scenes = [s for s in of_kind("caveflyer", name) if s.saved in shots]
        for outcome, *_ in stage("caveflyer").meetings(scenes, shoot):
            assert outcome == Outcome(3 if name == "target" else 0)


@pytest.mark.parametrize("game", KINDS)
def test_what_is_said_to_move_moves(game) -> None:
    for name, kind in KINDS[game].items():
        scenes = [] if kind.is_cell else of_kind(game, name)
        things = [parse_state(s.saved).entities[s.index] for s in scenes]
        if things:
            speed = [abs(thing["vx"]) + abs(thing["vy"]) for thing in things]
            # What a game scrolls past the agent moves against the grid, but not by itself.
            assert max(speed) > 0 or not kind.moves, name


def test_a_log_carries_over_the_water_in_which_the_agent_would_drown(stage) -> None:
    def onto(scene: Scene) -> bytes:
        return moved_to(scene.saved, 0, parse_state(scene.saved).entities[scene.index])

    def beside(scene: Scene) -> bytes:
        """The log is taken away from under the agent."""
        log = parse_state(scene.saved).entities[scene.index].copy()
        log["y"] += 40
        return moved_to(onto(scene), scene.index, log)

    # Beyond the edges of the level the agent dies anyhow.
    logs = [
        s for s in of_kind("leaper", "log") if 2 < parse_state(s.saved).entities[s.index]["x"] < 7
    ]
    assert {outcome for outcome, *_ in stage("leaper").meetings(logs, onto)} == {NOTHING}
    assert {outcome for outcome, *_ in stage("leaper").meetings(logs, beside)} == {DEATH}


def test_stars_of_ninja_and_shots_of_bossfight_fly_away_from_the_agent_reflected_ones_back() -> (
    None
):
    own = scenes_of("bossfight")[SCENERY["bossfight"]["own shot"]]
    assert all(parse_state(s.saved).entities[s.index]["vy"] > 0 for s in own)
    back = of_kind("bossfight", "reflected_bullet")
    assert all(parse_state(s.saved).entities[s.index]["vy"] < 0 for s in back)
    for scene in of_kind("bossfight", "shield"):
        entities = parse_state(scene.saved).entities
        (boss,) = entities[entities["type"] == KINDS["bossfight"]["boss"].types[0]]
        shield = entities[scene.index]
        assert (shield["x"], shield["y"]) == (boss["x"], boss["y"])


CELLS_UNDER_THE_AGENT = [
    ("chaser", "orb", Outcome(0.04), True),
    ("maze", "goal", GOAL, False),
    ("miner", "dirt", NOTHING, True),
    ("miner", "diamond", Outcome(1), True),
    ("miner", "boulder", NOTHING, False),
    ("caveflyer", "wall", NOTHING, False),
]


@pytest.mark.parametrize(("game", "name", "expected", "is_taken"), CELLS_UNDER_THE_AGENT)
def test_a_cell_under_the_agent_does_what_its_name_says(
    stage, game, name, expected, is_taken
) -> None:
    cell = KINDS[game][name].types[0]
    scenes = [Scene(saved, 0) for saved in played_states(game)[::7]]
    for outcome, after, _ in stage(game).meetings(scenes, lambda s: with_cell(s.saved, cell)):
        assert outcome == expected
        if not outcome.is_over and is_taken:
            assert after.grid[int(after.agent["y"]), int(after.agent["x"])] != cell


@pytest.mark.parametrize("name", ["boulder", "diamond"])
def test_what_falls_on_the_miner_kills_and_what_rests_above_does_not(stage, name) -> None:
    resting, falling = KINDS["miner"][name].types
    scenes = [Scene(saved, 0) for saved in played_states("miner")[::7]]
    for cell, expected in ((resting, NOTHING), (falling, DEATH)):
        found = stage("miner").meetings(scenes, lambda s, c=cell: with_cell(s.saved, c, above=1))
        assert {outcome for outcome, *_ in found} == {expected}


def test_a_maze_has_one_goal_and_the_orbs_of_chaser_and_dirt_of_miner_only_become_fewer() -> None:
    (goal,) = KINDS["maze"]["goal"].types
    assert all((parse_state(saved).grid == goal).sum() == 1 for saved in played_states("maze"))
    for game, name in (("chaser", "orb"), ("miner", "dirt")):
        (cell,) = KINDS[game][name].types
        by_level = defaultdict(list)
        for saved in played_states(game):
            state = parse_state(saved)
            by_level[state.step.level_seed].append((state.grid == cell).sum())
        assert all(np.diff(numbers).max(initial=0) <= 0 for numbers in by_level.values())
        assert any(np.diff(numbers).min(initial=0) < 0 for numbers in by_level.values())
