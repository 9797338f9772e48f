"""A page that needs no server: the live page, and beside it what the server says of some samples.

Such a page goes into an article's supplement. It is a folder: `index.html`, the page's own files,
Plotly, and `data/` with one script per answer, which the page runs when it needs the answer. What
the server would have refused (a target that is undefined at a step, say) it refuses in the same
words. `panel/static/embedded_transport.js` is the other side.
"""

import base64
import gzip
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiment.errors import UserError
from experiment.provenance import Provenance
from panel.analysis_source import AnalysisSource
from panel.binary import encode_arrays
from panel.bundle import bundle_modules
from panel.catalogue import READ_ERRORS, Catalogue, describe_damage
from panel.page_files import LIVE_SCRIPT, PLOTLY_FILE, SCRIPT_NAME, STATIC_FOLDER
from panel.rollout_source import (
    MAX_FRAME_BYTES_PER_REQUEST,
    TABLES_PER_ANSWER,
    RolloutSource,
    UnknownItemError,
    joined_tables,
)
from panel.saliency_source import SaliencySource

COMPONENT_SETS = {"ica", "nmf"}
"""Coordinates of hidden states that the page draws as bars."""
FRAMES_PER_ANSWER = 32
"""As many as `FrameStore` in panel/static/api.js asks for at once."""
PAGE_ID = "supplement"
"""Under this id the page tells where it comes from itself."""
COPIED_FILES = ("panel.css", "icon.svg")
SUPPLEMENT_SCRIPTS = f'<script src="data/answers.js" defer></script>\n    {LIVE_SCRIPT}'
LIVE_ENCODING = '<meta charset="utf-8">'
# To a page opened from a file `self` is nothing in some browsers, hence `file:`.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data: blob:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Sample:
    """One episode of a dataset that is in a catalogue."""

    dataset_id: str
    episode_id: int


@dataclass(frozen=True)
class Answer:
    """What the server says to one address, read when it is written down."""

    address: str
    """As the page asks, with nothing percent-encoded."""
    item_id: str
    """Whose content it is."""
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Part:
    """How much of an exported page one kind of content takes."""

    name: str
    num_bytes: int


def write_supplement(
    folder: Path,
    catalogue: Catalogue,
    described: dict[str, Any],
    samples: Sequence[Sample],
    targets: Sequence[str],
    provenance: Provenance,
) -> list[Part]:
    """Write the page about `samples` into an empty folder; returns what takes how much.

    Args:
        folder: exists and is empty.
        catalogue: has the samples' datasets and whatever was computed about them.
        described: what the catalogue says of itself.
        samples: of datasets in the catalogue, each once.
        targets: targets of saliency to keep; all when there are none.
        provenance: how the page is made; the page shows it among its files.

    Raises:
        UserError: no saliency of these samples has one of `targets`, or a file cannot be read.
    """
    content = _Content(catalogue, described, samples, targets)
    (folder / "data").mkdir()
    writer = _AnswerWriter(folder, catalogue)
    for answer in tqdm(content.answers(), desc="answers", unit="file", disable=None):
        writer.write(answer)
    origin = {"hash": writer.content_hash, "provenance": asdict(provenance)}
    writer.write(_plain_answer(f"api/items/{PAGE_ID}/provenance", PAGE_ID, origin))
    writer.finish()
    _write_page(folder)
    return _parts(folder, writer.files)


class _AnswerWriter:
    """Writes answers as scripts, one file each."""

    def __init__(self, folder: Path, catalogue: Catalogue) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._digest = hashlib.sha256()
        self._refusals: dict[str, str] = {}
        self.files: dict[str, str] = {}
        """File of each address, relative to the page."""

    @property
    def content_hash(self) -> str:
        """Of all answers so far."""
        return self._digest.hexdigest()

    def write(self, answer: Answer) -> None:
        """Write one answer, or remember why there is none."""
        try:
            content = answer.read()
        except UnknownItemError as refusal:
            self._refusals[answer.address] = str(refusal)
            return
        except READ_ERRORS as error:
            item = self._catalogue.item(answer.item_id)
            raise UserError(describe_damage(item, error)) from error
        self._digest.update(answer.address.encode("utf-8", "surrogatepass") + content)
        packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
        name = self.files[answer.address] = f"data/{len(self.files):05d}.js"
        script = f'window.dreamscopeSupplement.content["{name}"] = "{packed}";\n'
        (self._folder / name).write_text(script)

    def finish(self) -> None:
        """Write which answer lies where."""
        index = json.dumps({"files": self.files, "refusals": self._refusals, "content": {}})
        script = f"window.dreamscopeSupplement = {index};\n"
        (self._folder / "data" / "answers.js").write_text(script)


class _Content:
    """What the page is about, and the answers it needs."""

    def __init__(
        self,
        catalogue: Catalogue,
        described: dict[str, Any],
        samples: Sequence[Sample],
        targets: Sequence[str],
    ) -> None:
        self._catalogue = catalogue
        self._samples = samples
        self._datasets = [
            {**entry, "num_episodes": len(self._episodes(entry["id"]))}
            for entry in described["datasets"]
            if self._episodes(entry["id"])
        ]
        self._analyses = self._choose_analysis(described["analyses"])
        self._saliency = self._choose_saliency(described["saliency"], targets)
        self._catalogue_answer = {
            # The page has no view of the other kinds, but expects a list of each.
            **{kind: [] for kind, entries in described.items() if isinstance(entries, list)},
            "folders": [entry["label"] for entry in self._datasets],
            "datasets": self._datasets,
            "analyses": self._analyses,
            "saliency": self._saliency,
            "supplements": [{"id": PAGE_ID, "label": "this page"}],
        }

    def _episodes(self, dataset_id: str) -> list[int]:
        return [s.episode_id for s in self._samples if s.dataset_id == dataset_id]

    def _choose_analysis(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The first with components of these datasets, since the page offers no choice of them."""
        ids = {sample.dataset_id for sample in self._samples}
        return [
            entry
            for entry in entries
            if ids & set(entry["source_datasets"].values())
            and COMPONENT_SETS & entry["coordinate_sets"].keys()
        ][:1]

    def _choose_saliency(
        self, entries: list[dict[str, Any]], targets: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The file that the page shows of each dataset, with only these samples and targets."""
        chosen: dict[str, dict[str, Any]] = {}
        for entry in entries:
            ids = sorted(set(entry["sample_ids"]) & set(self._episodes(entry["dataset"])))
            if ids and entry["dataset"] not in chosen:
                kept = [name for name in entry["targets"] if not targets or name in targets]
                chosen[entry["dataset"]] = {**entry, "sample_ids": ids, "targets": kept}
        known = {name for entry in chosen.values() for name in entry["targets"]}
        if unknown := [name for name in targets if name not in known]:
            had = sorted({name for entry in entries for name in entry["targets"]})
            raise UserError(
                f"--targets: no saliency of these samples has {', '.join(unknown)}; "
                f"found {', '.join(had) or 'none'}"
            )
        return [entry for entry in chosen.values() if entry["targets"]]

    def answers(self) -> list[Answer]:
        """Everything that the page can ask for, but for its own provenance."""
        described = [*self._datasets, *self._saliency, *self._analyses]
        return [
            _plain_answer("api/catalogue", PAGE_ID, self._catalogue_answer),
            *(self._provenance_answer(entry["id"]) for entry in described),
            *self._table_answers(),
            *itertools.chain.from_iterable(map(self._dataset_answers, self._datasets)),
            *itertools.chain.from_iterable(map(self._saliency_answers, self._saliency)),
            *itertools.chain.from_iterable(map(self._analysis_answers, self._analyses)),
        ]

    def _provenance_answer(self, item_id: str) -> Answer:
        origin = self._catalogue.provenance(item_id)
        return _plain_answer(f"api/items/{item_id}/provenance", item_id, origin)

    def _table_answers(self) -> Iterator[Answer]:
        ids = [entry["id"] for entry in self._datasets]
        for start in range(0, len(ids), TABLES_PER_ANSWER):
            asked = ids[start : start + TABLES_PER_ANSWER]
            address = f"api/episodes?datasets={','.join(asked)}"
            yield Answer(address, asked[0], _later(self._chosen_tables, asked))

    def _chosen_tables(self, dataset_ids: Sequence[str]) -> dict[str, Any]:
        return joined_tables({name: self._chosen_table(name) for name in dataset_ids})

    def _chosen_table(self, dataset_id: str) -> dict[str, Any]:
        """The rows of the episode table that the page is about."""
        table = self._catalogue.open_as(dataset_id, RolloutSource).episode_table()
        is_chosen = [episode in self._episodes(dataset_id) for episode in table["episode_id"]]
        return {name: column[is_chosen] for name, column in table.items()}

    def _dataset_answers(self, entry: dict[str, Any]) -> Iterator[Answer]:
        source = self._catalogue.open_as(entry["id"], RolloutSource)
        table = self._chosen_table(entry["id"])
        base = f"api/datasets/{entry['id']}/episodes"
        frame_bytes = math.prod(entry["obs_shape"])
        per_answer = max(1, min(FRAMES_PER_ANSWER, MAX_FRAME_BYTES_PER_REQUEST // frame_bytes))
        for episode, length in zip(table["episode_id"], table["length"], strict=True):
            own = f"{base}/{episode}"
            yield Answer(f"{own}/steps", entry["id"], _later(source.steps, int(episode)))
            for start in range(0, int(length), per_answer):
                stop = min(start + per_answer, int(length))
                read = _later(_frames, source, int(episode), start, stop)
                yield Answer(f"{own}/frames?start={start}&stop={stop}", entry["id"], read)

    def _saliency_answers(self, entry: dict[str, Any]) -> Iterator[Answer]:
        source = self._catalogue.open_as(entry["id"], SaliencySource)
        views = itertools.product(
            entry["targets"], entry["target_steps"], entry["environment_gradients"]
        )
        for view, sample in itertools.product(views, entry["sample_ids"]):
            target, step, gradient = view
            query = f"target={target}&target_step={step}&environment_gradient={gradient}"
            base = f"api/saliency/{entry['id']}/samples/{sample}"
            read = _later(source.signed_map, sample, view)
            yield Answer(f"{base}?{query}", entry["id"], read)
            if entry["num_components"]:
                read = _later(source.components, sample, view)
                yield Answer(f"{base}/components?{query}", entry["id"], read)
        views = itertools.product(entry["targets"], entry["target_steps"], entry["baselines"])
        for view, sample in itertools.product(views, entry["sample_ids"]):
            target, step, baseline = view
            query = f"target={target}&target_step={step}&baseline={baseline}"
            address = f"api/saliency/{entry['id']}/samples/{sample}/integrated?{query}"
            yield Answer(address, entry["id"], _later(source.integrated_map, sample, view))

    def _analysis_answers(self, entry: dict[str, Any]) -> Iterator[Answer]:
        source = self._catalogue.open_as(entry["id"], AnalysisSource)
        for name, dataset_id in entry["source_datasets"].items():
            for episode in self._episodes(dataset_id):
                address = f"api/analyses/{entry['id']}/episodes/{name}/{episode}"
                yield Answer(address, entry["id"], _later(source.episode, name, episode))


def _frames(source: RolloutSource, episode: int, start: int, stop: int) -> dict[str, Any]:
    return {"frames": source.frames(episode, start, stop)}


def _later(read: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[], bytes]:
    """A reader of arrays with its arguments, to be called when its answer is written."""
    return lambda: encode_arrays(read(*arguments))


def _plain_answer(address: str, item_id: str, content: Any) -> Answer:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Answer(address, item_id, text.encode)


def _write_page(folder: Path) -> None:
    for name in ("static", "vendor"):
        (folder / name).mkdir()
    for name in COPIED_FILES:
        shutil.copyfile(STATIC_FOLDER / name, folder / "static" / name)
    shutil.copyfile(PLOTLY_FILE, folder / "vendor" / PLOTLY_FILE.name)
    script = bundle_modules(
        STATIC_FOLDER, ("supplement.js", "main.js"), {"transport.js": "embedded_transport.js"}
    )
    (folder / "static" / SCRIPT_NAME).write_text(script, encoding="utf-8")
    page = (STATIC_FOLDER / "index.html").read_text(encoding="utf-8")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'
    for old, new in (
        (LIVE_ENCODING, f"{LIVE_ENCODING}\n    {policy}"),
        (LIVE_SCRIPT, SUPPLEMENT_SCRIPTS),
    ):
        assert page.count(old) == 1, f"index.html has not one {old}"
        page = page.replace(old, new)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _parts(folder: Path, files: dict[str, str]) -> list[Part]:
    def total(paths: Iterable[Path]) -> int:
        return sum(path.stat().st_size for path in paths)

    frames = [folder / name for address, name in files.items() if "/frames?" in address]
    saliency = [folder / name for address, name in files.items() if "api/saliency/" in address]
    everything = total(path for path in folder.rglob("*") if path.is_file())
    parts = [
        Part("frames", total(frames)),
        Part("saliency", total(saliency)),
        Part("plotly", (folder / "vendor" / PLOTLY_FILE.name).stat().st_size),
    ]
    return [*parts, Part("the rest", everything - sum(part.num_bytes for part in parts))]
