"""How quickly the panel answers and its page draws, and in how much memory.

`python benchmarks/web_panel.py` generates samples of 10 to 200 steps and analyses of many rows,
serves them with `python -m panel` in a process of its own, and asks as the page does: the list and
the first frame, the columns that a scatter needs, one sample after another, and all of that from
many readers at once. Then Debian's Chromium opens the page itself, with an empty cache each time.
Each line gives a figure and its target: seconds (the median where there are several), steps per
second, errors, memory. Frames are generated noise in blocks, which compresses worse than a game's.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import xarray as xr
from tqdm import tqdm

from analysis.results import HIDDEN_ANALYSIS_NAME, flag_attributes, write_results
from environments.protocol import EnvironmentSpec
from experiment.command_line import parse_flags
from experiment.errors import require_at_least, run_entry_point
from experiment.provenance import collect_provenance
from panel.rollout_source import TABLES_PER_ANSWER
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

SEED = 0
FRAME_SIZE, BLOCK_SIZE, NUM_ACTIONS, STATE_DIM, NUM_COMPONENTS = 64, 8, 15, 64, 16
LENGTHS = (10, 200)
SCATTER_COLUMNS = (
    "embedding?component=0",
    "embedding?component=1",
    "value",
    "source",
    "episode_id",
    "step",
)
OPENED_SAMPLES, OPENED_IN_PAGE = 50, 20
EPISODES_OF_RECORDING, AGAIN = 4, 5
PROJECT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
VIEWPORT: "ViewportSize" = {"width": 1920, "height": 1080}
# Milliseconds from the start of the navigation until there is something to see.
WATCH_OPENING = """
  window.seen = {};
  const look = () => {
    const now = performance.now();
    const isListed = document.querySelector('#rollouts .row');
    const isDrawn = document.querySelector('#frame[data-step]:not(.waiting)');
    if (isListed && isDrawn) window.seen.frame ??= now;
    if (document.querySelector('#scatter .plot .xtick')) window.seen.axes ??= now;
    // A canvas is 300 pixels wide until the points are drawn into it.
    if (document.querySelector('#scatter canvas.points')?.width > 300) window.seen.scatter ??= now;
    requestAnimationFrame(look);
  };
  look();
"""
# Milliseconds from the choice of a sample until its frame, and until everything about it, is drawn.
OPEN_SAMPLE = """async (seed) => {
  const { list, player } = window.dreamscope;
  const entry = list.visible[(1 + seed * 1013) % list.visible.length];
  const start = performance.now();
  const until = async (condition) => {
    while (!condition()) await new Promise(requestAnimationFrame);
    return performance.now() - start;
  };
  const isDrawn = () => player.sample.entry === entry && !player.canvas.matches('.waiting');
  window.dreamscope.openEntry(entry);
  const frame = await until(isDrawn);
  return { frame, all: await until(() => 'ready' in document.body.dataset) };
}"""
# Steps per second of the longest sample at the player's highest speed.
PLAY = """async () => {
  const { list, player } = window.dreamscope;
  const longest = list.visible.reduce((best, entry) => (entry.length > best.length ? entry : best));
  window.dreamscope.openEntry(longest);
  while (player.sample.entry !== longest || player.canvas.matches('.waiting')) {
    await new Promise(requestAnimationFrame);
  }
  document.getElementById('speed').value = '60';
  const drawn = new Set();
  const watcher = new MutationObserver(() => drawn.add(player.canvas.dataset.step));
  watcher.observe(player.canvas, { attributeFilter: ['data-step'] });
  const start = performance.now();
  player.togglePlay();
  while (player.playing) await new Promise(requestAnimationFrame);
  return drawn.size / ((performance.now() - start) / 1000);
}"""


@dataclass(frozen=True)
class Config:
    """Size of the benchmark."""

    num_samples: int = 4000
    """Simulated samples of 10 to 200 steps."""
    num_points: tuple[int, ...] = (100_000, 1_000_000)
    """Rows of the analyses, one analysis each."""
    num_recordings: int = 240
    """Small recordings in a folder of their own, as tests of interventions leave them."""
    num_readers: int = 50
    """Readers at once, each with a connection of its own."""
    browser: bool = True
    """Also measure the page in Chromium, where that is installed."""


@dataclass(frozen=True)
class Panel:
    """A running server."""

    client: httpx.Client
    """Has the cookie already."""
    address: str
    """With its token."""
    process_id: int
    seconds_to_ready: float


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Measure how quickly the panel answers, and in how much memory.")
    require_at_least(config, "num_samples", "num_recordings", "num_readers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = write_samples(folder / "samples", config.num_samples)
        for num_points in config.num_points:
            write_analysis(folder / f"points_{num_points}", samples, num_points)
        with serve(folder) as panel:
            measure(panel, config)
    with tempfile.TemporaryDirectory() as name:
        write_recordings(Path(name), config.num_recordings)
        with serve(Path(name)) as panel:
            measure_catalogue(panel, config.num_recordings)


def measure(panel: Panel, config: Config) -> None:
    """Ask as the page does and print what it took, then let the page ask itself."""
    report("server ready", panel.seconds_to_ready, "s", at_most=2)
    start = time.perf_counter()
    catalogue = panel.client.get("api/catalogue").json()
    [dataset] = catalogue["datasets"]
    base = f"api/datasets/{dataset['id']}/episodes"
    fetch(panel.client, base)
    fetch(panel.client, f"{base}/0/frames?start=0&stop=1")
    report("list and first frame", time.perf_counter() - start, "s", at_most=1)
    analyses = sorted(catalogue["analyses"], key=lambda entry: entry["num_rows"])
    for entry in analyses:
        start = time.perf_counter()
        for column in SCATTER_COLUMNS:
            fetch(panel.client, f"api/analyses/{entry['id']}/columns/{column}")
        report(f"columns of {entry['num_rows']:,} points", time.perf_counter() - start, "s")
    chosen = np.random.default_rng(SEED).integers(0, config.num_samples, OPENED_SAMPLES)
    seconds = [time_sample(panel.client, base, sample) for sample in chosen]
    report("sample fetched, median", statistics.median(seconds), "s", at_most=0.15)
    report("sample fetched, slowest", max(seconds), "s", at_most=0.15)
    measure_readers(panel, base, config)
    if config.browser and CHROMIUM.exists():
        measure_page(panel, analyses)
    else:
        print(f"the page is not measured: {CHROMIUM} is missing or --no-browser was given")
    report("memory of the server", peak_memory(panel.process_id), "MiB", at_most=500)


def measure_catalogue(panel: Panel, num_recordings: int) -> None:
    """How long a page waits for the list of many datasets, the first time and later."""
    name = f"list of {num_recordings} datasets"
    for times, title in ((1, f"{name}, first"), (AGAIN, f"{name}, again, median")):
        seconds = [time_list(panel.client) for _ in range(times)]
        report(title, statistics.median(seconds), "s")


def time_list(client: httpx.Client) -> float:
    """Seconds until catalogue and episode tables have arrived, asked for as by the page."""
    start = time.perf_counter()
    catalogue = client.get("api/catalogue").raise_for_status().json()
    ids = [entry["id"] for entry in catalogue["datasets"]]
    for part in range(0, len(ids), TABLES_PER_ANSWER):
        asked = ",".join(ids[part : part + TABLES_PER_ANSWER])
        fetch(client, f"api/episodes?datasets={asked}")
    return time.perf_counter() - start


def time_sample(client: httpx.Client, base: str, sample: int) -> float:
    """Seconds until steps and frames of a sample have arrived."""
    start = time.perf_counter()
    fetch(client, f"{base}/{sample}/steps")
    fetch(client, f"{base}/{sample}/frames?start=0&stop=256")
    return time.perf_counter() - start


def measure_readers(panel: Panel, base: str, config: Config) -> None:
    """Many readers open ten samples each, at once; any answer but 200 is an error."""

    def read(reader: int) -> list[float]:
        chosen = np.random.default_rng([SEED, reader]).integers(0, config.num_samples, 10)
        with httpx.Client(
            base_url=panel.client.base_url, cookies=panel.client.cookies, timeout=120
        ) as client:
            return [time_sample(client, base, sample) for sample in chosen]

    start = time.perf_counter()
    with ThreadPoolExecutor(config.num_readers) as threads:
        waiting = [threads.submit(read, reader) for reader in range(config.num_readers)]
        errors = sum(future.exception() is not None for future in waiting)
        seconds = [
            value for future in waiting if not future.exception() for value in future.result()
        ]
    name = f"{config.num_readers} readers at once"
    report(f"{name}, all", time.perf_counter() - start, "s")
    if seconds:
        report(f"{name}, sample, median", statistics.median(seconds), "s")
    report(f"{name}, with errors", errors, "", at_most=0)


def measure_page(panel: Panel, analyses: list[dict[str, Any]]) -> None:
    """Open the page once for each analysis, with an empty cache, and use it."""
    # Imported here, since nothing else in this benchmark needs it.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for entry in analyses:
            with browser.new_context(viewport=VIEWPORT) as context:
                page = context.new_page()
                page.set_default_timeout(120_000)
                page.add_init_script(WATCH_OPENING)
                page.goto(f"{panel.address}#analysis={entry['id']}")
                page.wait_for_selector("body[data-ready]", state="attached")
                report_page(page, f"{entry['num_rows']:,} points")
        browser.close()


def report_page(page: "Page", name: str) -> None:
    """Figures of one open page; see the scripts at the top."""
    opened = page.evaluate("window.seen")
    report(f"page, {name}: list and frame", opened["frame"] / 1000, "s", at_most=1)
    report(f"page, {name}: scatter drawn", opened["scatter"] / 1000, "s", at_most=3)
    report(f"page, {name}: its axes drawn", opened["axes"] / 1000, "s")
    times = [page.evaluate(OPEN_SAMPLE, seed) for seed in range(OPENED_IN_PAGE)]
    frames, traces = (
        statistics.median(found[key] for found in times) / 1000 for key in ("frame", "all")
    )
    report(f"page, {name}: sample's frame", frames, "s", at_most=0.15)
    report(f"page, {name}: sample with plots", traces, "s", at_most=0.15)
    report(f"page, {name}: steps played", page.evaluate(PLAY), "/s", at_least=30)
    report(f"page, {name}: browser's memory", memory_of_children("chromium"), "MiB")


def memory_of_children(name: str) -> float:
    """MiB of memory that the descendants of this process of that name hold together; pages that
    several of them share count once."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            parents[int(status.parent.name)] = read_number(status, "PPid")
    kibibytes = 0
    for process_id in parents:
        ancestor = process_id
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        folder = Path(f"/proc/{process_id}")
        with suppress(OSError):
            if ancestor == os.getpid() and name in (folder / "cmdline").read_text():
                kibibytes += read_number(folder / "smaps_rollup", "Pss")
    return kibibytes / 1024


def read_number(path: Path, label: str) -> int:
    """The first number after a label at the start of a line, as the kernel tells of a process."""
    found = re.search(rf"^{label}:\s+(\d+)", path.read_text(), re.MULTILINE)
    assert found, f"{path} has no {label}"
    return int(found[1])


def fetch(client: httpx.Client, path: str) -> bytes:
    """The answer's content; raises `httpx.HTTPStatusError` unless it is a success."""
    return client.get(path).raise_for_status().content


def report(
    name: str,
    value: float,
    unit: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> None:
    """Print one line: figure, target, and whether it is missed."""
    digits = 0 if unit in ("MiB", "") else 3 if unit == "s" else 1
    line = f"{name:<44}{value:9.{digits}f} {unit:<4}"
    if at_most is not None:
        line += f" at most {at_most:g}{'' if value <= at_most else ', MISSED'}"
    if at_least is not None:
        line += f" at least {at_least:g}{'' if value >= at_least else ', MISSED'}"
    print(line.rstrip(), flush=True)


@contextmanager
def serve(folder: Path) -> Iterator[Panel]:
    """Start `python -m panel` and open it with its token."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "panel", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    try:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("open"))
        base = address.partition("?")[0]
        with httpx.Client(base_url=base, follow_redirects=True, timeout=120) as client:
            client.get(address).raise_for_status()
            yield Panel(client, address, process.pid, time.perf_counter() - start)
    finally:
        process.terminate()
        process.wait()


def peak_memory(process_id: int) -> float:
    """Highest resident memory of a process so far, in MiB."""
    return read_number(Path(f"/proc/{process_id}/status"), "VmHWM") / 1024


def write_recordings(folder: Path, num_recordings: int) -> None:
    """Datasets of a few episodes each."""
    for recording in tqdm(range(num_recordings), desc="recordings", disable=None):
        write_samples(folder / f"recording_{recording}", EPISODES_OF_RECORDING, is_shown=False)


def write_samples(folder: Path, num_samples: int, is_shown: bool = True) -> RolloutDataset:
    """Simulated samples of generated content, with a bar of progress if that `is_shown`."""
    environment = EnvironmentSpec(
        adapter="fake",
        name="generated",
        obs_shape=(FRAME_SIZE, FRAME_SIZE, 3),
        num_actions=NUM_ACTIONS,
        action_names=tuple(f"action{action}" for action in range(NUM_ACTIONS)),
        null_action=0,
        time_limit=None,
    )
    metadata = DatasetMetadata(
        environment=environment,
        agent_hash="0" * 64,
        agent_file="generated",
        state_dim=STATE_DIM,
        hidden_slice=(0, STATE_DIM),
        num_actions=NUM_ACTIONS,
        simulated=SimulatedDims(deter_dim=16, num_categoricals=4, num_classes=8, latent_dim=8),
    )
    hide = None if is_shown else True
    with RolloutWriter(folder, metadata) as writer:
        for sample in tqdm(range(num_samples), desc="samples", unit="sample", disable=hide):
            writer.write(make_sample(sample))
    return RolloutDataset(folder)


def make_sample(sample: int) -> Rollout:
    """One sample; its content is drawn from its number."""
    rng = np.random.default_rng([SEED, sample])
    length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
    blocks = rng.integers(
        0, 256, (length, FRAME_SIZE // BLOCK_SIZE, FRAME_SIZE // BLOCK_SIZE, 3), np.uint8
    )

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=(length, *shape)).astype(np.float32)

    return Rollout(
        obs=blocks.repeat(BLOCK_SIZE, axis=1).repeat(BLOCK_SIZE, axis=2),
        agent_hidden=draw(STATE_DIM),
        action_logits=draw(NUM_ACTIONS),
        value=draw(),
        action=rng.integers(0, NUM_ACTIONS, length).astype(np.int32),
        behaviour_log_prob=-np.abs(draw()),
        reward=draw(),
        done=np.zeros(length, np.bool_),
        info=EpisodeInfo(
            episode_id=sample,
            agent_hash="0" * 64,
            agent_initial_state=np.zeros(STATE_DIM, np.float32),
            initialisation="random",
            simulator_hash="0" * 64,
            latent=rng.normal(size=8).astype(np.float32),
        ),
        env_deter=draw(16),
        env_stoch=rng.integers(0, 8, (length, 4)).astype(np.uint8),
        terminal_prob=rng.random(length).astype(np.float32),
    )


def write_analysis(folder: Path, samples: RolloutDataset, num_points: int) -> None:
    """An analysis of so many rows; beyond the samples' own rows episode ids go on."""
    rng = np.random.default_rng(SEED)
    lengths = samples.episodes["length"].to_numpy()
    repetitions = -(-num_points // int(lengths.sum()))
    lengths = np.tile(lengths, repetitions)
    episode_id = np.repeat(np.arange(len(lengths)), lengths)[:num_points]
    step = np.concatenate([np.arange(length) for length in lengths])[:num_points]
    values = {name: rng.normal(size=num_points).astype(np.float32) for name in ("value", "entropy")}
    content = xr.Dataset(
        {
            "source": (
                "row",
                np.ones(num_points, np.int8),
                flag_attributes(("real", "simulated"), "source"),
            ),
            "episode_id": ("row", episode_id),
            "step": ("row", step.astype(np.int32)),
            **{name: ("row", column) for name, column in values.items()},
            "embedding": (("row", "axis"), rng.normal(size=(num_points, 2)).astype(np.float32)),
            "ica": (
                ("row", "component"),
                rng.normal(size=(num_points, NUM_COMPONENTS)).astype(np.float32),
            ),
        }
    )
    folder.mkdir()
    provenance = collect_provenance({}, SEED, {"generated_dataset": samples.hash})
    write_results(folder / HIDDEN_ANALYSIS_NAME, content, provenance, "hidden_analysis")


if __name__ == "__main__":
    run_entry_point(main)
