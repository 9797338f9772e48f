import numpy as np
import pytest
import torch

from projections.controls import MeasuredNorm, RandomDirections, SignFlip, Spared
from projections.descriptions import interventions_from_descriptions
from projections.directions import DirectionChoice, Directions, load_directions
from projections.intervention import InterventionChain, MovableIntervention, descriptions_of
from projections.interventions import Add, Clamp, DirectionIntervention, Swap
from projections.steps import StepRange

HIDDEN_SLICE = slice(3, 15)
STATE_DIM = 20
StatePair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def directions(ica_projection, tmp_path) -> Directions:
    ica_projection.save(tmp_path / "projection")
    return load_directions(DirectionChoice("ica", str(tmp_path / "projection")), 12)


@pytest.fixture
def components(directions) -> Directions:
    return load_directions(DirectionChoice("pca", directions.choice.projection), 12)


@pytest.fixture
def chain(directions) -> InterventionChain:
    rules = (Swap((0,), (None,)), Clamp((1,), (1.0,)))
    return InterventionChain(
        [DirectionIntervention(r, directions, HIDDEN_SLICE, StepRange(1)) for r in rules]
    )


@pytest.fixture
def state_pair() -> StatePair:
    generator = torch.Generator().manual_seed(0)
    previous = torch.randn(6, STATE_DIM, generator=generator)
    return previous, torch.randn(6, STATE_DIM, generator=generator)


def _change(intervention: MovableIntervention, pair: StatePair, step: int = 1) -> torch.Tensor:
    return intervention(*pair, step) - pair[1]


def test_the_sign_is_flipped(chain, state_pair: StatePair):
    assert torch.allclose(
        _change(SignFlip(chain), state_pair), -_change(chain, state_pair), atol=1e-6
    )


def test_a_flipped_addition_is_a_subtraction(directions, state_pair: StatePair):
    plus, minus = (
        DirectionIntervention(Add((2,), (amount,)), directions, HIDDEN_SLICE)
        for amount in (1.5, -1.5)
    )
    assert torch.allclose(SignFlip(plus)(*state_pair, 0), minus(*state_pair, 0), atol=1e-6)


@pytest.mark.parametrize("like_states", [False, True])
def test_random_changes_are_as_large_as_the_tested_ones(
    chain, components, state_pair: StatePair, like_states
):
    control = RandomDirections(chain, HIDDEN_SLICE, 0, components if like_states else None)
    tested, found = _change(chain, state_pair), _change(control, state_pair)
    assert torch.allclose(found.norm(dim=1), tested.norm(dim=1), rtol=1e-4)
    cosine = torch.cosine_similarity(found, tested)
    assert cosine.abs().max() < 0.95
    outside = [index for index in range(STATE_DIM) if index not in range(3, 15)]
    assert torch.equal(found[:, outside], torch.zeros(6, len(outside)))


def test_a_measured_norm_is_the_norm_of_every_change(chain, state_pair: StatePair):
    control = RandomDirections(chain, HIDDEN_SLICE, norm=MeasuredNorm(0.25, "hash"))
    assert torch.allclose(_change(control, state_pair).norm(dim=1), torch.tensor(0.25), rtol=1e-4)


def test_one_direction_becomes_one_direction_with_its_signs(directions, state_pair: StatePair):
    dropped = DirectionIntervention(Swap((0,), (None,)), directions, HIDDEN_SLICE)
    tested = _change(dropped, state_pair)
    found = _change(RandomDirections(dropped, HIDDEN_SLICE), state_pair)
    mixing = torch.from_numpy(directions.coordinates.directions[:, 0]).float()
    sign = torch.sign(tested[:, HIDDEN_SLICE] @ mixing)
    assert set(sign.tolist()) == {-1.0, 1.0}
    aligned = torch.nn.functional.normalize(found, dim=1) * sign[:, None]
    assert torch.allclose(aligned, aligned[:1].expand_as(aligned), atol=1e-3)


@pytest.mark.parametrize("flipped", [True, False])
def test_a_control_does_nothing_where_the_intervention_does_nothing(
    chain, state_pair: StatePair, flipped
):
    control = SignFlip(chain) if flipped else RandomDirections(chain, HIDDEN_SLICE)
    assert torch.equal(control(*state_pair, 0), state_pair[1])
    idle = DirectionIntervention(Swap((), ()), chain.links[0]._directions, HIDDEN_SLICE)
    control = SignFlip(idle) if flipped else RandomDirections(idle, HIDDEN_SLICE)
    assert torch.equal(control(*state_pair, 1), state_pair[1])


def test_random_directions_are_drawn_with_the_intended_covariance(directions, components):
    added = DirectionIntervention(Add((0,), (1.0,)), directions, HIDDEN_SLICE)
    zeros = torch.zeros(1, STATE_DIM)

    def draw(like: Directions | None) -> np.ndarray:
        controls = (RandomDirections(added, HIDDEN_SLICE, seed, like) for seed in range(600))
        drawn = torch.cat([control(zeros, zeros, 0)[:, HIDDEN_SLICE] for control in controls])
        return torch.nn.functional.normalize(drawn, dim=1).numpy()

    evenly, like_states = draw(None), draw(components)
    # Of an even direction every unit's mean square is 1/H.
    assert np.allclose(12 * np.mean(evenly**2, axis=0), 1.0, atol=0.3)
    # Unit 5 never varies, and random directions like the states leave it alone.
    assert np.abs(like_states[:, 5]).max() == 0.0
    factor = components.coordinates.directions
    normal = np.random.default_rng(0).normal(size=(20_000, factor.shape[1])) @ factor.T
    expected = np.mean((normal / np.linalg.norm(normal, axis=1, keepdims=True)) ** 2, axis=0)
    assert np.allclose(np.mean(like_states**2, axis=0), expected, atol=0.05)


def test_seeds_choose_directions(chain, state_pair: StatePair):
    first, again, other = (RandomDirections(chain, HIDDEN_SLICE, seed) for seed in (3, 3, 4))
    assert torch.equal(_change(first, state_pair), _change(again, state_pair))
    assert not torch.allclose(_change(first, state_pair), _change(other, state_pair), atol=1e-3)


def test_descriptions_make_the_same_controls(chain, components, state_pair: StatePair):
    controls = (
        SignFlip(chain),
        RandomDirections(chain, HIDDEN_SLICE, 5),
        RandomDirections(chain, HIDDEN_SLICE, 5, components, MeasuredNorm(0.5, "hash")),
    )
    for control in controls:
        again = interventions_from_descriptions(descriptions_of(control))
        assert again is not None
        assert descriptions_of(again) == descriptions_of(control)
        assert torch.equal(again(*state_pair, 1), control(*state_pair, 1))


def test_controls_are_differentiable(chain, state_pair: StatePair):
    proposed = state_pair[1].requires_grad_()
    control = RandomDirections(chain, HIDDEN_SLICE)
    (gradient,) = torch.autograd.grad(control(state_pair[0], proposed, 1).sum(), proposed)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("like_states", [False, True])
def test_spared_coordinates_stay_and_the_norm_is_that_of_the_push(
    directions, components, state_pair: StatePair, like_states
):
    """In the coordinates of the push the control has no part along it, nor along its target."""
    push = DirectionIntervention(Add((2,), (1.5,)), directions, HIDDEN_SLICE)
    spared = Spared(directions, (2, 0))
    like = components if like_states else None
    control = RandomDirections(push, HIDDEN_SLICE, 4, like, spared=spared)
    tested, found = (_change(one, state_pair)[:, HIDDEN_SLICE] for one in (push, control))
    np.testing.assert_allclose(found.norm(dim=1), tested.norm(dim=1), rtol=1e-4)
    linear = directions.coordinates.linear
    moved = found.double().numpy() @ linear.T
    size = np.abs(tested.double().numpy() @ linear.T).max()
    np.testing.assert_allclose(moved[:, [2, 0]], 0.0, atol=1e-5 * size)
    assert np.abs(moved[:, [1, 3]]).min() > 1e-3 * size
    unspared = _change(RandomDirections(push, HIDDEN_SLICE, 4, like), state_pair)[:, HIDDEN_SLICE]
    assert np.abs(unspared.double().numpy() @ linear[[2, 0]].T).min() > 1e-3 * size
    again = interventions_from_descriptions(descriptions_of(control))
    assert again is not None
    assert torch.equal(again(*state_pair, 1), control(*state_pair, 1))
    assert descriptions_of(again) == descriptions_of(control)
