"""The panel over what the shipped agent and simulator make: little of it, but of the real game."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Page

from panel.catalogue import DATASET_FILE, item_id
from rollouts.store import RolloutDataset

# Its data take a minute to make, and several on a busy machine.
pytestmark = [pytest.mark.medium, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
AGENT = "assets/agents/coinrun-easy-half"
SIMULATOR = "assets/simulators/coinrun-easy"
PRESET = ("--interpreting_params_name", "tiny")
VIEWS = ("states", "components", "filter", "behaviours", "interventions", "simulator", "files")


def commands(folder: Path) -> tuple[tuple[str, ...], ...]:
    """As `make demo` runs them, at the scale of the tests."""
    real, samples = f"{folder}/rollouts", f"{folder}/samples"
    data, generated = ("--data_dir", real), ("--generated_data_dir", samples)
    projection = ("--projection", f"{folder}/hidden/projection")

    def to(name: str) -> tuple[str, str]:
        return "--output_dir", f"{folder}/{name}"

    models = ("--agent_file", AGENT, "--model_file", SIMULATOR)
    return (
        ("record.py", "--model_file", AGENT, *PRESET, *data),
        ("record_gen_samples.py", *models, *PRESET, *data, "--data_save_dir", samples),
        ("analysis/sample_trust_precompute.py", *models[:2], *data, *generated),
        ("analysis/hidden_analysis_precompute.py", *PRESET, *data, *generated, *to("hidden")),
        ("saliency_experiments.py", *models, *PRESET, *generated, *projection, *to("saliency")),
    )


@dataclass(frozen=True)
class Shipped:
    """Where everything lies, and where the panel shows it."""

    folder: Path
    address: str

    def dataset(self, name: str) -> RolloutDataset:
        return RolloutDataset(self.folder / name)

    def id_of(self, name: str) -> str:
        return item_id(self.folder / name / DATASET_FILE)

    def results(self, name: str) -> xr.Dataset:
        with xr.open_dataset(self.folder / name, engine="h5netcdf") as stored:
            return stored.load()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Iterator[Shipped]:
    folder = tmp_path_factory.mktemp("shipped")
    for command in commands(folder):
        result = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command[0]}: {result.stderr[-2000:]}"
    for address in serve(folder):
        yield Shipped(folder, address)


@pytest.fixture
def open_shipped(open_page: Callable[..., Page], shipped: Shipped) -> Callable[..., Page]:
    return lambda fresh=False, **values: open_page(f"#{urlencode(values)}", shipped.address, fresh)


def longest_episode(dataset: RolloutDataset) -> int:
    """Its position; a replay may be over after one step."""
    return int(np.argmax(dataset.episodes["length"]))


def id_at(dataset: RolloutDataset, position: int) -> int:
    return int(dataset.episodes["episode_id"].iloc[position])


@pytest.mark.parametrize("name", ["rollouts", "samples", "samples/replays"])
def test_frames_are_those_of_the_store(
    name: str, shipped: Shipped, open_shipped: Callable[..., Page], canvas_pixels: Any
) -> None:
    dataset = shipped.dataset(name)
    longest = longest_episode(dataset)
    episode = dataset.read_episode(longest)
    start = {"data": shipped.id_of(name), "episode": id_at(dataset, longest)}
    page = open_shipped(**start)
    for key, step in (("Home", 0), ("ArrowRight", 1), ("End", len(episode.obs) - 1)):
        page.keyboard.press(key)
        page.wait_for_selector(f"#frame[data-step='{step}']:not(.waiting)")
        np.testing.assert_array_equal(canvas_pixels(page, "frame")[..., :3], episode.obs[step])
        assert float(page.inner_text("#value-figure").replace("−", "-")) == pytest.approx(
            float(episode.value[step]), abs=6e-4
        )


def test_overlay_has_the_sign_of_the_gradient(
    shipped: Shipped, open_shipped: Callable[..., Page], canvas_pixels: Any
) -> None:
    stored = shipped.results("saliency/saliency.nc")
    view = {"target": "value", "target_step": 2, "environment_gradient": "passed"}
    sample, step = int(stored["sample_id"][0]), 1
    signed = stored["gradient_frame"].sel(view)[0, step].mean("channel").to_numpy()
    page = open_shipped(
        data=shipped.id_of("samples"), episode=sample, step=step, target="value", at=2
    )
    overlay = canvas_pixels(page, "overlay")
    strong = overlay[..., 3] > 60
    is_orange = overlay[..., 0] > overlay[..., 2]
    np.testing.assert_array_equal(is_orange[strong], signed[strong] > 0)
    assert 0 < is_orange[strong].sum() < strong.sum()


def test_bars_are_the_components_that_the_analysis_found(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    analysis = shipped.results("hidden/hidden_analysis.nc")
    sample = int(shipped.results("saliency/saliency.nc")["sample_id"][0])
    is_simulated = analysis["source"] == "simulated"
    if analysis["source"].dtype.kind in "iu":
        names = str(analysis["source"].attrs["flag_meanings"]).split()
        is_simulated = analysis["source"] == names.index("simulated")
    own = is_simulated & (analysis["episode_id"] == sample) & (analysis["step"] == 2)
    [expected] = analysis["ica"].to_numpy()[own.to_numpy()]
    values = {"data": shipped.id_of("samples"), "episode": sample, "step": 2, "view": "components"}
    page = open_shipped(**values, target="value", at=2)
    page.wait_for_selector("#component-bars .bars path", state="attached")
    shown = page.evaluate("[...document.getElementById('component-bars').data[0].y]")
    # Saliency ran the sample again: its activations are those that the analysis was given.
    np.testing.assert_allclose(shown, expected, atol=2e-3)


def test_sample_runs_beside_its_reality(
    shipped: Shipped, open_shipped: Callable[..., Page], canvas_pixels: Any
) -> None:
    replays = shipped.dataset("samples/replays")
    longest = longest_episode(replays)
    sample = id_at(replays, longest)
    beside = f"reality.{shipped.id_of('samples/replays')}"
    page = open_shipped(data=shipped.id_of("samples"), episode=sample, step=0, beside=beside)
    frames = replays.read_episode(longest).obs
    assert len(frames) >= 3
    for step in range(3):
        page.wait_for_selector(f"#frame[data-step='{step}']:not(.waiting)")
        page.wait_for_selector(f"#other-frame[data-step='{step}']:not(.waiting)")
        np.testing.assert_array_equal(canvas_pixels(page, "other-frame")[..., :3], frames[step])
        page.keyboard.press("ArrowRight")


def test_filter_leaves_what_a_direct_computation_leaves(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    rows = shipped.results("hidden/hidden_analysis.nc")
    value, component = rows["value"].to_numpy(), rows["ica"][:, 0].to_numpy()
    low, high = round(float(np.quantile(value, 0.75)), 2), round(float(np.median(component)), 2)
    holds = (value > low) & (component < high)
    keys = np.stack([rows["source"].to_numpy().astype(str), rows["episode_id"].to_numpy()], axis=1)
    total, matching = (len(np.unique(part, axis=0)) for part in (keys, keys[holds]))
    page = open_shipped(view="filter", filter=f"value > {low} and ica.0 < {high}")
    assert 0 < matching < total
    text = page.inner_text("#filter-count")
    assert text.startswith(f"{matching} of {total} analysed rollouts match.")


@pytest.mark.parametrize("view", VIEWS)
def test_address_restores_every_view(
    view: str, shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    # Complaints of the page, and requests that fail, are those of `open_page`.
    sample = id_at(shipped.dataset("samples"), 0)
    page = open_shipped(fresh=True, data=shipped.id_of("samples"), episode=sample, view=view)
    assert page.is_visible(f"#view-{view}")
    assert page.inner_text("#errors") == ""
    assert "Simulated sample" in page.inner_text("#sample-title")
