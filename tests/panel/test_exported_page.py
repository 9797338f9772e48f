"""The exported page in a real browser, opened from its file, without a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from playwright.sync_api import Browser, Page, Request

from panel.catalogue import DATASET_FILE, item_id
from panel.export import ExportConfig, export

pytestmark = pytest.mark.medium


@dataclass(frozen=True)
class ExportedPage:
    """Where the page lies, and the ids of its datasets."""

    address: str
    real: str
    simulated: str


@pytest.fixture(scope="module")
def exported(panel_data: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportedPage:
    folder = tmp_path_factory.mktemp("exported") / "page"
    real, simulated = panel_data.folder / "data", panel_data.folder / "samples"
    export(ExportConfig((f"{real}:1,3", f"{simulated}:1,3"), folder))
    address = (folder / "index.html").as_uri()
    return ExportedPage(address, item_id(real / DATASET_FILE), item_id(simulated / DATASET_FILE))


@pytest.fixture
def page(browser: Browser, exported: ExportedPage) -> Iterator[Page]:
    """Opens nothing yet; at the end the page must have asked for files beside it only."""
    folder = exported.address.removesuffix("index.html")
    complaints: list[str] = []

    def hear_request(request: Request) -> None:
        if not request.url.startswith((folder, "data:", "blob:")):
            complaints.append(request.url)

    with browser.new_context(viewport={"width": 1280, "height": 800}, offline=True) as context:
        opened = context.new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("requestfailed", lambda request: complaints.append(request.url))
        opened.on("request", hear_request)
        yield opened
    # The tests themselves read the canvas back, which Chromium advises against.
    assert [text for text in complaints if "willReadFrequently" not in text] == []


def open_view(page: Page, exported: ExportedPage, fragment: str = "") -> None:
    page.goto(exported.address + fragment)
    page.wait_for_selector("body[data-ready]", state="attached")


def test_frames_are_those_of_the_store(
    page: Page, exported: ExportedPage, panel_data: Any, canvas_pixels: Any
) -> None:
    open_view(page, exported)
    page.wait_for_selector("#frame[data-step='0']:not(.waiting)")
    first = panel_data.real.read_episode(0)
    np.testing.assert_array_equal(canvas_pixels(page, "frame")[..., :3], first.obs[0])
    page.keyboard.press("End")
    page.wait_for_selector(f"#frame[data-step='{len(first) - 1}']:not(.waiting)")
    np.testing.assert_array_equal(canvas_pixels(page, "frame")[..., :3], first.obs[-1])
    assert page.locator("#rollouts .row").count() == 4
    # Of the second, long one the frames come in two parts.
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#scrubber[max='299']")
    page.keyboard.press("End")
    page.wait_for_selector("#frame[data-step='299']:not(.waiting)")
    second = panel_data.real.read_episode(1)
    np.testing.assert_array_equal(canvas_pixels(page, "frame")[..., :3], second.obs[299])
    shown = float(page.inner_text("#value-figure").replace("−", "-"))
    assert shown == pytest.approx(second.value[299], abs=6e-4)
    assert page.locator("#errors p").count() == 0


def test_traces_components_and_saliency_are_those_of_the_panel(
    page: Page, exported: ExportedPage, panel_data: Any, panel_client: Any, canvas_pixels: Any
) -> None:
    fragment = f"#data={exported.simulated}&episode=1&step=2&target=ic_0&at=6&path=agent"
    open_view(page, exported, fragment)
    page.wait_for_selector("#frame[data-step='2']:not(.waiting)")
    rollout = panel_data.simulated.read_episode(0)
    traces = page.evaluate("window.dreamscope.traces.plot.data.map(({y, z}) => ({y: [...y], z}))")
    np.testing.assert_allclose(traces[0]["y"], rollout.value, rtol=1e-6)
    assert len(traces[2]["z"]) == panel_data.simulated.metadata.num_actions
    [file] = panel_client.json("/api/catalogue")["saliency"]
    query = "target=ic_0&target_step=6&environment_gradient=cut"
    base = f"/api/saliency/{file['id']}/samples/1"
    signed = panel_client.arrays(f"{base}?{query}")["saliency"][2]
    overlay = canvas_pixels(page, "overlay")
    strong = overlay[..., 3] > 40
    assert strong.mean() > 0.3
    is_orange = overlay[..., 0] > overlay[..., 2]
    np.testing.assert_array_equal(is_orange[strong], signed[strong] > 0)
    components = panel_client.arrays(f"{base}/components?{query}")
    bars = page.evaluate("[...window.dreamscope.components.bars.data[0].y]")
    np.testing.assert_allclose(bars, components["activation"][2], rtol=1e-5)
    colours = page.evaluate("window.dreamscope.components.bars.data[0].marker.color")
    assert len(set(colours)) > 1


def test_real_rollout_shows_the_components_of_the_analysis(
    page: Page, exported: ExportedPage, panel_client: Any
) -> None:
    open_view(page, exported, f"#data={exported.real}&episode=3&step=250")
    [analysis] = panel_client.json("/api/catalogue")["analyses"]
    rows = panel_client.arrays(f"/api/analyses/{analysis['id']}/episodes/real/3")
    page.wait_for_selector("#component-bars .plot-container")
    bars = page.evaluate("[...window.dreamscope.components.bars.data[0].y]")
    np.testing.assert_allclose(bars, rows["ica"][250], rtol=1e-5)


def test_what_the_panel_refuses_is_refused_in_its_words(page: Page, exported: ExportedPage) -> None:
    open_view(page, exported)
    said = page.evaluate(
        """async (id) => {
          const { frames } = window.dreamscope.player.sample;
          frames.path = `api/datasets/${id}/episodes/99/frames`;
          frames.chunks.clear();
          return frames.load(0).catch((error) => error.message);
        }""",
        exported.real,
    )
    assert said.startswith("This exported page does not hold what was asked for")


def test_it_says_of_nothing_that_it_lacks_that_it_is_not_known(
    page: Page, exported: ExportedPage
) -> None:
    open_view(page, exported, "#view=components")
    page.wait_for_selector("#view-components", state="visible")
    assert page.is_hidden("#probe-empty")
    assert page.is_hidden("#beside-note")
    assert page.is_hidden("#saliency-note")
    assert "not known yet" not in page.inner_text("body")


def test_files_tell_where_the_page_comes_from(
    page: Page, exported: ExportedPage, panel_data: Any
) -> None:
    open_view(page, exported, "#view=files")
    page.click("#files details[data-item=supplement] summary")
    page.wait_for_selector("#files details[data-item=supplement] dl")
    text = page.inner_text("#files details[data-item=supplement]")
    assert panel_data.real.hash in text
    assert "this page" in text
    assert page.locator("#tabs [role=tab]").all_inner_texts() == ["Components", "Files"]


def test_page_saves_moving_pictures_itself(
    page: Page, exported: ExportedPage, panel_data: Any, tmp_path: Path
) -> None:
    open_view(page, exported, f"#data={exported.real}&episode=1")
    page.click(".controls .export summary")
    with page.expect_download() as waiting:
        page.click(".controls .export button:text-is('GIF')")
    waiting.value.save_as(tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as picture:
        assert len(list(ImageSequence.Iterator(picture))) == len(panel_data.real.read_episode(0))
    assert "python -m panel export" not in page.inner_text(".controls .export")
