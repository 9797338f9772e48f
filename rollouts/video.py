"""MP4 videos of rollouts: what happened, drawn into the frames."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from experiment.errors import UserError
from experiment.files import atomic_file

Frame = NDArray[np.uint8]
"""(H, W, 3) RGB."""

DEFAULT_FPS = 14
_ARROW_NAME = re.compile(r"(?P<vertical>up|down)?[-_ ]?(?P<horizontal>left|right)?")
_NULL_NAMES = ("null", "noop", "none", "")
_REWARD_OF_FULL_BOX = 10.0
_SUPERSAMPLING = 4


class VideoWriter:
    """Streams frames into an H.264 file that any browser plays.

    Used as a context manager: on a clean exit the video appears at `path`, after an exception
    nothing does. Frames of odd size gain a black row or column, since the codec wants even ones.

    Args:
        path: file name, ends in `.mp4`.
        fps: frames per second.
        scale: each pixel becomes a square of this many pixels.

    Raises:
        UserError: no ffmpeg, or it could not write the file.
    """

    def __init__(self, path: Path | str, fps: float = DEFAULT_FPS, scale: int = 1):
        self.path = Path(path)
        self._fps = fps
        self._scale = scale
        self._ffmpeg = find_ffmpeg()
        self._stack = ExitStack()
        self._temporary: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frame_shape: tuple[int, ...] = ()

    def __enter__(self) -> "VideoWriter":
        self._temporary = self._stack.enter_context(atomic_file(self.path))
        self._stack.push(self._end_encoder)
        return self

    def write(self, frame: Frame) -> None:
        """Append one frame; raises `ValueError` unless it is uint8 and shaped like the first."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame: expected uint8 (H, W, 3), found {frame.dtype} {frame.shape}")
        if self._process is None:
            self._frame_shape = frame.shape
            self._process = self._start(frame)
        if frame.shape != self._frame_shape:
            raise ValueError(f"frame: found shape {frame.shape}, expected {self._frame_shape}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_prepare(frame, self._scale).tobytes())
        except BrokenPipeError:
            self._finish(self._process)

    def write_all(self, frames: Iterable[Frame]) -> None:
        """Append frames one by one: (T, H, W, 3), or whatever yields them."""
        for frame in frames:
            self.write(frame)

    def _start(self, frame: Frame) -> "subprocess.Popen[bytes]":
        height, width, _ = _prepare(frame, self._scale).shape
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart"]
        return subprocess.Popen(
            [
                *(self._ffmpeg, "-y", "-loglevel", "error"),
                *(*source, "-r", str(self._fps), "-i", "-"),
                *(*codec, str(self._temporary)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exception_type, exception, traceback)

    def _end_encoder(self, exception_type: type[BaseException] | None, *_: object) -> None:
        """Runs before the temporary file is renamed, so that an error here removes it."""
        if self._process is not None and exception_type is not None:
            self._process.kill()
            self._process.communicate()
        elif self._process is not None:
            self._finish(self._process)
        elif exception_type is None:
            raise UserError(f"{self.path}: a video needs at least one frame")

    def _finish(self, process: "subprocess.Popen[bytes]") -> None:
        _, complaint = process.communicate()
        if process.returncode != 0:
            raise UserError(f"{self.path}: ffmpeg failed ({complaint.decode().strip()})")


def _prepare(frame: Frame, scale: int) -> Frame:
    enlarged = enlarge(frame, scale)
    odd_rows, odd_columns = enlarged.shape[0] % 2, enlarged.shape[1] % 2
    return np.pad(enlarged, ((0, odd_rows), (0, odd_columns), (0, 0)))


def enlarge(frame: Frame, scale: int) -> Frame:
    """Make every pixel a square of `scale` × `scale` pixels."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


@cache
def find_ffmpeg() -> str:
    """The ffmpeg named by IMAGEIO_FFMPEG_EXE, or bundled with imageio-ffmpeg, or installed.

    The bundled binary is found without importing its package: the version that Procgen's gym3
    asks for needs `pkg_resources`, which setuptools no longer has.
    """
    if named := os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return named
    package = find_spec("imageio_ffmpeg")
    for folder in (package.submodule_search_locations or []) if package else []:
        for binary in sorted(Path(folder).glob("binaries/ffmpeg-*")):
            if os.access(binary, os.X_OK):
                return str(binary)
    if installed := shutil.which("ffmpeg"):
        return installed
    raise UserError("videos need ffmpeg: neither imageio-ffmpeg's nor an installed one is there")


def read_video(path: Path | str) -> NDArray[np.uint8]:
    """(T, H, W, 3) all frames of a video; meant for short ones."""
    image_stream = ["-f", "image2pipe", "-c:v", "ppm", "-"]
    result = subprocess.run(
        [find_ffmpeg(), "-loglevel", "error", "-i", str(path), "-vsync", "0", *image_stream],
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        raise UserError(f"{path}: not a readable video ({result.stderr.decode().strip()})")
    return _parse_ppm_stream(result.stdout)


def _parse_ppm_stream(stream: bytes) -> NDArray[np.uint8]:
    """Frames of equal size, each a header `P6 width height 255` and its pixels."""
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", stream)
    if header is None:
        return np.zeros((0, 0, 0, 3), np.uint8)
    width, height = int(header[1]), int(header[2])
    frames = np.frombuffer(stream, np.uint8).reshape(-1, header.end() + height * width * 3)
    return frames[:, header.end() :].reshape(-1, height, width, 3)


@dataclass(frozen=True)
class StepOverlay:
    """What to draw into one frame; None leaves the item out."""

    action_name: str | None = None
    value: float | None = None
    reward: float | None = None
    terminal_prob: float | None = None


def draw_overlay(frame: Frame, overlay: StepOverlay, scale: int = 1) -> Frame:
    """Enlarge a frame and draw one step's action, value, reward and terminal probability into it.

    The action glyph stands at the top centre, the terminal probability (black 0, white 1) is
    the box in the top left corner, the reward (white: 10 or more, red: negative) the one in the
    top right corner, the value is written at the bottom left.
    """
    canvas = enlarge(frame, scale)
    size = max(2, canvas.shape[0] // 16)
    if overlay.action_name is not None:
        canvas = draw_action_glyph(canvas, overlay.action_name)
    if overlay.terminal_prob is not None:
        canvas = draw_box(canvas, (0, 0), size, _grey(overlay.terminal_prob))
    if overlay.reward is not None:
        level = overlay.reward / _REWARD_OF_FULL_BOX
        red = (_grey(-level)[0], 0, 0)
        right = canvas.shape[1] - size
        canvas = draw_box(canvas, (0, right), size, red if level < 0 else _grey(level))
    if overlay.value is not None:
        canvas = draw_text(canvas, f"V {overlay.value:.2f}")
    return canvas


def _grey(level: float) -> tuple[int, int, int]:
    """Level 0 to 1 as a colour; what lies outside is clipped, NaN is black."""
    shade = round(255 * min(1.0, max(0.0, level))) if np.isfinite(level) else 0
    return shade, shade, shade


def draw_box(
    frame: Frame, corner: tuple[int, int], size: int, colour: tuple[int, int, int]
) -> Frame:
    """Copy of `frame` with a filled square whose top left pixel is `corner` (row, column)."""
    drawn = frame.copy()
    row, column = corner
    drawn[row : row + size, column : column + size] = colour
    return drawn


def draw_text(frame: Frame, text: str, size: int | None = None) -> Frame:
    """Copy of `frame` with white, black-rimmed text at the bottom left.

    Args:
        frame: what to write on.
        text: one line.
        size: of the letters, in pixels; by default a sixteenth of the frame's height.
    """
    image = Image.fromarray(frame)
    font = ImageFont.load_default(size or max(8, frame.shape[0] // 16))
    ImageDraw.Draw(image).text(
        (2, frame.shape[0] - 2),
        text,
        fill=(255, 255, 255),
        font=font,
        anchor="lb",
        stroke_width=1,
        stroke_fill=(0, 0, 0),
    )
    return np.array(image)


def draw_action_glyph(frame: Frame, action_name: str) -> Frame:
    """Copy of `frame` with a black square at the top centre that shows the action.

    A name made of up, down, left and right is a white arrow; an action that does nothing leaves
    the square black; any other name is written out.
    """
    size = max(8, frame.shape[0] // 4)
    left = (frame.shape[1] - size) // 2
    drawn = frame.copy()
    drawn[:size, left : left + size] = action_glyph(action_name, size)[:, :, None]
    return drawn


def action_direction(action_name: str) -> tuple[int, int] | None:
    """(right, down) each −1, 0 or 1, as the name says; None where it names no direction.

    The null action is (0, 0).
    """
    name = action_name.strip().lower()
    if name in _NULL_NAMES:
        return 0, 0
    match = _ARROW_NAME.fullmatch(name)
    if match is None:
        return None
    right = {"left": -1, "right": 1}.get(match["horizontal"], 0)
    down = {"up": -1, "down": 1}.get(match["vertical"], 0)
    return right, down


@cache
def action_glyph(action_name: str, size: int) -> NDArray[np.uint8]:
    """(size, size) white on black, antialiased by drawing it larger."""
    large = size * _SUPERSAMPLING
    image = Image.new("L", (large, large))
    direction = action_direction(action_name)
    if direction is None:
        font = ImageFont.load_default(large * 3 // 5)
        text = action_name if len(action_name) < 3 else action_name[:2]
        ImageDraw.Draw(image).text((large / 2, large / 2), text, fill=255, font=font, anchor="mm")
    elif direction != (0, 0):
        _draw_arrow(ImageDraw.Draw(image), direction, large)
    return np.array(image.resize((size, size), Image.Resampling.BOX))


def _draw_arrow(canvas: ImageDraw.ImageDraw, direction: tuple[int, int], size: int) -> None:
    """An arrow through the centre; its head is a triangle at the end it points to."""
    along = np.array(direction) / np.hypot(*direction)
    across = np.array([-along[1], along[0]])
    centre = np.array([size, size]) / 2
    tail, neck, tip = (centre + along * size * reach for reach in (-0.4, 0.05, 0.45))
    canvas.line([*tail, *neck], fill=255, width=max(1, size // 8))
    wing = across * size * 0.28
    canvas.polygon([tuple(tip), tuple(neck + wing), tuple(neck - wing)], fill=255)
