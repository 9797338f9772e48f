import numpy as np
import pytest

from analysis.saliency_drawing import (
    NEGATIVE_COLOUR,
    POSITIVE_COLOUR,
    StripCaption,
    draw_strip,
    overlay,
    signed_maps,
    video_frames,
)


@pytest.fixture
def spot_gradient():
    """Three steps: a positive spot at (2, 2), a negative one at (9, 9), nothing at step 2."""
    gradient = np.zeros((3, 12, 12, 3), np.float32)
    gradient[:2, 2, 2] = 1e-9
    gradient[:2, 9, 9] = -2e-9
    return gradient


def test_maps_keep_the_sign_and_share_a_scale(spot_gradient):
    maps = signed_maps(spot_gradient, blur=0)
    assert maps[0, 2, 2] == pytest.approx(0.5, rel=0.01)
    assert maps[1, 9, 9] == -1.0
    assert np.count_nonzero(maps[2]) == 0


def test_scaling_the_gradient_changes_nothing(spot_gradient):
    scaled = signed_maps(spot_gradient * 1e12)
    np.testing.assert_allclose(signed_maps(spot_gradient), scaled, atol=1e-5)


def test_a_zero_gradient_is_a_grey_frame():
    frames = np.full((1, 4, 4, 3), 255, np.uint8)
    drawn = overlay(frames, signed_maps(np.zeros((1, 4, 4, 3), np.float32)))
    assert np.ptp(drawn) == 0


def test_the_strongest_spots_have_the_documented_colours(spot_gradient):
    frames = np.full((3, 12, 12, 3), 255, np.uint8)
    spot_gradient[:2, 2, 2] = 2e-9
    drawn = overlay(frames, signed_maps(spot_gradient, blur=0))
    np.testing.assert_array_equal(drawn[0, 2, 2], POSITIVE_COLOUR)
    np.testing.assert_array_equal(drawn[1, 9, 9], NEGATIVE_COLOUR)


def test_stronger_gradients_never_wrap_around():
    strengths = np.linspace(0, 1, 50, dtype=np.float32).reshape(1, 1, 50)
    drawn = overlay(np.full((1, 1, 50, 3), 255, np.uint8), strengths)[0, 0].astype(int)
    assert (np.diff(drawn[:, 0]) >= 0).all()
    assert (np.diff(drawn[:, 2]) <= 0).all()


def test_strips_and_videos_show_every_step(spot_gradient):
    frames = np.zeros((3, 12, 12, 3), np.uint8)
    strip = draw_strip(frames, spot_gradient, StripCaption("title", 1), scale=4)
    words = [text.get_text() for text in strip.axes[0].texts]
    assert words[:4] == ["title", "step 0", "step 1 (target)", "step 2"]
    (canvas,) = (image.get_array() for image in strip.axes[0].images)
    assert canvas is not None
    # Six black or grey tiles of 48 × 48 pixels on white; spots are orange and blue.
    is_tile = (np.asarray(canvas) < 255).any(axis=-1)
    assert is_tile.sum() == 6 * 48 * 48
    pictures = list(video_frames(frames, spot_gradient, scale=4))
    assert [picture.shape for picture in pictures] == [(48, 96, 3)] * 3
