"""Behaviours, interventions, probes, trust and gradients in a real browser."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from playwright.sync_api import Page

from analysis.cross_correlation import clip_coordinates, correlate, group_series
from panel.catalogue import item_id

pytestmark = pytest.mark.medium

PATIENCE_SECONDS = 60
MATRIX = """() => {
  const [heat, dots] = document.getElementById('matrix-plot').data;
  const z = heat.z.map((row) => [...row]);
  return { x: heat.x, y: heat.y, z, dots: dots.x.map((x, at) => [dots.y[at], x]) };
}"""


@pytest.fixture(scope="module")
def dynamics_address(serve: Any, dynamics_data: Any) -> Iterator[str]:
    yield from serve(dynamics_data.folder)


@pytest.fixture(scope="module")
def effects_address(serve: Any, effects_data: Path) -> Iterator[str]:
    yield from serve(effects_data)


@pytest.fixture
def open_dynamics(open_page: Callable[..., Page], dynamics_address: str) -> Callable[..., Page]:
    """Opens a view of the samples and their dynamics, given the values of its address."""
    return lambda fresh=False, **values: open_page(f"#{urlencode(values)}", dynamics_address, fresh)


@pytest.fixture
def open_effects(open_page: Callable[..., Page], effects_address: str) -> Callable[..., Page]:
    return lambda fresh=False, **values: open_page(
        f"#{urlencode({'view': 'interventions', **values})}", effects_address, fresh
    )


def wait_until(page: Page, condition: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def settle(page: Page) -> None:
    """Waits until what the last action asked for has been shown."""
    page.wait_for_selector("body[data-ready]", state="attached")


def saved_table(page: Page, box: str) -> pd.DataFrame:
    page.click(f"{box} .export summary")
    with page.expect_download() as waiting:
        page.click(f"{box} .export button:text-is('CSV')")
    content = Path(waiting.value.path()).read_bytes()
    return pd.read_csv(io.BytesIO(content), keep_default_na=False)


def results_of(folder: Path, name: str) -> xr.Dataset:
    with xr.open_dataset(folder / name, engine="h5netcdf") as stored:
        return stored.load()


@pytest.fixture(scope="module")
def cross(dynamics_data: Any) -> xr.Dataset:
    return results_of(dynamics_data.folder, "dynamics/xcorr_and_xcaus.nc")


def test_clusters_are_listed_with_their_sizes_and_exemplars(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="behaviours")
    stored = results_of(dynamics_data.folder, "dynamics/behaviour_clusters.nc")
    sizes = [int((stored["sample_cluster"] == c).sum()) for c in range(2)]
    shown = page.locator("#clusters .cluster .numeric").all_inner_texts()
    assert [int(text) for text in shown] == [12, *sizes]
    note = page.inner_text("#clusters-note")
    assert f"{stored.attrs['cluster_stability_control']:.2f}".rstrip("0") in note.replace("−", "-")
    page.click("#clusters [data-group='1']")
    settle(page)
    exemplars = [int(sample) for sample in stored["exemplar"][1] if sample >= 0]
    strips = page.locator("#exemplars .strip")
    ids = strips.evaluate_all("strips => strips.map(strip => Number(strip.dataset.sample))")
    assert ids == exemplars
    strips.first.scroll_into_view_if_needed()
    page.wait_for_selector("#exemplars .strip[data-drawn]")
    frame = dynamics_data.samples.read_episode(dynamics_data.samples.index_of(ids[0])).obs[0]
    height, width = frame.shape[:2]
    drawn = strips.first.locator("canvas").evaluate(
        """(canvas, [width, height]) =>
             [...canvas.getContext('2d').getImageData(0, 0, width, height).data]""",
        [width, height],
    )
    pixels = np.array(drawn, np.uint8).reshape(height, width, 4)
    np.testing.assert_array_equal(pixels[..., :3], frame)
    strips.first.click()
    wait_until(page, f"location.hash.includes('episode={ids[0]}')")


@pytest.mark.parametrize(
    ("quantity", "variant"),
    [("correlation", None), ("regression", None), ("causation", "cut"), ("push", "passed")],
)
def test_matrix_of_a_group_and_lag_is_that_of_the_file(
    quantity: str, variant: str | None, open_dynamics: Callable[..., Page], cross: xr.Dataset
) -> None:
    asked = {"quantity": quantity, "variant": variant or "passed", "group": "1", "lag": 2}
    page = open_dynamics(view="behaviours", **asked)
    where = {"group": "1", "lag": 2}
    if variant:
        where["environment_gradient"] = variant
    shown = page.evaluate(MATRIX)
    np.testing.assert_allclose(shown["z"], cross[quantity].sel(where), rtol=1e-5)
    assert shown["y"] == ["0", "1", "2"]
    if quantity == "correlation":
        q = cross["correlation_q"].sel({**where, "null": "pairing"}).to_numpy()
        expected = [[str(i), str(j)] for i, j in zip(*np.nonzero(q < 0.05), strict=True)]
        assert sorted(shown["dots"]) == sorted(expected)


def test_agreement_is_positive_where_both_have_one_sign(
    open_dynamics: Callable[..., Page], cross: xr.Dataset
) -> None:
    page = open_dynamics(view="behaviours", quantity="agreement", variant="cut", lag=1)
    r = cross["correlation"].sel(group="all", lag=1).to_numpy()
    jacobian = cross["causation"].sel(group="all", lag=1, environment_gradient="cut").to_numpy()
    expected = np.sign(r * jacobian) * np.minimum(np.abs(r), np.abs(jacobian))
    np.testing.assert_allclose(page.evaluate(MATRIX)["z"], expected, rtol=1e-5)


def test_slider_moves_the_lag_and_the_address_restores_it(
    open_dynamics: Callable[..., Page], cross: xr.Dataset
) -> None:
    page = open_dynamics(view="behaviours", quantity="correlation", order="related")
    page.focus("#matrix-lag")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.inner_text("#matrix-lag-figure") == "3"
    page.select_option("#cell-source", "2")
    settle(page)
    wait_until(page, "location.hash.includes('cell=2.1')")
    address = dict(parse_qsl(page.url.split("#")[1]))
    restored = open_dynamics(fresh=True, **address)
    order = cross["component_order"].sel(group="all").to_numpy()
    shown = restored.evaluate(MATRIX)
    assert shown["x"] == [str(component) for component in order]
    values = cross["correlation"].sel(group="all", lag=3).to_numpy()
    np.testing.assert_allclose(shown["z"], values[np.ix_(order, order)], rtol=1e-5)
    assert restored.inner_text("#cell-title") == "2 → 1 after 3 steps, all samples"


def test_click_into_the_matrix_chooses_the_pair(
    open_dynamics: Callable[..., Page], cross: xr.Dataset
) -> None:
    page = open_dynamics(view="behaviours", quantity="correlation", lag=1)
    page.locator("#matrix-plot").scroll_into_view_if_needed()
    place = page.evaluate(
        """() => {
          const { xaxis, yaxis } = document.getElementById('matrix-plot')._fullLayout;
          return { x: xaxis._offset + xaxis.c2p(1), y: yaxis._offset + yaxis.c2p(2) };
        }"""
    )
    page.locator("#matrix-plot").click(position=place)
    wait_until(page, "location.hash.includes('cell=2.1')")
    settle(page)
    shown = page.inner_text("#cell-rows tr[data-quantity='correlation'] td").replace("−", "-")
    expected = float(cross["correlation"].sel(group="all", lag=1)[2, 1])
    assert float(shown) == pytest.approx(expected, abs=6e-4)


def shares_shown(page: Page) -> dict[int, float]:
    """Sample ids of the gallery, and the numbers in its captions."""
    titles = page.locator("#cell-gallery .thumbnail > :nth-child(2)").all_inner_texts()
    captions = page.locator("#cell-gallery .thumbnail > :nth-child(3)").all_inner_texts()
    return {
        int(title.split()[1].strip(",")): float(caption.split()[-1].replace("−", "-"))
        for title, caption in zip(titles, captions, strict=True)
    }


def test_samples_behind_a_correlation_add_up_to_it(
    open_dynamics: Callable[..., Page], dynamics_data: Any, cross: xr.Dataset
) -> None:
    page = open_dynamics(view="behaviours", quantity="correlation", lag=1, cell="0.1")
    shares = shares_shown(page)
    expected = float(cross["correlation"].sel(group="all", lag=1)[0, 1])
    assert len(shares) == 12
    assert sum(shares.values()) == pytest.approx(expected, abs=6e-3)
    stack = clip_coordinates(dynamics_data.stack, 6)
    series = group_series(stack, np.arange(12))
    assert correlate(series, series, 1)[0, 1] == pytest.approx(expected, abs=1e-6)
    x, y = series.values[:, :-1, 0], series.values[:, 1:, 1]
    own = (x * y).sum(axis=1) / np.sqrt(np.square(x).sum() * np.square(y).sum())
    ids = stack.episode_id.tolist()
    for sample, share in shares.items():
        assert share == pytest.approx(own[ids.index(sample)], abs=6e-4)
    assert list(shares) == [ids[place] for place in np.argsort(-own)]


def test_samples_behind_a_jacobian_are_those_of_the_group(
    open_dynamics: Callable[..., Page], dynamics_data: Any, cross: xr.Dataset
) -> None:
    page = open_dynamics(
        view="behaviours", quantity="causation", variant="cut", lag=1, cell="2.0", group="1"
    )
    folder = dynamics_data.folder
    label = results_of(folder, "dynamics/behaviour_clusters.nc")["sample_cluster"].to_series()
    stored = results_of(folder, "dynamics/jacobians.nc")
    entries = stored["jacobian"].sel(environment_gradient="cut")[..., 0, :, 2].to_numpy()
    means = np.diagonal(entries, offset=-1, axis1=1, axis2=2).mean(axis=-1)
    deviation = cross["component_deviation"].to_numpy()
    means *= deviation[2] / deviation[0]
    expected = {
        int(sample): mean
        for sample, mean in zip(stored["sample_id"].to_numpy(), means, strict=True)
        if label[sample] == 1
    }
    shown = shares_shown(page)
    assert set(shown) == set(expected)
    for sample, value in shown.items():
        assert value == pytest.approx(expected[sample], abs=6e-4)
    where = {"group": "1", "lag": 1, "environment_gradient": "cut"}
    entry = float(cross["causation"].sel(where)[2, 0])
    assert np.mean(list(expected.values())) == pytest.approx(entry, rel=1e-4)


@pytest.mark.parametrize(("sign_of_r", "sign_of_jacobian"), [(-1, -1), (1, 1), (1, -1), (-1, 1)])
def test_samples_behind_an_agreement_come_in_the_order_of_their_jacobians(
    sign_of_r: int,
    sign_of_jacobian: int,
    open_dynamics: Callable[..., Page],
    dynamics_data: Any,
    cross: xr.Dataset,
) -> None:
    at = {"group": "all", "lag": [1, 2, 3]}
    r = cross["correlation"].sel(at).to_numpy()
    jacobian = cross["causation"].sel({**at, "environment_gradient": "cut"}).to_numpy()
    signs = (np.sign(r) == sign_of_r) & (np.sign(jacobian) == sign_of_jacobian)
    place, source, target = (int(position) for position in np.argwhere(signs)[0])
    lag = place + 1
    page = open_dynamics(
        view="behaviours", quantity="agreement", variant="cut", lag=lag, cell=f"{source}.{target}"
    )
    stored = results_of(dynamics_data.folder, "dynamics/jacobians.nc")
    entries = stored["jacobian"].sel(environment_gradient="cut")[..., target, :, source].to_numpy()
    means = np.diagonal(entries, offset=-lag, axis1=1, axis2=2).mean(axis=-1)
    ids = stored["sample_id"].to_numpy()
    # Those with the sign of the mean first, whichever sign the agreement has.
    assert list(shares_shown(page)) == ids[np.argsort(-sign_of_jacobian * means)].tolist()


def test_statements_are_those_of_the_file_and_lead_to_their_entry(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="behaviours")
    stored = results_of(dynamics_data.folder, "dynamics/consistency.nc")
    rows, total = page.locator("#statements tr"), stored.sizes["statement"]
    assert rows.count() == min(total, 200)
    while page.is_visible("#more-statements"):
        before = rows.count()
        page.click("#more-statements")
        assert rows.count() == min(total, before + 200)
    assert rows.count() == total
    table = saved_table(page, "#statements-head")
    for name in ("rank", "lag", "source", "target", "r", "gradient_mean", "score"):
        np.testing.assert_allclose(table[name], stored[f"statement_{name}"], rtol=1e-5)
    place = int(np.flatnonzero(stored["statement_behaviour"].to_numpy().astype(str) == "1")[0])
    page.focus(f"#statements tr[data-rank='{place + 1}'] button")
    page.keyboard.press("Enter")
    settle(page)
    source, target, lag = (
        int(stored[f"statement_{n}"][place]) for n in ("source", "target", "lag")
    )
    after = f"after {lag} step{'s' if lag > 1 else ''}"
    assert page.inner_text("#cell-title") == f"{source} → {target} {after}, behaviour 1"
    evidence = [
        int(stored[f"statement_evidence_{name}"][place]) for name in ("correlation", "sign")
    ]
    words = {1: "for", -1: "against", 0: "silent"}
    row = page.locator(f"#statements tr[data-rank='{place + 1}']")
    for name, value in zip(("correlation", "sign"), evidence, strict=True):
        assert row.locator(f"[title='{name}: {words[value]}']").count() == 1


def test_behaviour_without_statements_says_so(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="behaviours", fresh=True)
    page.evaluate(
        """() => {
          const { statements } = window.dreamscope.results.find((view) => view.statements);
          const groups = statements.file.groups.map(() => 'another');
          return statements.show({ ...statements.file, groups }, '1');
        }"""
    )
    total = results_of(dynamics_data.folder, "dynamics/consistency.nc").sizes["statement"]
    said = page.inner_text("#statements-note")
    assert said == f"None of the {total} statements kept is about behaviour 1."
    assert page.is_hidden("#evidence-names")
    open_dynamics(fresh=True)


def test_agreement_over_lags_stands_beside_chance(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="behaviours", dynamic="regression", agreement="cosine")
    stored = results_of(dynamics_data.folder, "dynamics/consistency.nc")
    lines = page.evaluate(
        "document.getElementById('agreement-plot').data.map(({x, y}) => [[...x], [...y]])"
    )
    where = {"group": "all", "dynamics": "regression", "measure": "cosine"}
    for place, variant in enumerate(("passed", "cut")):
        at = {**where, "environment_gradient": variant}
        np.testing.assert_allclose(lines[2 * place][1], stored["agreement"].sel(at), rtol=1e-5)
        null = stored["agreement_null"].sel({**at, "null": "components"})
        np.testing.assert_allclose(lines[2 * place + 1][1], null, rtol=1e-5)
    page = open_dynamics(view="behaviours", agreement="sign")
    title = page.evaluate("document.getElementById('agreement-plot').layout.yaxis.title.text")
    assert title == "share of entries<br>with the same sign"
    plot, label = (
        page.locator(f"#agreement-plot{part}").bounding_box() for part in ("", " .ytitle")
    )
    assert plot is not None
    assert label is not None
    assert label["x"] >= plot["x"]
    assert label["y"] >= plot["y"]


def test_probes_are_shown_beside_the_components(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="components", probed="2")
    stored = results_of(dynamics_data.folder, "probes/probe_analysis.nc")
    shown = page.evaluate("document.getElementById('probe-plot').data[0].z.map(row => [...row])")
    np.testing.assert_allclose(shown, stored["partial_correlation"], rtol=1e-6)
    assert page.is_hidden("#probe-mismatch")
    text = page.inner_text("#probe-best").replace("−", "-")
    assert "coin dx" in text
    assert "saw dy" not in text
    assert f"{float(stored['partial_correlation'][2, 0]):.2f}".rstrip("0") in text


@pytest.mark.parametrize(
    ("title", "columns"),
    [
        ("environment states", ("pca.0", "pca.1")),
        ("latents", ("embedding.0", "embedding.1")),
        ("agent and environment", ("embedding.0", "embedding.1")),
        ("Jacobians", ("embedding.0", "embedding.1")),
    ],
)
def test_other_analyses_are_drawn_and_their_points_open_samples(
    title: str,
    columns: tuple[str, str],
    open_dynamics: Callable[..., Page],
    dynamics_data: Any,
    client_maker: Any,
) -> None:
    client = client_maker(dynamics_data.folder)
    analyses = client.json("/api/catalogue")["analyses"]
    entry = next(one for one in analyses if one["title"] == title)
    page = open_dynamics(analysis=entry["id"], x=columns[0], y=columns[1], colour="cluster")
    name, component = columns[1].split(".")
    path = f"/api/analyses/{entry['id']}/columns"
    expected = client.arrays(f"{path}/{name}?component={component}")["values"]
    table = saved_table(page, "#scatter-foot")
    np.testing.assert_allclose(table[columns[1]], expected, rtol=1e-5)
    ids = client.arrays(f"{path}/episode_id")["values"]
    steps = client.arrays(f"{path}/step")["values"]
    page.evaluate("row => window.dreamscope.openPoint(window.dreamscope.scatter.pointOf(row))", 5)
    wait_until(page, f"location.hash.includes('episode={int(ids[5])}')")
    page.wait_for_selector(f"#frame[data-step='{int(steps[5])}']:not(.waiting)")
    assert page.input_value("#analysis") == entry["id"]


def test_trust_and_returns_are_colours(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(x="ica.0", y="ica.1", colour="trust")
    values = np.array(page.evaluate("Array.from(window.dreamscope.scatter.values.colours, String)"))
    expected = np.linspace(0.1, 0.9, 12)
    expected[0] = np.nan
    np.testing.assert_allclose(values.astype(float), np.repeat(expected, 6), rtol=1e-6)
    assert "not known" in page.inner_text("#legend")
    page.select_option("#colour", "return")
    settle(page)
    values = page.evaluate("Array.from(window.dreamscope.scatter.values.colours)")
    returns = dynamics_data.samples.episodes["return"].to_numpy()
    np.testing.assert_allclose(values, np.repeat(returns, 6), rtol=1e-5)


def test_filter_on_trust_and_return(open_dynamics: Callable[..., Page], dynamics_data: Any) -> None:
    page = open_dynamics(view="filter", filter="trust > 0.4 and return < 0.5")
    trust = np.linspace(0.1, 0.9, 12)
    trust[0] = np.nan
    returns = dynamics_data.samples.episodes["return"].to_numpy()
    matching = int(((trust > 0.4) & (returns < 0.5)).sum())
    assert 0 < matching < 12
    assert page.inner_text("#filter-count") == f"{matching} of 12 analysed rollouts match."


def test_filter_on_the_gradient_of_the_chosen_target(
    open_page: Callable[..., Page], panel_data: Any, panel_client: Any
) -> None:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    stored = results_of(panel_data.folder, "saliency/saliency.nc")["gradient_component"]
    counts = {}
    for target in ("value", "ic_0"):
        view = {"target": target, "target_step": 6, "environment_gradient": "cut"}
        gradient = stored.sel(view).to_numpy()[0, :, 2]
        threshold = float(np.sort(gradient)[-2] + np.sort(gradient)[-1]) / 2
        text = f"gradient.2 > {threshold:.5f}"
        values = {"view": "filter", "filter": text, "target": target, "at": 6, "path": "agent"}
        page = open_page(f"#{urlencode(values)}")
        assert page.inner_text("#filter-count") == "1 of 5 analysed rollouts match."
        shown = page.locator("#filter-gallery .thumbnail > :nth-child(2)").all_inner_texts()
        counts[target] = int(gradient.argmax())
        assert shown == [f"sim. 1, step {counts[target]}"]
        assert page.input_value("#gradient-target") == target
    assert entry["num_components"] == 3
    page = open_page("#view=filter&filter=value > 0")
    assert page.is_hidden("#gradient-choice")
    page.select_option("#extreme-variable", "gradient.1")
    assert page.is_visible("#gradient-choice")


def test_filter_looks_at_the_gradients_of_the_file_chosen_in_the_player(
    panel_data: Any, open_page: Callable[..., Page], serve: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "several"
    shutil.copytree(panel_data.folder, folder)
    files = {"saliency": 1, "negated": -1}
    content = results_of(folder, "saliency/saliency.nc")
    content["gradient_component"] = -content["gradient_component"]
    (folder / "negated").mkdir()
    content.drop_encoding().to_netcdf(folder / "negated" / "saliency.nc", engine="h5netcdf")
    view = {"target": "value", "target_step": 6, "environment_gradient": "cut"}
    gradient = -content["gradient_component"].sel(view).to_numpy()[0, :, 2]
    steps = {name: int((sign * gradient).argmax()) for name, sign in files.items()}
    assert steps["saliency"] != steps["negated"]
    address = {"view": "filter", "extreme": "gradient.2.high", "at": 6, "path": "agent"}
    shown = "#filter-gallery .thumbnail > :nth-child(2)"
    ids = {name: item_id(folder / name / "saliency.nc") for name in files}
    for base in serve(folder):
        for name, step in steps.items():
            chosen = {"saliency": ids[name], "target": "value"}
            page = open_page(f"#{urlencode(address | chosen)}", base=base)
            assert page.input_value("#gradient-file") == ids[name]
            assert page.locator(shown).all_inner_texts() == [f"sim. 1, step {step}"]
        page = open_page(f"#{urlencode(address | {'saliency': ids['negated']})}", base=base)
        page.select_option("#gradient-file", ids["saliency"])
        settle(page)
        assert page.locator(shown).all_inner_texts() == [f"sim. 1, step {steps['saliency']}"]
        page.close()
    page = open_page(f"#{urlencode(address)}")
    assert page.is_visible("#gradient-target")
    assert page.is_hidden("#gradient-file-field")


def test_gradients_of_another_projection_are_not_taken_for_those_of_the_analysis(
    panel_data: Any, open_page: Callable[..., Page], serve: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(panel_data.folder, folder)
    path = folder / "analysis" / "hidden_analysis.nc"
    content = results_of(folder, "analysis/hidden_analysis.nc")
    content.assign_attrs(projection_data_hash="e" * 64).to_netcdf(path, engine="h5netcdf")
    for base in serve(folder):
        page = open_page("#view=filter", base=base)
        assert "another projection" in page.inner_text("#filter-missing")
        assert page.locator("#condition-variable option[value='gradient.0']").count() == 0
    page = open_page("#view=filter")
    assert "projection" not in page.inner_text("#filter-missing")
    assert page.locator("#condition-variable option[value='gradient.0']").count() == 1


@pytest.mark.parametrize(
    ("absent", "listed"),
    [((), "5 of 7 shown"), (("data",), "2 of 4 shown")],
    ids=["whole", "partly"],
)
def test_filter_tells_how_many_rollouts_of_the_list_it_cannot_look_at(
    absent: tuple[str, ...],
    listed: str,
    panel_data: Any,
    open_page: Callable[..., Page],
    dataset_writer: Any,
    serve: Any,
    tmp_path: Path,
) -> None:
    """Rollouts of an analysis that are not here, as a dataset left out, are not in the list."""
    folder = tmp_path / "served"
    shutil.copytree(panel_data.folder, folder)
    for name in absent:
        shutil.rmtree(folder / name)
    dataset_writer(folder / "another", (5, 4), False)
    for base in serve(folder):
        page = open_page("#view=filter&filter=step = 0", base=base)
        assert page.inner_text("#filter-count").startswith(
            "5 of 5 analysed rollouts match. The other 2 rollouts of the list are not in this"
        )
        assert page.inner_text("#list-count") == listed


def test_files_lie_in_folders_and_are_sought(
    open_dynamics: Callable[..., Page], dynamics_data: Any
) -> None:
    page = open_dynamics(view="files")
    total = page.locator("#files [data-item]").count()
    assert page.inner_text("#files-count") == f"{total} files"
    folders = page.locator("#files .folder > summary .name").all_inner_texts()
    assert set(folders) >= {"demo/", "analysis/", "dynamics/", "vectors/", "probes/", "samples/"}
    page.fill("#sought", "Trust  SAMPLES")
    settle(page)
    names = page.locator("#files [data-item] > summary .name").all_inner_texts()
    assert names == ["sample_trust.nc"]
    assert page.inner_text("#files-count") == f"1 of {total} files match."
    assert page.locator("#files .folder > summary .name").all_inner_texts() == ["demo/samples/"]
    page.click("#files [data-item] summary")
    page.wait_for_selector("#files [data-item] dl")
    restored = open_dynamics(view="files", sought="xcorr")
    assert restored.input_value("#sought") == "xcorr"
    assert restored.locator("#files [data-item]").count() == 1


def test_probe_table_has_a_scale(open_dynamics: Callable[..., Page], dynamics_data: Any) -> None:
    page = open_dynamics(view="components")
    stored = results_of(dynamics_data.folder, "probes/probe_analysis.nc")["partial_correlation"]
    limit = float(np.abs(stored).max())
    shown = page.inner_text("#probe-legend").replace("−", "-").split("\n")
    assert shown[0] == "partial correlation"
    assert [float(text) for text in shown[1:4]] == pytest.approx([-limit, 0, limit], abs=6e-3)
    assert shown[4] == "● q below 0.05"


def test_findings_show_predictions_observations_controls_and_verdict(
    open_effects: Callable[..., Page], effects_data: Path
) -> None:
    page = open_effects(allEffects="yes")
    stored = results_of(effects_data, "intervention_effects.nc")
    assert page.locator("#findings tbody").count() == stored.sizes["measure"]
    row = page.locator("#findings tbody[data-measure='value'] tr[data-world='simulated']")
    cells = [text.replace("−", "-") for text in row.locator("td").all_inner_texts()]
    tested = {"variant": "tested", "row_measure": "value"}
    for cell, name in zip(cells, ("readout_simulated", "gradient_simulated"), strict=False):
        predicted = float(stored["predicted"].sel({**tested, "prediction": name}))
        assert float(cell) == pytest.approx(predicted, rel=6e-3)
    effect = float(stored["effect"].sel(world="simulated", variant="tested", measure="value"))
    assert float(cells[2].split()[0]) == pytest.approx(effect, rel=6e-3)
    real = page.locator("#findings tbody[data-measure='value']").inner_text()
    assert real.count("sign flip reverses it") == 2
    table = saved_table(page, "#findings-head")
    np.testing.assert_allclose(
        table.loc[table["world"] == "real", "effect"].astype(float),
        [
            float(stored["effect"].sel(world="real", variant="tested", measure=name))
            for name in table.loc[table["world"] == "real", "measure"]
        ],
        rtol=1e-6,
    )


def test_small_effects_fit_beside_their_intervals(
    open_effects: Callable[..., Page],
) -> None:
    def shrink(route: Any) -> None:
        answer = route.fetch().json()
        for finding in answer["findings"]:
            for name in ("predicted_by_readout", "predicted_by_gradient", "effect", "low", "high"):
                finding[name] = -0.0000123
        route.fulfill(json=answer)

    page = open_effects(fresh=True, effect="return")
    page.evaluate("window.dreamscope.interventions.findings.clear()")
    page.route("**/findings", shrink)
    page = open_effects(effect="value")
    text = "−0.0000123 [−0.0000123, −0.0000123]"
    wait_until(page, f"document.getElementById('findings').innerText.includes('{text}')")
    room = page.evaluate("document.getElementById('view-interventions').clientWidth")
    assert page.evaluate("document.getElementById('view-interventions').scrollWidth") <= room
    page.unroute("**/findings")


def test_predictions_that_were_not_made_have_no_name_in_the_legend(
    open_effects: Callable[..., Page],
) -> None:
    page = open_effects(fresh=True, effect="component:0")
    names = "window.dreamscope.interventions.curves.traces().map(({ name }) => name)"
    assert "predicted by the gradient" in page.evaluate(names)
    page.evaluate("window.dreamscope.interventions.curves.arrays.predicted.data.fill(NaN)")
    assert not [name for name in page.evaluate(names) if name.startswith("predicted")]


def test_course_over_the_steps_is_that_of_the_file(
    open_effects: Callable[..., Page], effects_data: Path
) -> None:
    page = open_effects(effect="component:0")
    stored = results_of(effects_data, "intervention_effects.nc").sel(row_measure="component:0")
    lines = page.evaluate(
        """document.getElementById('effect-plot').data
             .map(({name, xaxis, y}) => ({name: name ?? '', xaxis: xaxis ?? 'x', y: [...y]}))"""
    )
    for world, axis in (("simulated", "x"), ("real", "x2")):
        drawn = {one["name"]: one["y"] for one in lines if one["xaxis"] == axis}
        expected = stored["row_effect"].sel(world=world, variant="tested")
        np.testing.assert_allclose(drawn["observed"], expected, rtol=1e-5)
        predicted = stored["predicted_row"].sel(variant="tested", prediction=f"readout_{world}")
        np.testing.assert_allclose(drawn["predicted by the heads"], predicted, rtol=1e-5)
    page = open_effects(effect="return")
    assert page.is_hidden("#effect-plot")


@pytest.mark.parametrize("world", ["simulated", "real"])
def test_twins_open_in_lockstep_by_the_keyboard(
    world: str, open_effects: Callable[..., Page], effects_data: Path, client_maker: Any
) -> None:
    datasets = client_maker(effects_data).json("/api/catalogue")["datasets"]
    ids = {entry["label"].removeprefix("swap/"): entry["id"] for entry in datasets}
    page = open_effects(world=world, twinned="sign_flip", pair="3")
    page.focus("#open-pair")
    page.keyboard.press("Enter")
    wait_until(page, f"location.hash.includes('data={ids[f'{world}/sign_flip']}')")
    wait_until(page, "window.dreamscope.player.other !== null")
    page.wait_for_selector("#other-frame[data-step='0']:not(.waiting)")
    other = page.evaluate("window.dreamscope.player.other.entry.dataset.id")
    assert other == ids[f"{world}/twin"]
    assert page.evaluate("window.dreamscope.player.other.entry.episodeId") == 3


@pytest.mark.parametrize(
    ("view", "commands"),
    [
        (
            "behaviours",
            (
                "python analysis/combined_agent_env_hx_analysis_precompute.py",
                "python analysis/jacobian_analysis_precompute.py",
                "python xcorr_and_xcaus_plots.py",
                "python analysis/dynamics_grads_consistency_plots.py",
            ),
        ),
        ("interventions", ("python analysis/intervention_effects_precompute.py",)),
        ("components", ("python analysis/probe_analysis_precompute.py",)),
        (
            "simulator",
            (
                "python analysis/simulator_fidelity_precompute.py",
                "python train.py",
                "python train_gen_model.py",
            ),
        ),
    ],
)
def test_empty_views_name_the_commands(
    view: str, commands: tuple[str, ...], open_page: Callable[..., Page], empty_address: str
) -> None:
    page = open_page(f"#view={view}", empty_address)
    text = page.inner_text(f"#view-{view}")
    for command in commands:
        assert command in text


def test_filter_names_the_commands_for_what_is_not_known(
    open_page: Callable[..., Page], open_dynamics: Callable[..., Page]
) -> None:
    # The first has saliency without trust, the second trust without saliency.
    assert (
        open_page("#view=filter")
        .inner_text("#filter-missing")
        .endswith("python analysis/sample_trust_precompute.py")
    )
    text = open_dynamics(view="filter").inner_text("#filter-missing")
    assert text.endswith("python saliency_experiments.py")


def test_arrows_lead_through_all_views(open_dynamics: Callable[..., Page]) -> None:
    page = open_dynamics()
    page.focus("#tab-states")
    views = ["components", "filter", "behaviours", "interventions", "simulator", "files", "states"]
    for view in views:
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.is_visible(f"#view-{view}")
        assert page.evaluate("document.activeElement.id") == f"tab-{view}"
