"""A small folder of results, made through the same writers as the real ones, and a browser."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import xarray as xr
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from agents.intervention_strength import InterventionStrength
from analysis.behaviour_analysis import (
    BehaviourConfig,
    BehaviourFeatures,
    BehaviourGroups,
    analyse_behaviour,
)
from analysis.bottleneck_vec_analysis_precompute import BottleneckConfig
from analysis.bottleneck_vec_analysis_precompute import precompute as analyse_latents
from analysis.consistency_analysis import (
    ConsistencyPlan,
    ConsistencySettings,
    analyse_consistency,
)
from analysis.cross_correlation import NullSettings, clip_coordinates, component_deviations
from analysis.cross_dynamics import (
    CrossPlan,
    CrossSettings,
    Group,
    JacobianTable,
    compute_cross_dynamics,
)
from analysis.cross_states import component_labels
from analysis.effect_names import World
from analysis.env_h_analysis_precompute import EnvironmentStateConfig
from analysis.env_h_analysis_precompute import precompute as analyse_environment_states
from analysis.episode_stacks import CoordinateStack
from analysis.hidden_states import ClusterSettings, EmbeddingSettings
from analysis.intervention_effects import WorldEffects, to_dataset
from analysis.paired_rows import ActionGroups, MeasureNames
from analysis.results import (
    BEHAVIOUR_NAME,
    JACOBIAN_NAME,
    SAMPLE_TRUST_NAME,
    read_results,
    write_results,
)
from environments.protocol import EnvironmentSpec
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from generative.level_bootstrap import ResampledMeans
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
PATIENCE_SECONDS = 60
"""A page opens in one; machines that do other things besides take longer."""
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
LEAD = """fragment => {
  document.getElementById('errors').replaceChildren();
  document.activeElement.blur();
  location.hash = fragment;
  window.dispatchEvent(new HashChangeEvent('hashchange'));
}"""
READ_CANVAS = """id => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.width, canvas.height, btoa(String.fromCharCode(...data))];
}"""
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


def write_saliency(
    path: Path,
    dataset: RolloutDataset,
    paths: tuple[str, ...] = ("passed", "cut"),
    baselines: tuple[str, ...] = (),
) -> None:
    view = ("sample", "environment_gradient", "target", "target_step", "step")
    sizes = (1, len(paths), len(TARGETS), 2, SAMPLE_LENGTHS[0])
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
            "environment_gradient": list(paths),
        },
    )
    if baselines:
        content = content.assign(integrated_variables(len(baselines))).assign_coords(
            baseline=list(baselines)
        )
    write_results(path, content, collect_provenance({}, 0, {"dataset": dataset.hash}))


def integrated_variables(num_baselines: int) -> dict[str, Any]:
    """Random attributions, of which those of the first target and baseline miss their sum."""
    table = ("sample", "baseline", "target", "target_step")
    sizes = (1, num_baselines, len(TARGETS), 2)
    rng = np.random.default_rng(6)
    frames = rng.normal(size=(*sizes, SAMPLE_LENGTHS[0], HEIGHT, WIDTH, 3)).astype(np.float32)
    delta = np.full(sizes, 0.001)
    delta[0, 0, 0] = 0.5
    return {
        "integrated_frame": ((*table, "step", "height", "width", "channel"), frames),
        "integrated_frame_difference": (table, frames.sum(axis=(-4, -3, -2, -1)) - delta),
        "integrated_frame_delta": (table, delta),
        "integrated_frame_met": (table, (delta < 0.01).astype(np.int8)),
        "integrated_latent": (
            ("sample", "target", "target_step", "latent_unit"),
            np.zeros((1, *sizes[2:], 4), np.float32),
        ),
    }


@pytest.fixture(scope="session")
def saliency_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with three files of saliency, as the report has them; their names are in the way."""
    folder = tmp_path_factory.mktemp("saliency") / "demo"
    samples = write_dataset(folder / "samples", SAMPLE_LENGTHS, simulated=True)
    all_paths = ("passed", "cut", "only", "neither", "mixed")
    write_saliency(folder / "integrated" / "saliency.nc", samples, ("cut",), ("black", "mean"))
    write_saliency(folder / "agent_only" / "saliency.nc", samples, ("cut",))
    write_saliency(folder / "plain" / "saliency.nc", samples)
    write_saliency(folder / "split" / "saliency.nc", samples, all_paths)
    return folder


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


@pytest.fixture(scope="module")
def browser(require_from_machine: Callable[[bool, str], None]) -> Iterator[Browser]:
    require_from_machine(CHROMIUM.exists(), f"no {CHROMIUM}; apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def canvas_pixels() -> Callable[[Page, str], np.ndarray]:
    """(H, W, 4) uint8 of a canvas, by its id."""

    def read(page: Page, canvas: str) -> np.ndarray:
        width, height, content = page.evaluate(READ_CANVAS, canvas)
        return np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)

    return read


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], Iterator[str]]:
    """Serves a folder as long as its address is in use."""
    return serve_folder


def serve_folder(folder: Path) -> Iterator[str]:
    application = make_application(Catalogue([folder]), TOKEN)
    settings = uvicorn.Config(application, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/?token={TOKEN}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def address(panel_data: PanelData) -> Iterator[str]:
    yield from serve_folder(panel_data.folder)


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 800})
    yield opened
    opened.close()


HARMLESS_MESSAGES = ("willReadFrequently", "preloaded using link preload but not used")
"""The tests themselves read the canvas back, which Chromium advises against; and Plotly, which
waits for the first frame, comes on a busy machine later than in the seconds Chromium gives it."""


class Visitor:
    """Opens views of panels. Loading the page takes longer than anything it does, so that one page
    is kept for each panel and led by its address, as a reader does who follows a link."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.pages: dict[str, Page] = {}
        self.complaints: list[str] = []

    def open(self, fragment: str, base: str, fresh: bool = False) -> Page:
        page = self.pages.get(base)
        if page is None or fresh:
            if page is not None:
                page.close()
            page = self.pages[base] = self._load(base, fragment)
        else:
            page.evaluate(LEAD, fragment)
        page.wait_for_selector("body[data-ready]", state="attached")
        return page

    def _load(self, base: str, fragment: str) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("console", self._hear_message)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(request.url))
        site = base.partition("?")[0]
        page.on("request", lambda request: self._check_origin(request.url, site))
        page.goto(base + fragment)
        return page

    def _hear_message(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(
            harmless in message.text for harmless in HARMLESS_MESSAGES
        ):
            self.complaints.append(message.text)

    def _check_origin(self, url: str, site: str) -> None:
        if not url.startswith((site, "data:", "blob:")):
            self.complaints.append(url)


@pytest.fixture(scope="module")
def visitor(context: BrowserContext) -> Visitor:
    return Visitor(context)


@pytest.fixture
def open_page(visitor: Visitor, address: str) -> Iterator[Callable[..., Page]]:
    """Opens a view; at the end of the test the page must have had nothing to complain about."""
    yield lambda fragment="", base=address, fresh=False: visitor.open(fragment, base, fresh)
    found = list(visitor.complaints)
    visitor.complaints.clear()
    assert found == []


@pytest.fixture(scope="module")
def empty_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve_folder(tmp_path_factory.mktemp("nothing"))


DYNAMIC_SAMPLES, DYNAMIC_STEPS, PROBED_VARIABLES = 12, 6, ("coin_dx", "saw_dy")
PROJECTION_HASH = "c" * 64


@dataclass(frozen=True)
class DynamicsData:
    """Samples and everything that the analyses of their dynamics found."""

    folder: Path
    samples: RolloutDataset
    stack: CoordinateStack
    """Component coordinates before they were standardised."""


def planted_components() -> np.ndarray:
    """(N, T, K) noise in which component 0 drives component 1 one step later."""
    values = np.random.default_rng(2).normal(size=(DYNAMIC_SAMPLES, DYNAMIC_STEPS, NUM_COMPONENTS))
    values[:, 1:, 1] = 0.9 * values[:, :-1, 0] + 0.3 * values[:, 1:, 1]
    return values.astype(np.float32)


def write_sample_analysis(path: Path, samples: RolloutDataset, components: np.ndarray) -> None:
    """An analysis of hidden states of simulated rollouts, with these components."""
    ids = samples.episodes["episode_id"].to_numpy()
    count, length = components.shape[:2]
    done = np.zeros((count, length), np.int8)
    done[:, -1] = 1
    row = ("row",)
    variables = {
        "source": (row, np.ones(count * length, np.int8), {"flag_meanings": "real simulated"}),
        "episode_id": (row, np.repeat(ids, length)),
        "step": (row, np.tile(np.arange(length, dtype=np.int32), count)),
        "done": (row, done.ravel()),
        "value": (row, np.linspace(-1, 1, count * length, dtype=np.float32)),
        "ica": (("row", "component"), components.reshape(-1, NUM_COMPONENTS)),
    }
    content = xr.Dataset(variables, attrs={"projection_data_hash": PROJECTION_HASH})
    inputs = {"dataset": "d" * 64, "generated_dataset": samples.hash}
    write_results(path, content, collect_provenance({}, 0, inputs))


def write_jacobians(path: Path, samples: RolloutDataset) -> JacobianTable:
    """Random Jacobians with the dims that `jacobian_analysis_precompute.py` gives them."""
    rng = np.random.default_rng(3)
    count, steps, size = DYNAMIC_SAMPLES, DYNAMIC_STEPS, NUM_COMPONENTS
    jacobian = rng.normal(size=(count, 2, steps, size, steps, size)).astype(np.float32)
    push = rng.normal(size=(count, 2, steps, size, size)).astype(np.float32)
    ids = samples.episodes["episode_id"].to_numpy()
    component = rng.normal(size=(count, steps, size)).astype(np.float32)
    table = JacobianTable(
        ids, ids, jacobian, push, 1, component, np.full(count, steps), ("passed", "cut")
    )
    sample = ("sample",)
    pairs = ("target_step", "target", "source_step", "source")
    content = xr.Dataset(
        {
            "sample_id": (sample, ids),
            "length": (sample, table.length),
            "cluster": (sample, np.arange(count, dtype=np.int32) % 3),
            "embedding": (("sample", "axis"), rng.normal(size=(count, 2)).astype(np.float32)),
            "component": (("sample", "target_step", "target"), component),
            "jacobian": (("sample", "environment_gradient", *pairs), jacobian),
        },
        {"environment_gradient": list(table.variants)},
        {"grad_timestep": 1, "projection_data_hash": PROJECTION_HASH},
    )
    write_results(path, content, collect_provenance({}, 0, {"generated_dataset": samples.hash}))
    return table


def write_dynamics(folder: Path, samples: RolloutDataset, stack: CoordinateStack) -> None:
    """Behaviours, matrices and statements, by the very functions of the commands."""
    config = BehaviourConfig(
        generated_data_dir=samples.folder,
        output_dir=folder,
        num_exemplars=2,
        features=BehaviourFeatures(num_env_components=2, feature_lags=(1,), num_pca=4),
        groups=BehaviourGroups(
            num_clusters=2, num_cluster_neighbours=4, label_steps=3, num_stability_repeats=1
        ),
        embedding="pca",
    )
    analyse_behaviour(config, StageReport("behaviour"))
    table = write_jacobians(folder / JACOBIAN_NAME, samples)
    with read_results(folder / BEHAVIOUR_NAME) as results:
        label = results["sample_cluster"].to_numpy()
    members = {"all": np.arange(DYNAMIC_SAMPLES)} | {
        str(one): np.flatnonzero(label == one) for one in np.unique(label)
    }
    settings = CrossSettings(nulls=NullSettings(20, 20))
    plan = CrossPlan(
        settings=settings,
        stack=clip_coordinates(stack, settings.clip),
        deviation=component_deviations(stack),
        groups=[Group(name, rows) for name, rows in members.items()],
        lags=[0, 1, 2, 3],
        jacobians=table,
        inputs={"dataset": samples.hash, "projection_data": PROJECTION_HASH},
        labels=component_labels("agent", [stack.values.shape[2]]),
    )
    path = compute_cross_dynamics(plan, {"settings": settings}, folder, StageReport("cross"))
    with read_results(path) as results:
        cross = results.load()
    consistency = ConsistencyPlan(
        cross, table.jacobian, table.length, table.unit, members, ConsistencySettings(20)
    )
    analyse_consistency(consistency, {}, folder, StageReport("consistency"))


def write_vector_analyses(folder: Path, samples: RolloutDataset) -> None:
    """Environment states and latents, by the very functions of the commands."""
    settings: dict[str, Any] = {
        "generated_data_dir": samples.folder,
        "output_dir": folder,
        "clusters": ClusterSettings(num_clusters=3, num_cluster_neighbours=4),
        "layout": EmbeddingSettings(embedding="pca"),
    }
    analyse_environment_states(EnvironmentStateConfig(**settings), StageReport("env"))
    analyse_latents(BottleneckConfig(**settings), StageReport("latents"))


def write_probes(path: Path) -> None:
    rng = np.random.default_rng(4)
    size = (NUM_COMPONENTS, len(PROBED_VARIABLES))
    r = rng.uniform(-0.8, 0.8, size)
    content = xr.Dataset(
        {
            "partial_correlation": (("component", "variable"), r),
            "partial_correlation_interval": (
                ("bound", "component", "variable"),
                np.stack([r - 0.1, r + 0.1]),
            ),
            "q_value": (("component", "variable"), np.array([[0.001, 0.2]] * NUM_COMPONENTS)),
            "score": (("probe", "representation", "variable"), rng.random((2, 2, 2))),
            "score_interval": (
                ("bound", "probe", "representation", "variable"),
                rng.random((2, 2, 2, 2)),
            ),
        },
        {
            "component": np.arange(NUM_COMPONENTS),
            "variable": list(PROBED_VARIABLES),
            "representation": ["hidden", "pixels"],
            "probe": ["linear", "perceptron"],
        },
        {"false_discovery_rate": 0.05},
    )
    write_results(path, content, collect_provenance({}, 0, {"projection": PROJECTION_HASH}))


def write_trust(samples: RolloutDataset) -> None:
    ids = samples.episodes["episode_id"].to_numpy()
    trust = np.linspace(0.1, 0.9, len(ids))
    trust[0] = np.nan
    content = xr.Dataset({"trust": ("sample", trust)}, {"sample": ids})
    inputs = {"samples": recording_identity(samples.metadata)}
    path = samples.folder / SAMPLE_TRUST_NAME
    write_results(path, content, collect_provenance({}, 0, inputs))


@pytest.fixture(scope="session")
def dynamics_data(tmp_path_factory: pytest.TempPathFactory) -> DynamicsData:
    folder = tmp_path_factory.mktemp("dynamics") / "demo"
    lengths = (DYNAMIC_STEPS,) * DYNAMIC_SAMPLES
    samples = write_dataset(folder / "samples", lengths, True, provenance={"config": {"seed": 1}})
    components = planted_components()
    ids = samples.episodes["episode_id"].to_numpy()
    stack = CoordinateStack(components, np.full(DYNAMIC_SAMPLES, DYNAMIC_STEPS), ids, ids)
    write_sample_analysis(folder / "analysis" / "hidden_analysis.nc", samples, components)
    write_dynamics(folder / "dynamics", samples, stack)
    write_vector_analyses(folder / "vectors", samples)
    write_probes(folder / "probes" / "probe_analysis.nc")
    write_trust(samples)
    return DynamicsData(folder, samples, stack)


def write_effects(folder: Path) -> None:
    """Effects of planted sizes, labelled by the command's own function."""
    names = MeasureNames(ActionGroups.of(ENVIRONMENT), 1, 0)
    variants = ["tested", "sign_flip", "random_0", "random_1"]
    num_rows, num_pairs, num_steps = len(names.by_row), len(names.by_pair), 4
    size = np.array([1.0, -0.8, 0.1, -0.2])
    rng = np.random.default_rng(5)

    def means(*shape: int) -> ResampledMeans:
        mean = size.reshape(-1, *[1] * len(shape)) * (1 + 0.1 * rng.random((4, *shape)))
        return ResampledMeans(mean, mean + 0.05 * rng.normal(size=(50, *mean.shape)))

    def effects(world: World) -> WorldEffects:
        predictions = ["readout"] + (["gradient"] if world == "simulated" else [])
        by_row = {f"{name}_{world}": rng.random((4, num_rows, num_steps)) for name in predictions}
        return WorldEffects(
            by_row=means(num_rows, num_steps),
            by_pair=means(num_pairs),
            predicted_by_row=by_row,
            predicted_by_pair={name: values.mean(axis=-1) for name, values in by_row.items()},
            twin=rng.random(num_pairs),
            num_levels=40,
        )

    worlds: tuple[World, ...] = ("simulated", "real")
    strength = InterventionStrength(0.5, 0.1, 1.0, 0.0, 2)
    recordings: Any = SimpleNamespace(
        interventions=dict.fromkeys(variants), strengths=dict.fromkeys(variants, strength)
    )
    found: dict[World, WorldEffects] = {world: effects(world) for world in worlds}
    labels: dict[World, Any] = dict.fromkeys(worlds, recordings)
    results = to_dataset(found, labels, names, np.array([1000, 1003]))
    config = {"intervention": {"swap_directions_from": (3,), "swap_directions_to": (5,)}}
    path = folder / "intervention_effects.nc"
    write_results(path, results, collect_provenance(config, 0, {"projection": PROJECTION_HASH}))


@pytest.fixture(scope="session")
def effects_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Effects of an intervention, and its recordings in both worlds."""
    folder = tmp_path_factory.mktemp("effects") / "swap"
    for world in ("simulated", "real"):
        is_simulated = world == "simulated"
        write_dataset(folder / world / "twin", (5, 4), is_simulated)
        intervened = {"config": {"twin_dataset": "twin"}}
        for variant in ("tested", "sign_flip"):
            write_dataset(folder / world / variant, (5, 4), is_simulated, provenance=intervened)
    write_effects(folder)
    return folder
