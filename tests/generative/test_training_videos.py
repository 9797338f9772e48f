import numpy as np
import torch

from generative.objective import to_window_tensors
from generative.training_videos import COLUMNS, make_pictures, write_training_video
from rollouts.video import read_video


def test_columns_show_what_their_names_say(small_simulator, padded_batch):
    windows = to_window_tensors(padded_batch, "cpu")
    pictures = make_pictures(small_simulator, windows, seed=0)
    assert tuple(pictures) == COLUMNS
    assert {p.shape for p in pictures.values()} == {(3, 3, 64, 64, 3)}
    np.testing.assert_array_equal(pictures["true"], padded_batch.obs[2:])
    initial = small_simulator.decode_initial(small_simulator.encode(windows.initial_frames))
    with torch.no_grad():
        own = small_simulator.simulate(initial, 3)
    expected = (torch.stack(own.images) * 255).round().movedim(-3, -1).numpy()
    np.testing.assert_array_equal(pictures["simulated"], expected)
    # Until an action is taken, true and own actions make no difference.
    np.testing.assert_array_equal(pictures["imagined"][0], pictures["simulated"][0])
    assert (pictures["random"] != pictures["simulated"]).any()


def test_the_video_has_a_picture_per_step(small_simulator, padded_batch, tmp_path):
    windows = to_window_tensors(padded_batch, "cpu")
    write_training_video(tmp_path / "shown.mp4", small_simulator, windows, seed=0)
    frames = read_video(tmp_path / "shown.mp4")
    assert frames.shape == (3, 24 + 3 * 64 * 3, 5 * 64 * 3, 3)
    true = frames[0, 24 : 24 + 192, :192].astype(float)
    expected = padded_batch.obs[2, 0].repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(true.mean((0, 1)) - expected.mean((0, 1))).max() < 5
