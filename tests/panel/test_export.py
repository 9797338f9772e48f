"""The page that needs no server: what it holds, and what it refuses to be made of."""

import base64
import gzip
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.errors import UserError
from panel.binary import decode_arrays
from panel.bundle import BundleError, bundle_modules
from panel.catalogue import item_id
from panel.export import ExportConfig, export, parse_sample
from panel.page_files import STATIC_FOLDER


def write_modules(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text)
    return folder


def test_bundle_runs_each_module_once_after_those_it_imports(tmp_path: Path) -> None:
    folder = write_modules(
        tmp_path,
        main='import { twice,\n  one as first } from "./b.js";\nimport { one } from "./a.js";\n'
        "run(twice, first, one);\n",
        b='import { one } from "./a.js";\nexport { one } from "./a.js";\n'
        "export async function twice() {}\n",
        a="export const one = 1;\nexport class Two {}\n",
    )
    assert bundle_modules(folder, ["main.js"]) == (
        '(() => {\n"use strict";\n'
        "const module_a = (() => {\nconst one = 1;\nclass Two {}\nreturn { one, Two };\n})();\n\n"
        "const module_b = (() => {\nconst { one } = module_a;\nasync function twice() {}\n"
        "return { twice, one: module_a.one };\n})();\n\n"
        "const module_main = (() => {\nconst { twice,\n  one: first } = module_b;\n"
        "const { one } = module_a;\nrun(twice, first, one);\nreturn {  };\n})();\n"
        "})();\n"
    )


def test_bundle_takes_another_module_in_place_of_one(tmp_path: Path) -> None:
    folder = write_modules(
        tmp_path,
        main='import { f } from "./live.js";\nf();\n',
        live="export const f = fetch;\n",
        still="export const f = null;\n",
    )
    script = bundle_modules(folder, ["main.js"], {"live.js": "still.js"})
    assert "fetch" not in script
    assert "const { f } = module_still;" in script


@pytest.mark.parametrize(
    "text",
    [
        'import everything from "./a.js";',
        'import * as a from "./a.js";',
        'import { a } from "elsewhere";',
        "export default 1;",
        "export let a = 1;",
        "export { a };",
        'const later = import("./a.js");',
    ],
)
def test_bundle_refuses_what_it_does_not_understand(text: str, tmp_path: Path) -> None:
    folder = write_modules(tmp_path, main=f"{text}\n", a="export const a = 1;\n")
    with pytest.raises(BundleError, match=r"main\.js: .* cannot be joined"):
        bundle_modules(folder, ["main.js"])


def test_bundle_refuses_a_circle(tmp_path: Path) -> None:
    folder = write_modules(
        tmp_path,
        a='import { b } from "./b.js";\nexport const a = 1;\n',
        b='import { a } from "./a.js";\nexport const b = 1;\n',
    )
    with pytest.raises(BundleError, match=r"a\.js imports b\.js imports a\.js"):
        bundle_modules(folder, ["a.js"])


def test_every_module_of_the_page_can_be_joined() -> None:
    modules = sorted(path.name for path in STATIC_FOLDER.glob("*.js"))
    script = bundle_modules(STATIC_FOLDER, modules)
    assert script.count("const module_") >= len(modules)


@pytest.fixture(scope="module")
def page_folder(panel_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "page"
    data = panel_data.folder
    export(ExportConfig((f"{data / 'data'}:3", f"{data / 'samples'}:1,3"), folder))
    return folder


def read_index(page: Path) -> dict[str, Any]:
    text = (page / "data" / "answers.js").read_text()
    return json.loads(text.removeprefix("window.dreamscopeSupplement = ").removesuffix(";\n"))


def read_answer(page: Path, address: str) -> bytes:
    name = read_index(page)["files"][address]
    packed = re.fullmatch(
        rf'window\.dreamscopeSupplement\.content\["{name}"\] = "(.*)";\n', (page / name).read_text()
    )
    assert packed
    return gzip.decompress(base64.b64decode(packed[1]))


def test_page_holds_the_answers_of_the_server_about_its_samples(
    page_folder: Path, panel_client: Any
) -> None:
    addresses = list(read_index(page_folder)["files"])
    asked = [a for a in addresses if re.search("/frames|/steps|saliency/|analyses/", a)]
    # Frames of 300 steps in ten parts, of 10 in one each; steps of three; the analysis' rows of
    # three; of one sample 2 targets, 2 steps and 2 gradients, as frames and as components.
    assert len(asked) == 12 + 3 + 3 + 16
    for address in asked:
        assert read_answer(page_folder, address) == panel_client.request(f"/{address}").content


def test_page_holds_nothing_of_other_samples(page_folder: Path, panel_data: Any) -> None:
    content = json.loads(read_answer(page_folder, "api/catalogue"))
    assert [entry["num_episodes"] for entry in content["datasets"]] == [1, 2]
    real = content["datasets"][0]["id"]
    asked = ",".join(entry["id"] for entry in content["datasets"])
    tables = decode_arrays(read_answer(page_folder, f"api/episodes?datasets={asked}"))
    np.testing.assert_array_equal(tables[f"{real}/episode_id"], [3])
    np.testing.assert_array_equal(tables[f"{real}/length"], [300])
    assert not any("episodes/5" in address for address in read_index(page_folder)["files"])
    assert content["errors"] == content["fidelity"] == content["cards"] == []
    assert str(panel_data.folder) not in json.dumps(content)


def test_page_tells_where_it_comes_from(page_folder: Path, panel_data: Any) -> None:
    own = json.loads(read_answer(page_folder, "api/items/supplement/provenance"))
    inputs = own["provenance"]["inputs"]
    assert set(inputs.values()) == {panel_data.real.hash, panel_data.simulated.hash}
    assert own["provenance"]["command"] == ["-m", "panel", *sys.argv[1:]]
    assert len(own["provenance"]["config"]["samples"]) == 2
    assert re.fullmatch("[0-9a-f]{64}", own["hash"])


def test_page_is_the_same_when_made_again(
    page_folder: Path, panel_data: Any, tmp_path: Path
) -> None:
    data, again = panel_data.folder, tmp_path / "again"
    named = (f"{data / 'data'}:3", f"{data / 'samples'}:1", f"{data / 'samples/'}:3,1")
    export(ExportConfig(named, again))
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    own = Path(read_index(again)["files"]["api/items/supplement/provenance"])
    assert sorted(files) == sorted(
        path.relative_to(page_folder) for path in page_folder.rglob("*") if path.is_file()
    )
    for file in files:
        if file != own:
            assert (again / file).read_bytes() == (page_folder / file).read_bytes(), file


def test_targets_are_chosen(panel_data: Any, tmp_path: Path) -> None:
    sample = f"{panel_data.folder / 'samples'}:1"
    export(ExportConfig((sample,), tmp_path / "page", targets=("ic_0",)))
    addresses = read_index(tmp_path / "page")["files"]
    assert sum("target=ic_0" in address for address in addresses) == 8
    assert not any("target=value" in address for address in addresses)


def test_page_has_the_saliency_that_the_panel_opens_first(
    saliency_data: Path, tmp_path: Path
) -> None:
    export(ExportConfig((f"{saliency_data / 'samples'}:1",), tmp_path / "page"))
    asked = [a for a in read_index(tmp_path / "page")["files"] if "api/saliency/" in a]
    plain = item_id(saliency_data / "plain" / "saliency.nc")
    assert {address.split("/")[2] for address in asked} == {plain}


def test_page_has_integrated_gradients_where_the_panel_has_no_others(
    saliency_data: Path, tmp_path: Path, client_maker: Any
) -> None:
    results = (saliency_data / "integrated",)
    shutil.copytree(saliency_data / "samples", tmp_path / "alone" / "samples")
    sample = f"{tmp_path / 'alone' / 'samples'}:1"
    export(ExportConfig((sample,), tmp_path / "page", results=results))
    asked = [a for a in read_index(tmp_path / "page")["files"] if "/integrated?" in a]
    # Two targets, two steps and two baselines.
    assert len(asked) == 8
    client = client_maker(saliency_data)
    for address in asked:
        assert read_answer(tmp_path / "page", address) == client.request(f"/{address}").content


def test_results_elsewhere_are_found_when_named(panel_data: Any, tmp_path: Path) -> None:
    shutil.copytree(panel_data.folder / "samples", tmp_path / "alone" / "samples")
    sample = f"{tmp_path / 'alone' / 'samples'}:1"
    export(ExportConfig((sample,), tmp_path / "without"))
    export(ExportConfig((sample,), tmp_path / "with", results=(panel_data.folder,)))
    found = {
        name: any("api/saliency/" in address for address in read_index(tmp_path / name)["files"])
        for name in ("without", "with")
    }
    assert found == {"without": False, "with": True}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("samples", "DATASET_DIR:EPISODE expected"),
        ("samples:", "DATASET_DIR:EPISODE expected"),
        ("samples:first", "DATASET_DIR:EPISODE expected"),
        ("samples:1-3", "DATASET_DIR:EPISODE expected"),
        ("samples:-1", "DATASET_DIR:EPISODE expected"),
        ("samples:١", "DATASET_DIR:EPISODE expected"),
        ("analysis:1", r"analysis holds no dataset\.json"),
        ("absent:1", r"absent holds no dataset\.json"),
        ("samples:2", "samples has no episode 2; it has 2, 1 to 3"),
    ],
)
def test_sample_that_is_not_there_is_explained(
    sample: str, message: str, panel_data: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"SAMPLE: .*{message}"):
        export(ExportConfig((f"{panel_data.folder}/{sample}",), tmp_path / "page"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_there_is_no_sample() -> None:
    with pytest.raises(UserError, match="DATASET_DIR:EPISODE expected"):
        parse_sample(":3")


def test_other_bad_input_is_explained(panel_data: Any, tmp_path: Path) -> None:
    sample = f"{panel_data.folder / 'samples'}:1"
    page = tmp_path / "page"
    with pytest.raises(UserError, match="SAMPLE: none given"):
        export(ExportConfig((), page))
    with pytest.raises(UserError, match=r"--targets: .* has novelty; found ic_0, value"):
        export(ExportConfig((sample,), page, targets=("novelty",)))
    with pytest.raises(UserError, match=r"--results: .* is no folder"):
        export(ExportConfig((sample,), page, results=(tmp_path / "absent",)))
    assert list(tmp_path.iterdir()) == []
    page.mkdir()
    (page / "mine").touch()
    with pytest.raises(UserError, match=r"--out: .* exists already"):
        export(ExportConfig((sample,), page))
    assert [path.name for path in page.iterdir()] == ["mine"]


def test_damaged_result_is_left_out_and_named(
    panel_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(panel_data.folder, folder)
    (folder / "saliency" / "saliency.nc").write_bytes(b"nothing of the kind")
    export(ExportConfig((f"{folder / 'samples'}:1",), tmp_path / "page"))
    heard = capsys.readouterr()
    assert "left out: damaged/saliency/saliency.nc cannot be read" in heard.err
    assert "index.html: 1 rollouts, " in heard.out
    assert not any("saliency" in address for address in read_index(tmp_path / "page")["files"])
