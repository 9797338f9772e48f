"""Searching latents: the accept rule, the constraint, the control."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from analysis.target_figures import draw_target_functions, score_label
from analysis.target_functions import (
    AscentConfig,
    LatentAscent,
    TargetFunction,
    make_target_functions,
)
from analysis.target_functions_precompute import to_dataset
from experiment.errors import UserError
from generative.bottleneck import SphereBottleneck
from generative.simulator import Simulator
from generative.types import SimulatedSteps
from projections.hidden import TorchProjection

DIM = 4


class LinearSimulator(torch.nn.Module):
    """Its values are the latent's coordinates, so that the best latent is known."""

    config = SimpleNamespace(latent_dim=DIM)
    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.bottleneck = SphereBottleneck(DIM)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def decode_initial(self, latent):
        return latent

    def simulate(self, initial, num_steps):
        logits = torch.stack([initial[:, 0], -initial[:, 0]], -1)
        steps = [initial] * num_steps
        return SimulatedSteps(
            *(tuple(steps),) * 4,
            action_logits=(logits,) * num_steps,
            value=tuple((k + 1) * initial[:, 0] for k in range(num_steps)),
            **{name: tuple(steps) for name in ("action", "reward", "terminal_logit")},
        )


def climb(target, **settings):
    config = AscentConfig(num_copies=5, num_sim_steps=4, target_step=2, **settings)
    return LatentAscent(cast(Simulator, LinearSimulator()), target, config, 0).run()


def targets(*names):
    return make_target_functions(names, ("left", "right"), slice(0, DIM), None, 2)


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("increase_value", 1),
        ("decrease_value", -1),
        ("increase_value_delta", 1),
        ("decrease_value_delta", -1),
        ("increase_hx_neuron_0", 1),
        ("action_left", 1),
        ("action_1", -1),
    ],
)
def test_climbs_to_the_known_best_latent(name, sign) -> None:
    result = climb(targets(name)[0])
    np.testing.assert_allclose(result.latent[:, 0], sign, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(result.latent, axis=1), 1, rtol=1e-5)
    assert (result.best_score >= result.control_score - 1e-3).all()


def test_scores_are_what_they_are_called() -> None:
    """Of five steps; a middle one belongs to neither half."""
    generator = torch.Generator().manual_seed(0)
    state, logits = torch.randn(5, 3, DIM, generator=generator), torch.randn(5, 3, 2)
    value = torch.tensor([1.0, 2.0, 30.0, 4.0, 7.0])[:, None] * torch.tensor([1.0, -1.0, 0.5])
    steps = SimpleNamespace(
        agent_state=tuple(state), action_logits=tuple(logits), value=tuple(value)
    )
    shifted = SimpleNamespace(linear=torch.zeros(2, 2), transform=lambda hidden: 2 * hidden + 1)
    scores = {
        "increase_value": value.mean(0),
        "increase_value_delta": torch.tensor([5.5, -5.5, 2.75]) - value[:2].mean(0),
        "decrease_hx_neuron_1": -state[..., 3].mean(0),
        "increase_hx_direction_1": 2 * state[2, :, 3] + 1,
        "action_right": logits.log_softmax(-1)[..., 1].mean(0),
    }
    projection = cast(TorchProjection, shifted)
    made = make_target_functions([*scores], ("left", "right"), slice(2, DIM), projection, 2)
    for target, expected in zip(made, scores.values(), strict=True):
        torch.testing.assert_close(target.score(cast(SimulatedSteps, steps)), expected)


def test_without_temperature_no_copy_ever_falls() -> None:
    history = climb(targets("increase_value")[0], temperature=0).history
    assert (np.diff(history, axis=0) >= 0).all()


def test_temperature_keeps_worse_latents_as_often_as_metropolis() -> None:
    config = AscentConfig(num_copies=20_000)
    ascent = LatentAscent(
        cast(Simulator, LinearSimulator()), targets("increase_value")[0], config, 0
    )
    losses = torch.full((20_000,), -1.0)
    assert ascent._is_kept(losses, 2.0, 1).float().mean() == pytest.approx(np.exp(-0.5), abs=0.01)
    assert ascent._is_kept(-losses, 2.0, 1).all()
    assert not ascent._is_kept(losses, 0.0, 1).any()


def test_stops_when_nothing_better_is_found_and_control_spends_the_same() -> None:
    calls = []

    def flat(steps):
        calls.append(1)
        return 0.0 * steps.value[0]

    result = climb(TargetFunction("flat", flat), patience=3, temperature=0)
    assert len(result.history) == 4
    assert len(calls) == 2 * len(result.history)
    assert not (result.best_score > result.control_score).any()


@pytest.mark.parametrize(
    "name",
    ["value", "increase_luck", "increase_hx_neuron_4", "action_2", "increase_hx_direction_0"],
)
def test_names_without_meaning_are_refused(name) -> None:
    with pytest.raises(UserError, match=f"--target_functions {name}"):
        targets(name)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("increase_value", "mean value"),
        ("decrease_value", "−(mean value)"),
        ("decrease_hx_direction_15", "−(component 15)"),
        ("increase_hx_neuron_3", "hidden unit 3"),
        ("action_down_left", "log-probability (nats)"),
    ],
)
def test_an_axis_names_its_score_with_the_sign(name, label) -> None:
    assert score_label(name) == label


def test_searches_of_different_length_are_drawn_together() -> None:
    names = ("increase_value", "action_left")
    results = [
        climb(target, num_iterations=count)
        for target, count in zip(targets(*names), (3, 6), strict=True)
    ]
    dataset = to_dataset(list(names), results)
    assert np.isnan(dataset["score"].sel(target="increase_value", iteration=6)).all()
    assert len(draw_target_functions(dataset).axes) == 2
