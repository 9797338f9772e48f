"""What a GPU does otherwise than a CPU: kernels launched as graphs. Skipped where there is none.

Captured functions on a single GPU: `tests/experiment/test_cuda_graphs.py`.
"""

import copy
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from agents.collection import Collector
from agents.execution import Execution
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.player import full_float32
from agents.ppo import PPOConfig, PPOLearner, RolloutBatch
from analysis.saliency import (
    BackwardPasses,
    GradientPrecision,
    SimulationChoices,
    attribute,
    resimulate,
)
from analysis.saliency_targets import Target
from environments.fake import FakeEnvironment, fake_spec
from environments.protocol import VectorEnvironment
from experiment.cuda_graphs import CapturedFunction
from generative.gradients import LossGradients, can_use_graphs
from generative.losses import LossWeights
from generative.objective import (
    ObjectiveConfig,
    WindowTensors,
    compute_losses,
    draw_training_noise,
)
from generative.simulator import Simulator, SimulatorConfig, trained_parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

CUDA = torch.device("cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_captured_function_computes_on_the_gpu_of_its_inputs():
    captured = CapturedFunction(lambda x: 3 * x)
    for value in (1.0, 2.0):
        x = torch.full((4,), value, device="cuda:1")
        assert torch.equal(captured(x), 3 * x)


@pytest.fixture
def policy() -> RecurrentPolicy:
    torch.manual_seed(0)
    return RecurrentPolicy(NetworkConfig(width=0.5, num_features=16)).to(CUDA)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_updates_by_graphs_equal_those_without(policy, precision):
    config = PPOConfig(num_envs=6, num_steps=8, num_minibatches=2, mini_batch_size=16)
    batches = [_rollout(policy, seed) for seed in range(3)]
    outcomes = []
    for uses_graphs in (True, False):
        learnt = copy.deepcopy(policy)
        execution = Execution(learnt, precision, uses_graphs)
        learner = PPOLearner(learnt, config, 0, execution)
        # Adam would make much of roundings in gradients near zero.
        learner.optimiser = torch.optim.SGD(learnt.parameters(), lr=config.learning_rate)
        losses = [learner.update(batch, i, 1.0) for i, batch in enumerate(batches)]
        outcomes.append((learnt, losses))
    (by_graphs, losses), (eager, expected) = outcomes
    for found, value in zip(losses, expected, strict=True):
        assert found == pytest.approx(value, rel=1e-2, abs=1e-4)
    moved = _flat(eager) - _flat(policy)
    assert (_flat(by_graphs) - _flat(eager)).norm() < 0.02 * moved.norm()


def test_playing_by_graphs_equals_playing_without(policy):
    config = PPOConfig(num_envs=4, num_steps=12)
    height, width, channels = fake_spec().obs_shape
    batches = []
    for uses_graphs in (True, False):
        groups: list[VectorEnvironment] = [FakeEnvironment(fake_spec(), 2, seed) for seed in (1, 2)]
        small = RecurrentPolicy(
            NetworkConfig(
                width=0.5,
                num_features=16,
                obs_shape=(height, width, channels),
                num_actions=fake_spec().num_actions,
            )
        )
        torch.manual_seed(3)
        for parameter in small.parameters():
            nn.init.normal_(parameter, std=0.2)
        small.to(CUDA)
        collector = Collector(small, groups, config, 0, Execution(small, "float32", uses_graphs))
        collector.collect(0)
        batches.append(collector.collect(1).batch)
    by_graphs, eager = batches
    assert torch.equal(by_graphs.action, eager.action)
    assert torch.equal(by_graphs.obs, eager.obs)
    torch.testing.assert_close(by_graphs.value, eager.value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(by_graphs.initial_state, eager.initial_state, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("bottleneck", "is_compiled"), [("sphere", False), ("vae", False), ("sphere", True)]
)
def test_losses_and_gradients_of_the_simulator_by_graphs_equal_those_without(
    bottleneck, is_compiled
):
    torch.manual_seed(0)
    agent = RecurrentPolicy(NetworkConfig(width=0.25, num_features=8))
    sizes = SimulatorConfig(
        latent_dim=8, deter_dim=16, num_categoricals=4, num_classes=4, bottleneck=bottleneck
    )
    simulator = Simulator(sizes, agent).to(CUDA)
    if is_compiled:
        simulator.compile_recurrence()
    assert can_use_graphs(simulator)
    weights = LossWeights(imagined_image=0.5, action_log_prob=0.3, imagined_agent_hidden=0.7)
    objective = ObjectiveConfig(weights=weights)
    gradients = LossGradients(simulator, objective, uses_graphs=True)
    parameters = trained_parameters(simulator)
    optimiser = torch.optim.SGD(parameters, lr=1e-4)
    for step in range(3):
        windows = _windows(simulator, step)
        noise = draw_training_noise(len(windows.valid), np.arange(4), sizes, step).to(CUDA)
        gradients.clear(optimiser)
        values = gradients(windows, noise)
        expected = compute_losses(simulator, windows, objective, noise)
        assert set(values) == {"total", *expected.terms}
        torch.testing.assert_close(values["total"], expected.total, rtol=1e-3, atol=1e-3)
        slopes = torch.autograd.grad(expected.total, parameters, allow_unused=True)
        for parameter, slope in zip(parameters, slopes, strict=True):
            wanted = torch.zeros_like(parameter) if slope is None else slope
            assert parameter.grad is not None
            error = (parameter.grad - wanted).norm()
            assert error <= 0.02 * wanted.norm() + 1e-3
        optimiser.step()


@pytest.mark.parametrize("method", ["loop", "batched"])
def test_rounded_gradients_of_saliency_are_near_those_that_are_not(method):
    torch.manual_seed(0)
    agent = RecurrentPolicy(NetworkConfig(width=0.5, num_features=16))
    sizes = SimulatorConfig(latent_dim=8, deter_dim=32, num_categoricals=4, num_classes=4)
    simulator = Simulator(sizes, agent).to(CUDA).eval().requires_grad_(False)
    latent = simulator.bottleneck.project(torch.randn(6, 8, device=CUDA)).requires_grad_(True)
    targets = [Target("value", lambda steps, t, _: steps.value[t])]
    with full_float32():
        steps = resimulate(simulator, latent, np.arange(2).repeat(3), 3, SimulationChoices())
        exact, rounded = (
            attribute(steps, latent, targets, (2,), 3, BackwardPasses(method, precision))
            for precision in get_args(GradientPrecision)
        )
    assert torch.equal(rounded.target_values, exact.target_values)
    for name in ("images", "agent_state", "latent"):
        wanted = getattr(exact, name)
        error = (getattr(rounded, name) - wanted).norm()
        assert 1e-5 < error / wanted.norm() < 0.01, name


def _flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _rollout(policy: RecurrentPolicy, seed: int) -> RolloutBatch:
    generator = torch.Generator().manual_seed(seed)
    num_steps, num_envs = 8, 6
    shape = (num_steps, num_envs)
    batch = RolloutBatch(
        obs=torch.randint(0, 256, (*shape, 64, 64, 3), generator=generator, dtype=torch.uint8),
        first=torch.rand(shape, generator=generator) < 0.2,
        initial_state=torch.rand(num_envs, policy.state_dim, generator=generator),
        action=torch.randint(0, policy.num_actions, shape, generator=generator),
        log_prob=torch.full(shape, -np.log(policy.num_actions)),
        value=torch.randn(shape, generator=generator),
        advantage=torch.randn(shape, generator=generator),
        value_target=torch.randn(shape, generator=generator),
    )
    moved = {field.name: getattr(batch, field.name).to(CUDA) for field in fields(batch)}
    return replace(batch, **moved)


def _windows(simulator: Simulator, seed: int) -> WindowTensors:
    generator = torch.Generator().manual_seed(seed)
    num_steps, num_windows, num_init = 5, 4, simulator.config.num_init_steps
    frames = torch.randint(
        0, 256, (num_init + num_steps - 1, num_windows, 64, 64, 3), generator=generator
    ).to(torch.uint8)
    steps, dim = (num_steps, num_windows), simulator.agent.state_dim
    num_actions = simulator.agent.num_actions
    windows = WindowTensors(
        initial_frames=frames[:num_init],
        frames=frames[num_init - 1 :],
        initial_agent_state=torch.rand(num_windows, dim, generator=generator),
        initial_action=torch.randint(0, num_actions, (num_windows,), generator=generator),
        agent_state=torch.rand(*steps, dim, generator=generator),
        action=torch.randint(0, num_actions, steps, generator=generator),
        reward=torch.rand(steps, generator=generator),
        terminal=torch.rand(steps, generator=generator) < 0.1,
        valid=torch.rand(steps, generator=generator) < 0.9,
    )
    moved = {field.name: getattr(windows, field.name).to(CUDA) for field in fields(windows)}
    return replace(windows, **moved)
