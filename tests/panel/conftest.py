"""A small folder of results, made through the same writers as the real ones, and a browser."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Browser, sync_playwright

from analysis.results import write_results
from environments.protocol import EnvironmentSpec
from experiment.provenance import collect_provenance
from generative.recording_identity import recording_identity
from panel.application import make_application
from panel.binary import decode_arrays
from panel.catalogue import Catalogue
from panel.security import ReadOnlyGuard
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

# Neither square nor equal in any two sizes, so that swapped axes show.
HEIGHT, WIDTH, NUM_ACTIONS, STATE_DIM = 14, 20, 5, 6
TOKEN = "T0ken-for_tests"
REAL_LENGTHS = (12, 300, 7)
SAMPLE_LENGTHS = (10, 10)
TARGETS = ("value", "ic_0")
NUM_COMPONENTS = 3

ENVIRONMENT = EnvironmentSpec(
    adapter="fake",
    name="fakegame",
    obs_shape=(HEIGHT, WIDTH, 3),
    num_actions=NUM_ACTIONS,
    action_names=("left", "null", "right", "upleft", "fire"),
    null_action=1,
    time_limit=None,
)


CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class PanelData:
    """Where the results lie, and the datasets opened."""

    folder: Path
    real: RolloutDataset
    simulated: RolloutDataset


def make_rollout(episode_id: int, length: int, simulated: bool, twin_of: int = -1) -> Rollout:
    rng = np.random.default_rng([episode_id, length, simulated, twin_of + 1])
    done = np.zeros(length, np.bool_)
    done[-1] = True

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=(length, *shape)).astype(np.float32)

    info = EpisodeInfo(
        episode_id=episode_id,
        agent_hash="a" * 64,
        agent_initial_state=np.zeros(STATE_DIM, np.float32),
        level_seed=-1 if simulated else 1000 + episode_id,
        level_complete=not simulated and episode_id % 2 == 1,
        initialisation="informed" if simulated else "real",
        source_episode_id=3 if simulated else -1,
        source_row=2 if simulated else -1,
        simulator_hash="b" * 64 if simulated else "",
        latent=rng.normal(size=4).astype(np.float32) if simulated else None,
        twin_of=twin_of,
    )
    return Rollout(
        obs=rng.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8),
        agent_hidden=draw(STATE_DIM),
        action_logits=draw(NUM_ACTIONS),
        value=draw(),
        action=rng.integers(0, NUM_ACTIONS, length).astype(np.int32),
        behaviour_log_prob=-np.abs(draw()),
        reward=draw(),
        done=done,
        info=info,
        env_deter=draw(3) if simulated else None,
        env_stoch=rng.integers(0, 4, (length, 2)).astype(np.uint8) if simulated else None,
        terminal_prob=rng.random(length).astype(np.float32) if simulated else None,
    )


def write_dataset(
    folder: Path,
    lengths: tuple[int, ...],
    simulated: bool,
    skip: int = 0,
    writer: str = "0",
    provenance: dict[str, Any] | None = None,
) -> RolloutDataset:
    metadata = DatasetMetadata(
        environment=ENVIRONMENT,
        agent_hash="a" * 64,
        agent_file="agent",
        state_dim=STATE_DIM,
        hidden_slice=(0, STATE_DIM),
        num_actions=NUM_ACTIONS,
        simulated=SimulatedDims(3, 2, 4, 4) if simulated else None,
        provenance=provenance or {},
    )
    is_twin = bool((provenance or {}).get("config", {}).get("twin_dataset"))
    with RolloutWriter(folder, metadata, writer) as open_writer:
        for position, length in list(enumerate(lengths))[skip:]:
            # Ids differ from positions, so that confusing the two shows.
            episode_id = 2 * position + 1
            twin_of = episode_id if is_twin else -1
            open_writer.write(make_rollout(episode_id, length, simulated, twin_of))
    return RolloutDataset(folder)


def write_analysis(path: Path, datasets: tuple[RolloutDataset, RolloutDataset]) -> None:
    rows = [
        (source, index, dataset.episodes["episode_id"].iloc[index], step)
        for source, dataset in enumerate(datasets)
        for index, length in enumerate(dataset.episodes["length"].tolist())
        for step in range(length)
    ]
    source, index, episode_id, step = (np.array(column) for column in zip(*rows, strict=True))
    rng = np.random.default_rng(0)
    names = ("value", "entropy", "reward")
    variables = {
        "source": ("row", source.astype(np.int8), {"flag_meanings": "real simulated"}),
        "episode_index": ("row", index.astype(np.int32)),
        "episode_id": ("row", episode_id.astype(np.int64)),
        "step": ("row", step.astype(np.int32)),
        "action": ("row", rng.integers(0, NUM_ACTIONS, len(rows)).astype(np.int16)),
        "cluster": ("row", rng.integers(-1, 11, len(rows)).astype(np.int16)),
        "done": ("row", np.zeros(len(rows), np.int8)),
        **{name: ("row", rng.normal(size=len(rows)).astype(np.float32)) for name in names},
        "pca": (("row", "pca_component"), rng.normal(size=(len(rows), 4)).astype(np.float32)),
        "ica": (("row", "component"), rng.normal(size=(len(rows), 3)).astype(np.float32)),
        "embedding": (("row", "axis"), rng.normal(size=(len(rows), 2)).astype(np.float32)),
    }
    inputs = {"dataset": datasets[0].hash, "simulated": datasets[1].hash}
    write_results(path, xr.Dataset(variables), collect_provenance({}, 0, inputs))


def write_saliency(path: Path, dataset: RolloutDataset) -> None:
    view = ("sample", "environment_gradient", "target", "target_step", "step")
    sizes = (1, 2, len(TARGETS), 2, SAMPLE_LENGTHS[0])
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    content = xr.Dataset(
        {
            "sample_id": ("sample", np.array([1], np.int64)),
            "gradient_frame": (
                (*view, "height", "width", "channel"),
                draw(*sizes, HEIGHT, WIDTH, 3),
            ),
            "activation": (
                ("sample", "step", "component"),
                draw(1, SAMPLE_LENGTHS[0], NUM_COMPONENTS),
            ),
            "gradient_component": ((*view, "component"), draw(*sizes, NUM_COMPONENTS)),
        },
        coords={
            "target": list(TARGETS),
            "target_step": [4, 6],
            "environment_gradient": ["passed", "cut"],
        },
    )
    write_results(path, content, collect_provenance({}, 0, {"dataset": dataset.hash}))


def write_relatives(folder: Path, real: RolloutDataset, samples: RolloutDataset) -> None:
    """An intervened twin of the samples, and their reality; both begin in `real`."""
    inputs = {"dataset": real.hash}
    config = {"twin_dataset": samples.folder.name, "interventions": ["a"]}
    intervened = {"config": config, "inputs": inputs}
    write_dataset(folder / "samples_intervened", (10, 8), True, provenance=intervened)
    replay = {"inputs": {**inputs, "samples": recording_identity(samples.metadata)}}
    write_dataset(folder / "samples" / "replays", (10, 6), False, provenance=replay)


@pytest.fixture(scope="session")
def related_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples with a twin, a real counterpart and the recording that they begin in."""
    folder = tmp_path_factory.mktemp("related") / "demo"
    real = write_dataset(folder / "data", REAL_LENGTHS, simulated=False)
    provenance = {"config": {"seed": 1}, "inputs": {"dataset": real.hash}}
    samples = write_dataset(folder / "samples", SAMPLE_LENGTHS, True, provenance=provenance)
    write_relatives(folder, real, samples)
    return folder


@pytest.fixture(scope="session")
def panel_data(tmp_path_factory: pytest.TempPathFactory) -> PanelData:
    folder = tmp_path_factory.mktemp("panel") / "demo"
    real = write_dataset(folder / "data", REAL_LENGTHS, simulated=False)
    simulated = write_dataset(folder / "samples", SAMPLE_LENGTHS, simulated=True)
    write_analysis(folder / "analysis" / "hidden_analysis.nc", (real, simulated))
    write_saliency(folder / "saliency" / "saliency.nc", simulated)
    return PanelData(folder, real, simulated)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing: in CI the page must be tested")
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


class PanelClient:
    """Asks an application without a network in between, with the token's cookie unless told not."""

    def __init__(self, application: ReadOnlyGuard) -> None:
        self.application = application

    @property
    def cookie(self) -> str:
        return self.application.access.set_cookie().partition(";")[0]

    def request(
        self,
        path: str,
        method: str = "GET",
        headers: dict[str, str | bytes] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        sent = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in {"cookie": self.cookie, **(headers or {})}.items()
        ]

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.application)
            base = "http://127.0.0.1:8050"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, headers=sent, content=content)

        # In a thread of its own, since Playwright's event loop may hold this one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(ask())).result()

    def json(self, path: str) -> Any:
        response = self.request(path)
        assert response.status_code == 200, response.text
        return response.json()

    def arrays(self, path: str) -> dict[str, np.ndarray]:
        response = self.request(path)
        assert response.status_code == 200, response.text
        return decode_arrays(response.content)


def make_client(*folders: Path, **options: Any) -> PanelClient:
    return PanelClient(make_application(Catalogue(folders), TOKEN, **options))


@pytest.fixture(scope="session")
def panel_client(panel_data: PanelData) -> PanelClient:
    return make_client(panel_data.folder)


@pytest.fixture(scope="session")
def client_maker() -> Callable[..., PanelClient]:
    return make_client


@pytest.fixture(scope="session")
def dataset_writer() -> Callable[..., RolloutDataset]:
    return write_dataset


@pytest.fixture(scope="session")
def result_writer() -> Callable[[Path, xr.Dataset], None]:
    return lambda path, content: write_results(path, content, collect_provenance({}, 0, {}))
