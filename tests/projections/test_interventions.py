from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.errors import UserError
from projections.hidden import LinearCoordinates
from projections.interventions import DirectionSwap, make_direction_swap, swap_from_description
from projections.swap_flags import twin_folder

HIDDEN_SLICE = slice(3, 15)
STATE_DIM = 20


@pytest.fixture
def state_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    previous = torch.randn(6, STATE_DIM, generator=generator)
    return previous, torch.randn(6, STATE_DIM, generator=generator)


@pytest.fixture
def ica_coordinates(ica_projection) -> LinearCoordinates:
    return ica_projection.coordinates("ica")


def _in_coordinates(coordinates: LinearCoordinates, states: torch.Tensor) -> np.ndarray:
    return (states[:, HIDDEN_SLICE].numpy() - coordinates.origin) @ coordinates.linear.T


def _residual(coordinates: LinearCoordinates, states: torch.Tensor) -> np.ndarray:
    hidden = states[:, HIDDEN_SLICE].numpy()
    return hidden - _in_coordinates(coordinates, states) @ coordinates.directions.T


@pytest.mark.parametrize("swap_on", ["updates", "states"])
def test_no_pairs_change_no_bit(ica_coordinates, state_pair, swap_on):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_coordinates, [], [], HIDDEN_SLICE, swap_on)
    assert torch.equal(swap(previous, proposed, 0), proposed)


def test_redirected_update_follows_the_rule(ica_coordinates, state_pair):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_coordinates, [0, 3], [2, None], HIDDEN_SLICE)
    before = _in_coordinates(ica_coordinates, previous)
    update = _in_coordinates(ica_coordinates, proposed) - before
    expected = before + update * [0, 1, 1, 0]
    expected[:, 2] += update[:, 0]
    result = swap(previous, proposed, 0)
    assert np.allclose(_in_coordinates(ica_coordinates, result), expected, atol=1e-3)


def test_redirected_state_follows_the_rule(ica_coordinates, state_pair):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_coordinates, [1, 2], [0, 1], HIDDEN_SLICE, "states")
    old = _in_coordinates(ica_coordinates, proposed)
    expected = np.stack([old[:, 0] + old[:, 1], old[:, 2], 0 * old[:, 2], old[:, 3]], axis=1)
    result = swap(previous, proposed, 0)
    assert np.allclose(_in_coordinates(ica_coordinates, result), expected, atol=1e-3)


@pytest.mark.parametrize("swap_on", ["updates", "states"])
def test_residual_and_other_slices_are_untouched(ica_coordinates, state_pair, swap_on):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_coordinates, [0, 1], [1, None], HIDDEN_SLICE, swap_on)
    result = swap(previous, proposed, 0)
    assert np.allclose(
        _residual(ica_coordinates, result), _residual(ica_coordinates, state_pair[1]), atol=1e-5
    )
    assert torch.equal(result[:, :3], proposed[:, :3])
    assert torch.equal(result[:, 15:], proposed[:, 15:])
    assert not torch.allclose(result, proposed)


@pytest.mark.parametrize("swap_on", ["updates", "states"])
def test_an_exchange_applied_twice_restores(ica_coordinates, state_pair, swap_on):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_coordinates, [0, 2], [2, 0], HIDDEN_SLICE, swap_on)
    once = swap(previous, proposed, 0)
    assert not torch.allclose(once, proposed, atol=1e-3)
    assert torch.allclose(swap(previous, once, 0), proposed, atol=1e-5)


def test_a_collapsed_direction_stays_constant(ica_coordinates):
    generator = torch.Generator().manual_seed(1)
    swap = DirectionSwap(ica_coordinates, [1], [None], HIDDEN_SLICE)
    state = torch.randn(4, STATE_DIM, generator=generator)
    start = _in_coordinates(ica_coordinates, state)
    for step in range(20):
        proposed = torch.tanh(state + torch.randn(4, STATE_DIM, generator=generator))
        state = swap(state, proposed, step)
    end = _in_coordinates(ica_coordinates, state)
    assert np.allclose(end[:, 1], start[:, 1], atol=1e-3)
    assert np.all(np.abs(end[:, [0, 2, 3]] - start[:, [0, 2, 3]]).max(axis=0) > 0.1)


def test_the_swap_is_differentiable(ica_coordinates):
    swap = DirectionSwap(ica_coordinates, [0], [1], HIDDEN_SLICE)
    proposed = torch.zeros(1, STATE_DIM, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        swap(torch.ones(1, STATE_DIM), proposed, 0)[:, HIDDEN_SLICE] @ torch.ones(12), proposed
    )
    coordinates, ones = ica_coordinates, np.ones(12)
    moved = coordinates.linear[0] * (
        (coordinates.directions[:, 1] - coordinates.directions[:, 0]) @ ones
    )
    assert np.allclose(gradient[0, HIDDEN_SLICE].numpy(), ones + moved, atol=1e-4)


def test_unit_directions_are_hidden_units(ica_projection, state_pair):
    previous, proposed = state_pair
    swap = DirectionSwap(ica_projection.coordinates("unit"), [7], [None], HIDDEN_SLICE)
    result = swap(previous, proposed, 0)
    assert torch.allclose(result[:, 10], previous[:, 10], atol=1e-6)
    others = [index for index in range(STATE_DIM) if index != 10]
    assert torch.equal(result[:, others], proposed[:, others])


def test_pca_directions_are_all_standardised_components(ica_projection, hidden_states):
    coordinates = ica_projection.coordinates("pca")
    scores = ica_projection.principal_components(hidden_states.astype(np.float64))
    standardised = (hidden_states - coordinates.origin) @ coordinates.linear.T
    assert coordinates.num_directions == 11
    assert np.allclose(standardised * ica_projection.component_deviations_, scores, atol=1e-9)


def test_description_makes_the_same_swap(ica_projection, state_pair, tmp_path):
    previous, proposed = state_pair
    folder = tmp_path / "projection"
    ica_projection.save(folder)
    swap = make_direction_swap(folder, [0, 1], [2, None], HIDDEN_SLICE, "pca", "states")
    again = swap_from_description(swap.describe())
    assert again.describe() == swap.describe()
    assert torch.equal(again(previous, proposed, 0), swap(previous, proposed, 0))


def test_description_holds_from_another_folder(ica_projection, state_pair, tmp_path, monkeypatch):
    previous, proposed = state_pair
    (tmp_path / "elsewhere").mkdir()
    ica_projection.save(tmp_path / "projection")
    monkeypatch.chdir(tmp_path)
    swap = make_direction_swap("projection", [0], [1], HIDDEN_SLICE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = swap_from_description(swap.describe())
    assert torch.equal(again(previous, proposed, 0), swap(previous, proposed, 0))


def test_description_of_a_refitted_projection_is_refused(ica_projection, hidden_states, tmp_path):
    folder = tmp_path / "projection"
    ica_projection.save(folder)
    description = make_direction_swap(folder, [0], [1], HIDDEN_SLICE).describe()
    type(ica_projection)("ica", 4).fit(hidden_states[:1000]).save(folder)
    with pytest.raises(UserError, match="fitted on other data"):
        swap_from_description(description)


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([10], [0], "--swap_directions_from 10: expected a direction from 0 to 3"),
        ([0], [-1], "--swap_directions_to -1: expected"),
        ([0, 1], [2], "--swap_directions_from has 2 directions, --swap_directions_to 1"),
    ],
)
def test_unusable_pairs_are_refused(ica_coordinates, sources, targets, message):
    with pytest.raises(UserError, match=message):
        DirectionSwap(ica_coordinates, sources, targets, HIDDEN_SLICE)


def test_foreign_projections_are_refused(ica_projection, tmp_path):
    ica_projection.save(tmp_path / "projection")
    with pytest.raises(UserError, match="fitted on 12 hidden units, the agent has 64"):
        make_direction_swap(tmp_path / "projection", [0], [1], slice(0, 64))
    with pytest.raises(UserError, match="--direction_type nmf: the projection was fitted by ica"):
        make_direction_swap(tmp_path / "projection", [0], [1], HIDDEN_SLICE, "nmf")


def test_the_twin_lies_beside_whatever_folder_is_named(tmp_path, monkeypatch) -> None:
    assert twin_folder(Path("a/b")) == Path("a/b_twin")
    (tmp_path / "here/deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/deeper")
    assert twin_folder(Path(".")) == tmp_path / "here/deeper_twin"
    assert twin_folder(Path("..")) == tmp_path / "here_twin"
