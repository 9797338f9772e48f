import pytest
import torch

from generative.straight_through import (
    clamp_to_image,
    onehot_from_logits,
    round_to_8_bits,
    straight_through,
)


def test_the_forward_value_is_exact_and_the_gradient_is_the_carriers():
    carrier = torch.tensor([0.1, 0.7], requires_grad=True)
    value = torch.tensor([0.0, 1.0])
    result = straight_through(value, 3.0 * carrier)
    assert torch.equal(result, value)
    (gradient,) = torch.autograd.grad(result.sum(), carrier)
    assert torch.equal(gradient, torch.full((2,), 3.0))


def test_a_mode_is_exactly_one_hot_with_the_softmax_gradient():
    logits = torch.randn(64, 7, 9, requires_grad=True)
    onehot = onehot_from_logits(logits, "mode")
    assert torch.equal(onehot, torch.nn.functional.one_hot(logits.argmax(-1), 9).float())
    weights = torch.randn(9)
    (gradient,) = torch.autograd.grad((onehot * weights).sum(), logits)
    (expected,) = torch.autograd.grad((torch.softmax(logits, -1) * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_samples_invert_the_cumulative_distribution():
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(5, 3)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.76, 1 - 2**-32], dtype=torch.float64)
    picked = onehot_from_logits(logits, "sample", uniform).argmax(-1)
    assert picked.tolist() == [0, 0, 1, 2, 2]


def test_sampling_without_draws_is_refused():
    with pytest.raises(ValueError, match="uniform"):
        onehot_from_logits(torch.zeros(3), "sample")


def test_images_are_clipped_and_rounded_with_identity_backward():
    pixels = torch.tensor([-0.5, 0.5, 0.5019, 1.5], requires_grad=True)
    image = round_to_8_bits(clamp_to_image(pixels))
    expected = torch.tensor([0, 128, 128, 255], dtype=torch.uint8)
    assert torch.equal((image * 255).round().to(torch.uint8), expected)
    assert torch.equal(image, expected.float() / 255.0)
    (gradient,) = torch.autograd.grad(image.sum(), pixels)
    assert torch.equal(gradient, torch.ones(4))
