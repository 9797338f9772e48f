"""Videos of an agent that plays: what it sees beside what a human would see."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from agents.checkpoint import LoadedAgent
from agents.player import BehaviourConfig, Decision, Player
from agents.recording_config import RecordingConfig, level_seeds
from agents.viewer import LiveWindow
from environments.factory import make_environment_from_spec
from environments.protocol import EnvironmentSpec, VectorEnvironment
from experiment.errors import UserError, require_at_least
from rollouts.video import StepOverlay, VideoWriter, draw_overlay

FRAME_HEIGHT = 512


@dataclass(frozen=True)
class RenderingConfig:
    """What to show."""

    num_eps: int = 100
    """Number of episodes, each a video."""
    tps: float = 15.0
    """Decisions per second of the video."""
    start_level: int = 0
    """First level seed. Levels from 1000000000 on are held out: training never sees them."""
    num_levels: int = 0
    """Number of levels from the first on; 0 means 1000000000."""
    greedy: bool = False
    """Take the most probable action instead of drawing one."""
    view: bool = False
    """Also show the episodes in a window while they are played, at --tps. Closing it ends the
    command."""
    seed: int = 0
    """Decides levels and actions: episode e looks as a recording with the same seed has it."""
    num_threads: int = 1
    """Accepted because the reference system has it; a single environment needs no threads."""

    def __post_init__(self) -> None:
        require_at_least(self, "num_eps")
        if not self.tps > 0:
            raise UserError(f"--tps {self.tps}: a positive number is needed")


@dataclass(frozen=True)
class RenderedEpisode:
    """One video."""

    path: Path
    num_steps: int
    episode_return: float
    level_complete: bool


def render_episodes(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    folder: Path | str,
    config: RenderingConfig,
    device: torch.device | str = "cpu",
    window: LiveWindow | None = None,
) -> Iterator[RenderedEpisode]:
    """Play episode after episode and write each as `<folder>/episode_<e>.mp4`.

    Left, the frame that the agent sees, enlarged, with its action as a glyph, the reward that
    follows as a box and its value as text; right, the same scene in high resolution.
    """
    environment.require_images("a video of what the agent sees")
    player = Player(agent.policy, BehaviourConfig(greedy=config.greedy, seed=config.seed), device)
    slot = make_environment_from_spec(
        environment, 1, start_level=config.start_level, num_levels=config.num_levels
    )
    levels = level_seeds(
        RecordingConfig(
            start_level=config.start_level, num_levels=config.num_levels, seed=config.seed
        ),
        np.arange(config.num_eps),
    )
    try:
        for episode_id, level in enumerate(levels.tolist()):
            slot.start_level([0], [level])
            path = Path(folder) / f"episode_{episode_id:05d}.mp4"
            yield _render_episode(player, slot, episode_id, path, config.tps, window)
            if window is not None and not window.is_open:
                return
    finally:
        slot.close()


def _render_episode(
    player: Player,
    slot: VectorEnvironment,
    episode_id: int,
    path: Path,
    fps: float,
    window: LiveWindow | None,
) -> RenderedEpisode:
    state, rewards = player.initial_state(1), []
    outcome = slot.observe()
    with VideoWriter(path, fps) as video:
        while not rewards or not outcome.first[0]:
            scene = slot.render(0)
            decision = player.decide(
                outcome.obs, state, np.array([episode_id]), np.array([len(rewards)])
            )
            slot.send(decision.action)
            seen, state, outcome = outcome.obs[0], decision.state, slot.observe()
            rewards.append(float(outcome.reward[0]))
            overlay = _overlay(slot.spec, decision, rewards[-1])
            frame = compose_frame(seen, scene, overlay)
            video.write(frame)
            if window is not None:
                window.show(frame)
    return RenderedEpisode(path, len(rewards), sum(rewards), bool(outcome.level_complete[0]))


def _overlay(spec: EnvironmentSpec, decision: Decision, reward: float) -> StepOverlay:
    name = spec.action_names[int(decision.action[0])]
    return StepOverlay(
        action_name="null" if name.startswith("null") else name,
        value=float(decision.value[0]),
        reward=reward,
    )


def compose_frame(
    seen: NDArray[np.uint8], scene: NDArray[np.uint8], overlay: StepOverlay
) -> NDArray[np.uint8]:
    """Put the agent's view and the scene side by side.

    Args:
        seen: (H, W, C) frame as the agent saw it.
        scene: (H', W', 3) frame of the renderer.
        overlay: what to draw into the agent's view.

    Returns:
        (about 512, width, 3); the scene is resized to the height of the enlarged view.
    """
    view = draw_overlay(
        np.broadcast_to(seen, (*seen.shape[:2], 3)),
        overlay,
        scale=max(FRAME_HEIGHT // seen.shape[0], 1),
    )
    height = view.shape[0]
    if scene.shape[0] != height:
        width = round(scene.shape[1] * height / scene.shape[0])
        scene = np.asarray(Image.fromarray(scene).resize((width, height)))
    return np.concatenate([view, scene], axis=1)
