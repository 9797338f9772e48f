"""Files that are damaged, or made to harm: an error in words, and the rest stays readable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from experiment.errors import UserError
from experiment.files import read_json
from panel.catalogue import Catalogue
from panel.rollout_source import RolloutSource
from rollouts.hdf5_safety import MAX_KEPT_OPEN, MAX_OBJECTS, harmless_files


def make_file(path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(3.0)
        fill(file)
    return path


def add_virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "values", (3,))
    file.create_virtual_dataset("copied", layout)


def add_cycle(file: h5py.File) -> None:
    file.create_group("a")["again"] = file["/"]


HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external link": (
        lambda file: file.__setitem__("copied", h5py.ExternalLink("secret.h5", "values")),
        "copied is a link",
    ),
    "soft link": (lambda file: file.__setitem__("copied", h5py.SoftLink("/values")), "is a link"),
    "external storage": (
        lambda file: file.create_dataset("copied", (8,), "u1", external=[("secret", 0, 8)]),
        "copied keeps its data in other files",
    ),
    "virtual dataset": (add_virtual, "copied keeps its data in other files"),
    "endless promise": (
        lambda file: file.create_dataset("copied", (10**12,), "f4", chunks=(1024,)),
        "copied declares 4000000000000 bytes and stores 0",
    ),
    "cycle": (add_cycle, f"more than {MAX_OBJECTS} objects"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_refer_elsewhere_or_promise_too_much_are_refused(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"password")
    fill, message = HOSTILE[name]
    path = make_file(tmp_path / "file.h5", fill)
    with pytest.raises(UserError, match=message), harmless_files([path]):
        pass


def test_ordinary_files_are_accepted(tmp_path: Path, panel_data: Any) -> None:
    own = make_file(tmp_path / "file.h5", lambda file: file.create_group("a/b"))
    files = [path for path in panel_data.folder.rglob("*") if path.suffix in (".h5", ".nc")]
    assert len(files) >= 4
    with harmless_files([own, *files]):
        pass


def test_only_some_files_stay_open_and_none_afterwards(tmp_path: Path) -> None:
    def count_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    files = [make_file(tmp_path / f"{name}.h5", bool) for name in range(3 * MAX_KEPT_OPEN)]
    before = count_open()
    with harmless_files(files):
        assert count_open() == before + MAX_KEPT_OPEN
    assert count_open() == before


def test_a_file_that_goes_while_the_catalogue_is_made_harms_no_other(
    tmp_path: Path, dataset_writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        dataset_writer(tmp_path / name, (4,), False)
    catalogue = Catalogue([tmp_path])
    describe = RolloutSource.describe

    def describe_and_lose(source: RolloutSource) -> dict[str, Any]:
        for path in (tmp_path / "first").glob("*"):
            path.unlink()
        return describe(source)

    monkeypatch.setattr(RolloutSource, "describe", describe_and_lose)
    labels = [entry["label"].rpartition("/")[2] for entry in catalogue.describe()["datasets"]]
    assert labels == ["first", "second"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_result_is_named_in_the_page(name: str, tmp_path: Path, client_maker: Any) -> None:
    fill, message = HOSTILE[name]
    make_file(tmp_path / "saliency.nc", fill)
    content = client_maker(tmp_path).json("/api/catalogue")
    assert content["saliency"] == []
    [error] = content["errors"]
    assert message in error["error"]
    assert str(tmp_path) not in error["error"]


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_never_make_the_server_fail(
    seed: int, tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "data", (40,), False)
    [shard] = (tmp_path / "data").glob("*.h5")
    content = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    # Mostly in the head, where the format keeps its own books.
    places = rng.integers(0, (4096, len(content))[seed % 2], 40)
    content[places] = rng.integers(0, 256, 40)
    shard.write_bytes(content.tobytes())
    client = client_maker(tmp_path)
    catalogue = client.json("/api/catalogue")
    assert len(catalogue["datasets"]) + len(catalogue["errors"]) == 1
    for entry in catalogue["datasets"]:
        for tail in ("episodes", "episodes/1/steps", "episodes/1/frames?stop=40"):
            response = client.request(f"/api/datasets/{entry['id']}/{tail}")
            assert response.status_code in (200, 404, 422)


@pytest.mark.parametrize("provenance", [{"inputs": [1]}, {"config": "a"}, {"inputs": None}])
def test_provenance_of_another_shape_leaves_the_rest_readable(
    provenance: dict[str, Any], tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "good", (4,), False)
    dataset_writer(tmp_path / "odd", (4,), False)
    description = tmp_path / "odd" / "dataset.json"
    content = {**read_json(description), "provenance": provenance}
    description.write_text(json.dumps(content))
    catalogue = client_maker(tmp_path).json("/api/catalogue")
    assert [entry["label"].rpartition("/")[2] for entry in catalogue["datasets"]] == ["good"]
    assert len(catalogue["errors"]) == 1
