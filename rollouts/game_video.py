"""Frames with what the game itself knew drawn over them, and its variables listed beside."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from environments.game_trace import ENTITY_COLUMNS, GameTrace
from environments.procgen_state import ENTITY_FIELDS, FRAME_SIZE, PixelBoxes, boxes_of_entities
from experiment.errors import UserError
from rollouts.store import RolloutDataset
from rollouts.types import Rollout
from rollouts.video import Frame, VideoWriter, enlarge

SCALE = 8
"""Pixels along one side of a pixel of the recorded frame."""
_PANEL_WIDTH = 300
_AGENT, _OTHER, _SUPPORT, _CENTRE = (80, 255, 80), (255, 90, 60), (255, 255, 0), (80, 200, 255)
_SUPPORT_NAMES = ("on_ground", "had_support")


def write_game_video(dataset: RolloutDataset, episode_id: int, path: Path) -> None:
    """Write an MP4 of a recorded episode with its game states drawn over the frames.

    Raises:
        UserError: no such episode, or the dataset has no game states.
    """
    tables = dataset.metadata.game
    if tables is None:
        raise UserError(f"{dataset.folder}: it has no game states to draw (record.py --with_state)")
    rollout = dataset.read_episode(dataset.index_of(episode_id))
    with VideoWriter(path) as video:
        for frame in game_frames(rollout, tables.variables):
            video.write(frame)


def game_frames(rollout: Rollout, variables: tuple[str, ...]) -> Iterator[Frame]:
    """The enlarged frames of a rollout with game states, a box around every entity, a line under
    an agent that stands, a cross at the camera's centre, and the variables beside.

    Args:
        rollout: with `game`.
        variables: names of the columns of `game.variables`.
    """
    if rollout.game is None:
        raise ValueError("the rollout has no game states")
    for row in range(len(rollout)):
        frame = _draw_state(enlarge(rollout.obs[row], SCALE), rollout.game, variables, row)
        table = _draw_variables(frame.shape[0], variables, rollout.game.variables[row])
        yield np.concatenate([frame, table], axis=1)


def entity_boxes_at(trace: GameTrace, row: int, frame_size: int = FRAME_SIZE) -> PixelBoxes:
    """Boxes around all entities of one step, as `environments.procgen_state.entity_boxes`."""
    table = np.zeros((int(trace.num_entities[row]), len(ENTITY_FIELDS)), np.float32)
    table[:, [ENTITY_FIELDS.index(name) for name in ENTITY_COLUMNS]] = trace.entities_at(row)
    return boxes_of_entities(table, trace.camera_at(row), frame_size)


def _draw_state(frame: Frame, trace: GameTrace, variables: tuple[str, ...], row: int) -> Frame:
    image = Image.fromarray(frame)
    canvas = ImageDraw.Draw(image)
    boxes = entity_boxes_at(trace, row, frame.shape[0])
    sides = np.stack([boxes.left, boxes.top, boxes.right, boxes.bottom], axis=1)
    types = trace.entities_at(row)[:, ENTITY_COLUMNS.index("type")]
    for index in reversed(range(len(sides))):
        colour = _AGENT if index == 0 else _OTHER
        canvas.rectangle(sides[index].tolist(), outline=colour, width=2)
        canvas.text(tuple(sides[index, :2] + 3), str(int(types[index])), fill=colour)
    for name in set(_SUPPORT_NAMES).intersection(variables):
        if trace.variables[row, variables.index(name)]:
            left, _, right, bottom = sides[0].tolist()
            canvas.line([left, bottom, right, bottom], fill=_SUPPORT, width=5)
    centre = frame.shape[0] / 2
    for dx, dy in ((10, 0), (0, 10)):
        canvas.line([centre - dx, centre - dy, centre + dx, centre + dy], fill=_CENTRE, width=2)
    return np.array(image)


def _draw_variables(height: int, variables: tuple[str, ...], values: NDArray[np.float32]) -> Frame:
    image = Image.new("RGB", (_PANEL_WIDTH, height))
    canvas = ImageDraw.Draw(image)
    line = min(18, (height - 8) // len(variables))
    font = ImageFont.load_default(line * 3 // 4)
    for index, (name, value) in enumerate(zip(variables, values.tolist(), strict=True)):
        top = 4 + index * line
        canvas.text((8, top), name, fill=(200, 200, 200), font=font)
        text = "" if np.isnan(value) else f"{value:.2f}"
        canvas.text((_PANEL_WIDTH - 8, top), text, fill=(255, 255, 255), font=font, anchor="ra")
    return np.array(image)
