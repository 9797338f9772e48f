"""Predictions of an intervention's effects in closed form."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from analysis.effect_predictions import Tangents, gradient_effects, predict_by_readout
from analysis.paired_rows import ActionGroups, Outputs, PairRows


class Doubled:
    """Components are twice the hidden state, and seven more."""

    def transform(self, states):
        return 2.0 * states + 7.0


def test_gradients_of_one_row_have_their_closed_form() -> None:
    """Three actions, the last two alike."""
    tangents = Tangents(
        probs=np.array([[[0.5, 0.25, 0.25]]]),
        d_probs=np.array([[[0.1, -0.08, -0.02]]]),
        d_value=np.array([[3.0]]),
        d_hidden=np.array([[[0.5]]]),
    )
    groups = ActionGroups(("first", "others"), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    found = gradient_effects(tangents, groups, Doubled())
    second_order = (0.1**2 / 0.5 + 0.08**2 / 0.25 + 0.02**2 / 0.25) / 2
    np.testing.assert_allclose(found[:, 0, 0], [3.0, second_order, 0.1, -0.1, 1.0])


def test_the_second_order_of_the_divergence_is_that_of_small_changes() -> None:
    probs, d_probs = np.array([0.6, 0.3, 0.1]), np.array([0.2, -0.3, 0.1])
    groups = ActionGroups(("a", "b", "c"), np.eye(3))
    of_row = Tangents(probs[None, None], d_probs[None, None], np.zeros((1, 1)), np.zeros((1, 1, 1)))
    predicted = gradient_effects(of_row, groups, Doubled())[1, 0, 0]
    small = 1e-3
    divergence = np.sum(probs * np.log(probs / (probs + small * d_probs)))
    np.testing.assert_allclose(divergence, small**2 * predicted, rtol=1e-2)


class StateAgent:
    """Its value is its state, and so is the first of two logits."""

    hidden_slice = slice(0, 1)

    def read_out(self, state):
        logits = torch.cat([state, torch.zeros_like(state)], -1)
        return SimpleNamespace(value=state[..., 0], action_logits=logits)


def test_heads_read_the_twins_state_with_the_change_of_its_row_alone() -> None:
    """An intervention that adds the state before and ten times the row; the last row is not."""
    value = np.array([[1.0, 2.0, np.nan]])
    nothing = np.full((1, 3, 1), np.nan)
    twin = PairRows(
        Outputs(nothing, value, nothing),
        state=np.array([[[1.0], [2.0], [0.0]]], np.float32),
        initial_state=np.array([[5.0]], np.float32),
        episode_return=np.zeros(1),
        is_done=np.zeros(1),
    )
    add_before = cast("Any", lambda previous, proposed, step: proposed + previous + 10 * step)
    found = predict_by_readout(cast("Any", StateAgent()), twin, add_before)
    np.testing.assert_allclose(found.value, [[1.0 + 5.0, 2.0 + 1.0 + 10.0, np.nan]])
    np.testing.assert_allclose(found.hidden[..., 0], found.value)
    np.testing.assert_allclose(found.log_probs[0, 1, 0], -np.log1p(np.exp(-13.0)), rtol=1e-6)
    assert np.isnan(found.log_probs[0, 2]).all()
