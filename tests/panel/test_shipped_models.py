"""The panel over what the shipped agent and simulator make: little of it, but of the real game."""

import json
import shutil
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

from experiment.files import hash_file
from panel.catalogue import DATASET_FILE, item_id
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset

# Its data take two minutes to make, and several on a busy machine.
pytestmark = [pytest.mark.medium, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
AGENT = "assets/agents/coinrun-easy-half"
SIMULATOR = "assets/simulators/coinrun-easy"
PRESET = ("--interpreting_params_name", "tiny")
HELDOUT_LEVELS = "1000000000"
CORRELATION_CLIP = 6
PATIENCE_SECONDS = 60
WIDE, NARROW = (3840, 2160), (1280, 800)
LAYOUT = """() => {
  const isSeen = (node) =>
    node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const cut = (box, node) => {
    const { left, right, top, bottom } = node.getBoundingClientRect();
    return { left: Math.max(box.left, left), right: Math.min(box.right, right),
      top: Math.max(box.top, top), bottom: Math.min(box.bottom, bottom) };
  };
  const texts = [], clipped = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { currentNode: node } = walker;
    const parent = node.parentElement, text = node.data.trim();
    if (!text || parent.closest('option, script, .unseen, .rows') || !isSeen(parent)) continue;
    const range = document.createRange();
    range.selectNode(node);
    const rects = parent.closest('svg') ? [parent.getBoundingClientRect()] : range.getClientRects();
    for (const rect of rects) {
      let box = cut(rect, document.documentElement);
      for (let outer = parent; outer && outer !== document.body; outer = outer.parentElement) {
        const { overflowX } = getComputedStyle(outer);
        if (overflowX === 'visible') continue;
        const inside = cut(box, outer);
        if (overflowX !== 'auto' && overflowX !== 'scroll' && inside.bottom > inside.top &&
            inside.right < box.right - 1) clipped.push([text, outer.id || outer.className]);
        box = inside;
      }
      if (box.right <= box.left || box.bottom <= box.top) continue;
      texts.push({ text, box, size: parseFloat(getComputedStyle(parent).fontSize) });
    }
  }
  const overlaps = texts.flatMap((one, at) => texts.slice(at + 1).filter((other) =>
    Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left) > 2 &&
    Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top) > 3)
    .map((other) => [one.text, other.text]));
  const side = document.querySelector('.view:not([hidden])');
  const plots = [...document.querySelectorAll('.js-plotly-plot')].filter(isSeen).map((plot) => {
    const room = side.contains(plot) ? side : plot.closest('.card');
    return [plot.id || plot.parentElement.id, plot.getBoundingClientRect().width / room.clientWidth,
      plot.querySelector('.main-svg').getBoundingClientRect().width / room.clientWidth];
  });
  const scrolled = [side, ...side.querySelectorAll('.scrolled')];
  return { clipped, overlaps, plots, smallest: Math.min(...texts.map(({ size }) => size)),
    overflow: Math.max(...scrolled.map((box) => box.scrollWidth - box.clientWidth)) };
}"""
"""Texts that are cut off or lie over others, shares of the width that plots take, the least size of
text in pixels, and by how much a view, or a table in it, is wider than its card. The list of
rollouts is left out: its headings stay above the rows that are scrolled under them."""
VIEWS = ("states", "components", "filter", "behaviours", "interventions", "simulator", "files")


def commands(folder: Path) -> tuple[tuple[str, ...], ...]:
    """As `make demo` runs them, at the scale of the tests."""
    real, samples = f"{folder}/rollouts", f"{folder}/samples"
    data, generated = ("--data_dir", real), ("--generated_data_dir", samples)
    projection = ("--projection", f"{folder}/hidden/projection")

    def to(name: str) -> tuple[str, str]:
        return "--output_dir", f"{folder}/{name}"

    models = ("--agent_file", AGENT, "--model_file", SIMULATOR)
    dynamics = ("--behaviour", f"{folder}/behaviours", "--jacobians", f"{folder}/jacobians")
    clamped = ("--clamp_directions", "0", "--clamp_values", "1")
    return (
        ("record.py", "--model_file", AGENT, *PRESET, *data, "--start_level", HELDOUT_LEVELS),
        ("record_gen_samples.py", *models, *PRESET, *data, "--data_save_dir", samples),
        ("analysis/sample_trust_precompute.py", *models[:2], *data, *generated),
        ("analysis/hidden_analysis_precompute.py", *PRESET, *data, *generated, *to("hidden")),
        ("saliency_experiments.py", *models, *PRESET, *generated, *projection, *to("saliency")),
        (
            *("analysis/simulator_fidelity_precompute.py", *models, *PRESET, *data),
            *("--train_data_dir", real, *projection, *to("fidelity")),
        ),
        (
            "analysis/combined_agent_env_hx_analysis_precompute.py",
            *(*PRESET, *generated, *to("behaviours")),
        ),
        (
            *("analysis/jacobian_analysis_precompute.py", *models, *PRESET),
            *(*generated, *projection, *to("jacobians")),
        ),
        (
            *("xcorr_and_xcaus_plots.py", *PRESET, *generated, *projection),
            *(*dynamics, *to("cross")),
        ),
        (
            *("analysis/dynamics_grads_consistency_plots.py", *PRESET),
            *("--cross", f"{folder}/cross", *dynamics, *to("consistency")),
        ),
        (
            *("analysis/intervention_effects_precompute.py", *models, *PRESET, *data),
            *(*projection, *clamped, *to("effects")),
        ),
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
    shutil.copytree(PROJECT / SIMULATOR, folder / "simulator")
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


def figure(text: str) -> float:
    """The number that a text of the page begins with."""
    return float(text.split()[0].replace("−", "-"))


def test_points_lie_where_the_analysis_has_them(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    rows = shipped.results("hidden/hidden_analysis.nc")
    page = open_shipped(view="states", x="ica.1", y="pca.0", colour="value")
    shown = page.evaluate("(({ xs, ys }) => [[...xs], [...ys]])(window.dreamscope.scatter.values)")
    np.testing.assert_allclose(shown[0], rows["ica"][:, 1], rtol=1e-6)
    np.testing.assert_allclose(shown[1], rows["pca"][:, 0], rtol=1e-6)


def test_behaviours_have_their_samples_and_exemplars(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    stored = shipped.results("behaviours/behaviour_clusters.nc")
    label = stored["sample_cluster"].to_numpy()
    page = open_shipped(view="behaviours")
    sizes = page.locator("#clusters .cluster .numeric").all_inner_texts()
    assert [int(size) for size in sizes] == [
        len(label),
        *(int((label == behaviour).sum()) for behaviour in range(len(stored["exemplar"]))),
    ]
    first = page.locator("#exemplars .strip").first
    first.scroll_into_view_if_needed()
    page.wait_for_selector("#exemplars .strip[data-drawn]")
    samples = shipped.dataset("samples")
    sample = int(str(first.get_attribute("data-sample")))
    frame = samples.read_episode(samples.index_of(sample)).obs[0]
    pixels = first.locator("canvas").evaluate(
        """(canvas, [width, height]) =>
             [...canvas.getContext('2d').getImageData(0, 0, width, height).data]""",
        [frame.shape[1], frame.shape[0]],
    )
    drawn = np.array(pixels, np.uint8).reshape(*frame.shape[:2], 4)
    np.testing.assert_array_equal(drawn[..., :3], frame)


def matrix_shown(page: Page) -> np.ndarray:
    return np.array(
        page.evaluate("document.getElementById('matrix-plot').data[0].z.map(row => [...row])")
    )


def correlation_of_samples(shipped: Shipped, num_components: int, lag: int) -> np.ndarray:
    """(D, D) from the frames' hidden states on: component i at t with component j at t + lag."""
    samples = shipped.dataset("samples")
    first, last = samples.metadata.hidden_slice
    hidden = np.stack(
        [
            samples.read_episode(position).agent_hidden[:, first:last]
            for position in range(samples.num_episodes)
        ]
    )
    projection = HiddenProjection.load(shipped.folder / "hidden" / "projection")
    components = np.asarray(projection.transform(hidden))[..., :num_components]
    over_steps = (0, 1)
    scaled = (components - components.mean(over_steps)) / components.std(over_steps)
    scaled = scaled.clip(-CORRELATION_CLIP, CORRELATION_CLIP)
    scaled -= scaled.mean(axis=0)
    x, y = scaled[:, :-lag], scaled[:, lag:]
    sizes = np.sqrt(np.outer(np.square(x).sum(over_steps), np.square(y).sum(over_steps)))
    return np.einsum("nti,ntj->ij", x, y) / sizes


def test_correlations_are_those_of_the_samples(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    page = open_shipped(view="behaviours", quantity="correlation", lag=2, group="all")
    shown = matrix_shown(page)
    expected = correlation_of_samples(shipped, len(shown), lag=2)
    np.testing.assert_allclose(shown, expected, atol=2e-4)
    assert np.abs(shown).max() > 0.1


@pytest.mark.parametrize("variant", ["passed", "cut"])
def test_jacobians_are_means_over_the_samples(
    variant: str, shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    page = open_shipped(
        view="behaviours", quantity="causation", variant=variant, lag=1, group="all"
    )
    jacobian = shipped.results("jacobians/jacobians.nc")["jacobian"].sel(
        environment_gradient=variant
    )
    by_step = jacobian.transpose("sample", "target_step", "source_step", "source", "target")
    one_later = np.diagonal(by_step.to_numpy(), offset=-1, axis1=1, axis2=2)
    deviation = shipped.results("cross/xcorr_and_xcaus.nc")["component_deviation"].to_numpy()
    shown = matrix_shown(page)
    size = len(shown)
    mean = one_later.mean(axis=(0, -1))[:size, :size]
    scaled = mean * deviation[:size, None] / deviation[:size]
    np.testing.assert_allclose(shown, scaled, rtol=1e-4, atol=1e-7)
    assert np.abs(shown).max() > 0
    # What has no interval says so once.
    assert "– to –" not in page.inner_text("#cell-rows")


def test_statements_are_those_of_the_file(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    stored = shipped.results("consistency/consistency.nc")
    page = open_shipped(view="behaviours")
    rows = page.locator("#statements tr")
    assert rows.count() == min(stored.sizes["statement"], 200)
    for place in range(min(rows.count(), 5)):
        cells = page.locator(f"#statements tr[data-rank='{place + 1}'] td.numeric")
        shown = [figure(text) for text in cells.all_inner_texts()]
        names = ("rank", "r", "gradient_mean")
        expected = [float(stored[f"statement_{name}"][place]) for name in names]
        np.testing.assert_allclose(shown, expected, atol=6e-3)


@pytest.mark.parametrize("world", ["simulated", "real"])
def test_effects_are_differences_to_the_twin(
    world: str, shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    stored = shipped.results("effects/intervention_effects.nc")
    differences = value_differences(shipped, world, stored.sizes["step"])
    page = open_shipped(view="interventions", effect="value")
    row = page.locator(f"#findings tbody[data-measure='value'] tr[data-world='{world}']")
    effect = figure(row.locator("td").nth(2).inner_text())
    expected = float(np.nanmean(differences, axis=1).mean())
    assert effect == pytest.approx(expected, rel=6e-3, abs=1e-6)
    axis = {"simulated": "x", "real": "x2"}[world]
    drawn = page.evaluate(
        """axis => document.getElementById('effect-plot').data
             .filter((one) => one.name === 'observed' && (one.xaxis ?? 'x') === axis)
             .map(({ y }) => [...y])""",
        axis,
    )
    np.testing.assert_allclose(drawn[0], np.nanmean(differences, axis=0), rtol=1e-4, atol=1e-6)


def value_differences(shipped: Shipped, world: str, num_rows: int) -> np.ndarray:
    """(pairs, rows) value of the intervened recording less its twin's; NaN past an end."""
    tested, twin = (
        values_until_the_end(shipped.dataset(f"effects/{world}/{variant}"), num_rows)
        for variant in ("tested", "twin")
    )
    assert tested.keys() == twin.keys()
    return np.array([tested[episode] - twin[episode] for episode in tested])


def values_until_the_end(dataset: RolloutDataset, num_rows: int) -> dict[int, np.ndarray]:
    found = {}
    for position in range(dataset.num_episodes):
        rollout = dataset.read_episode(position)
        values = np.full(num_rows, np.nan)
        last = int(np.argmax(rollout.done)) + 1 if rollout.done.any() else len(rollout.value)
        kept = min(last, num_rows)
        values[:kept] = rollout.value[:kept]
        found[rollout.info.episode_id] = values
    return found


def test_twins_open_beside_each_other(
    shipped: Shipped, open_shipped: Callable[..., Page], canvas_pixels: Any
) -> None:
    twin, tested = (shipped.dataset(f"effects/real/{name}") for name in ("twin", "tested"))
    pair = id_at(tested, longest_episode(tested))
    page = open_shipped(view="interventions", world="real", twinned="tested", pair=pair)
    page.click("#open-pair")
    # The twin first: it comes after the rollout, whose canvas shows another until then.
    for canvas, dataset in (("other-frame", twin), ("frame", tested)):
        page.wait_for_selector(f"#{canvas}[data-step='0']:not(.waiting)")
        frame = dataset.read_episode(dataset.index_of(pair)).obs[0]
        np.testing.assert_array_equal(canvas_pixels(page, canvas)[..., :3], frame)
    assert page.evaluate("window.dreamscope.player.other.entry.episodeId") == pair


def last_frame_errors(shipped: Shipped, stored: xr.Dataset) -> np.ndarray:
    """(horizons,) squared error of the last frame given against those that follow it."""
    real = shipped.dataset("rollouts")
    described = json.loads((PROJECT / SIMULATOR / "simulator.json").read_text())
    num_given = described["config"]["num_init_steps"]
    horizons = stored.sizes["horizon"]
    errors = np.full((stored.sizes["window"], horizons), np.nan)
    for window, (episode, row) in enumerate(
        zip(stored["episode_id"].to_numpy(), stored["start_row"].to_numpy(), strict=True)
    ):
        frames = real.read_episode(real.index_of(int(episode))).obs / 255.0
        given = int(row) + num_given - 1
        following = frames[given : given + horizons]
        errors[window, : len(following)] = np.square(following - frames[given]).mean((1, 2, 3))
    return np.nanmean(errors, axis=0)


def test_fidelity_is_that_of_the_recordings(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    stored = shipped.results("fidelity/simulator_fidelity.nc")
    page = open_shipped(view="simulator", measure="mse")
    drawn = page.evaluate(
        """Object.fromEntries(document.getElementById('fidelity-plot').data
             .filter(({ name }) => name).map(({ name, y }) => [name, [...y]]))"""
    )
    for prediction in stored["prediction"].to_numpy().astype(str):
        score = stored["score"].sel(measure="mse", prediction=prediction)
        np.testing.assert_allclose(drawn[prediction.replace("_", " ")], score, rtol=1e-5)
    expected = last_frame_errors(shipped, stored)
    np.testing.assert_allclose(drawn["last frame"], expected, rtol=1e-3, atol=1e-7)
    card = page.locator("#cards details", has_text="simulator/simulator.json")
    card.locator("summary").click()
    agent_hash = shipped.dataset("rollouts").metadata.agent_hash
    assert agent_hash in card.inner_text()


def test_every_file_tells_its_hash_and_command(
    shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    page = open_shipped(view="files")
    made_by = {
        "behaviours/behaviour_clusters.nc": "combined_agent_env_hx_analysis_precompute.py",
        "effects/intervention_effects.nc": "intervention_effects_precompute.py",
        "fidelity/simulator_fidelity.nc": "simulator_fidelity_precompute.py",
        "saliency/saliency.nc": "saliency_experiments.py",
    }
    for name, command in made_by.items():
        fold = f"#files details[data-item='{item_id(shipped.folder / name)}']"
        page.locator(f"{fold} > summary").click()
        page.wait_for_selector(f"{fold} dd")
        text = page.locator(fold).inner_text()
        assert hash_file(shipped.folder / name) in text
        assert command in text


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


def settled_layout(page: Page) -> dict[str, Any]:
    """What `LAYOUT` finds once it stays: plots come a while after the rest."""
    found: dict[str, Any] = {}
    for _ in range(PATIENCE_SECONDS):
        page.wait_for_timeout(1000)
        before, found = found, page.evaluate(LAYOUT)
        follow = all(abs(box - drawing) < 0.01 for _, box, drawing in found["plots"])
        if follow and found == before:
            break
    return found


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_fits_narrow_and_wide_screens(
    view: str, shipped: Shipped, open_shipped: Callable[..., Page]
) -> None:
    sample = int(shipped.results("saliency/saliency.nc")["sample_id"][0])
    values = {"data": shipped.id_of("samples"), "episode": sample, "target": "value", "at": 2}
    page = open_shipped(**values, view=view, filter="value > 0 and done = other steps")
    smallest = []
    for width, height in (NARROW, WIDE):
        page.set_viewport_size({"width": width, "height": height})
        layout = settled_layout(page)
        assert layout["clipped"] == []
        assert layout["overlaps"] == []
        assert layout["overflow"] <= 0
        for name, box, drawing in layout["plots"]:
            assert min(box, drawing) > 0.85, name
        smallest.append(layout["smallest"])
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    assert smallest[0] >= 10
    assert smallest[1] >= 1.3 * smallest[0]
