import numpy as np
import pytest
import torch
from torch import nn

from agents.images import to_float_images
from agents.networks import GRUCell, NetworkConfig, RecurrentPolicy, make_policy
from experiment.errors import UserError

SMALL = NetworkConfig(width=0.25, num_features=8, obs_shape=(16, 16, 3), num_actions=5)


def small_policy(recurrent: bool = True) -> RecurrentPolicy:
    torch.manual_seed(0)
    config = NetworkConfig(0.25, 8, recurrent, (16, 16, 3), 5)
    policy = RecurrentPolicy(config)
    # Larger head weights than at the start of training, so that differences show.
    nn.init.normal_(policy.policy_head.weight)
    return policy


def random_sequence(num_steps: int, batch_size: int):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(
        0, 256, (num_steps, batch_size, 16, 16, 3), generator=generator, dtype=torch.uint8
    )
    first = torch.rand(num_steps, batch_size, generator=generator) < 0.3
    state = torch.randn(batch_size, 8, generator=generator)
    return frames, first, state


def repeated_steps(policy, images, state, first):
    outputs = []
    for image, is_first in zip(images, first, strict=True):
        outputs.append(policy.step(image, state, is_first))
        state = outputs[-1].state
    return outputs


def test_to_float_images_divides_by_255_and_keeps_channels_last():
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images = to_float_images(frames)
    assert images.shape == (2, 3, 4, 4)
    assert images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(
        images.numpy(), frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    )


@pytest.mark.parametrize("recurrent", [True, False])
def test_unroll_equals_repeated_step_with_resets_and_gradients(recurrent):
    policy = small_policy(recurrent)
    frames, first, state = random_sequence(6, 3)
    images = to_float_images(frames)
    assert first[1:].any()
    assert not first.all()

    together = policy.unroll(frames, state, first)
    one_by_one = repeated_steps(policy, images, state, first)
    for name in ("state", "action_logits", "value"):
        expected = torch.stack([getattr(output, name) for output in one_by_one])
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-5, atol=1e-5)

    weights = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(2))
    parameters = list(policy.parameters())
    loss_unrolled = (together.action_logits * weights).sum() + together.value.square().sum()
    loss_stepped = sum(
        (output.action_logits * weight).sum() + output.value.square().sum()
        for output, weight in zip(one_by_one, weights, strict=True)
    )
    gradients = torch.autograd.grad(loss_unrolled, parameters)
    assert isinstance(loss_stepped, torch.Tensor)
    expected_gradients = torch.autograd.grad(loss_stepped, parameters)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_step_is_embed_advance_read_out():
    policy = small_policy()
    frames, first, state = random_sequence(1, 3)
    images = to_float_images(frames[0])
    output = policy.step(images, state, first[0])
    new_state = policy.advance(policy.embed(images), state, first[0])
    readout = policy.read_out(new_state)
    assert torch.equal(output.state, new_state)
    assert torch.equal(output.action_logits, readout.action_logits)
    assert torch.equal(output.value, readout.value)


def test_reset_happens_before_the_observation_is_used():
    policy = small_policy()
    frames, _, state = random_sequence(1, 3)
    images = to_float_images(frames[0])
    first = torch.tensor([True, False, True])
    output = policy.step(images, torch.full_like(state, torch.nan), first).state
    fresh = policy.step(images, policy.initial_state(3)).state
    torch.testing.assert_close(output[first], fresh[first])
    assert output[1].isnan().all()


def test_feed_forward_state_is_the_feature_vector_and_ignores_the_past():
    policy = small_policy(recurrent=False)
    frames, _, state = random_sequence(1, 3)
    images = to_float_images(frames[0])
    assert torch.equal(policy.step(images, state).state, policy.embed(images))


def test_gru_cell_equals_torch_and_takes_its_parameters():
    torch.manual_seed(0)
    reference = nn.GRU(5, 7)
    cell = GRUCell(5, 7)
    cell.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in reference.state_dict().items()}
    )
    inputs, state = torch.randn(4, 3, 5), torch.randn(3, 7)
    expected, _ = reference(inputs, state[None])
    for step in range(4):
        state = cell.update(cell.project_input(inputs[step]), state)
        torch.testing.assert_close(state, expected[step], rtol=1e-5, atol=1e-6)


def test_initialisation_is_that_of_the_reference():
    policy = RecurrentPolicy(NetworkConfig())
    heads = policy.policy_head.weight, policy.value_head.weight
    for weight, gain in zip(heads, (0.01, 1.0), strict=True):
        torch.testing.assert_close(
            weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=1e-4, atol=1e-6
        )
    convolution = policy.embedder.stages[1].conv  # type: ignore[union-attr]
    bound = (6 / (9 * (16 + 32))) ** 0.5
    assert 0.9 * bound < convolution.weight.abs().max() <= bound  # type: ignore[union-attr]
    assert sum(p.numel() for p in policy.parameters()) == 254_736


def test_parts_work_under_vmap_of_jacrev():
    policy = small_policy()
    frames, _, state = random_sequence(1, 4)
    images = to_float_images(frames[0])

    def value(image, previous):
        return policy.read_out(policy.advance(policy.embed(image[None]), previous[None])).value[0]

    jacobian_image, jacobian_state = torch.func.vmap(torch.func.jacrev(value, argnums=(0, 1)))(
        images, state
    )
    images.requires_grad_()
    state.requires_grad_()
    gradients = torch.autograd.grad(policy.step(images, state).value.sum(), (images, state))
    torch.testing.assert_close(jacobian_image, gradients[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(jacobian_state, gradients[1], rtol=1e-4, atol=1e-5)


def test_width_multiplies_channels_and_must_be_positive():
    half = make_policy(NetworkConfig(width=0.5))
    channels = [stage.conv.out_channels for stage in half.embedder.stages]  # type: ignore[union-attr]
    assert channels == [8, 16, 16]
    with pytest.raises(UserError, match="--width"):
        make_policy(NetworkConfig(width=0))
