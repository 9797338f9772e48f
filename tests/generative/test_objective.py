"""The batched formulation against a plain one, and what padding may influence: nothing."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.stepwise import stepwise_losses
from experiment.distributed import ALONE, Ranks
from generative.losses import LossWeights
from generative.objective import (
    ObjectiveConfig,
    compute_losses,
    draw_training_noise,
    term_names,
    to_window_tensors,
)
from generative.simulator import Simulator, SimulatorConfig, simulator_parameters
from generative.straight_through import clamp_to_image, onehot_from_logits
from generative.types import EnvironmentState
from rollouts.types import WindowBatch

ALL_TERMS = ObjectiveConfig(
    weights=LossWeights(
        imagined_image=0.5,
        action_log_prob=0.3,
        imagined_agent_hidden=0.7,
        imagined_action_log_prob=0.6,
        spread=7,
    )
)


@pytest.fixture(params=["sphere", "vae"])
def either_simulator(request, small_simulator) -> Simulator:
    """The same sizes with either bottleneck."""
    config = replace(small_simulator.config, bottleneck=request.param)
    torch.manual_seed(1)
    return Simulator(config, small_simulator.agent).eval()


def test_every_weight_makes_a_term_of_one_of_the_bottlenecks(either_simulator, padded_batch):
    terms = _losses(either_simulator, padded_batch, ALL_TERMS).terms
    kind = either_simulator.config.bottleneck
    without = {"sphere": {"latent_kl"}, "vae": {"spread"}}[kind]
    assert set(terms) == {field.name for field in fields(LossWeights)} - without
    assert set(terms) == set(term_names(ALL_TERMS.weights, kind))


def test_terms_without_weight_are_not_computed(small_simulator, padded_batch):
    weights = replace(LossWeights(), agent_hidden=0.0, spread=0.0, kl=0.0)
    losses = _losses(small_simulator, padded_batch, ObjectiveConfig(weights=weights))
    assert set(losses.terms) == set(term_names(weights, "sphere"))
    assert "agent_hidden" not in losses.terms


def test_losses_and_gradients_equal_a_plain_step_by_step_reference(either_simulator, padded_batch):
    simulator = either_simulator.double()
    batched = _losses(simulator, padded_batch, ALL_TERMS)
    plain = _plain_terms(simulator, padded_batch)
    for name, value in plain.items():
        torch.testing.assert_close(batched.terms[name], value, msg=name)
    weights = ALL_TERMS.weights
    plain_total = torch.stack([getattr(weights, n) * v for n, v in plain.items()]).sum()
    torch.testing.assert_close(batched.total, plain_total)
    parameters = simulator_parameters(simulator)
    expected = torch.autograd.grad(plain_total, list(parameters.values()))
    found = torch.autograd.grad(batched.total, list(parameters.values()))
    for name, left, right in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=name)


def test_the_benchmarks_stepwise_objective_is_the_same(either_simulator, padded_batch):
    simulator = either_simulator.double()
    config = replace(ALL_TERMS, imagination_latents="sample", kl_free_nats=0.5)
    windows = to_window_tensors(padded_batch, "cpu", simulator.dtype)
    batched = compute_losses(simulator, windows, config, _noise(simulator, padded_batch))
    stepwise = stepwise_losses(simulator, windows, config, _noise(simulator, padded_batch))
    assert stepwise.terms.keys() == batched.terms.keys()
    for name, term in stepwise.terms.items():
        torch.testing.assert_close(term, batched.terms[name], msg=name)
    parameters = simulator_parameters(simulator)
    expected = torch.autograd.grad(stepwise.total, list(parameters.values()))
    found = torch.autograd.grad(batched.total, list(parameters.values()))
    for name, left, right in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=name)


def test_what_stands_in_padded_rows_changes_nothing(small_simulator, padded_batch):
    simulator = small_simulator.double()
    clean = _losses(simulator, padded_batch, ALL_TERMS)
    spoilt = _losses(simulator, _with_garbage(padded_batch), ALL_TERMS)
    assert set(clean.terms) == set(spoilt.terms)
    for name in clean.terms:
        torch.testing.assert_close(clean.terms[name], spoilt.terms[name], msg=name)
    parameters = list(simulator_parameters(simulator).values())
    for left, right in zip(
        torch.autograd.grad(clean.total, parameters),
        torch.autograd.grad(spoilt.total, parameters),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_garbage_in_valid_rows_does_change_the_losses(small_simulator, padded_batch):
    everywhere = replace(padded_batch, valid=np.ones_like(padded_batch.valid))
    clean = _losses(small_simulator, everywhere, ALL_TERMS).terms
    spoilt = _losses(
        small_simulator,
        replace(_with_garbage(padded_batch), valid=everywhere.valid),
        ALL_TERMS,
    ).terms
    for name in ("image", "imagined_image", "reward", "terminal", "agent_hidden", "kl"):
        assert not torch.allclose(clean[name], spoilt[name]), name


def test_an_end_at_simulated_step_zero_counts_and_hides_what_follows(small_simulator, padded_batch):
    """The third window ends at row init − 1: its flag is learnt, nothing behind it is."""
    windows = to_window_tensors(padded_batch, "cpu")
    assert windows.terminal[0, 2]
    assert windows.valid[:, 2].tolist() == [True, False, False]
    only_last = replace(ALL_TERMS, weights=_only("terminal"))
    kept = replace(padded_batch, valid=padded_batch.valid & (np.arange(3) == 2))
    flagged = _losses(small_simulator, kept, only_last).total
    unflagged = _losses(
        small_simulator,
        replace(kept, terminal=np.zeros_like(kept.terminal)),
        only_last,
    ).total
    # BCE(x, 1) − BCE(x, 0) = −x: exactly one step of one of three windows was counted.
    steps = _observed(small_simulator, padded_batch)
    actions = small_simulator.one_hot_actions(windows.action)
    logit = small_simulator.terminal_head(steps.state.features[0, 2], actions[0, 2])
    torch.testing.assert_close(flagged - unflagged, -logit / 3)


def test_initial_agent_predictions_do_not_shape_the_latent(small_simulator, padded_batch):
    weights = replace(_only("initial_agent_hidden"), initial_action=1.0)
    total = _losses(small_simulator, padded_batch, ObjectiveConfig(weights=weights)).total
    gradients = torch.autograd.grad(
        total, list(small_simulator.encoder.parameters()), allow_unused=True
    )
    assert all(gradient is None for gradient in gradients)


def test_the_agent_stays_frozen_but_teaches_the_decoder(small_simulator, padded_batch):
    total = _losses(
        small_simulator, padded_batch, ObjectiveConfig(weights=_only("agent_hidden"))
    ).total
    total.backward()
    assert all(p.grad is None for p in small_simulator.agent.parameters())
    assert small_simulator.image_decoder.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("term", ["agent_hidden", "imagined_agent_hidden"])
def test_a_share_of_the_windows_is_shown_to_the_agent(small_simulator, padded_batch, term):
    share = replace(ALL_TERMS, weights=_only(term), agent_share=1 / 3)
    found = _losses(small_simulator, padded_batch, share).terms[term]
    first = replace(padded_batch, valid=padded_batch.valid & (np.arange(3) == 0))
    alone = _losses(small_simulator, first, replace(share, agent_share=1.0)).terms[term]
    torch.testing.assert_close(found, 3 * alone)


def test_only_terms_on_imagined_images_train_the_prior_through_the_agent(
    small_simulator, padded_batch
):
    prior = list(small_simulator.rssm.prior_output.parameters())
    for term, is_trained in (("action_log_prob", False), ("imagined_action_log_prob", True)):
        total = _losses(small_simulator, padded_batch, ObjectiveConfig(weights=_only(term))).total
        gradients = torch.autograd.grad(total, prior, allow_unused=True)
        assert all((gradient is not None) == is_trained for gradient in gradients)


def test_noise_depends_on_its_arguments_alone():
    first, again = (draw_training_noise(3, [4, 5], SimulatorConfig(), seed=7) for _ in range(2))
    other = draw_training_noise(3, [4, 5], SimulatorConfig(), seed=8)
    assert torch.equal(first.posterior, again.posterior)
    assert not torch.equal(first.posterior, other.posterior)
    assert not torch.equal(first.posterior, first.imagined)


def test_noise_of_a_window_does_not_depend_on_its_batch():
    whole = draw_training_noise(3, [4, 5, 6, 7], SimulatorConfig(), seed=7)
    part = draw_training_noise(2, [5, 7], SimulatorConfig(), seed=7)
    assert torch.equal(part.initial, whole.initial[1::2])
    assert torch.equal(part.posterior, whole.posterior[:2, 1::2])
    assert torch.equal(part.imagined, whole.imagined[:2, 1::2])
    assert torch.equal(part.latent, whole.latent[1::2])


def test_bfloat16_rounds_what_convolutions_make_and_nothing_else(small_simulator, padded_batch):
    exact = _losses(small_simulator, padded_batch, ALL_TERMS)
    small_simulator.precision = "bfloat16"
    rounded = _losses(small_simulator, padded_batch, ALL_TERMS)
    rounded.total.backward()
    gradients = [p.grad for p in simulator_parameters(small_simulator).values()]
    assert all(g is not None and g.dtype == torch.float32 for g in gradients)
    for name, term in rounded.terms.items():
        assert term.dtype == torch.float32
        # Another class may be drawn where a draw is near the border between two.
        torch.testing.assert_close(term, exact.terms[name], rtol=0.1, atol=0.05, msg=name)
    assert rounded.terms["image"] != exact.terms["image"]


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # its tracer asks
def test_a_compiled_recurrence_gives_the_same_losses_and_gradients(small_simulator, padded_batch):
    """As PyTorch traces and differentiates it, without generated code."""
    simulator = small_simulator.double()
    parameters = list(simulator_parameters(simulator).values())
    eager = _losses(simulator, padded_batch, ALL_TERMS).total
    expected = torch.autograd.grad(eager, parameters)
    simulator.compile_recurrence(backend="aot_eager")
    compiled = _losses(simulator, padded_batch, ALL_TERMS).total
    torch.testing.assert_close(compiled, eager)
    for left, right in zip(torch.autograd.grad(compiled, parameters), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("agent_share", [1.0, 0.5, 0.25])
def test_processes_contribute_parts_of_the_losses_of_the_whole_batch(
    either_simulator, padded_batch, agent_share
):
    """Two processes with two windows each; at a quarter, the second shows the agent nothing."""
    simulator = either_simulator.double()
    config = replace(ALL_TERMS, observed_share=0.75, agent_share=agent_share)
    four = _select(padded_batch, [0, 1, 2, 0])
    numbers = np.arange(4)
    latents = simulator.encode(to_window_tensors(four, "cpu", simulator.dtype).initial_frames)

    def losses(own: NDArray[np.int64], ranks: Ranks):
        windows = to_window_tensors(_select(four, own), "cpu", simulator.dtype)
        noise = draw_training_noise(len(windows.valid), own, simulator.config, seed=3)
        return compute_losses(simulator, windows, config, noise, ranks)

    whole = losses(numbers, ALONE)
    parts = [losses(numbers[r::2], _KnownRanks(r, 2, latents=latents.detach())) for r in range(2)]
    for name, value in whole.terms.items():
        torch.testing.assert_close(sum(part.terms[name] for part in parts), value, msg=name)
    parameters = list(simulator_parameters(simulator).values())
    expected = torch.autograd.grad(whole.total, parameters)
    found = [torch.autograd.grad(p.total, parameters, materialize_grads=True) for p in parts]
    for left, right, both in zip(*found, expected, strict=True):
        torch.testing.assert_close(left + right, both, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class _KnownRanks(Ranks):
    """One of two processes, which knows what the other would send: its latents."""

    latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(B, latent_dim) of the whole batch."""

    def concatenate(self, tensor: Tensor, dim: int = 0) -> Tensor:
        return torch.stack([self.latents[0::2], self.latents[1::2]])


def _select(batch: WindowBatch, windows: ArrayLike) -> WindowBatch:
    """Some windows of a batch."""
    chosen = np.asarray(windows)
    per_row = ("obs", "agent_hidden", "action", "reward", "terminal", "valid")
    arrays = {name: getattr(batch, name)[:, chosen] for name in per_row}
    return replace(
        batch, episode_id=batch.episode_id[chosen], start_row=batch.start_row[chosen], **arrays
    )


def _only(name: str) -> LossWeights:
    return replace(LossWeights(**{field.name: 0.0 for field in fields(LossWeights)}), **{name: 1.0})


def _losses(simulator: Simulator, batch: WindowBatch, config: ObjectiveConfig):
    windows = to_window_tensors(batch, "cpu", simulator.dtype)
    return compute_losses(simulator, windows, config, _noise(simulator, batch))


def _noise(simulator: Simulator, batch: WindowBatch):
    num_steps = len(batch.valid) - batch.num_init_steps + 1
    return draw_training_noise(num_steps, np.arange(batch.valid.shape[1]), simulator.config, seed=3)


def _observed(simulator: Simulator, batch: WindowBatch):
    windows, noise = to_window_tensors(batch, "cpu"), _noise(simulator, batch)
    latent = simulator.encode(windows.initial_frames)
    initial = simulator.decode_initial(latent, "sample", noise.initial).environment
    return simulator.observe(
        initial,
        simulator.one_hot_actions(windows.initial_action),
        windows.frames.movedim(-1, -3) / 255.0,
        simulator.one_hot_actions(windows.action),
        "sample",
        noise.posterior,
    )


def _with_garbage(batch: WindowBatch) -> WindowBatch:
    generator, padded = np.random.default_rng(9), ~batch.valid
    obs, hidden = batch.obs.copy(), batch.agent_hidden.copy()
    action, reward, terminal = batch.action.copy(), batch.reward.copy(), batch.terminal.copy()
    obs[padded] = generator.integers(0, 256, obs[padded].shape)
    hidden[padded] = 5.0
    action[padded] = 4
    reward[padded] = -8.0
    terminal[padded] = True
    return replace(
        batch, obs=obs, agent_hidden=hidden, action=action, reward=reward, terminal=terminal
    )


def _plain_terms(simulator: Simulator, batch: WindowBatch) -> dict[str, Tensor]:
    """Window by window, step by step, from the equations; each term a mean over windows."""
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value

    num_windows, noise = batch.valid.shape[1], _noise(simulator, batch)
    latents = [_plain_window(simulator, batch, b, noise, add) for b in range(num_windows)]
    terms = {name: value / num_windows for name, value in sums.items()}
    if simulator.config.bottleneck == "vae":
        return terms
    pairs = [
        torch.exp(2 * latents[i] @ latents[j] - 2)
        for i in range(num_windows)
        for j in range(num_windows)
        if i != j
    ]
    return terms | {"spread": torch.stack(pairs).mean().log()}


def _plain_window(simulator, batch, b, noise, add) -> Tensor:
    frames = torch.as_tensor(batch.obs[:, b : b + 1])
    images = frames.movedim(-1, -3).float().div(255.0).double()
    hidden = torch.as_tensor(batch.agent_hidden[:, b : b + 1]).double()
    action = torch.as_tensor(batch.action[:, b : b + 1])
    onehot = F.one_hot(action, 5).double()
    distribution = simulator.encode_distribution(frames[:3])
    latent = distribution.mode
    if simulator.config.bottleneck == "vae":
        gaussian = torch.distributions.Normal(distribution.mode, distribution.log_std.exp())
        latent = gaussian.mean + gaussian.stddev * noise.latent[b : b + 1].double()
        standard = torch.distributions.Normal(torch.zeros_like(latent), 1.0)
        add("latent_kl", torch.distributions.kl_divergence(gaussian, standard).sum())
    initial = simulator.decode_initial(latent, "sample", noise.initial[b : b + 1])
    detached = latent.detach()
    add(
        "initial_agent_hidden",
        (torch.tanh(simulator.initial_agent(detached)) - hidden[1]).square().sum(),
    )
    logits = simulator.initial_action(detached)
    add("initial_action", -torch.log_softmax(logits, -1)[0, action[1, 0]])
    state = imagined = initial.environment
    agent_state = imagined_agent_state = hidden[1]
    for k in range(len(images) - 2):
        row = k + 2
        deter = simulator.rssm.transition(state, onehot[row - 1])
        prior = simulator.rssm.prior_logits(deter)
        embedding = simulator.rssm.project_embedding(simulator.frame_encoder(images[row]))
        posterior = simulator.rssm.posterior_logits(deter, embedding)
        stoch = onehot_from_logits(posterior, "sample", noise.posterior[k, b : b + 1])
        previous, state = state, EnvironmentState(deter, stoch)
        image = simulator.image_decoder(state.features)
        agent_state = _plain_watch(simulator, image, agent_state)
        imagined_deter = simulator.rssm.transition(imagined, onehot[row - 1])
        imagined_logits = simulator.rssm.prior_logits(imagined_deter)
        imagined = EnvironmentState(imagined_deter, onehot_from_logits(imagined_logits, "mode"))
        imagined_image = simulator.image_decoder(imagined.features)
        imagined_agent_state = _plain_watch(simulator, imagined_image, imagined_agent_state)
        if not batch.valid[row, b]:
            break
        add("image", 0.5 * (image - images[row]).square().sum())
        add("imagined_image", 0.5 * (imagined_image - images[row]).square().sum())
        reward = simulator.reward_head(state.features, onehot[row])
        add("reward", 0.5 * (reward - float(batch.reward[row, b])).square().sum())
        probability = torch.sigmoid(simulator.terminal_head(state.features, onehot[row]))
        ends = bool(batch.terminal[row, b])
        add("terminal", -torch.log(probability if ends else 1 - probability).sum())
        true_policy = torch.softmax(simulator.agent.read_out(hidden[row]).action_logits, -1)
        for prefix, found in (("", agent_state), ("imagined_", imagined_agent_state)):
            add(f"{prefix}agent_hidden", 0.5 * (found - hidden[row]).square().sum())
            policy = torch.softmax(simulator.agent.read_out(found).action_logits, -1)
            add(f"{prefix}action_log_prob", (true_policy * (true_policy / policy).log()).sum())
        add("kl", 0.8 * _plain_kl(posterior.detach(), prior))
        add("kl", 0.2 * _plain_kl(posterior, prior.detach()))
        add("env_update", 0.5 * (deter - previous.deter).square().sum().sqrt())
    return latent[0]


def _plain_watch(simulator, image, agent_state) -> Tensor:
    return simulator.agent.advance(simulator.agent.embed(clamp_to_image(image)), agent_state)


def _plain_kl(left: Tensor, right: Tensor) -> Tensor:
    left, right = torch.softmax(left, -1), torch.softmax(right, -1)
    return (left * (left.log() - right.log())).sum()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
