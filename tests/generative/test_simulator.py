"""What `simulate` promises: keyed noise, replay, the cut edge, interventions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.images import to_float_images
from agents.networks import NetworkConfig, make_policy
from experiment.errors import UserError
from generative.simulator import (
    SimulationNoise,
    Simulator,
    SimulatorConfig,
    require_simulable,
    simulator_parameters,
)
from generative.types import InitialState, SimulatedSteps
from projections.directions import DirectionChoice, load_directions
from projections.interventions import Clamp, DirectionIntervention
from projections.steps import StepRange

NUM_STEPS = 4


class AddOne:
    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        return proposed + 1.0 if step == 1 else proposed

    def describe(self) -> dict[str, Any]:
        return {"kind": "add one"}


def test_the_full_size_has_the_documented_number_of_parameters():
    simulator = Simulator(SimulatorConfig(), make_policy(NetworkConfig()))
    everything = sum(p.numel() for p in simulator.parameters())
    agent = sum(p.numel() for p in make_policy(NetworkConfig()).parameters())
    assert simulator.num_parameters == everything - agent
    assert round(simulator.num_parameters / 1e6, 1) == 28.7


def test_latents_have_norm_one_whatever_the_frames(small_simulator):
    norms = small_simulator.encode(_frames(5)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(5))


def test_encoding_sees_every_initial_frame_and_their_order(small_simulator):
    frames = _frames(1)
    clean = small_simulator.encode(frames)
    for index in range(3):
        changed = frames.clone()
        changed[index] = 255 - changed[index]
        assert not torch.allclose(small_simulator.encode(changed), clean, atol=1e-5)
    assert not torch.allclose(small_simulator.encode(frames.flip(0)), clean, atol=1e-5)


@torch.no_grad()
def test_a_larger_batch_changes_no_sample(small_simulator):
    latent = small_simulator.encode(_frames(6))
    together = _sample(small_simulator, latent, torch.arange(6))
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        part = _sample(small_simulator, latent[start:stop], torch.arange(start, stop))
        for name in ("stoch", "action"):
            for left, right in zip(getattr(part, name), getattr(together, name), strict=True):
                assert torch.equal(left, right[start:stop])
        torch.testing.assert_close(part.images[-1], together.images[-1][start:stop])


@torch.no_grad()
def test_other_sample_ids_draw_other_futures(small_simulator):
    latent = small_simulator.encode(_frames(1)).expand(8, -1)
    steps = _sample(small_simulator, latent, torch.arange(8))
    assert len({tuple(s.argmax(-1).flatten().tolist()) for s in steps.stoch[2]}) > 1
    same = _sample(small_simulator, latent, torch.zeros(8, dtype=torch.int64))
    assert torch.equal(same.stoch[2], same.stoch[2][:1].expand_as(same.stoch[2]))


@torch.no_grad()
def test_replaying_the_stored_frames_gives_what_the_agent_said(small_simulator):
    initial = small_simulator.decode_initial(small_simulator.encode(_frames(3)))
    steps = small_simulator.simulate(initial, NUM_STEPS)
    state = initial.agent_state
    for k in range(NUM_STEPS):
        stored = (steps.images[k] * 255).round().to(torch.uint8).movedim(-3, -1)
        output = small_simulator.agent.step(to_float_images(stored), state)
        state = output.state
        torch.testing.assert_close(output.state, steps.agent_state[k], rtol=0, atol=1e-5)
        torch.testing.assert_close(output.action_logits, steps.action_logits[k], rtol=0, atol=1e-5)
        torch.testing.assert_close(output.value, steps.value[k], rtol=0, atol=1e-5)
        chosen = steps.action[k].argmax(-1)
        assert torch.equal(chosen, steps.action_logits[k].argmax(-1))


@torch.no_grad()
def test_given_actions_are_taken_and_equal_imagination(small_simulator):
    latent = small_simulator.encode(_frames(2))
    actions = torch.tensor([[0, 4], [1, 1], [2, 3]])
    initial = small_simulator.decode_initial(latent)
    steps = small_simulator.simulate(initial, 3, actions=actions)
    assert torch.equal(torch.stack(steps.action).argmax(-1), actions)
    imagined = small_simulator.imagine(
        initial.environment, initial.action, small_simulator.one_hot_actions(actions)
    )
    torch.testing.assert_close(imagined.state.deter, torch.stack(steps.deter))
    assert torch.equal(imagined.state.stoch, torch.stack(steps.stoch))


@torch.no_grad()
def test_rewards_and_ends_answer_the_action_of_their_row(small_simulator):
    initial = small_simulator.decode_initial(small_simulator.encode(_frames(1)))
    first = small_simulator.simulate(initial, 2, actions=torch.tensor([[0], [0]]))
    second = small_simulator.simulate(initial, 2, actions=torch.tensor([[0], [3]]))
    for name in ("reward", "terminal_logit"):
        assert torch.equal(getattr(first, name)[0], getattr(second, name)[0])
        assert not torch.equal(getattr(first, name)[1], getattr(second, name)[1])
    assert torch.equal(first.images[1], second.images[1])


def test_cutting_the_environment_gradient_cuts_the_edge_from_action_to_state(small_simulator):
    simulator = small_simulator.double()
    initial = _leaves(simulator.decode_initial(simulator.encode(_frames(1))))
    cut = simulator.simulate(initial, 3, cut_environment_gradient=True)
    whole = simulator.simulate(initial, 3)
    assert torch.equal(cut.images[2], whole.images[2])
    # The agent's state reaches a later image through its action alone.
    (blocked,) = _gradient(cut.images[2].sum(), cut.agent_state[0])
    (passed,) = _gradient(whole.images[2].sum(), whole.agent_state[0])
    assert blocked is None
    assert passed is not None
    assert passed.abs().sum() > 0
    # It reaches its own next state, its action and the reward of that action all the same.
    for steps in (cut, whole):
        for target in (steps.agent_state[1], steps.action[0][:, :2], steps.reward[0]):
            (gradient,) = _gradient(target.sum(), steps.agent_state[0])
            assert gradient is not None
            assert gradient.abs().sum() > 0
    # Environment states reach later images, unchanged where no action lies between.
    for steps in (cut, whole):
        (gradient,) = _gradient(steps.images[2].sum(), steps.deter[0])
        assert gradient is not None
        assert gradient.abs().sum() > 0
    (left,) = _gradient(cut.agent_state[0].sum(), cut.deter[0])
    (right,) = _gradient(whole.agent_state[0].sum(), whole.deter[0])
    torch.testing.assert_close(left, right)


def test_the_cut_gradient_equals_that_under_given_actions(small_simulator):
    """With the actions given, there is no edge from the agent to the environment either."""
    simulator = small_simulator.double()
    initial = _leaves(simulator.decode_initial(simulator.encode(_frames(2))))
    cut = simulator.simulate(initial, 3, cut_environment_gradient=True)
    actions = torch.stack(cut.action).argmax(-1)
    given = simulator.simulate(initial, 3, actions=actions)
    for target, source in ((2, 0), (2, 1), (1, 1)):
        (left,) = _gradient(cut.value[target].sum(), cut.images[source])
        (right,) = _gradient(given.value[target].sum(), given.images[source])
        torch.testing.assert_close(left, right)


@torch.no_grad()
def test_an_intervention_acts_before_the_heads_and_is_carried_on(small_simulator):
    initial = small_simulator.decode_initial(small_simulator.encode(_frames(2)))
    actions = torch.zeros(3, 2, dtype=torch.int64)
    clean = small_simulator.simulate(initial, 3, actions=actions)
    changed = small_simulator.simulate(initial, 3, actions=actions, intervention=AddOne())
    assert torch.equal(changed.agent_state[0], clean.agent_state[0])
    torch.testing.assert_close(changed.agent_state[1], clean.agent_state[1] + 1.0)
    readout = small_simulator.agent.read_out(changed.agent_state[1])
    assert torch.equal(changed.action_logits[1], readout.action_logits)
    embedding = small_simulator.agent.embed(changed.images[2])
    carried = small_simulator.agent.advance(embedding, changed.agent_state[1])
    assert torch.equal(changed.agent_state[2], carried)
    assert torch.equal(changed.images[2], clean.images[2])


@torch.no_grad()
def test_a_part_of_an_lstm_s_state_is_intervened_on(small_simulator, cell_first_lstm):
    torch.manual_seed(1)
    simulator = Simulator(small_simulator.config, cell_first_lstm).eval()
    initial = simulator.decode_initial(simulator.encode(_frames(2)))
    units = load_directions(DirectionChoice("unit"), 8)
    hidden_slice = cell_first_lstm.hidden_slice
    clamp = DirectionIntervention(
        Clamp((3,), (0.25,), "coordinate"), units, hidden_slice, StepRange(1)
    )
    steps = simulator.simulate(initial, 4, intervention=clamp)
    state = initial.agent_state
    for step in range(4):
        embedding = cell_first_lstm.embed(steps.images[step])
        state = cell_first_lstm.advance(embedding, state).clone()
        if step >= 1:
            state[:, hidden_slice.start + 3] = 0.25
        torch.testing.assert_close(steps.agent_state[step], state)
        logits = cell_first_lstm.read_out(state).action_logits
        torch.testing.assert_close(steps.action_logits[step], logits)


@torch.no_grad()
def test_nothing_stays_attached_after_an_exception(small_simulator):
    class Failing(AddOne):
        def __call__(self, previous, proposed, step):
            proposed.add_(1.0)
            if step == 1:
                raise RuntimeError("midway")
            return proposed

    initial = small_simulator.decode_initial(small_simulator.encode(_frames(2)))
    before = small_simulator.simulate(initial, 3)
    with pytest.raises(RuntimeError, match="midway"):
        small_simulator.simulate(initial, 3, intervention=Failing())
    after = small_simulator.simulate(initial, 3)
    for name in ("agent_state", "images", "value", "deter"):
        for left, right in zip(getattr(before, name), getattr(after, name), strict=True):
            assert torch.equal(left, right)


def test_sampling_needs_noise(small_simulator):
    initial = small_simulator.decode_initial(small_simulator.encode(_frames(1)))
    for choice in ({"latents": "sample"}, {"agent_actions": "sample"}):
        with pytest.raises(ValueError, match="noise"):
            small_simulator.simulate(initial, 1, **choice)


def test_every_parameter_but_the_posteriors_shapes_a_simulation(small_simulator):
    initial = small_simulator.decode_initial(small_simulator.encode(_frames(2)))
    steps = small_simulator.simulate(initial, 3)
    outputs = (*steps.images, *steps.value, *steps.reward, *steps.terminal_logit)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    idle = {name for name, p in simulator_parameters(small_simulator).items() if p.grad is None}
    assert all(name.startswith(("frame_encoder.", "rssm.posterior_")) for name in idle)
    assert idle


def test_noise_is_uniform_and_keyed():
    noise = SimulationNoise(5, torch.arange(1000))
    draws = noise.latents(2, 8)
    assert draws.shape == (1000, 8)
    assert abs(draws.mean().item() - 0.5) < 4 / math.sqrt(12 * 8000)
    assert torch.equal(SimulationNoise(5, torch.tensor([17])).latents(2, 8)[0], draws[17])
    assert not torch.equal(noise.latents(3, 8), draws)
    assert not torch.equal(noise.initial(8), noise.latents(0, 8))


def _frames(batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch_size, 64, 64, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _sample(simulator: Simulator, latent: Tensor, ids: Tensor) -> SimulatedSteps:
    noise = SimulationNoise(11, ids)
    initial = simulator.decode_initial(
        latent, "sample", noise.initial(simulator.config.num_categoricals)
    )
    return simulator.simulate(
        initial, NUM_STEPS, latents="sample", agent_actions="sample", noise=noise
    )


def _leaves(initial: InitialState) -> InitialState:
    environment = type(initial.environment)(
        initial.environment.deter.detach().requires_grad_(),
        initial.environment.stoch.detach().requires_grad_(),
    )
    return InitialState(
        environment, initial.agent_state.detach().requires_grad_(), initial.action.detach()
    )


def _gradient(target: Tensor, source: Tensor) -> tuple[Tensor | None]:
    return torch.autograd.grad(target, source, retain_graph=True, allow_unused=True)  # type: ignore[return-value]


@pytest.mark.parametrize("bottleneck", ["sphere", "vae"])
def test_any_size_of_frame_can_be_simulated(small_simulator, bottleneck):
    shape = (24, 40, 1)
    policy = make_policy(NetworkConfig(width=0.25, num_features=6, obs_shape=shape, num_actions=5))
    config = replace(small_simulator.config, encoder_channels=(2, 4), bottleneck=bottleneck)
    simulator = Simulator(config, policy, shape).eval()
    frames = torch.randint(0, 256, (3, 2, *shape), dtype=torch.uint8)
    latent = simulator.encode(frames)
    assert latent.shape == (2, config.latent_dim)
    steps = simulator.simulate(simulator.decode_initial(latent), 2)
    assert steps.images[1].shape == (2, 1, 24, 40)


def test_frames_too_small_for_the_encoder_are_refused():
    config = SimulatorConfig(encoder_channels=(2, 2, 4, 4))
    require_simulable(config, (16, 16, 3), "--data_dir data")
    with pytest.raises(UserError, match=r"--data_dir data: frames are \(15, 64, 3\).* 16 × 16"):
        require_simulable(config, (15, 64, 3), "--data_dir data")
