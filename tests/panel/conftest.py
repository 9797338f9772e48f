"""A small folder of results, made through the same writers as the real ones."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import xarray as xr

from analysis.results import write_results
from environments.protocol import EnvironmentSpec
from experiment.provenance import collect_provenance
from panel.application import make_application
from panel.binary import decode_arrays
from panel.catalogue import Catalogue
from panel.security import ReadOnlyGuard
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

# Neither square nor equal in any two sizes, so that swapped axes show.
HEIGHT, WIDTH, NUM_ACTIONS, STATE_DIM = 14, 20, 5, 6
REAL_LENGTHS = (12, 300, 7)
SAMPLE_LENGTHS = (10, 10)
TARGETS = ("value", "ic_0")

ENVIRONMENT = EnvironmentSpec(
    adapter="fake",
    name="fakegame",
    obs_shape=(HEIGHT, WIDTH, 3),
    num_actions=NUM_ACTIONS,
    action_names=("left", "null", "right", "upleft", "fire"),
    null_action=1,
    time_limit=None,
)


@dataclass(frozen=True)
class PanelData:
    """Where the results lie, and the datasets opened."""

    folder: Path
    real: RolloutDataset
    simulated: RolloutDataset


def make_rollout(episode_id: int, length: int, simulated: bool) -> Rollout:
    rng = np.random.default_rng([episode_id, length, simulated])
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
    folder: Path, lengths: tuple[int, ...], simulated: bool, skip: int = 0, writer: str = "0"
) -> RolloutDataset:
    metadata = DatasetMetadata(
        environment=ENVIRONMENT,
        agent_hash="a" * 64,
        agent_file="agent",
        state_dim=STATE_DIM,
        hidden_slice=(0, STATE_DIM),
        num_actions=NUM_ACTIONS,
        simulated=SimulatedDims(3, 2, 4, 4) if simulated else None,
    )
    with RolloutWriter(folder, metadata, writer) as open_writer:
        for position, length in list(enumerate(lengths))[skip:]:
            # Ids differ from positions, so that confusing the two shows.
            open_writer.write(make_rollout(2 * position + 1, length, simulated))
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
    dims = ("sample", "environment_gradient", "target", "target_step", "step", "height", "width")
    shape = (1, 1, len(TARGETS), 1, SAMPLE_LENGTHS[0], HEIGHT, WIDTH, 3)
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    content = xr.Dataset(
        {
            "sample_id": ("sample", np.array([1], np.int64)),
            "gradient_frame": ((*dims, "channel"), gradient),
        },
        coords={
            "target": list(TARGETS),
            "target_step": [4],
            "environment_gradient": ["passed"],
        },
    )
    write_results(path, content, collect_provenance({}, 0, {"dataset": dataset.hash}))


@pytest.fixture(scope="session")
def panel_data(tmp_path_factory: pytest.TempPathFactory) -> PanelData:
    folder = tmp_path_factory.mktemp("panel") / "demo"
    real = write_dataset(folder / "data", REAL_LENGTHS, simulated=False)
    simulated = write_dataset(folder / "samples", SAMPLE_LENGTHS, simulated=True)
    write_analysis(folder / "analysis" / "hidden_analysis.nc", (real, simulated))
    write_saliency(folder / "saliency" / "saliency.nc", simulated)
    return PanelData(folder, real, simulated)


class PanelClient:
    """Asks an application without a network in between."""

    def __init__(self, application: ReadOnlyGuard) -> None:
        self.application = application

    def request(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.application)
            base = "http://127.0.0.1:8050"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, headers=headers)

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
    return PanelClient(make_application(Catalogue(folders), **options))


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
