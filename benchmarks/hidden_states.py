"""How long the analysis of many hidden states takes, and how much memory it needs.

`python benchmarks/hidden_states.py` writes recorded rollouts of a million decisions whose hidden
states (64 units) mix 16 planted sources, and runs the command that users run,
`analysis/hidden_analysis_precompute.py`, on them: once on all rows without a layout, which fits
principal and independent components and clusters and streams the projection of every row to the
result; then on 100,000 rows with t-SNE and with UMAP, all of which shape the layout. It prints wall
time, processor time and the peak of resident memory of each run, and how well the planted sources
were recovered: that is of a whole command, imports and result file included. `layout` is the wall
time of the layout alone, finding neighbours included, as the command reports it.

It is not called `analysis.py`: Python looks in a script's own folder first, and would find the
script in place of the package `analysis`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.results import HIDDEN_ANALYSIS_NAME, read_results
from environments.fake import fake_spec
from experiment.command_line import PROJECT_ROOT, parse_flags
from experiment.errors import require_at_least, run_entry_point
from experiment.files import read_json
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

COMMAND = "analysis/hidden_analysis_precompute.py"
FRAME_SIZE = 4
"""Pixels along a side: no frame is looked at."""
EPISODE_LENGTH = 100
STATE_DIM = 64
NUM_SOURCES = 16
NOISE = 0.1
SEED = 0
Part = Literal["streaming", "tsne", "umap"]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    parts: tuple[Part, ...] = ("streaming", "tsne", "umap")
    """Which runs: streaming of all rows, layouts of some."""
    num_rows: int = 1_000_000
    """Hidden states that are streamed."""
    num_layout_rows: int = 100_000
    """Hidden states that are laid out."""
    folder: Path | None = None
    """Where the rollouts and results are kept for another run; a temporary folder by default."""


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    wall_seconds: float
    processor_seconds: float
    peak_bytes: int


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Measure the analysis of many hidden states.")
    require_at_least(config, "num_rows", "num_layout_rows", least=10 * EPISODE_LENGTH)
    if config.folder is not None:
        measure(config, config.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(config, Path(folder))


def measure(config: Config, folder: Path) -> None:
    """Write what is analysed, unless it is there, and print a line for each part."""
    data_dir = folder / f"rollouts_{config.num_rows}"
    if not data_dir.exists():
        write_rollouts(data_dir, config.num_rows)
    print(
        f"{'part':<10} {'rows':>10} {'wall':>8} {'layout':>8} {'processor':>10}"
        f" {'peak memory':>12}  recovered"
    )
    for part in config.parts:
        num_rows = config.num_rows if part == "streaming" else config.num_layout_rows
        output_dir = folder / part
        report = folder / f"{part}.json"
        cost = run([*flags_of(part, num_rows, data_dir, output_dir), "--report", str(report)])
        layout = read_json(report)["metrics"].get("embedding_seconds")
        with read_results(output_dir / HIDDEN_ANALYSIS_NAME) as results:
            recovered = recovery(results)
        print(
            f"{part:<10} {num_rows:>10,} {cost.wall_seconds:>6.0f} s"
            f" {'–' if layout is None else f'{layout:.0f} s':>8}"
            f" {cost.processor_seconds:>8.0f} s {cost.peak_bytes / 1e9:>9.2f} GB  {recovered:.3f}",
            flush=True,
        )


def write_rollouts(folder: Path, num_rows: int) -> None:
    """Record `num_rows` decisions, in episodes of equal length."""
    spec = fake_spec(FRAME_SIZE)
    metadata = DatasetMetadata(spec, "agent", "", STATE_DIM, (0, STATE_DIM), spec.num_actions)
    with RolloutWriter(folder, metadata) as writer:
        for index in range(num_rows // EPISODE_LENGTH):
            writer.write(make_rollout(index, spec.num_actions))


def make_rollout(index: int, num_actions: int) -> Rollout:
    """An episode whose hidden states mix planted sources."""
    rng = np.random.default_rng([SEED, index])
    noise = NOISE * rng.normal(size=(EPISODE_LENGTH, STATE_DIM))
    hidden = sources_of(index) @ mixing_matrix().T + noise
    return Rollout(
        obs=np.zeros((EPISODE_LENGTH, FRAME_SIZE, FRAME_SIZE, 3), np.uint8),
        agent_hidden=hidden.astype(np.float32),
        action_logits=rng.normal(size=(EPISODE_LENGTH, num_actions)).astype(np.float32),
        value=rng.normal(size=EPISODE_LENGTH).astype(np.float32),
        action=rng.integers(num_actions, size=EPISODE_LENGTH, dtype=np.int32),
        behaviour_log_prob=np.zeros(EPISODE_LENGTH, np.float32),
        reward=np.zeros(EPISODE_LENGTH, np.float32),
        done=np.arange(EPISODE_LENGTH) == EPISODE_LENGTH - 1,
        info=EpisodeInfo(index, "agent", np.zeros(STATE_DIM, np.float32)),
    )


def sources_of(index: int) -> NDArray[np.float64]:
    """(EPISODE_LENGTH, NUM_SOURCES) independent heavy-tailed sources of an episode."""
    return np.random.default_rng([SEED, index, 1]).laplace(size=(EPISODE_LENGTH, NUM_SOURCES))


def mixing_matrix() -> NDArray[np.float64]:
    """(STATE_DIM, NUM_SOURCES)"""
    return np.random.default_rng(SEED).normal(size=(STATE_DIM, NUM_SOURCES))


def flags_of(part: Part, num_rows: int, data_dir: Path, output_dir: Path) -> list[str]:
    """Flags of the command that analyses so many rows."""
    layout = "none" if part == "streaming" else part
    return [
        *("--data_dir", str(data_dir), "--output_dir", str(output_dir), "--no-generated"),
        *("--num_episodes", str(num_rows // EPISODE_LENGTH), "--num_ica", str(NUM_SOURCES)),
        *("--num_nmf", "0", "--embedding", layout, "--max_embedding_rows", str(num_rows)),
    ]


def run(flags: list[str]) -> Cost:
    """Run the command; wall and processor time, and the peak of its resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(PROJECT_ROOT / COMMAND), *flags],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Cost(wall, usage.ru_utime + usage.ru_stime, _peak_bytes(usage))


def _peak_bytes(usage: resource.struct_rusage) -> int:
    # Linux counts in kibibytes, macOS in bytes.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def recovery(results: xr.Dataset) -> float:
    """Mean over planted sources of the largest |correlation| with a component, on some episodes."""
    num_episodes = min(100, int(results["episode_index"][-1]) + 1)
    planted = np.concatenate([sources_of(index) for index in range(num_episodes)])
    found = results["ica"][: len(planted)].values
    correlation = np.corrcoef(planted.T, found.T)[:NUM_SOURCES, NUM_SOURCES:]
    return float(np.abs(correlation).max(axis=1).mean())


if __name__ == "__main__":
    run_entry_point(main)
