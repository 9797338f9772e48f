"""Heads in component space say the same as the heads themselves."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent
from agents.protocol import Readout
from analysis.readout_weights import (
    VALUE_NAME,
    draw_readout,
    read_components,
    read_heads,
    readout_dataset,
)
from experiment.errors import UserError
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset

NUM_COMPONENTS = 3


@pytest.fixture(scope="module")
def agent(simulated_chain):
    return load_agent(simulated_chain / "agent")


@pytest.fixture(scope="module")
def hidden(simulated_chain):
    return RolloutDataset(simulated_chain / "samples").read_field("agent_hidden")


def test_heads_are_those_of_the_network(agent):
    heads = read_heads(agent)
    for rows, head in ((slice(0, -1), agent.policy.policy_head), (-1, agent.policy.value_head)):
        weight, bias = head.weight.numpy().squeeze(), head.bias.numpy().squeeze()
        np.testing.assert_allclose(heads.weights[rows], weight, atol=1e-6)
        np.testing.assert_allclose(heads.bias[rows], bias, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "direction_type"), [("ica", "ica"), ("nmf", "nmf"), ("ica", "pca")]
)
def test_components_discarded_part_and_moved_bias_add_up_to_the_head(
    agent, hidden, method, direction_type
):
    projection = HiddenProjection(method, NUM_COMPONENTS, max_iter=20_000).fit(hidden)
    readout = read_components(read_heads(agent), projection, direction_type)
    coordinates = projection.coordinates(direction_type)
    states = hidden.astype(np.float64)
    s = (states - coordinates.origin) @ coordinates.linear.T
    residual = states - coordinates.origin - s @ coordinates.directions.T
    heads = read_heads(agent)
    in_components = s @ readout.weights.T + residual @ heads.weights.T + readout.bias
    with torch.no_grad():
        said = agent.policy.read_out(torch.from_numpy(hidden))
    expected = np.column_stack([said.action_logits.numpy(), said.value.numpy()])
    np.testing.assert_allclose(in_components, expected, atol=1e-5)


def test_share_of_variance_equals_that_over_the_states_fitted_on(agent, hidden):
    everything = np.ones(len(hidden), np.bool_)
    projection = HiddenProjection("ica", 2).fit(hidden, inliers=everything)
    heads = read_heads(agent)
    readout = read_components(heads, projection, "ica")
    carried = projection.transform(hidden.astype(np.float64)) @ readout.weights.T
    total = hidden.astype(np.float64) @ heads.weights.T
    np.testing.assert_allclose(readout.variance_share, carried.var(0) / total.var(0), rtol=1e-3)
    everything_kept = read_components(heads, projection, "pca").variance_share
    np.testing.assert_allclose(everything_kept, 1.0, rtol=1e-3)


def test_heads_that_are_not_linear_are_refused(agent):
    class Bent:
        hidden_slice, state_dim = agent.policy.hidden_slice, agent.policy.state_dim

        def initial_state(self, batch_size):
            return torch.zeros(batch_size, self.state_dim)

        def read_out(self, state):
            return Readout(state[..., :2].square(), state.sum(-1))

    bent: Any = SimpleNamespace(policy=Bent(), path="bent")
    with pytest.raises(UserError, match=r"--agent_file bent: .* no linear function"):
        read_heads(bent)


def test_the_figure_names_actions_and_carries_the_moved_biases(agent, hidden):
    projection = HiddenProjection("ica", NUM_COMPONENTS).fit(hidden)
    readout = read_components(read_heads(agent), projection, "ica")
    names = tuple(f"action {i}" for i in range(len(readout.bias) - 1))
    figure = draw_readout(readout_dataset(readout, names))
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == [f"{value:+.2f}" for value in readout.bias]
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert labels[0].startswith(VALUE_NAME)
    np.testing.assert_allclose(
        np.asarray(figure.axes[0].images[0].get_array()), readout.weights[:-1]
    )
