"""Every view by the rules of axe: no serious fault, light and dark, with data and without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

pytestmark = pytest.mark.medium

PATIENCE_SECONDS = 60
VIEWS = ("states", "components", "filter", "behaviours", "interventions", "simulator", "files")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def addresses(
    serve: Any, panel_data: Any, dynamics_data: Any, effects_data: Path, tmp_path_factory: Any
) -> Iterator[dict[str, str]]:
    folders = {
        "recordings": panel_data.folder,
        "dynamics": dynamics_data.folder,
        "effects": effects_data,
        "nothing": tmp_path_factory.mktemp("nothing"),
    }
    servers = {name: serve(folder) for name, folder in folders.items()}
    yield {name: next(server) for name, server in servers.items()}
    for server in servers.values():
        next(server, None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("data", ["recordings", "dynamics", "effects", "nothing"])
def test_axe_finds_no_serious_fault(
    scheme: Any, data: str, browser: Browser, addresses: dict[str, str]
) -> None:
    # The page's policy forbids what axe does to read styles.
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": 1280, "height": 800}, bypass_csp=True
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    page.goto(addresses[data])
    page.wait_for_selector("body[data-ready]", state="attached")
    faults = []
    for view in VIEWS:
        page.click(f"#tab-{view}")
        page.wait_for_selector("body[data-ready]", state="attached")
        found = Axe().run(page).response["violations"]
        faults += [
            (view, fault["id"], node["target"], node["failureSummary"])
            for fault in found
            if fault["impact"] in SERIOUS
            for node in fault["nodes"]
        ]
    context.close()
    assert faults == []
