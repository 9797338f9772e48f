"""Videos of a playing agent show the episodes that a recording with the same seed has."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageGrab

import render
from agents.checkpoint import LoadedAgent, hash_agent, save_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.player import BehaviourConfig, Player
from agents.recorder import play_episodes
from agents.recording_config import RecordingConfig
from agents.renderer import RenderingConfig, compose_frame, render_episodes
from agents.viewer import LiveWindow
from environments.factory import EnvironmentConfig, environment_spec
from experiment.errors import UserError
from rollouts.video import StepOverlay, read_video

FAKE = environment_spec(EnvironmentConfig(env_name="fake"))
STARPILOT = environment_spec(EnvironmentConfig(env_name="starpilot"))


@pytest.fixture
def agent() -> LoadedAgent:
    torch.manual_seed(0)
    policy = RecurrentPolicy(NetworkConfig(width=0.25, num_features=16)).requires_grad_(False)
    policy.eval()
    return LoadedAgent(policy, FAKE, hash_agent(policy), Path("agent"), 0)


@pytest.mark.parametrize("spec", [FAKE, STARPILOT], ids=lambda spec: spec.name)
def test_rendered_episodes_are_those_of_a_recording(agent, spec, tmp_path) -> None:
    count = 3 if spec is FAKE else 1
    episodes = list(render_episodes(agent, spec, tmp_path, RenderingConfig(num_eps=count, seed=3)))
    player = Player(agent.policy, BehaviourConfig(seed=3))
    recording = RecordingConfig(seed=3, num_envs=count, num_threads=1)
    recorded = {
        rollout.info.episode_id: rollout
        for rollout in play_episodes(player, agent.hash, spec, recording, range(count))
    }
    for episode_id, episode in enumerate(episodes):
        assert episode.num_steps == len(recorded[episode_id])
        assert episode.episode_return == pytest.approx(recorded[episode_id].reward.sum())
        assert episode.level_complete == recorded[episode_id].info.level_complete
        frames = read_video(episode.path)
        assert frames.shape == (episode.num_steps, 512, 1024, 3)
        # Below the glyph, above the text: the agent's view, 8 video pixels for each of its own.
        view = frames[:, 132:448:8, 4:512:8].astype(float)
        seen = recorded[episode_id].obs[:, 16:56].astype(float)
        assert np.abs(view - seen).mean() < 12


def test_view_and_scene_stand_side_by_side() -> None:
    seen = np.full((64, 64, 3), 100, np.uint8)
    scene = np.full((300, 400, 3), 200, np.uint8)
    frame = compose_frame(seen, scene, StepOverlay())
    assert frame.shape == (512, 512 + 683, 3)
    assert (frame[:, :512] == 100).all()
    assert (frame[:, 512:] == 200).all()
    overlaid = compose_frame(seen, scene, StepOverlay("right", value=1.0, reward=10.0))
    assert (overlaid[:, 512:] == 200).all()
    assert (overlaid[0, 511] == 255).all()
    assert (overlaid[:, :512] != 100).any()


def test_one_channel_is_shown_as_grey() -> None:
    seen = np.full((64, 64, 1), 77, np.uint8)
    frame = compose_frame(seen, np.zeros((512, 512, 3), np.uint8), StepOverlay())
    assert (frame[:, :512] == 77).all()


class FakeWindow:
    """Counts what it is shown and is closed by the user at a given frame."""

    def __init__(self, closed_at: int) -> None:
        self.frames: list[np.ndarray] = []
        self.closed_at = closed_at

    @property
    def is_open(self) -> bool:
        return len(self.frames) < self.closed_at

    def show(self, frame: np.ndarray) -> None:
        self.frames.append(frame)


def test_a_window_shows_what_the_videos_hold_until_it_is_closed(agent, tmp_path) -> None:
    config = RenderingConfig(num_eps=5, seed=3, view=True)
    everything = FakeWindow(closed_at=10**6)
    episodes = list(render_episodes(agent, FAKE, tmp_path, config, window=everything))  # type: ignore[arg-type]
    assert len(episodes) == 5
    assert len(everything.frames) == sum(episode.num_steps for episode in episodes)
    filmed = read_video(episodes[0].path).astype(float)
    assert np.abs(filmed - np.stack(everything.frames[: len(filmed)])).mean() < 3

    first_two = episodes[0].num_steps + 1
    closed = FakeWindow(closed_at=first_two)
    assert len(list(render_episodes(agent, FAKE, tmp_path, config, window=closed))) == 2  # type: ignore[arg-type]


def test_without_a_display_the_view_is_refused_before_anything_is_written(
    agent, tmp_path, monkeypatch
) -> None:
    save_agent(tmp_path / "agent", agent.policy, FAKE, {}, env_steps=0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("sys.argv", ["render.py", "--model_file", "agent", "--view"])
    with pytest.raises(UserError, match="--view: no window can be opened here"):
        render.main()
    assert not Path("logs").exists()


@pytest.fixture
def display(monkeypatch, require_from_machine):
    """A display that nobody sees."""
    server = shutil.which("Xvfb")
    require_from_machine(server is not None, "no Xvfb; apt-get install xvfb")
    # Debian has the Python half of tkinter without the library that draws.
    has_tk = find_spec("_tkinter") is not None
    require_from_machine(has_tk, f"no tkinter in {sys.executable}; apt-get install python3-tk")
    read_end, write_end = os.pipe()
    command = [server, "-displayfd", str(write_end), "-screen", "0", "1200x700x24"]
    with subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL) as process:
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            name = f":{pipe.readline().strip()}"
        monkeypatch.setenv("DISPLAY", name)
        yield name
        process.terminate()


def test_a_window_shows_frames_at_the_pace_asked_for(display) -> None:
    window = LiveWindow("test", fps=10)
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60 + np.zeros(
        (4, 96, 128, 3), np.uint8
    )
    time.sleep(0.2)
    start = time.monotonic()
    for frame in frames:
        window.show(frame)
    # However long after the window was opened the first frame comes, it is seen for as long.
    assert time.monotonic() - start >= 0.4
    screen = np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))
    assert (screen == 180).all(axis=2).sum() == 96 * 128
    window.close()
    window.close()
    window.show(frames[0])
    assert not window.is_open


@pytest.mark.parametrize(("change", "flag"), [({"num_eps": 0}, "--num_eps"), ({"tps": 0}, "--tps")])
def test_numbers_that_make_no_sense_are_refused(change, flag) -> None:
    with pytest.raises(UserError, match=flag):
        RenderingConfig(**change)


def test_command_renders_and_reports(agent, tmp_path, monkeypatch) -> None:
    save_agent(tmp_path / "agent", agent.policy, FAKE, {}, env_steps=0)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model_file=agent", "--param_name", "hard-local-dev-rec", "--device", "cpu"]
    monkeypatch.setattr(
        "sys.argv", ["render.py", *arguments, "--num_eps", "2", "--report", "report.json"]
    )
    render.main()
    assert sorted(path.name for path in Path("logs/rendered").iterdir()) == [
        "episode_00000.mp4",
        "episode_00001.mp4",
    ]
    assert json.loads(Path("report.json").read_text())["metrics"]["episodes"] == 2
