"""A report says what the files say, names what is missing, and needs no network."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from analysis.results import SALIENCY_TRUST_NAME, read_results, write_results
from analysis.saliency_trust import FRACTIONS, MAPS, MODES, NOISE_SCALES, STEP_SIZES, FiniteChanges
from analysis.saliency_trust_file import TrustMeasurement, to_dataset
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from findings.document import fill_document
from findings.origin import common_hashes
from findings.page import Source, number, probability, share, signed, with_bounds
from findings.report import ReportConfig, build_page, write_report

NUM_SAMPLES, NUM_DIRECTIONS = 6, 5


def saliency_trust() -> xr.Dataset:
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(3, NUM_SAMPLES, len(STEP_SIZES), NUM_DIRECTIONS))
    maps = (len(MAPS), len(MODES), len(FRACTIONS))
    measurement = TrustMeasurement(
        sample_id=np.arange(NUM_SAMPLES),
        unit=np.arange(NUM_SAMPLES),
        trust=np.linspace(0.2, 0.9, NUM_SAMPLES, dtype=np.float32),
        changes=FiniteChanges(*changes),
        clean_maps=rng.normal(size=(NUM_SAMPLES, 12)).astype(np.float32),
        to_clean=rng.uniform(size=(NUM_SAMPLES, len(NOISE_SCALES))),
        halves=rng.uniform(size=(NUM_SAMPLES, len(NOISE_SCALES))),
        curves=rng.uniform(size=(NUM_SAMPLES, *maps)),
    )
    return to_dataset(measurement, 50, 0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of which only the trust in saliency was measured, and a picture of it drawn."""
    folder = tmp_path_factory.mktemp("results")
    provenance = collect_provenance({}, 7, {"agent": "a" * 64, "simulator": "s<" * 32})
    write_results(folder / "saliency_trust" / SALIENCY_TRUST_NAME, saliency_trust(), provenance)
    figures = folder / "saliency_trust_figures"
    figures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 2000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(figures / "saliency_reality.png")
    return folder


def written(results: Path, folder: Path) -> str:
    write_report(ReportConfig(results=results, output_dir=folder), StageReport("report"))
    return (folder / "index.html").read_text()


def test_numbers_on_the_page_are_those_of_the_file(results: Path) -> None:
    table = build_page(results).table("areas")
    assert table is not None
    with read_results(results / "saliency_trust" / SALIENCY_TRUST_NAME) as file:
        chosen = {"map": "simulator", "group": "poor", "baseline": "edges", "mode": "insertion"}
        at = file.sel(chosen)
        low, high = at["area_difference_interval"].values
        expected = with_bounds(float(at["area_difference"]), low, high, 4)
        count = str(int(file["group_size"].sel(group="poor")))
    (row,) = (r for r in table.rows if r[1] == "poor" and "simulated" in r[0])
    assert row[2] == count
    assert row[table.columns.index("insertion, less edges")] == expected


def test_what_is_missing_is_named_with_the_command_that_makes_it(
    results: Path, tmp_path: Path
) -> None:
    page = written(results, tmp_path)
    for section in ("encoding", "statements", "interventions", "simulator", "states", "drives"):
        assert build_page(results).section(section).missing  # type: ignore[union-attr]
    assert "make it with: python analysis/probe_analysis_precompute.py" in page
    assert not build_page(results).section("saliency").missing  # type: ignore[union-attr]


def test_page_needs_no_network_and_all_its_figures_are_there(results: Path, tmp_path: Path) -> None:
    page = written(results, tmp_path)
    assert "http" not in page
    sources = re.findall(r'src="([^"]+)"', page)
    assert sources == ["figures/saliency_trust_figures_saliency_reality.png"]
    assert all((tmp_path / source).is_file() for source in sources)
    assert "prefers-color-scheme: dark" in page
    # Text of files is no markup.
    assert "s&lt;s&lt;" in page
    assert "s<s<" not in page


def test_every_file_is_listed_with_seed_and_hashes(results: Path) -> None:
    table = build_page(results).table("files")
    assert table is not None
    ((path, _, seed, _, inputs, _),) = table.rows
    assert (path, seed) == (f"saliency_trust/{SALIENCY_TRUST_NAME}", "7")
    assert inputs.startswith(f"agent {'a' * 12}; simulator s<")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--results .*: no such folder; make it with: make report"):
        build_page(tmp_path / "nowhere")


def test_results_of_two_simulators_make_no_report() -> None:
    sources = tuple(
        Source(f"file_{digest}", "python x", 0, "c", "now", {"simulator": digest})
        for digest in ("one", "two")
    )
    with pytest.raises(UserError, match="file_two: made with simulator two"):
        common_hashes(sources)
    assert common_hashes(sources[:1]) == {"simulator": "one"}


DOCUMENT = """Prose before.
<!-- report: table areas 1 -->
old rows
<!-- end -->
Prose between.
<!-- report: sentences saliency -->
<!-- end -->
<!-- report: tables saliency -->
<!-- end -->
<!-- report: figure saliency_trust_figures_saliency_reality.png -->
<!-- end -->
"""


def test_marked_places_of_a_document_are_filled_and_nothing_else(
    results: Path, tmp_path: Path
) -> None:
    page, document = build_page(results), tmp_path / "docs" / "findings.md"
    document.parent.mkdir()
    document.write_text(DOCUMENT)
    fill_document(page, document, document.parent / "images")
    filled = document.read_text()
    assert "old rows" not in filled
    assert filled.startswith("Prose before.\n<!-- report: table areas 1 -->\n| map |")
    assert "Prose between." in filled
    table = page.table("areas")
    assert table is not None
    assert table.rows[0][3] in filled
    before, after = filled.split("<!-- report: tables saliency -->")
    assert table.rows[-1][3] not in before
    assert table.rows[-1][3] in after
    assert table.caption in after
    name = "images/findings_saliency_trust_figures_saliency_reality.png"
    assert f"]({name})" in filled
    with Image.open(document.parent / name) as picture:
        assert picture.size == (1100, 165)
    fill_document(page, document, document.parent / "images")
    assert document.read_text() == filled


def test_a_document_that_asks_for_what_is_not_there_is_refused(
    results: Path, tmp_path: Path
) -> None:
    document = tmp_path / "findings.md"
    document.write_text("<!-- report: table probes -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="asks for table 'probes', which the page lacks"):
        fill_document(build_page(results), document, tmp_path)


def test_numbers_are_written_with_a_real_minus_and_a_dash_for_nothing() -> None:
    assert number(-0.126) == "−0.13"
    assert number(float("nan")) == "–"
    assert signed(0.5) == "+0.50"
    assert with_bounds(0.5, -0.25, 1.0) == "0.50 [−0.25, 1.00]"
    assert (probability(0.0002), probability(0.04)) == ("< 0.001", "0.040")
    assert (share(1, 4), share(0, 0)) == ("1 of 4 (25%)", "0 of 0")


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_report_on_a_whole_chain_lacks_nothing_and_agrees_with_its_files(
    finished_chain: Path, tmp_path: Path
) -> None:
    results = finished_chain / "results"
    page = build_page(results)
    assert not [line for section in page.sections for line in section.missing]
    assert "Not made" not in written(results, tmp_path)
    with read_results(results / "probe_analysis" / "probe_analysis.nc") as file:
        table = page.table("probes")
        assert table is not None
        variable, hidden = table.rows[0][:2]
        at = file.sel(variable=variable, representation="hidden", probe="linear")
        low, high = at["score_interval"].values
        assert hidden == with_bounds(float(at["score"]), low, high)
    with read_results(results / "statement_effects" / "statement_effects.nc") as file:
        table = page.table("outcomes")
        assert table is not None
        assert len(table.rows) == 4
        num_known = int(np.isfinite(file["gradient"].values).sum())
        pushed = file.sizes["source"] * file.sizes["lag"]
        # All that is known but each component's effect on itself.
        assert int(table.rows[0][2]) + int(table.rows[1][2]) == num_known - pushed
