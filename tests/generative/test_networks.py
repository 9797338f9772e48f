import pytest
import torch

from generative.networks import (
    FrameEncoder,
    ImageDecoder,
    ImageSize,
    InitialFramesEncoder,
    SubpixelDecoder,
    make_image_decoder,
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (84, 84), (61, 80), (210, 160), (40, 200)])
def test_frames_of_any_size_are_read_and_made(size, channels):
    image_size = ImageSize(*size)
    images = torch.rand(2, channels, *size)
    for kind in ("transposed", "subpixel"):
        decoder = make_image_decoder(kind, 10, channels, image_size, depth=2)
        assert decoder(torch.rand(2, 10)).shape == images.shape
    encoder = FrameEncoder(channels, image_size, depth=2)
    assert encoder(images).shape == (2, encoder.embedding_dim)
    initial = InitialFramesEncoder(channels, image_size, (2, 2, 2), 5, (), 7)
    assert initial(images[None].expand(3, -1, -1, -1, -1)).shape == (2, 7)


def test_procgens_frames_are_made_by_the_documented_layers():
    decoder = ImageDecoder(10, 3, ImageSize(64, 64), depth=48)
    assert [layer.kernel_size for layer in decoder.transposed] == [(5, 5), (6, 6), (6, 6)]
    assert decoder.first.out_features == 192 * 5 * 5
    assert FrameEncoder(3, ImageSize(64, 64), depth=32).embedding_dim == 1024


def test_a_place_of_the_subpixel_decoders_base_makes_the_pixels_around_it():
    torch.manual_seed(0)
    decoder = SubpixelDecoder(6, 3, ImageSize(64, 64), depth=4)
    base = torch.rand(1, 4, 8, 8)
    changed = base.clone()
    changed[0, :, 2, 5] += 1.0
    images = []
    for values in (base, changed):
        decoder.first.register_forward_hook(lambda *_, values=values: values.flatten(1))
        images.append(decoder(torch.rand(1, 6)))
    rows, columns = ((images[1] - images[0])[0].abs().sum(0) > 1e-6).nonzero().T
    # 8 pixels of its own, and those that two 3 × 3 convolutions reach: 8 + 4 on each side.
    assert (rows.min(), rows.max()) == (16 - 12, 23 + 12)
    assert (columns.min(), columns.max()) == (40 - 12, 47 + 12)


@pytest.mark.parametrize("kind", ["transposed", "subpixel"])
def test_every_pixel_of_the_image_is_made_and_every_pixel_of_a_frame_is_read(kind):
    torch.manual_seed(0)
    decoder = make_image_decoder(kind, 6, 1, ImageSize(37, 50), depth=2)
    weight = torch.rand(37, 50)
    (decoder(torch.rand(1, 6))[0, 0] * weight).sum().backward()
    assert decoder.first.weight.grad is not None
    assert decoder.first.weight.grad.abs().min() > 0
    frame = torch.rand(1, 1, 64, 64, requires_grad=True)
    FrameEncoder(1, ImageSize(64, 64), depth=2)(frame).square().sum().backward()
    # 62 = 2 + 2 · 30 pixels lie under the first convolution; the others serve 14 and 6 in full.
    assert frame.grad is not None
    assert (frame.grad[0, 0, :60, :60] != 0).all()
