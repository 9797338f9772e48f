import numpy as np
import pytest
import torch

from experiment.errors import UserError
from projections.coordinates import LinearCoordinates
from projections.descriptions import interventions_from_descriptions
from projections.directions import DirectionChoice, Directions, load_directions
from projections.hidden import HiddenProjection
from projections.intervention import InterventionChain, descriptions_of
from projections.interventions import Add, Clamp, DirectionIntervention, Rule, Scale, Swap
from projections.outliers import inlier_mask
from projections.steps import ALL_STEPS, StepList, StepRange, Steps

HIDDEN_SLICE = slice(3, 15)
STATE_DIM = 20
StatePair = tuple[torch.Tensor, torch.Tensor]
EVERY_RULE = (
    Swap((0, 1), (1, None)),
    Swap((0, 1), (1, None), "states"),
    Scale((0, 2), (0.5, -1.0)),
    Scale((0, 2), (0.5, -1.0), "states"),
    Add((0, 3), (2.0, -1.0)),
    Clamp((1, 2), (0.0, 3.0)),
)


@pytest.fixture
def state_pair() -> StatePair:
    generator = torch.Generator().manual_seed(0)
    previous = torch.randn(6, STATE_DIM, generator=generator)
    return previous, torch.randn(6, STATE_DIM, generator=generator)


@pytest.fixture(scope="session")
def projection_folders(hidden_states, tmp_path_factory) -> dict[str, str]:
    """Saved projections, by method."""
    folder = tmp_path_factory.mktemp("projections")
    for method in ("ica", "pca", "nmf"):
        HiddenProjection(method, 4).fit(hidden_states).save(folder / method)
    return {method: str(folder / method) for method in ("ica", "pca", "nmf")}


@pytest.fixture(scope="session")
def directions_file(tmp_path_factory) -> str:
    """Four oblique directions."""
    path = tmp_path_factory.mktemp("directions") / "directions.npy"
    np.save(path, np.random.default_rng(7).normal(size=(4, 12)) + 0.5)
    return str(path)


@pytest.fixture(scope="session", params=["ica", "pca", "nmf", "unit", "file"])
def directions(request, projection_folders, directions_file) -> Directions:
    kind = request.param
    folder = projection_folders.get(kind, projection_folders["ica"])
    file = directions_file if kind == "file" else None
    return load_directions(DirectionChoice(kind, folder, file), 12)


@pytest.fixture(scope="session")
def ica(projection_folders) -> Directions:
    return load_directions(DirectionChoice("ica", projection_folders["ica"]), 12)


def _intervene(
    directions: Directions, rule: Rule, steps: Steps = ALL_STEPS
) -> DirectionIntervention:
    return DirectionIntervention(rule, directions, HIDDEN_SLICE, steps)


def _in_coordinates(coordinates: LinearCoordinates, states: torch.Tensor) -> np.ndarray:
    return (states[:, HIDDEN_SLICE].numpy() - coordinates.origin) @ coordinates.linear.T


def _residual(coordinates: LinearCoordinates, states: torch.Tensor) -> np.ndarray:
    hidden = states[:, HIDDEN_SLICE].numpy()
    return hidden - _in_coordinates(coordinates, states) @ coordinates.directions.T


IDLE_RULES = (Swap((), ()), Swap((), (), "states"), Scale((), ()), Add((), ()), Clamp((), ()))


@pytest.mark.parametrize("rule", IDLE_RULES, ids=lambda rule: rule.kind)
def test_no_directions_change_no_bit(directions, state_pair: StatePair, rule):
    previous, proposed = state_pair
    assert _intervene(directions, rule)(previous, proposed, 0) is proposed


def test_redirected_update_follows_the_rule(directions, state_pair: StatePair):
    previous, proposed = state_pair
    coordinates = directions.coordinates
    before = _in_coordinates(coordinates, previous)
    update = _in_coordinates(coordinates, proposed) - before
    expected = before + update
    expected[:, 2] += update[:, 0]
    expected[:, [0, 3]] = before[:, [0, 3]]
    result = _intervene(directions, Swap((0, 3), (2, None)))(previous, proposed, 0)
    assert np.allclose(_in_coordinates(coordinates, result), expected, atol=1e-3)


def test_redirected_state_follows_the_rule(directions, state_pair: StatePair):
    previous, proposed = state_pair
    old = _in_coordinates(directions.coordinates, proposed)
    expected = old.copy()
    expected[:, :3] = np.stack([old[:, 0] + old[:, 1], old[:, 2], 0 * old[:, 2]], axis=1)
    result = _intervene(directions, Swap((1, 2), (0, 1), "states"))(previous, proposed, 0)
    assert np.allclose(_in_coordinates(directions.coordinates, result), expected, atol=1e-3)


@pytest.mark.parametrize("acts_on", ["updates", "states"])
def test_scaling_multiplies_state_or_update(directions, state_pair: StatePair, acts_on):
    previous, proposed = state_pair
    coordinates = directions.coordinates
    before = 0.0 if acts_on == "states" else _in_coordinates(coordinates, previous)
    factors = np.ones(coordinates.num_directions)
    factors[[0, 2]] = 3.0, -0.5
    expected = before + (_in_coordinates(coordinates, proposed) - before) * factors
    result = _intervene(directions, Scale((0, 2), (3.0, -0.5), acts_on))(previous, proposed, 0)
    assert np.allclose(_in_coordinates(coordinates, result), expected, atol=3e-3)


@pytest.mark.parametrize("acts_on", ["updates", "states"])
def test_scaling_by_zero_is_dropping(directions, state_pair: StatePair, acts_on):
    scaled = _intervene(directions, Scale((1, 2), (0.0, 0.0), acts_on))
    dropped = _intervene(directions, Swap((1, 2), (None, None), acts_on))
    assert torch.equal(scaled(*state_pair, 0), dropped(*state_pair, 0))


def test_adding_moves_by_standard_deviations(directions, state_pair: StatePair):
    coordinates = directions.coordinates
    assert coordinates.statistics is not None
    deviation = coordinates.statistics.deviation
    result = _intervene(directions, Add((0, 3), (2.0, -1.0)))(*state_pair, 0)
    expected = np.zeros((6, coordinates.num_directions))
    expected[:, [0, 3]] = 2.0 * deviation[0], -deviation[3]
    moved = _in_coordinates(coordinates, result) - _in_coordinates(coordinates, state_pair[1])
    assert np.allclose(moved, expected, atol=1e-3)


@pytest.mark.parametrize("method", ["ica", "pca", "nmf", "unit", "file"])
def test_statistics_are_those_of_the_inliers(
    method, hidden_states, projection_folders, directions_file
):
    folder = projection_folders.get(method, projection_folders["nmf"])
    file = directions_file if method == "file" else None
    coordinates = load_directions(DirectionChoice(method, folder, file), 12).coordinates
    inliers = hidden_states[inlier_mask(hidden_states)].astype(np.float64)
    found = (inliers - coordinates.origin) @ coordinates.linear.T
    assert coordinates.statistics is not None
    assert np.allclose(coordinates.statistics.mean, found.mean(axis=0), atol=1e-6)
    assert np.allclose(coordinates.statistics.deviation, found.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("unit", ["deviation", "coordinate"])
def test_a_clamped_coordinate_is_held(directions, unit):
    generator = torch.Generator().manual_seed(1)
    coordinates = directions.coordinates
    clamp = _intervene(directions, Clamp((1, 2), (1.5, -2.0), unit))
    expected = np.array([1.5, -2.0])
    if unit == "deviation":
        statistics = coordinates.statistics
        assert statistics is not None
        expected = statistics.mean[[1, 2]] + expected * statistics.deviation[[1, 2]]
    state = torch.randn(4, STATE_DIM, generator=generator)
    for step in range(5):
        proposed = torch.tanh(state + torch.randn(4, STATE_DIM, generator=generator))
        state = clamp(state, proposed, step)
        held = _in_coordinates(coordinates, state)
        assert np.allclose(held[:, [1, 2]], expected, atol=2e-3)
        free = _in_coordinates(coordinates, proposed)
        assert np.allclose(held[:, [0, 3]], free[:, [0, 3]], atol=2e-3)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.kind)
def test_residual_and_other_slices_are_untouched(directions, state_pair: StatePair, rule):
    previous, proposed = state_pair
    result = _intervene(directions, rule)(previous, proposed, 0)
    coordinates = directions.coordinates
    assert np.allclose(_residual(coordinates, result), _residual(coordinates, proposed), atol=1e-4)
    assert torch.equal(result[:, :3], proposed[:, :3])
    assert torch.equal(result[:, 15:], proposed[:, 15:])
    assert not torch.allclose(result, proposed)


@pytest.mark.parametrize("acts_on", ["updates", "states"])
def test_an_exchange_applied_twice_restores(directions, state_pair: StatePair, acts_on):
    previous, proposed = state_pair
    swap = _intervene(directions, Swap((0, 2), (2, 0), acts_on))
    once = swap(previous, proposed, 0)
    assert not torch.allclose(once, proposed, atol=1e-3)
    assert torch.allclose(swap(previous, once, 0), proposed, atol=2e-5)


def test_a_collapsed_direction_stays_constant(directions):
    generator = torch.Generator().manual_seed(1)
    coordinates = directions.coordinates
    swap = _intervene(directions, Swap((1,), (None,)))
    state = torch.randn(4, STATE_DIM, generator=generator)
    start = _in_coordinates(coordinates, state)
    for step in range(20):
        proposed = torch.tanh(state + torch.randn(4, STATE_DIM, generator=generator))
        state = swap(state, proposed, step)
    end = _in_coordinates(coordinates, state)
    assert np.allclose(end[:, 1], start[:, 1], atol=2e-3)
    assert np.all(np.abs(end[:, [0, 2, 3]] - start[:, [0, 2, 3]]).max(axis=0) > 0.1)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.kind)
def test_only_chosen_steps_are_changed(ica, state_pair: StatePair, rule):
    previous, proposed = state_pair
    for steps in (StepRange(2, 4), StepList((2, 3))):
        intervention = _intervene(ica, rule, steps)
        for step in range(6):
            result = intervention(previous, proposed, step)
            assert (result is proposed) == (step not in (2, 3))


def test_links_act_in_order_each_on_what_the_one_before_returned(ica, state_pair: StatePair):
    previous, proposed = state_pair
    rules = [Add((0,), (1.0,)), Scale((0,), (2.0,), "states")]
    links = [_intervene(ica, rule) for rule in rules]
    before = _in_coordinates(ica.coordinates, proposed)[:, 0]
    for chosen, expected in ((links, 2 * (before + 1)), (links[::-1], 2 * before + 1)):
        result = InterventionChain(chosen)(previous, proposed, 0)
        found = _in_coordinates(ica.coordinates, result)[:, 0]
        assert np.allclose(found, expected, atol=1e-2)


def test_interventions_are_differentiable(ica):
    swap = _intervene(ica, Swap((0,), (1,)))
    proposed = torch.zeros(1, STATE_DIM, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        swap(torch.ones(1, STATE_DIM), proposed, 0)[:, HIDDEN_SLICE] @ torch.ones(12), proposed
    )
    coordinates, ones = ica.coordinates, np.ones(12)
    moved = coordinates.linear[0] * (
        (coordinates.directions[:, 1] - coordinates.directions[:, 0]) @ ones
    )
    assert np.allclose(gradient[0, HIDDEN_SLICE].numpy(), ones + moved, atol=1e-4)


def test_unit_directions_are_hidden_units(state_pair: StatePair):
    previous, proposed = state_pair
    units = load_directions(DirectionChoice("unit"), 12)
    result = _intervene(units, Swap((7,), (None,)))(previous, proposed, 0)
    assert torch.allclose(result[:, 10], previous[:, 10], atol=1e-6)
    others = [index for index in range(STATE_DIM) if index != 10]
    assert torch.equal(result[:, others], proposed[:, others])


def test_pca_directions_are_all_standardised_components(ica_projection, hidden_states):
    coordinates = ica_projection.coordinates("pca")
    scores = ica_projection.principal_components(hidden_states.astype(np.float64))
    standardised = (hidden_states - coordinates.origin) @ coordinates.linear.T
    assert coordinates.num_directions == 11
    assert np.allclose(standardised * ica_projection.component_deviations_, scores, atol=1e-9)


def test_coordinates_of_a_file_solve_least_squares(directions_file, hidden_states):
    rows = np.load(directions_file)
    coordinates = load_directions(DirectionChoice("file", None, directions_file), 12).coordinates
    states = hidden_states[:20].astype(np.float64)
    expected = np.linalg.lstsq(rows.T, states.T, rcond=None)[0].T
    assert np.allclose(states @ coordinates.linear.T, expected, atol=1e-9)
    assert np.allclose(coordinates.linear @ coordinates.directions, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.kind)
def test_descriptions_make_the_same_interventions(directions, state_pair: StatePair, rule):
    links = [_intervene(directions, rule, StepRange(1)), _intervene(directions, EVERY_RULE[0])]
    for chosen in (links[0], InterventionChain(links)):
        again = interventions_from_descriptions(descriptions_of(chosen))
        assert again is not None
        assert descriptions_of(again) == descriptions_of(chosen)
        for step in (0, 1):
            assert torch.equal(again(*state_pair, step), chosen(*state_pair, step))


def test_description_holds_from_another_folder(
    ica_projection, state_pair: StatePair, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    ica_projection.save(tmp_path / "projection")
    monkeypatch.chdir(tmp_path)
    swap = _intervene(load_directions(DirectionChoice("ica", "projection"), 12), EVERY_RULE[0])
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = interventions_from_descriptions(descriptions_of(swap))
    assert again is not None
    assert torch.equal(again(*state_pair, 0), swap(*state_pair, 0))


@pytest.mark.parametrize("settings", [{"n_components": 3}, {"random_state": 1}, {"tol": 1e-9}])
def test_a_refit_on_the_same_data_with_other_settings_is_refused(hidden_states, tmp_path, settings):
    folder = tmp_path / "projection"
    original = HiddenProjection("ica", 4).fit(hidden_states)
    original.save(folder)
    directions = load_directions(DirectionChoice("ica", str(folder)), 12)
    descriptions = descriptions_of(_intervene(directions, Swap((0,), (1,))))
    HiddenProjection("ica", 4).fit(hidden_states).save(folder)
    assert interventions_from_descriptions(descriptions) is not None
    refit = HiddenProjection(**{"method": "ica", "n_components": 4, **settings}).fit(hidden_states)
    assert refit.data_hash == original.data_hash
    refit.save(folder)
    with pytest.raises(UserError, match="projection: defines other ica directions"):
        interventions_from_descriptions(descriptions)


def test_other_directions_in_the_file_are_refused(directions_file, tmp_path):
    path = tmp_path / "directions.npy"
    rows = np.load(directions_file)
    np.save(path, rows)
    directions = load_directions(DirectionChoice("file", None, str(path)), 12)
    descriptions = descriptions_of(_intervene(directions, Swap((0,), (1,))))
    np.save(path, rows * 2)
    with pytest.raises(UserError, match=r"directions\.npy: defines other file directions"):
        interventions_from_descriptions(descriptions)
    path.unlink()
    with pytest.raises(UserError, match=r"directions\.npy: what defines .* is gone"):
        interventions_from_descriptions(descriptions)


def test_what_cannot_be_made_again_is_named():
    with pytest.raises(UserError, match="kind 'forced_action' cannot be made again"):
        interventions_from_descriptions([{"kind": "forced_action", "row": 0, "action": 1}])


@pytest.mark.parametrize(
    ("make_rule", "message"),
    [
        (lambda: Swap((10,), (0,)), "--swap_directions_from 10: expected a direction from 0 to 3"),
        (lambda: Swap((0,), (-1,)), "--swap_directions_to -1: expected"),
        (
            lambda: Swap((0, 1), (2,)),
            "--swap_directions_from has 2 directions, --swap_directions_to 1",
        ),
        (lambda: Scale((0, 1), (2.0,)), "--scale_directions has 2 directions, --scale_factors 1"),
        (lambda: Scale((4,), (2.0,)), "--scale_directions 4: expected a direction from 0 to 3"),
        (lambda: Scale((1, 1), (2.0, 3.0)), "--scale_directions 1: named twice"),
        (lambda: Add((0,), (float("nan"),)), "--add_amounts nan: expected a finite number"),
        (lambda: Add((-1,), (1.0,)), "--add_directions -1: expected a direction"),
        (lambda: Clamp((0,), (float("inf"),)), "--clamp_values inf: expected a finite number"),
        (lambda: Clamp((9,), (1.0,)), "--clamp_directions 9: expected a direction"),
    ],
)
def test_unusable_rules_are_refused(ica, make_rule, message):
    with pytest.raises(UserError, match=message):
        _intervene(ica, make_rule())


def test_deviations_that_nobody_knows_are_no_unit(directions_file, projection_folders):
    file = load_directions(DirectionChoice("file", None, directions_file), 12)
    for rule in (Add((0,), (1.0,)), Clamp((0,), (1.0,))):
        with pytest.raises(UserError, match=rf"--{rule.kind}_directions: standard .* --projection"):
            _intervene(file, rule)
    # Unit 5 of the states that the projections were fitted on is constant.
    units = load_directions(DirectionChoice("unit", projection_folders["pca"]), 12)
    with pytest.raises(UserError, match="--add_directions 5: this coordinate never varies"):
        _intervene(units, Add((5,), (1.0,)))
    _intervene(units, Add((5,), (1.0,), "coordinate"))


def test_foreign_projections_are_refused(projection_folders):
    folder = projection_folders["ica"]
    with pytest.raises(UserError, match="fitted on 12 hidden units, the agent has 64"):
        load_directions(DirectionChoice("ica", folder), 64)
    with pytest.raises(UserError, match="--direction_type nmf: the projection was fitted by ica"):
        load_directions(DirectionChoice("nmf", folder), 12)
    with pytest.raises(UserError, match="no such projection"):
        load_directions(DirectionChoice("ica", "absent"), 12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((2, 11)), r"found \(2, 11\), expected \(num_directions, 12\)"),
        (np.ones(12), r"found \(12,\), expected"),
        (np.ones((2, 12)), "2 directions of rank 1; expected linearly independent"),
        (np.zeros((0, 12)), "0 directions of rank 0"),
        (np.full((1, 12), np.nan), "expected finite real numbers"),
        (np.ones((1, 12), complex), "expected finite real numbers"),
        (b"no array", r"not a readable \.npy file"),
        (None, "no such file"),
    ],
)
def test_unusable_direction_files_are_refused(tmp_path, content, message):
    path = tmp_path / "directions.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=rf"--directions_file .*{message}"):
        load_directions(DirectionChoice("file", None, str(path)), 12)


def test_files_and_types_that_do_not_go_together(directions_file, projection_folders):
    with pytest.raises(UserError, match="--direction_type file: needs --directions_file"):
        load_directions(DirectionChoice("file"), 12)
    choice = DirectionChoice("ica", projection_folders["ica"], directions_file)
    with pytest.raises(UserError, match="goes with --direction_type file, found ica"):
        load_directions(choice, 12)
