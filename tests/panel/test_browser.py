"""The page in a real browser: what is drawn is what the store holds."""

import base64
import io
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.path import Path as MatplotlibPath
from PIL import Image, ImageSequence
from playwright.sync_api import Browser, BrowserContext, Page
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from panel.catalogue import item_id
from rollouts.store import RolloutDataset
from rollouts.video import read_video

pytestmark = pytest.mark.medium

PATIENCE_SECONDS = 60
"""A page opens in one; machines that do other things besides take longer."""
PLACE_OF_POINT = """row => {
  const { scatter } = window.dreamscope;
  const { xaxis, yaxis } = scatter.plot._fullLayout;
  return { x: xaxis._offset + xaxis.l2p(scatter.values.xs[row]),
           y: yaxis._offset + yaxis.l2p(scatter.values.ys[row]) };
}"""
"""Where a row of the analysis lies in the scatter, in pixels from its corner."""
READ_CANVAS = """id => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.width, canvas.height, btoa(String.fromCharCode(...data))];
}"""


@pytest.fixture
def ids(panel_client: Any) -> dict[str, str]:
    return {entry["kind"]: entry["id"] for entry in panel_client.json("/api/catalogue")["datasets"]}


def canvas_pixels(page: Page, canvas: str) -> np.ndarray:
    width, height, content = page.evaluate(READ_CANVAS, canvas)
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)


def screenshot(page: Page, selector: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(page.locator(selector).screenshot()))
    return np.asarray(picture.convert("RGB"))


def wait_until(page: Page, condition: str) -> None:
    """Waits for an expression to hold; Playwright's own way needs `eval`, which is forbidden."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def box_of(page: Page, selector: str) -> dict[str, float]:
    """Where an element is, in pixels of the page.

    Asked in one go: Playwright's own way finds the element and then asks for its place, and has
    none to tell when the page puts a new element in its place in between.
    """
    return page.evaluate(
        """selector => {
          const { x, y, width, height } = document.querySelector(selector).getBoundingClientRect();
          return { x, y, width, height };
        }""",
        selector,
    )


def settle(page: Page) -> None:
    page.wait_for_selector("body[data-ready]", state="attached")


def wait_for_step(page: Page, step: int) -> None:
    page.wait_for_selector(f"#frame[data-step='{step}']:not(.waiting)")


def shows_frame(page: Page, frame: np.ndarray) -> bool:
    pixels = canvas_pixels(page, "frame")
    return bool((pixels[..., :3] == frame).all() and (pixels[..., 3] == 255).all())


def test_first_rollout_is_drawn_pixel_for_pixel(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page()
    wait_for_step(page, 0)
    assert shows_frame(page, panel_data.real.read_episode(0).obs[0])
    size = box_of(page, "#frame")
    height, width = panel_data.real.metadata.environment.obs_shape[:2]
    assert size["width"] / width == size["height"] / height == int(size["width"] / width) > 1


def test_list_and_first_frame_wait_for_no_plot(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    # Called as soon as the frame is drawn, before the page does anything else.
    page.add_init_script(
        """new MutationObserver(() => {
          if (!document.querySelector('#frame[data-step]')) return;
          window.early ??= {
            rows: document.querySelectorAll('#rollouts .row').length, plotly: 'Plotly' in window };
        }).observe(document, { subtree: true, childList: true, attributes: true });"""
    )
    page.goto(address)
    page.wait_for_selector("body[data-ready]", state="attached")
    early = page.evaluate("window.early")
    assert early["rows"] > 1
    assert not early["plotly"]
    assert page.evaluate("'Plotly' in window")
    asked = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    assert sum("api/catalogue" in name for name in asked) == 1
    assert sum("plotly.min.js" in name for name in asked) == 1
    page.close()


@pytest.mark.parametrize("width", [1181, 1280, 1600, 1920, 3840])
def test_tabs_fit_in_one_row(width: int, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.set_viewport_size({"width": width, "height": 800})
    try:
        tops, wanted, given = page.evaluate(
            """() => { const tabs = document.getElementById('tabs'); return [
              [...tabs.children].map((tab) => tab.getBoundingClientRect().top),
              tabs.scrollWidth, tabs.clientWidth]; }"""
        )
        sizes = page.evaluate(
            "[...document.querySelectorAll('#tabs button')]"
            ".map((tab) => parseFloat(getComputedStyle(tab).fontSize))"
        )
    finally:
        page.set_viewport_size({"width": 1280, "height": 800})
    assert len(set(tops)) == 1
    assert wanted <= given
    assert min(sizes) > 11.9


def test_counts_are_written_in_groups_of_three_digits(open_page: Callable[..., Page]) -> None:
    written = open_page().evaluate(
        """() => import(new URL('static/words.js', document.baseURI)).then(({ count }) =>
             [0, 12, 999, 1000, 65536, 1234567, 100000000].map(count))"""
    )
    expected = ["0", "12", "999", "1 000", "65 536", "1 234 567", "100 000 000"]
    assert written == [text.replace(" ", "\u202f") for text in expected]


def test_first_rollout_is_one_that_the_scatter_shows(
    open_page: Callable[..., Page],
    panel_data: Any,
    dataset_writer: Any,
    serve: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "several"
    shutil.copytree(panel_data.folder, folder)
    dataset_writer(folder / "another", (5,), False)
    for base in serve(folder):
        page = open_page(base=base)
        wait_for_step(page, 0)
        assert shows_frame(page, panel_data.real.read_episode(0).obs[0])
        assert page.locator("#scatter .marker").is_visible()
        # Both recordings have an episode of this number.
        assert page.inner_text("#sample-title").startswith("Real episode 1 · several/data · level")


def test_keyboard_steps_through_frames_and_rollouts(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page()
    rollout = panel_data.real.read_episode(0)
    last = len(rollout) - 1
    moves = (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("Home", 0))
    for key, step in moves:
        page.keyboard.press(key)
        wait_for_step(page, step)
        assert shows_frame(page, rollout.obs[step])
        assert page.inner_text("#step-figure") == f"{step} of {last}"
    page.keyboard.press("ArrowDown")
    wait_until(page, "document.getElementById('step-figure').textContent === '0 of 299'")
    wait_for_step(page, 0)
    assert shows_frame(page, panel_data.real.read_episode(1).obs[0])
    page.keyboard.press("ArrowUp")
    wait_until(page, f"document.getElementById('step-figure').textContent === '0 of {last}'")


def test_figures_are_those_of_the_step(open_page: Callable[..., Page], panel_data: Any) -> None:
    page = open_page()
    rollout = panel_data.real.read_episode(0)
    names = panel_data.real.metadata.environment.action_names
    for step in range(4):
        wait_for_step(page, step)
        assert page.inner_text("#action-name") == names[rollout.action[step]]
        shown = page.inner_text("#value-figure").replace("−", "-")
        assert float(shown) == pytest.approx(rollout.value[step], abs=6e-4)
        shown = page.inner_text("#reward-figure").replace("−", "-")
        assert float(shown) == pytest.approx(rollout.reward[step], abs=6e-3)
        page.click("#step-on")


def test_play_runs_to_the_end_and_stops(open_page: Callable[..., Page], panel_data: Any) -> None:
    page = open_page()
    page.select_option("#speed", "60")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(" ")
    page.wait_for_selector("#play.playing")
    last = len(panel_data.real.read_episode(0)) - 1
    wait_for_step(page, last)
    page.wait_for_selector("#play:not(.playing)")
    assert shows_frame(page, panel_data.real.read_episode(0).obs[last])


def test_pause_stops_where_it_is(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.keyboard.press("ArrowDown")
    wait_until(page, "document.getElementById('scrubber').max === '299'")
    page.click("#play")
    wait_until(page, "Number(document.getElementById('frame').dataset.step) > 2")
    page.click("#play")
    step = page.input_value("#scrubber")
    page.wait_for_timeout(400)
    assert page.input_value("#scrubber") == step


def test_frames_beyond_the_first_chunk_arrive(
    open_page: Callable[..., Page], panel_data: Any, ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['real']}&episode=3&step=280")
    wait_for_step(page, 280)
    assert shows_frame(page, panel_data.real.read_episode(1).obs[280])


def test_traces_show_the_values_and_a_click_jumps(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page()
    page.wait_for_selector("#traces .trace path.js-line")
    rollout = panel_data.real.read_episode(0)
    traces = page.evaluate(
        """document.querySelector('#traces .plot').data
             .map(({x, y, z}) => ({x: [...x], y: [...y], z}))"""
    )
    np.testing.assert_allclose(traces[0]["y"], rollout.value, rtol=1e-6)
    # The outline of the bars: each has two corners.
    np.testing.assert_allclose(traces[1]["y"], np.repeat(rollout.reward, 2), rtol=1e-6)
    weights = np.exp(rollout.action_logits - rollout.action_logits.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(traces[2]["z"]).T, probabilities, rtol=1e-4)
    x, y = page.evaluate(
        """() => {
          const plot = document.querySelector('#traces .plot');
          const box = plot.getBoundingClientRect();
          const axis = plot._fullLayout.xaxis;
          return [box.left + axis._offset + axis.l2p(7), box.top + 60];
        }"""
    )
    page.mouse.click(x, y)
    wait_for_step(page, 7)
    cursor = box_of(page, "#traces .cursor")
    assert abs(cursor["x"] + cursor["width"] / 2 - x) < 2


def test_scatter_draws_points_and_a_click_opens_the_step(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page("#x=pca.1&y=pca.2&colour=cluster")
    colours = page.evaluate(
        """() => {
          const canvas = document.querySelector('#scatter canvas');
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const seen = new Set();
          for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 3).join());
          return seen.size;
        }"""
    )
    assert colours > 50
    assert page.inner_text("#embedding-count") == "339 steps"
    assert page.locator("#legend .category").count() == 12
    place = page.evaluate(PLACE_OF_POINT, 200)
    # Playwright waits until the scatter stands still.
    page.locator("#scatter").click(position=place)
    wait_until(page, "location.hash.includes('episode=3')")
    wait_for_step(page, 200 - 12)
    assert shows_frame(page, panel_data.real.read_episode(1).obs[200 - 12])
    marker = box_of(page, "#scatter .marker")
    scatter = box_of(page, "#scatter")
    place = page.evaluate(PLACE_OF_POINT, 200)
    assert abs(marker["x"] + marker["width"] / 2 - scatter["x"] - place["x"]) < 2
    assert abs(marker["y"] + marker["height"] / 2 - scatter["y"] - place["y"]) < 2


def test_pointer_at_a_low_point_shows_its_frame_within_the_window(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page("#view=states&x=pca.1&y=pca.2&colour=action&shown=real")
    # A window so low that there is no room for the frame below any point.
    page.set_viewport_size({"width": 1280, "height": 620})
    wait_until(
        page, "document.querySelector('#scatter .main-svg').getBoundingClientRect().bottom < 620"
    )
    lowest = page.evaluate(
        """() => {
          const { ys } = window.dreamscope.scatter.values;
          return ys.indexOf(Math.min(...ys));
        }"""
    )
    point = page.evaluate("row => window.dreamscope.scatter.pointOf(row)", lowest)
    place, scatter = page.evaluate(PLACE_OF_POINT, lowest), box_of(page, "#scatter")
    page.mouse.move(scatter["x"] + place["x"], scatter["y"] + place["y"])
    wait_until(page, "document.querySelector('#tip canvas').style.visibility === ''")
    page.evaluate("document.querySelector('#tip canvas').id = 'hovered-frame'")
    index = panel_data.real.index_of(point["episodeId"])
    frame = panel_data.real.read_episode(index).obs[point["step"]]
    np.testing.assert_array_equal(canvas_pixels(page, "hovered-frame")[..., :3], frame)
    tip = box_of(page, "#tip")
    assert tip["y"] >= 0
    assert tip["y"] + tip["height"] <= 620
    assert tip["x"] + tip["width"] <= 1280
    page.mouse.move(5, 5)
    page.set_viewport_size({"width": 1280, "height": 800})


def test_late_frame_of_another_point_is_not_shown_under_the_pointer(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page("#view=states")
    held: list[Any] = []
    page.route("**/frames?start=3&stop=4", lambda route: held.append(route))
    hover = """row => {
      const { dreamscope } = window;
      document.querySelector('#tip canvas').id = 'hovered-frame';
      dreamscope.showHover(dreamscope.scatter.pointOf(row), { clientX: 50, clientY: 50 });
    }"""
    page.evaluate(hover, 3)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not held:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    page.evaluate(hover, 5)
    page.wait_for_selector("#hovered-frame", state="visible")
    with page.expect_response("**/frames?start=3&stop=4"):
        held[0].continue_()
    page.wait_for_timeout(100)
    shown = canvas_pixels(page, "hovered-frame")[..., :3]
    np.testing.assert_array_equal(shown, panel_data.real.read_episode(0).obs[5])
    page.unroute("**/frames?start=3&stop=4")
    page.evaluate("window.dreamscope.showHover(null)")


def test_legend_of_many_categories_is_seen_whole(open_page: Callable[..., Page]) -> None:
    page = open_page("#view=states&colour=cluster")
    wait_until(page, "document.querySelectorAll('#legend .category').length === 12")
    legend = page.evaluate(
        """(() => {
          const { scrollHeight, clientHeight, clientWidth } = document.getElementById('legend');
          return { scrollHeight, clientHeight, clientWidth,
            foot: document.getElementById('scatter-foot').clientWidth };
        })()"""
    )
    assert legend["scrollHeight"] <= legend["clientHeight"]
    assert legend["clientWidth"] > 0.9 * legend["foot"]


def test_legend_of_another_colour_leaves_the_points_where_they_were_drawn(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("#x=pca.1&y=pca.2&colour=value")
    heights = page.evaluate(
        """async fragment => {
          const { scatter } = window.dreamscope;
          const heights = [];
          const redraw = scatter.redraw.bind(scatter);
          // A page that was opened a moment ago may still draw what it had.
          scatter.redraw = () => {
            if (scatter.request.colour === 'cluster') heights.push(scatter.box.clientHeight);
            return redraw();
          };
          location.hash = fragment;
          window.dispatchEvent(new HashChangeEvent('hashchange'));
          while (!document.body.dataset.ready) await new Promise(wait => setTimeout(wait));
          delete scatter.redraw;
          return [...heights, scatter.box.clientHeight];
        }""",
        "#x=pca.1&y=pca.2&colour=cluster",
    )
    assert len(heights) >= 2
    assert len(set(heights)) == 1


def test_directions_have_the_numbers_that_saliency_and_swaps_give_them(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("#x=ica.0&y=pca.0")
    chosen = "select => select.selectedOptions[0].textContent"
    assert page.locator("#x-axis").evaluate(chosen) == "IC 0"
    assert page.locator("#y-axis").evaluate(chosen) == "PC 0"


def drawn_overlay(signed: np.ndarray, full: float, blur: float, threshold: float) -> np.ndarray:
    """(H, W) opacity, 0 to 230, of one step, where `full` and more is drawn in full strength."""
    smooth = gaussian_filter(signed, blur, mode="nearest", truncate=3) if blur else signed
    strength = np.minimum(1, np.abs(smooth) / full)
    return np.where(strength < threshold, 0, 230 * strength)


def set_slider(page: Page, name: str, value: float) -> None:
    page.evaluate(
        """([name, value]) => {
          const slider = document.getElementById(name);
          slider.value = value;
          slider.dispatchEvent(new Event('input'));
        }""",
        [name, value],
    )


def read_saliency(panel_client: Any, query: str) -> np.ndarray:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    return panel_client.arrays(f"/api/saliency/{entry['id']}/samples/1?{query}")["saliency"]


def test_saliency_is_drawn_signed_blurred_and_cut_off(
    open_page: Callable[..., Page], ids: dict[str, str], panel_client: Any
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1&step=2")
    wait_for_step(page, 2)
    assert not canvas_pixels(page, "overlay")[..., 3].any()
    page.select_option("#target", "ic_0")
    wait_until(page, "window.dreamscope.player.overlay !== null")
    overlay = canvas_pixels(page, "overlay")
    sample = read_saliency(panel_client, "target=ic_0&target_step=4&environment_gradient=passed")
    signed = sample[2]
    # What the reader sees, not only what the canvas holds: the frame beneath is grey.
    seen = screenshot(page, "#screen").astype(int)
    assert np.ptp(seen, axis=-1).max() > 60
    strong = overlay[..., 3] > 40
    assert strong.mean() > 0.5
    is_orange = overlay[..., 0] > overlay[..., 2]
    np.testing.assert_array_equal(is_orange[strong], signed[strong] > 0)
    scale, gain = page.evaluate(
        "(({ scale, usualGain }) => [scale, usualGain])(window.dreamscope.player.overlay)"
    )
    sizes = np.abs(sample[sample != 0])
    assert scale == pytest.approx(np.quantile(sizes, 0.995), rel=0.02)
    assert gain == np.round(4 * np.log2(scale / np.quantile(sizes, 0.95))) / 4
    assert page.input_value("#gain") == f"{gain}"
    assert str(page.text_content("#gain-figure")).endswith("by default")
    for blur, threshold in ((0, 0), (1.5, 0), (0.5, 0.25)):
        set_slider(page, "blur", blur)
        set_slider(page, "threshold", threshold)
        shown = canvas_pixels(page, "overlay")[..., 3]
        expected = drawn_overlay(signed, scale / 2**gain, blur, threshold)
        np.testing.assert_allclose(shown, expected, atol=1.01)
    set_slider(page, "blur", 0)
    set_slider(page, "threshold", 0)
    set_slider(page, "gain", 3)
    stronger = canvas_pixels(page, "overlay")[..., 3].astype(int)
    assert (stronger >= overlay[..., 3]).all()
    assert stronger.sum() > 1.5 * overlay[..., 3].sum()
    assert "default" not in str(page.text_content("#gain-figure"))
    page.click("#drawing summary")
    page.click("#usual-drawing")
    assert page.input_value("#gain") == f"{gain}"
    np.testing.assert_array_equal(canvas_pixels(page, "overlay"), overlay)
    page.click("#drawing summary")


def test_colours_of_saliency_are_those_chosen(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(
        f"#data={ids['simulated']}&episode=1&target=value&gain=4"
        "&negative=%23ff00ff&positive=%2300ff00"
    )
    wait_until(page, "window.dreamscope.player.overlay !== null")
    pixels = canvas_pixels(page, "overlay")
    full = pixels[pixels[..., 3] == 230][:, :3]
    assert {tuple(colour) for colour in full.tolist()} == {(255, 0, 255), (0, 255, 0)}
    assert page.input_value("#negative") == "#ff00ff"


def test_paths_of_the_gradient_add_up(
    open_page: Callable[..., Page], ids: dict[str, str], panel_client: Any
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1&target=value&at=6")
    query = "target=value&target_step=6&environment_gradient="
    whole, agent = (read_saliency(panel_client, f"{query}{label}") for label in ("passed", "cut"))
    expected = {"both": whole, "agent": agent, "environment": whole - agent}
    names = page.locator("#path option").evaluate_all("options => options.map(o => o.value)")
    assert names == list(expected)
    for name, values in expected.items():
        page.select_option("#path", name)
        wait_until(page, f"window.dreamscope.saliency.overlayPath === '{name}'")
        shown = page.evaluate("Array.from(window.dreamscope.player.overlay.data)")
        np.testing.assert_allclose(shown, values.ravel(), rtol=1e-6, atol=1e-6)


@pytest.fixture
def open_saliency(
    open_page: Callable[..., Page], saliency_data: Path, saliency_address: str
) -> Callable[..., Page]:
    """Opens the sample that has several files of saliency."""
    samples = item_id(saliency_data / "samples" / "dataset.json")
    start = {"data": samples, "episode": 1, "target": "ic_0", "at": 6}
    return lambda **values: open_page(f"#{urlencode({**start, **values})}", base=saliency_address)


@pytest.fixture(scope="module")
def saliency_address(saliency_data: Path, serve: Any) -> Iterator[str]:
    yield from serve(saliency_data)


def test_file_of_the_default_method_is_opened_first(
    open_saliency: Callable[..., Page], saliency_data: Path
) -> None:
    page = open_saliency()
    names = page.locator("#saliency-file option").all_inner_texts()
    assert [name.split("/")[1] for name in names] == ["plain", "split", "agent_only", "integrated"]
    assert page.input_value("#saliency-file") == item_id(saliency_data / "plain" / "saliency.nc")
    assert page.is_hidden("#baseline-field")
    assert page.is_hidden("#method-note")


def test_every_path_that_a_file_holds_is_drawn(
    open_saliency: Callable[..., Page], saliency_data: Path
) -> None:
    file = saliency_data / "split" / "saliency.nc"
    page = open_saliency(saliency=item_id(file))
    with xr.open_dataset(file, engine="h5netcdf") as stored:
        gradient = stored["gradient_frame"].sel(target="ic_0", target_step=6).isel(sample=0)
        maps = {
            str(label): gradient.sel(environment_gradient=label).mean("channel").to_numpy()
            for label in stored["environment_gradient"].to_numpy()
        }
    expected = {
        "agent and environment (passed)": maps["passed"],
        "agent without environment (cut)": maps["cut"],
        "what the environment adds (passed − cut)": maps["passed"] - maps["cut"],
        "environment without agent (only)": maps["only"],
        "neither of the two (neither)": maps["neither"],
        "mixed (passed − cut − only)": maps["mixed"],
    }
    assert page.locator("#path option").all_inner_texts() == list(expected)
    for name, signed in expected.items():
        path = page.select_option("#path", label=name)[0]
        wait_until(page, f"window.dreamscope.saliency.overlayPath === '{path}'")
        shown = page.evaluate("Array.from(window.dreamscope.player.overlay.data)")
        np.testing.assert_allclose(shown, signed.ravel(), rtol=1e-5, atol=1e-6)
    # The components are coloured along the same path.
    page.select_option("#path", "only")
    settle(page)
    of_components = page.evaluate("[...window.dreamscope.components.content.gradient.data]")
    with xr.open_dataset(file, engine="h5netcdf") as stored:
        view = {"target": "ic_0", "target_step": 6, "environment_gradient": "only"}
        gradient = stored["gradient_component"].sel(view).isel(sample=0).to_numpy()
    np.testing.assert_allclose(of_components, gradient.ravel(), rtol=1e-6)


@pytest.mark.parametrize("target", ["value", "ic_0"])
def test_integrated_gradients_are_drawn_and_tell_what_they_sum_to(
    target: str, open_saliency: Callable[..., Page], saliency_data: Path
) -> None:
    file = saliency_data / "integrated" / "saliency.nc"
    page = open_saliency(saliency=item_id(file), step=3, target=target)
    assert page.input_value("#baseline") == ""
    assert page.locator("#baseline option").all_inner_texts() == [
        "gradient",
        "integrated gradient, from black frames",
        "integrated gradient, from the mean frame",
    ]
    assert page.inner_text("#method-note") == (
        "Integrated gradients over the latent, which this file has too, belong to no pixel: they "
        "are not drawn."
    )
    page.select_option("#baseline", "black")
    settle(page)
    with xr.open_dataset(file, engine="h5netcdf") as stored:
        chosen = stored.sel(target=target, target_step=6, baseline="black").isel(sample=0).load()
    signed = chosen["integrated_frame"].sum("channel").to_numpy()
    shown = page.evaluate("Array.from(window.dreamscope.player.overlay.data)")
    np.testing.assert_allclose(shown, signed.ravel(), rtol=1e-5, atol=1e-6)
    overlay = canvas_pixels(page, "overlay")
    strong = overlay[..., 3] > 40
    is_orange = overlay[..., 0] > overlay[..., 2]
    np.testing.assert_array_equal(is_orange[strong], signed[3][strong] > 0)
    name = target.replace("_", " ")
    note = page.inner_text("#method-note").replace("−", "-").replace(name, "")
    figures = [float(figure) for figure in re.findall(r"-?\d+\.?\d*", note)]
    difference, delta = (
        float(chosen[f"integrated_frame_{name}"]) for name in ("difference", "delta")
    )
    np.testing.assert_allclose(figures, [difference + delta, difference, delta], atol=6e-4)
    assert ("more than the tolerance" in note) == (target == "value")
    assert page.is_hidden("#path-field")
    page.select_option("#baseline", "")
    settle(page)
    assert page.evaluate("window.dreamscope.player.overlay.data[0]") != pytest.approx(shown[0])


def test_saliency_beside_the_frame_leaves_the_frame_as_it_is(
    open_page: Callable[..., Page], ids: dict[str, str], panel_data: Any
) -> None:
    address = f"#data={ids['simulated']}&episode=1&step=3&target=value&placement=beside"
    page = open_page(address)
    wait_until(page, "window.dreamscope.player.overlay !== null")
    wait_for_step(page, 3)
    assert shows_frame(page, panel_data.simulated.read_episode(0).obs[3])
    frame, grey, overlay = (box_of(page, name) for name in ("#frame", "#grey-frame", "#overlay"))
    assert frame["x"] + frame["width"] <= grey["x"]
    assert overlay == grey
    assert np.ptp(screenshot(page, "#saliency-screen").astype(int), axis=-1).max() > 60


def test_saliency_controls_stand_apart(open_page: Callable[..., Page], ids: dict[str, str]) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1&target=ic_0")
    wait_until(page, "window.dreamscope.player.overlay !== null")
    page.evaluate(
        "document.querySelector('#target option:checked').textContent += ' cut'.repeat(9)"
    )
    names = ("#target", "#target-step", "#path", "#drawing", "#saliency-key")
    card = box_of(page, ".player")
    boxes = [box_of(page, name) for name in names]
    for position, box in enumerate(boxes):
        assert box["width"] > 0
        assert box["x"] + box["width"] <= card["x"] + card["width"]
        for other in boxes[:position]:
            is_apart = (
                other["x"] + other["width"] <= box["x"] or other["y"] + other["height"] <= box["y"]
            )
            assert is_apart


def test_bars_show_activation_and_the_gradient_of_the_target(
    open_page: Callable[..., Page], ids: dict[str, str], panel_client: Any
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1&step=3&view=components&target=value&at=6")
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    query = "target=value&target_step=6&environment_gradient=passed"
    stored = panel_client.arrays(f"/api/saliency/{entry['id']}/samples/1/components?{query}")
    for step in (3, 4):
        wait_for_step(page, step)
        wait_until(
            page,
            "Math.abs(document.querySelector('#component-bars').data[0].y[0]"
            f" - {stored['activation'][step, 0]}) < 1e-6",
        )
        bars = page.evaluate("document.querySelector('#component-bars').data[0]")
        np.testing.assert_allclose(bars["y"], stored["activation"][step], rtol=1e-6)
        colours = np.array(
            [[int(c) for c in rgb[4:-1].split(",")] for rgb in bars["marker"]["color"]]
        )
        is_orange = colours[:, 0] > colours[:, 2]
        clear = np.abs(stored["gradient"][step]) > 0.05 * np.abs(stored["gradient"]).max()
        np.testing.assert_array_equal(is_orange[clear], stored["gradient"][step][clear] > 0)
        page.keyboard.press("ArrowRight")
    page.select_option("#component-quantity", "gradient")
    shown = page.evaluate("document.querySelector('#component-map .plot').data[0].z")
    np.testing.assert_allclose(np.array(shown).T, stored["gradient"], rtol=1e-6)
    saved = pd.read_csv(io.BytesIO(save_plot(page, "#map-head", "CSV")))
    components = range(stored["activation"].shape[1])
    assert list(saved.columns) == [
        "step",
        *(f"activation {component}" for component in components),
        *(f"d value / d {component}" for component in components),
    ]
    np.testing.assert_allclose(saved["d value / d 1"], stored["gradient"][:, 1], rtol=1e-5)


def test_bars_of_a_real_rollout_show_the_analysis(
    open_page: Callable[..., Page], ids: dict[str, str], panel_client: Any
) -> None:
    page = open_page(f"#data={ids['real']}&episode=3&step=7&view=components")
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    stored = panel_client.arrays(f"/api/analyses/{entry['id']}/episodes/real/3")
    wait_until(page, "document.querySelector('#component-bars').data !== undefined")
    bars = page.evaluate("document.querySelector('#component-bars').data[0].y")
    np.testing.assert_allclose(bars, stored["ica"][7], rtol=1e-6)
    assert "with saliency only" in page.inner_text("#components-note")


def test_a_rollout_that_the_analysis_leaves_out_is_no_error(
    panel_data: Any, open_page: Callable[..., Page], serve: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "partly"
    shutil.copytree(panel_data.folder, folder)
    path = folder / "analysis" / "hidden_analysis.nc"
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        content = stored.load()
    content = content.isel(row=(content["episode_id"] != 3).to_numpy()).drop_encoding()
    content.to_netcdf(path, engine="h5netcdf")
    real = item_id(folder / "data" / "dataset.json")
    for base in serve(folder):
        for episode, is_held in ((3, False), (1, True), (3, False)):
            page = open_page(f"#data={real}&episode={episode}&view=components", base=base)
            assert page.is_visible("#components") == is_held
            assert ("holds this rollout" in page.inner_text("#components-note")) != is_held
            assert page.locator("#errors p").count() == 0
        page.close()


@pytest.fixture(scope="module")
def related_address(serve: Any, related_data: Path) -> Iterator[str]:
    yield from serve(related_data)


@pytest.mark.parametrize(
    ("kind", "folder", "offset"),
    [
        ("intervened", "samples_intervened", 0),
        ("reality", "samples/replays", 0),
        ("source", "data", 2),
    ],
)
def test_counterparts_run_in_lockstep(
    kind: str,
    folder: str,
    offset: int,
    open_page: Callable[..., Page],
    related_data: Path,
    related_address: str,
    client_maker: Any,
) -> None:
    datasets = client_maker(related_data).json("/api/catalogue")["datasets"]
    ids = {entry["label"].removeprefix("demo/"): entry["id"] for entry in datasets}
    own = RolloutDataset(related_data / "samples").read_episode(1)
    other = RolloutDataset(related_data / folder).read_episode(1)
    page = open_page(
        f"#data={ids['samples']}&episode=3&beside={kind}.{ids[folder]}", related_address
    )
    for step in (0, 1, 2):
        wait_for_step(page, step)
        page.wait_for_selector(f"#other-frame[data-step='{step + offset}']:not(.waiting)")
        assert shows_frame(page, own.obs[step])
        pixels = canvas_pixels(page, "other-frame")[..., :3]
        np.testing.assert_array_equal(pixels, other.obs[step + offset])
        page.keyboard.press("ArrowRight")
    wait_until(page, "window.dreamscope.traces.other.differences !== undefined")
    shown = page.evaluate("window.dreamscope.traces.other.differences")
    rows = min(len(own), len(other) - offset)
    apart = own.obs[:rows].astype(float) - other.obs[offset : offset + rows]
    expected = np.sqrt((apart**2).mean(axis=(1, 2, 3))) / 255
    np.testing.assert_allclose(shown["frames"], expected, rtol=1e-6)
    first, second = (softmax(r.action_logits, axis=1) for r in (own, other))
    variation = np.abs(first[:rows] - second[offset : offset + rows]).sum(axis=1) / 2
    np.testing.assert_allclose(shown["policy"], variation, rtol=1e-4, atol=1e-7)
    page.keyboard.press("End")
    wait_for_step(page, 9)
    assert page.locator("#other-over").is_visible() == (len(other) <= 9 + offset)


def test_of_several_files_of_saliency_one_is_chosen(
    panel_data: Any, open_page: Callable[..., Page], serve: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "several"
    shutil.copytree(panel_data.folder, folder)
    with xr.open_dataset(folder / "saliency" / "saliency.nc", engine="h5netcdf") as stored:
        other = stored.load()
    other["gradient_frame"] = -other["gradient_frame"]
    (folder / "again").mkdir()
    other.to_netcdf(folder / "again" / "saliency.nc", engine="h5netcdf")
    samples = item_id(folder / "samples" / "dataset.json")
    overlay = "window.dreamscope.saliency.overlay.data[0]"
    for base in serve(folder):
        drawn = {}
        for name in ("saliency", "again"):
            chosen = item_id(folder / name / "saliency.nc")
            page = open_page(f"#data={samples}&episode=1&target=value&saliency={chosen}", base=base)
            assert page.input_value("#saliency-file") == chosen
            drawn[name] = page.evaluate(overlay)
        page.select_option("#saliency-file", item_id(folder / "saliency" / "saliency.nc"))
        settle(page)
        assert page.evaluate(overlay) == drawn["saliency"] == -drawn["again"] != 0
        page.close()
    page = open_page(f"#data={item_id(panel_data.folder / 'samples' / 'dataset.json')}&episode=1")
    assert page.is_visible("#target")
    # Nothing is drawn: nothing is to be explained or chosen.
    for control in ("saliency-file-field", "saliency-key", "drawing", "target-step-field"):
        assert page.is_hidden(f"#{control}")


def test_sample_without_its_reality_says_which_command_plays_it(
    open_page: Callable[..., Page], ids: dict[str, str], related_data: Path, serve: Any
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1")
    assert page.inner_text("#beside-note").endswith("python analysis/sample_trust_precompute.py")
    page = open_page(f"#data={ids['real']}&episode=1")
    assert page.is_hidden("#beside-note")
    samples = item_id(related_data / "samples" / "dataset.json")
    for base in serve(related_data):
        page = open_page(f"#data={samples}&episode=1", base=base)
        assert page.is_visible("#beside")
        assert page.is_hidden("#beside-note")


def test_sample_without_saliency_says_which_command_makes_it(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=3")
    assert "python saliency_experiments.py" in page.inner_text("#saliency-note")


def test_address_restores_the_view(
    open_page: Callable[..., Page], panel_data: Any, ids: dict[str, str]
) -> None:
    page = open_page()
    page.select_option("#x-axis", "ica.2")
    page.select_option("#y-axis", "pca.3")
    page.select_option("#colour", "action")
    page.click(".row >> nth=3")
    wait_until(page, "document.getElementById('scrubber').max === '9'")
    page.keyboard.press("End")
    wait_for_step(page, 9)
    wait_until(page, "location.hash.includes('step=9')")
    restored = open_page("#" + page.url.split("#")[1], fresh=True)
    wait_for_step(restored, 9)
    assert shows_frame(restored, panel_data.simulated.read_episode(0).obs[9])
    chosen = [restored.input_value(f"#{name}") for name in ("x-axis", "y-axis", "colour")]
    assert chosen == ["ica.2", "pca.3", "action"]
    title = restored.inner_text("#sample-title")
    assert title == "Simulated sample 1 · from real episode 3, row 2"
    restored.wait_for_selector(".row[aria-selected='true']")


def test_address_restores_the_list(open_page: Callable[..., Page], panel_data: Any) -> None:
    page = open_page()
    page.fill("input[name=min-length]", "8")
    page.check("input[name=kind][value=real]", force=True)
    page.select_option("select[name=complete]", "any")
    page.click("[data-sort=length]")
    page.click("[data-sort=length]")
    wait_until(page, "location.hash.includes('sort=-length')")
    fragment = "#" + page.url.split("#")[1]
    assert "complete" not in fragment
    restored = open_page(fragment, fresh=True)
    lengths = sorted((x for x in panel_data.real.episodes["length"] if x >= 8), reverse=True)
    shown = restored.locator("#rollouts .row :nth-child(3)").all_inner_texts()
    assert shown == [str(length) for length in lengths]
    assert restored.input_value("input[name=min-length]") == "8"
    assert restored.is_checked("input[name=kind][value=real]")
    assert restored.inner_text("#errors") == ""
    # An address that asks for less leaves all.
    assert open_page().locator("#rollouts .row").count() == 5


def test_rollout_that_is_open_is_in_sight_when_the_list_grows_again(
    open_page: Callable[..., Page], dataset_writer: Any, serve: Any, tmp_path: Path
) -> None:
    dataset_writer(tmp_path / "many", (3,) * 60 + (5,), False)
    for base in serve(tmp_path):
        page = open_page("#min-length=5", base=base)
        assert page.locator("#rollouts .row").count() == 1
        page.fill("input[name=min-length]", "")
        row, around = (box_of(page, of) for of in (".row[aria-selected='true']", "#rollouts"))
        assert around["y"] <= row["y"] <= around["y"] + around["height"] - row["height"]
        # Before its server goes: the address is about to change.
        page.close()


def test_readers_who_want_less_motion_begin_slowly(browser: Browser, address: str) -> None:
    for motion, speed in (("reduce", "2"), ("no-preference", "10")):
        context = browser.new_context(reduced_motion=motion)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        assert page.input_value("#speed") == speed
        assert page.evaluate("window.dreamscope.player.playing") is False
        context.close()


def test_history_goes_back_to_the_rollout_before(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.click(".row >> nth=1")
    wait_until(page, "document.getElementById('scrubber').max === '299'")
    page.go_back()
    wait_until(page, "document.getElementById('scrubber').max === '11'")


def test_filters_leave_what_a_direct_computation_leaves(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page()
    page.fill("input[name=min-length]", "8")
    page.fill("input[name=max-length]", "50")
    lengths = [*panel_data.real.episodes["length"], *panel_data.simulated.episodes["length"]]
    expected = sum(8 <= length <= 50 for length in lengths)
    assert page.inner_text("#list-count") == f"{expected} of {len(lengths)} shown"
    assert page.locator(".row").count() == expected
    page.check("input[name=kind][value=simulated]", force=True)
    assert page.locator(".row").count() == 2
    page.fill("input[name=min-length]", "1000")
    assert "No rollout meets all conditions" in page.inner_text("#rollouts")
    page.fill("input[name=min-length]", "")
    page.fill("input[name=max-length]", "")
    page.check("input[name=kind][value=real]", force=True)
    page.select_option("select[name=complete]", "yes")
    complete = int(panel_data.real.episodes["level_complete"].sum())
    assert page.locator(".row").count() == complete


def test_list_names_the_dataset_of_every_rollout(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page()
    lines = "#rollouts .group:not(.staying), #rollouts .row .episode"
    numbers = [2 * position + 1 for position in range(3)]
    expected = ["data", *numbers, "samples", *numbers[:2]]
    assert page.locator(lines).all_inner_texts() == [str(text) for text in expected]
    assert page.inner_text("#rollouts .staying") == "data"
    assert ", samples," in str(page.locator(".row >> nth=4").get_attribute("aria-label"))
    page.click("[data-sort=return]")
    assert page.locator("#rollouts .group").count() == 0
    tables = [panel_data.real.episodes, panel_data.simulated.episodes]
    returns = [
        (row, name)
        for name, table in zip(("data", "samples"), tables, strict=True)
        for row in table["return"]
    ]
    names = page.locator("#rollouts .row .dataset").all_inner_texts()
    assert names == [name for _, name in sorted(returns)]
    page.check("input[name=kind][value=simulated]", force=True)
    # One dataset alone needs no name.
    assert page.locator("#rollouts .dataset, #rollouts .group").count() == 0


def test_heading_of_a_long_group_stays_in_sight(
    open_page: Callable[..., Page], dataset_writer: Any, serve: Any, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        dataset_writer(tmp_path / name, (2,) * 60, False)
    for base in serve(tmp_path):
        page = open_page(base=base)
        for line, heading in ((0, "first"), (40, "first"), (61, "second"), (90, "second")):
            page.evaluate("top => { window.dreamscope.list.box.scrollTop = top; }", 30 * line + 5)
            wait_until(
                page, f"document.querySelector('#rollouts .staying').textContent === '{heading}'"
            )
            box = box_of(page, "#rollouts .staying")
            around = box_of(page, "#rollouts")
            assert abs(box["y"] - around["y"]) < 1


def test_every_action_is_named_beside_another_rollout(
    related_data: Path, open_page: Callable[..., Page], serve: Any
) -> None:
    for base in serve(related_data):
        page = open_page(base=base)
        samples = page.evaluate(
            "window.dreamscope.catalogue.datasets.find(({ label }) => label === 'demo/samples').id"
        )
        intervened = page.evaluate(
            "window.dreamscope.catalogue.datasets"
            ".find(({ label }) => label === 'demo/samples_intervened').id"
        )
        page = open_page(f"#data={samples}&episode=1&beside=intervened.{intervened}", base=base)
        page.wait_for_selector("#other-box:not([hidden])")
        height, rows, labels = page.evaluate(
            """() => {
              const { plot } = window.dreamscope.traces;
              const { yaxis3: axis } = plot._fullLayout;
              const named = plot.querySelectorAll('.y3tick text').length;
              return [axis._length, axis.range[0] + 0.5, named];
            }"""
        )
        assert labels == rows
        assert height >= 10.9 * rows


def test_shades_have_a_scale_with_numbers(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1&target=value&view=components")
    assert page.inner_text("#action-legend").split() == ["probability", "0", "0.25", "1"]
    heat = page.evaluate(
        """(({ colorscale, zmin, zmax, colorbar }) => ({ colorscale, zmin, zmax, colorbar }))(
          document.querySelector('#traces .plot').data.find(({ type }) => type === 'heatmap'))"""
    )
    # The middle of the legend is the middle of the colours.
    stops = [at for at, _ in heat["colorscale"]]
    assert stops == [0, 1 / 16, 1 / 4, 9 / 16, 1]
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    assert heat["colorbar"]["title"]["text"] == "probability"
    limit = page.evaluate("window.dreamscope.components.height") / 1.08
    shown = page.inner_text("#component-map-legend").replace("−", "-").split("\n")
    assert shown[0] == "activation, in the component's unit"
    assert [float(text) for text in shown[1:]] == pytest.approx([-limit, 0, limit], abs=6e-3)
    page.select_option("#component-quantity", "gradient")
    wait_until(
        page,
        "document.getElementById('component-map-legend').textContent.startsWith('d value / d')",
    )


def test_address_that_asks_for_what_there_is_not_is_told(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(
        f"#data={ids['real']}&episode=1&step=99&view=nowhere&colour=taste&x=pca.9&speed=3"
        "&lag=soon&lasso=1,2&gain=9"
    )
    told = page.locator("#errors p").all_inner_texts()
    for name, value in (
        ("step", "99"),
        ("view", "nowhere"),
        ("colour", "taste"),
        ("x", "pca.9"),
        ("lasso", "1,2"),
        ("gain", "9"),
    ):
        assert sum(f"asks for {name} “{value}”" in text for text in told) == 1, name
    assert sum("“speed”, which this page does not know" in text for text in told) == 1
    assert sum("lag “soon”, where a number is expected" in text for text in told) == 1
    assert page.input_value("#scrubber") == "11"
    # What the reader chose here, and what there is, is not told of.
    page = open_page(f"#data={ids['real']}&episode=1&step=3&view=states&colour=action&x=pca.1")
    page.select_option("#colour", "ica.0")
    page.click(".row >> nth=1")
    page.go_back()
    wait_for_step(page, 3)
    assert page.locator("#errors p").count() == 0


def test_lasso_selects_the_points_inside(open_page: Callable[..., Page], panel_client: Any) -> None:
    corners = [(-0.5, -1.0), (1.0, -0.5), (0.2, 0.1), (0.8, 1.2), (-0.7, 0.9)]
    text = ";".join(f"{x},{y}" for x, y in corners)
    page = open_page(
        f"#{urlencode({'x': 'pca.0', 'y': 'pca.1', 'colour': 'value', 'lasso': text})}"
    )
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    columns = f"/api/analyses/{entry['id']}/columns"
    points = np.stack(
        [panel_client.arrays(f"{columns}/pca?component={axis}")["values"] for axis in (0, 1)],
        axis=1,
    )
    inside = MatplotlibPath(corners).contains_points(points)
    names = [
        panel_client.arrays(f"{columns}/{name}")["values"] for name in ("source", "episode_id")
    ]
    rollouts = len(set(zip(*(values[inside].tolist() for values in names), strict=True)))
    shown = page.inner_text("#selection-count")
    assert shown.startswith(f"{inside.sum()} steps of {rollouts} rollouts inside")
    assert page.locator("#lasso-gallery .thumbnail").count() >= 16


def test_lasso_is_drawn_with_the_pointer(open_page: Callable[..., Page]) -> None:
    page = open_page("#x=pca.0&y=pca.1")
    page.click("#lasso")
    box = box_of(page, "#scatter")
    centre = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(centre[0] - 60, centre[1] - 60)
    page.mouse.down()
    for across, down in ((60, -60), (60, 60), (-60, 60)):
        page.mouse.move(centre[0] + across, centre[1] + down, steps=4)
    page.mouse.up()
    page.wait_for_selector("#selection:not([hidden])")
    assert "inside" in page.inner_text("#selection-count")
    page.click("#lasso")
    page.click("#clear-lasso")
    page.wait_for_selector("#selection", state="hidden")


DENSITY = """async () => {
  const { paintDensity } = await import('./static/point_layer.js');
  const image = new ImageData(4, 4);
  image.data.fill(255);
  const positions = [0, 0, 1, 1, 1.5, 0.5, 3, 3, NaN, 1, -1, 2, 9, 9];
  paintDensity(image, positions, [0, 0, 1, 1, 0, 0, 0], [[0, 0, 0], [90, 90, 90]], 2);
  return [...image.data].filter((_, at) => at % 4 === 0);
}"""


def test_density_counts_points_and_averages_colours(open_page: Callable[..., Page]) -> None:
    shown = np.array(open_page().evaluate(DENSITY)).reshape(4, 4)
    full = 30.0
    half = 255 + (90 - 255) * (0.25 + 0.75 * np.log(2) / np.log(4))
    expected = np.full((4, 4), 255.0)
    expected[:2, :2], expected[2:, 2:] = full, half
    np.testing.assert_allclose(shown, expected, atol=1)


def save_plot(page: Page, box: str, form: str) -> bytes:
    page.click(f"{box} .export summary")
    with page.expect_download() as waiting:
        page.click(f"{box} .export button:text-is('{form}')")
    assert waiting.value.suggested_filename.endswith(f".{form.lower()}")
    return Path(waiting.value.path()).read_bytes()


def test_traces_are_saved_as_table_picture_and_drawing(
    open_page: Callable[..., Page], panel_data: Any, ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=1")
    rollout = panel_data.simulated.read_episode(0)
    table = pd.read_csv(io.BytesIO(save_plot(page, "#traces", "CSV")))
    np.testing.assert_allclose(table["value"], rollout.value, rtol=1e-6)
    np.testing.assert_allclose(table["terminal_prob"], rollout.terminal_prob, rtol=1e-6)
    probabilities = softmax(rollout.action_logits, axis=1)
    np.testing.assert_allclose(table["probability fire"], probabilities[:, 4], rtol=1e-4)
    size = page.evaluate(
        "(({width, height}) => [width, height])(window.dreamscope.traces.plot._fullLayout)"
    )
    picture = Image.open(io.BytesIO(save_plot(page, "#traces", "PNG")))
    assert list(picture.size) == [2 * side for side in size]
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20
    # The page tells the shades beside the plot, a saved picture has a bar of them.
    drawing = save_plot(page, "#traces", "SVG")
    assert b"<svg" in drawing
    assert b"probability</text>" in drawing


def test_what_cannot_be_saved_is_told_in_the_page(
    open_page: Callable[..., Page], visitor: Any
) -> None:
    page = open_page("#view=states", fresh=True)
    wait_until(page, "window.Plotly !== undefined")
    page.evaluate(
        "() => { window.Plotly.toImage = async () => { throw new Error('no memory for it'); }; }"
    )
    page.click("#traces .export summary")
    page.click("#traces .export button:text-is('PNG')")
    wait_until(page, "document.getElementById('errors').innerText !== ''")
    assert "Something in this page failed: no memory for it" in page.inner_text("#errors")
    # The console has it too, for those who look for its place, and nothing else.
    [complaint] = visitor.complaints
    assert "no memory for it" in complaint
    visitor.complaints.clear()
    visitor.pages.clear()


def test_scatter_is_saved_with_its_points(
    open_page: Callable[..., Page], panel_client: Any
) -> None:
    page = open_page("#x=pca.0&y=pca.1&colour=action")
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    column = f"/api/analyses/{entry['id']}/columns/pca?component=1"
    content = io.BytesIO(save_plot(page, "#scatter-foot", "CSV"))
    table = pd.read_csv(content, keep_default_na=False)
    np.testing.assert_allclose(table["pca.1"], panel_client.arrays(column)["values"], rtol=1e-5)
    assert set(table["action"]) == {"left", "null", "right", "upleft", "fire"}
    drawing = save_plot(page, "#scatter-foot", "SVG").decode()
    assert drawing.count("data:image/png") == 2


def legend_of(drawing: bytes) -> tuple[list[str], list[str]]:
    """Texts and colours of the legend below a saved drawing."""
    name = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(drawing)
    [legend] = [group for group in root.iter(f"{name}g") if group.get("class") == "legend"]
    texts = [str(text.text) for text in legend.iter(f"{name}text")]
    marks = [str(mark.get("fill")) for mark in legend.iter(f"{name}path")]
    stops = [str(stop.get("stop-color")) for stop in legend.iter(f"{name}stop")]
    return texts, marks + stops


def test_saved_pictures_tell_what_their_colours_stand_for(
    open_page: Callable[..., Page], panel_client: Any, ids: dict[str, str]
) -> None:
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    page = open_page("#x=pca.0&y=pca.1&colour=action")
    drawing = save_plot(page, "#scatter-foot", "SVG")
    texts, colours = legend_of(drawing)
    assert set(texts) == {"action", "left", "null", "right", "upleft", "fire"}
    assert len(set(colours)) == 5
    height = page.evaluate("document.querySelector('#scatter .plot')._fullLayout.height")
    total = int(str(ElementTree.fromstring(drawing).get("height")))
    assert total > height
    picture = Image.open(io.BytesIO(save_plot(page, "#scatter-foot", "PNG")))
    assert picture.size[1] == 2 * total
    # Something is written in the strip below the plot.
    assert len(np.unique(np.asarray(picture.convert("L"))[2 * height :])) > 10
    page = open_page("#x=pca.0&y=pca.1&colour=value")
    texts, colours = legend_of(save_plot(page, "#scatter-foot", "SVG"))
    values = panel_client.arrays(f"/api/analyses/{entry['id']}/columns/value")["values"]
    low, high = np.quantile(values, [0.01, 0.99], method="nearest")
    assert texts[0] == "value"
    ends = [text.replace("−", "-").split() for text in texts[1:]]
    assert [sign for sign, _ in ends] == ["≤", "≥"]
    assert [float(number) for _, number in ends] == pytest.approx([low, high], abs=0.1)
    assert len(colours) == 10
    assert page.inner_text("#legend").split() == " ".join(texts).split()
    page = open_page(f"#data={ids['simulated']}&episode=1&target=value&view=components")
    texts, _ = legend_of(save_plot(page, "#bars-head", "SVG"))
    assert texts[0] == "d value / d component"
    assert texts[2] == "0"


def gif_frames(content: bytes) -> tuple[np.ndarray, list[int]]:
    """All frames (T, H, W, 3) and for how many milliseconds each is shown."""
    with Image.open(io.BytesIO(content)) as picture:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(picture):
            frames.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info["duration"])
    return np.stack(frames), durations


ENCODE_GIF = """async ([width, height, images]) => {
  const { GifEncoder } = await import(new URL('static/gif.js', document.baseURI));
  const encoder = new GifEncoder({ width, height, fps: 15 });
  const canvas = new OffscreenCanvas(width, height);
  for (const image of images) {
    const bytes = Uint8ClampedArray.from(atob(image), (byte) => byte.charCodeAt(0));
    canvas.getContext('2d').putImageData(new ImageData(bytes, width, height), 0, 0);
    await encoder.add(canvas);
  }
  const blob = await encoder.finish();
  return btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())));
}"""


def encode_gif(page: Page, frames: np.ndarray) -> bytes:
    opaque = np.full((*frames.shape[:3], 1), 255, np.uint8)
    images = [
        base64.b64encode(image.tobytes()).decode()
        for image in np.concatenate([frames, opaque], axis=-1)
    ]
    height, width = frames.shape[1:3]
    return base64.b64decode(page.evaluate(ENCODE_GIF, [width, height, images]))


@pytest.mark.parametrize("num_colours", [1, 2, 3, 16, 17, 256])
def test_gif_keeps_up_to_256_colours_exactly(
    num_colours: int, open_page: Callable[..., Page]
) -> None:
    rng = np.random.default_rng(num_colours)
    colours = rng.integers(0, 256, (num_colours, 3), dtype=np.uint8)
    # Noise of so many pixels fills the table of codes several times over.
    frames = colours[rng.integers(0, num_colours, (3, 90, 110))]
    frames[1] = colours[0]
    decoded, durations = gif_frames(encode_gif(open_page(), frames))
    np.testing.assert_array_equal(decoded, frames)
    assert durations == [70, 60, 70]


def test_gif_of_more_colours_stays_close(open_page: Callable[..., Page]) -> None:
    levels = np.linspace(0, 255, 64).astype(np.uint8)
    ramp = np.stack([*np.meshgrid(levels, levels), np.full((64, 64), 90)], axis=-1)
    [decoded], _ = gif_frames(encode_gif(open_page(), ramp[None].astype(np.uint8)))
    # 256 groups of 4,096 evenly spaced colours: 4 × 4 steps of 4 levels each.
    assert np.abs(decoded.astype(int) - ramp).max() <= 10
    assert len(np.unique(decoded.reshape(-1, 3), axis=0)) == 256


def test_rollout_is_saved_as_a_moving_picture(
    open_page: Callable[..., Page], panel_data: Any, ids: dict[str, str], tmp_path: Path
) -> None:
    page = open_page(f"#data={ids['real']}&episode=1")
    page.select_option("#speed", "5")
    obs = panel_data.real.read_episode(0).obs
    height, scale = obs.shape[1], 26
    expected = obs.repeat(scale, axis=1).repeat(scale, axis=2).astype(int)
    frames, durations = gif_frames(save_plot(page, ".controls", "GIF"))
    assert durations == [200] * len(obs)
    pictures, caption = np.split(frames, [height * scale], axis=1)
    # Each frame has 280 colours, the caption some more, a GIF's palette 256.
    assert (np.abs(pictures - expected).max(axis=-1) == 0).mean() > 0.6
    assert np.abs(pictures - expected).mean() < 3
    assert all((line > 200).any() and (line < 40).any() for line in caption)
    assert len({line.tobytes() for line in caption}) == len(obs)
    path = tmp_path / "clip.mp4"
    path.write_bytes(save_plot(page, ".controls", "MP4"))
    video = read_video(path)
    assert video.shape == frames.shape
    middle = slice(scale // 2, None, scale)
    pixels = video[:, : height * scale][:, middle, middle].astype(int)
    assert np.abs(pixels - obs).mean() < 12
    assert page.locator("#saving").is_hidden()


@pytest.mark.parametrize("placement", ["", "beside"])
def test_saliency_that_is_shown_is_saved(
    placement: str, open_page: Callable[..., Page], panel_data: Any, ids: dict[str, str]
) -> None:
    fragment = (
        f"#data={ids['simulated']}&episode=1&target=value&step=3&gain=0&placement={placement}"
    )
    page = open_page(fragment)
    wait_for_step(page, 3)
    obs = panel_data.simulated.read_episode(0).obs[3]
    paint = canvas_pixels(page, "overlay").astype(float)
    light = obs @ np.array([0.2126, 0.7152, 0.0722])
    grey = ((light - 127.5) * 0.75 + 127.5)[..., None]
    share = paint[..., 3:] / 255
    expected = (1 - share) * grey + share * paint[..., :3]
    frames, _ = gif_frames(save_plot(page, ".controls", "GIF"))
    scale = 13 if placement else 26
    left = obs.shape[1] * scale + 8 if placement else 0
    centre = scale // 2
    rows = np.arange(obs.shape[0]) * scale + centre
    columns = np.arange(obs.shape[1]) * scale + centre
    salient = frames[3][rows[:, None], left + columns].astype(float)
    assert np.abs(salient - expected).mean() < 4
    if placement:
        assert np.abs(frames[3][rows[:, None], columns].astype(float) - obs).mean() < 8


def test_rollout_beside_is_saved_too(
    open_page: Callable[..., Page], related_data: Path, client_maker: Any, serve: Any
) -> None:
    datasets = client_maker(related_data).json("/api/catalogue")["datasets"]
    known = {entry["label"]: entry["id"] for entry in datasets}
    reality = known["demo/samples/replays"]
    content = b""
    for base in serve(related_data):
        page = open_page(f"#data={known['demo/samples']}&episode=3&beside=reality.{reality}", base)
        wait_until(page, "window.dreamscope.player.other !== null")
        content = save_plot(page, ".controls", "GIF")
    frames, _ = gif_frames(content)
    obs = RolloutDataset(related_data / "samples" / "replays").read_episode(1).obs
    right = frames[:, 6 : 13 * obs.shape[1] : 13, 13 * obs.shape[2] + 8 + 6 :: 13]
    assert len(frames) == 10 > len(obs) == 6
    assert np.abs(right[:6].astype(int) - obs).mean() < 8
    # It has ended: nothing but the ground is left.
    assert len(np.unique(right[6:].reshape(-1, 3), axis=0)) == 1


def test_browser_that_cannot_encode_says_so(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['real']}&episode=1", fresh=True)
    page.evaluate("() => { VideoEncoder.isConfigSupported = async () => ({ supported: false }); }")
    page.click(".controls .export summary")
    page.click(".controls .export button:text-is('MP4')")
    page.wait_for_selector("#errors p")
    assert "cannot encode MP4 (H.264) here; save a GIF instead" in page.inner_text("#errors")
    assert page.locator("#saving").is_hidden()
    # The next test finds a browser that can again.
    open_page(fresh=True)


def test_saving_can_be_cancelled(open_page: Callable[..., Page], ids: dict[str, str]) -> None:
    page = open_page(f"#data={ids['real']}&episode=3")
    downloads: list[Any] = []
    page.on("download", lambda download: downloads.append(download))
    page.click(".controls .export summary")
    page.click(".controls .export button:text-is('GIF')")
    page.click("#cancel-saving")
    page.wait_for_selector("#saving", state="hidden")
    page.wait_for_timeout(200)
    assert downloads == []


def test_save_menu_names_the_command_for_a_page(
    open_page: Callable[..., Page], ids: dict[str, str]
) -> None:
    page = open_page(f"#data={ids['simulated']}&episode=3")
    wait_until(page, f"window.dreamscope.current?.dataset.id === '{ids['simulated']}'")
    page.click(".controls .export summary")
    # The menu tells when it has opened, a task after the click.
    hint = "python -m panel export demo/samples:3 --out DIR"
    wait_until(page, f"document.querySelector('.controls .export').innerText.includes('{hint}')")
    page.click(".controls .export summary")


def analysed(panel_data: Any) -> pd.DataFrame:
    path = panel_data.folder / "analysis" / "hidden_analysis.nc"
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        names = ("source", "episode_id", "step", "value", "action", "cluster", "reward")
        table = pd.DataFrame({name: stored[name].to_numpy() for name in names})
        table["ic"] = stored["ica"].to_numpy()[:, 1]
    return table


@pytest.mark.parametrize("scope", ["", "anywhere"])
def test_conditions_leave_what_a_direct_computation_leaves(
    scope: str, open_page: Callable[..., Page], panel_data: Any
) -> None:
    text = "ica.1 > 1 and action = right and value < 0.5"
    query = urlencode({"view": "filter", "filter": text, "scope": scope})
    page = open_page(f"#{query}")
    table = analysed(panel_data)
    holds = pd.DataFrame(
        {"ic": table["ic"] > 1, "action": table["action"] == 2, "value": table["value"] < 0.5}
    )
    episodes = [table["source"], table["episode_id"]]
    if scope:
        matching = holds.groupby(episodes).any().all(axis=1)
    else:
        matching = holds.all(axis=1).groupby(episodes).any()
    assert 0 < matching.sum() < len(matching) or scope
    expected = f"{matching.sum()} of {len(matching)} analysed rollouts match."
    assert page.inner_text("#filter-count") == expected
    assert page.locator(".row").count() == matching.sum()
    assert page.locator("#filter-gallery .thumbnail").count() == matching.sum()
    assert page.locator("#conditions li").count() == 3
    page.click("#conditions li:last-child button")
    wait_until(page, "document.getElementById('filter-text').value.endsWith('action = right')")


COMPARE = {
    "=": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}
CODES = {
    "source": {"real": 0, "simulated": 1},
    "done": {"other steps": 0, "last step": 1},
    "action": {"left": 0, "null": 1, "right": 2, "upleft": 3, "fire": 4},
    "cluster": {"none": -1},
}


def offered_values(page: Page, variable: str) -> list[str]:
    """What the form offers: names, or both ends of the range."""
    box = page.locator("#condition-value")
    box.evaluate("box => { box.placeholder = ''; }")
    page.select_option("#condition-variable", variable)
    wait_until(page, "document.getElementById('condition-value').placeholder !== ''")
    names = page.locator("#condition-values option").evaluate_all("all => all.map(o => o.value)")
    return names or str(box.get_attribute("placeholder")).split(" … ")


def add_condition(page: Page, variable: str, operator: str, value: str) -> None:
    """As the only one: by the form, then by its own text alone."""
    page.click("#clear-filter")
    settle(page)
    page.select_option("#condition-operator", operator)
    page.fill("#condition-value", value)
    page.click("#condition-form button")
    settle(page)
    written = page.input_value("#filter-text")
    assert written.startswith(f"{variable} {operator} ")
    assert page.inner_text("#filter-error") == "", written
    [shown] = page.locator("#conditions li").all_text_contents()
    assert shown.rstrip("×") == written
    page.click("#clear-filter")
    settle(page)
    page.fill("#filter-text", written)
    page.dispatch_event("#filter-text", "change")
    settle(page)


def values_of(page: Page, variable: str) -> np.ndarray:
    read = f"window.dreamscope.filter.rows.column('{variable}').then(values => [...values])"
    # JSON, which Playwright speaks, has no NaN.
    return np.array(page.evaluate(read), np.float64)


def test_conditions_of_the_form_are_read_back_from_their_text(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("#view=filter", fresh=True)
    options = page.locator("#condition-variable option")
    variables = options.evaluate_all("all => all.map(option => option.value)")
    assert {"done", "cluster", "trust", "pca.3", "embedding.1", "gradient.2"} <= set(variables)
    groups = page.evaluate("window.dreamscope.filter.rows.groups().then(g => [...g.groupOf])")
    operators = itertools.cycle(COMPARE)
    for variable in variables:
        for value in offered_values(page, variable)[:4]:
            if value == "not known here":
                continue
            operator = next(operators)
            add_condition(page, variable, operator, value)
            if variable.startswith("gradient"):
                continue
            named = CODES.get(variable, {}).get(value)
            bound = float(value.replace("−", "-")) if named is None else named
            holds = COMPARE[operator](values_of(page, variable), np.float32(bound))
            count = len(np.unique(np.array(groups)[holds]))
            said = page.inner_text("#filter-count")
            assert said.startswith(f"{count} of 5 analysed rollouts match."), (variable, value)


@pytest.mark.parametrize(
    "name", ["last step", "left and right", 'say "and"', "and", "a\\", "> 3", "= x", "7", "a  b"]
)
def test_names_of_actions_that_look_like_something_else_are_read_back(
    name: str, open_page: Callable[..., Page]
) -> None:
    page = open_page("#view=filter", fresh=True)
    page.evaluate("name => { window.dreamscope.filter.rows.actionNames[3] = name; }", name)
    assert name in offered_values(page, "action")
    add_condition(page, "action", "=", name)
    assert page.inner_text("#filter-error") == ""
    assert page.evaluate("window.dreamscope.filter.conditions[0].bound") == 3


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("cluster = none", [-1]),
        ("done = last", [1]),
        ("done = last step AND cluster != 3", [1, 3]),
        ("done = other and source=simulated", [0, 1]),
        ("value > −1.5", [-1.5]),
        ("action = action 9", [9]),
    ],
)
def test_names_that_the_page_shows_are_values_of_conditions(
    text: str, bounds: list[float], open_page: Callable[..., Page]
) -> None:
    page = open_page(f"#{urlencode({'view': 'filter', 'filter': text})}")
    assert page.inner_text("#filter-error") == ""
    read = "window.dreamscope.filter.conditions.map(({ bound }) => bound)"
    assert page.evaluate(read) == bounds


def test_a_match_opens_at_the_step_where_it_matches(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    table = analysed(panel_data)
    threshold = float(table.loc[table["source"] == 1, "value"].nlargest(1).iloc[0])
    row = table[(table["source"] == 1) & (table["value"] >= threshold)].iloc[0]
    text = f"source = simulated and value >= {threshold:.7f}"
    page = open_page(f"#{urlencode({'view': 'filter', 'filter': text})}")
    page.click("#filter-gallery .thumbnail")
    wait_for_step(page, int(row["step"]))
    index = panel_data.simulated.index_of(int(row["episode_id"]))
    assert shows_frame(page, panel_data.simulated.read_episode(index).obs[int(row["step"])])


def test_extremes_are_those_of_a_direct_computation(
    open_page: Callable[..., Page], panel_data: Any
) -> None:
    page = open_page("#view=filter")
    page.select_option("#extreme-variable", "ica.1")
    page.click("[data-extreme=high]")
    wait_until(page, "document.querySelectorAll('#filter-gallery .thumbnail').length === 5")
    table = analysed(panel_data)
    best = table.loc[table.groupby(["source", "episode_id"])["ic"].idxmax()]
    best = best.sort_values("ic", ascending=False)
    kinds = ["real", "sim."]
    expected = [
        f"{kinds[source]} {episode}, step {step}"
        for source, episode, step in best[["source", "episode_id", "step"]].itertuples(index=False)
    ]
    assert page.locator("#filter-gallery .thumbnail > :nth-child(2)").all_inner_texts() == expected
    assert "extreme=ica.1.high" in page.evaluate("window.dreamscope.view.address()")


@pytest.mark.parametrize(
    "text",
    [
        "value",
        "nothing > 3",
        "value > high",
        "action = sideways",
        "done = step",
        "value > 3 and",
        'value > ""',
        'action = "left',
        "cluster = last step",
    ],
)
def test_text_that_is_no_condition_is_explained(text: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"#{urlencode({'view': 'filter', 'filter': text})}")
    assert page.inner_text("#filter-error")
    assert page.get_attribute("#filter-text", "aria-invalid") == "true"


def test_sorting_by_steps(open_page: Callable[..., Page], panel_data: Any) -> None:
    page = open_page()
    page.click("[data-sort=length]")
    page.click("[data-sort=length]")
    lengths = [*panel_data.real.episodes["length"], *panel_data.simulated.episodes["length"]]
    shown = page.locator(".row .numeric:nth-child(3)").all_inner_texts()
    assert [int(text) for text in shown] == sorted(lengths, reverse=True)


def test_address_of_something_absent_says_so(open_page: Callable[..., Page]) -> None:
    page = open_page("#data=0123456789abcdef&episode=7&step=3&x=nothing.9&colour=<b>")
    assert "not here" in page.inner_text("#errors")
    wait_for_step(page, 0)


def test_without_data_the_page_names_the_commands(
    open_page: Callable[..., Page], empty_address: str
) -> None:
    page = open_page(base=empty_address)
    text = page.inner_text("main")
    for command in (
        "python record.py",
        "python record_gen_samples.py",
        "python analysis/hidden_analysis_precompute.py",
    ):
        assert command in text
    # Nothing that would do nothing.
    assert page.is_hidden("#lasso")
    assert page.locator(".export:visible").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: Any, browser: Browser, address: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    for selector in ("h2", "#list-count", ".row", "#value-figure", ".key", "select"):
        colour, ground = page.evaluate(
            """selector => {
              let element = document.querySelector(selector);
              const colour = getComputedStyle(element).color;
              const ground = () => getComputedStyle(element).backgroundColor;
              while (ground() === 'rgba(0, 0, 0, 0)') element = element.parentElement;
              return [colour, ground()];
            }""",
            selector,
        )
        assert contrast(colour, ground) >= 4.5, (selector, colour, ground)
    page.close()


def contrast(first: str, second: str) -> float:
    """Contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        channels = np.array([float(part) for part in colour[4:-1].split(",")[:3]]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
