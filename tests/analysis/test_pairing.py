"""Effects are differences within pairs: what tells levels apart is in no interval."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from agents.protocol import Readout
from analysis.effect_names import DONE, RETURN, TESTED, TWIN, VALUE
from analysis.effect_recording import WorldRecordings
from analysis.intervention_effects import Measuring, WorldEffects, measure_world
from analysis.paired_rows import ActionGroups, MeasureNames
from generative.level_bootstrap import LevelBootstrap
from rollouts.store import RolloutDataset, RolloutWriter

NUM_PAIRS, NUM_ROWS = 10, 10
GROUPS = ActionGroups(("first", "others"), np.array([[1.0, 0], [0, 1], [0, 1], [0, 1], [0, 1]]))
NAMES = MeasureNames(GROUPS, num_components=1, num_clusters=2)
EFFECTS = {
    VALUE: 0.5,
    "action:first": 0.05,
    "component:0": -0.2,
    RETURN: 2.0,
    DONE: 0.0,
    "cluster:1": 0.1,
}
"""The same in every pair, and small beside what levels differ by."""
SMALLEST_UNPAIRED_WIDTH = {
    VALUE: 20.0,
    "action:first": 0.1,
    "component:0": 10.0,
    RETURN: 200.0,
    DONE: 0.4,
    "cluster:1": 0.2,
}


class FirstUnit:
    """The first hidden unit is the component, the sign of the second is the behaviour.

    As an agent, it takes its value from the component and knows of no actions.
    """

    hidden_slice = slice(None)

    def transform(self, states):
        return states[..., :1]

    def assign(self, hidden):
        return (np.nan_to_num(hidden[..., 1]) > 0).astype(np.int32)

    def read_out(self, state):
        return Readout(torch.zeros(*state.shape[:-1], 5), state[..., 0])


def planted(rollout, level, changed):
    """One of a pair, whose every figure grows with the number of the level."""
    row = np.arange(NUM_ROWS)
    first = 0.1 + 0.05 * level + changed * EFFECTS["action:first"]
    probs = np.where(np.arange(5) == 0, first, (1 - first) / 4)
    hidden = np.zeros_like(rollout.agent_hidden)
    hidden[:, 0] = 5.0 * level + changed * EFFECTS["component:0"]
    hidden[:, 1] = np.where(row < level + changed, 1.0, -1.0)
    return replace(
        rollout,
        value=np.full(NUM_ROWS, 10.0 * level + changed * EFFECTS[VALUE], np.float32),
        reward=np.full(NUM_ROWS, 10.0 * level + changed * EFFECTS[RETURN] / NUM_ROWS, np.float32),
        done=(row == NUM_ROWS - 1) & (level < NUM_PAIRS // 2),
        action_logits=np.tile(np.log(probs), (NUM_ROWS, 1)).astype(np.float32),
        agent_hidden=hidden,
    )


@pytest.fixture
def effects_when_paired_as(planted_datasets, tmp_path):
    """Effects where the pair of twin n is changed episode order[n]."""
    source = RolloutDataset(planted_datasets.simulated)
    ids = source.episodes["episode_id"].to_numpy()

    def write(folder, order, changed):
        with RolloutWriter(folder, source.metadata) as writer:
            for position in range(NUM_PAIRS):
                one = planted(source.read_episode(position), order[position], changed)
                writer.write(one)
        return RolloutDataset(folder)

    def measure(order) -> WorldEffects:
        assert np.array_equal(ids, np.sort(ids))
        datasets = {
            TWIN: write(tmp_path / "twin", np.arange(NUM_PAIRS), changed=False),
            TESTED: write(tmp_path / "tested", order, changed=True),
        }
        every = cast("Any", FirstUnit())
        push = cast("Any", lambda before, after, step: after)
        recordings = WorldRecordings(datasets, {TESTED: push}, {})
        measuring = Measuring(every, every, every, NAMES, NUM_ROWS)
        bootstrap = LevelBootstrap(np.arange(NUM_PAIRS), 300, 0)
        return measure_world(recordings, measuring, bootstrap, "real", None)

    return measure


def by_measure(effects: WorldEffects) -> dict[str, SimpleNamespace]:
    low, high = effects.by_pair.interval[:, 0]
    q_value = effects.q_value(NAMES)
    return {
        name: SimpleNamespace(mean=mean, low=low, high=high, q_value=q)
        for name, mean, low, high, q in zip(
            NAMES.by_pair, effects.by_pair.mean[0], low, high, q_value, strict=True
        )
    }


def test_an_effect_that_is_the_same_in_every_pair_has_no_spread(effects_when_paired_as):
    effects = effects_when_paired_as(np.arange(NUM_PAIRS))
    found = by_measure(effects)
    for measure, effect in EFFECTS.items():
        one = found[measure]
        np.testing.assert_allclose([one.mean, one.low, one.high], effect, atol=1e-4)
        assert one.q_value == 1.0 if effect == 0 else one.q_value < 1e-6
    value = NAMES.by_row.index(VALUE)
    np.testing.assert_allclose(effects.by_row.interval[:, 0, value], EFFECTS[VALUE], atol=1e-4)


def test_the_same_recordings_paired_with_those_of_other_levels_say_nothing(effects_when_paired_as):
    found = by_measure(effects_when_paired_as(np.roll(np.arange(NUM_PAIRS), 5)))
    for measure, effect in EFFECTS.items():
        one = found[measure]
        assert one.mean == pytest.approx(effect, abs=1e-4)
        assert one.low < 0 < one.high
        assert one.high - one.low > SMALLEST_UNPAIRED_WIDTH[measure]
        assert one.q_value > 0.5
