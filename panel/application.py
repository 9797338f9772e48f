"""The web application: routes over a catalogue, by id only, read-only."""

import gzip
import hashlib
import json
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from panel.access import TokenAccess
from panel.analysis_source import AnalysisSource
from panel.behaviour_source import BehaviourSource
from panel.binary import MEDIA_TYPE, encode_arrays
from panel.catalogue import (
    READ_ERRORS,
    Catalogue,
    DamagedItemError,
    Item,
    SourceType,
    describe_damage,
)
from panel.consistency_source import ConsistencySource
from panel.cross_source import CrossSource
from panel.effects_source import EffectsSource
from panel.fidelity_source import FidelitySource
from panel.jacobian_source import JacobianSource
from panel.page_files import (
    COMPRESSION_LEVEL,
    PageFiles,
    page_answer,
    plotly_answer,
    takes_gzip,
)
from panel.probe_source import ProbeSource
from panel.rollout_source import (
    MAX_FRAMES_PER_REQUEST,
    TABLES_PER_ANSWER,
    RolloutSource,
    UnknownItemError,
    joined_tables,
)
from panel.saliency_source import SaliencySource
from panel.security import ReadOnlyGuard
from panel.training_source import TrainingSource
from panel.trust_source import TrustSource

ItemId = Annotated[str, PathParameter(pattern="^[0-9a-f]{16}$")]
DatasetIds = Annotated[
    str, Query(pattern=rf"^[0-9a-f]{{16}}(,[0-9a-f]{{16}}){{0,{TABLES_PER_ANSWER - 1}}}$")
]
EpisodeId = Annotated[int, PathParameter(ge=0, lt=2**31)]
Position = Annotated[int, Field(ge=0, lt=2**31)]


def _gradient_view(
    target: str, target_step: str, environment_gradient: str
) -> tuple[str, str, str]:
    return target, target_step, environment_gradient


def _integrated_view(target: str, target_step: str, baseline: str) -> tuple[str, str, str]:
    return target, target_step, baseline


GradientView = Annotated[tuple[str, str, str], Depends(_gradient_view)]
"""Which gradient of a sample, as labels in the order of `panel.saliency_source.VIEW_DIMS`."""
IntegratedView = Annotated[tuple[str, str, str], Depends(_integrated_view)]
"""The same of an integrated gradient, in the order of `INTEGRATED_DIMS` there."""


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class PlainAnswer(JSONResponse):
    """JSON in ASCII: names of files and datasets may hold what UTF-8 cannot express."""

    def render(self, content: Any) -> bytes:
        """Raises `ValueError` for numbers that JSON does not have."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class ArraysAnswer(Response):
    """A container of arrays; see `panel.binary`."""

    media_type = MEDIA_TYPE


STATIC_PREFIX = "/static/"
PROBE_BYTES = 32 * 1024
WORTHWHILE_RATIO = 0.8
"""Compressing a million floats takes longer than it saves on a line of 100 Mbit/s."""
MAX_READING = 8
"""Answers of arrays made at once; each holds up to 8 MiB of frames, or a column of an analysis."""
_READING = threading.BoundedSemaphore(MAX_READING)

ERROR_SCHEMA = {
    "type": "object",
    "properties": {"detail": {"type": "string"}},
    "required": ["detail"],
}
"""Of every answer that is none: why, in words for the reader of the page."""
ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status, text in (
        (401, "The token is missing or wrong."),
        (404, "There is no such thing."),
        (422, "The request or the file cannot be read."),
        (503, "Too many requests are under way."),
    )
}
ARRAY_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "Nothing changed since the answer with that entity tag."},
    **ERROR_ANSWERS,
}


def make_application(
    catalogue: Catalogue, token: str, allowed_hosts: Collection[str] = (), root_path: str = ""
) -> ReadOnlyGuard:
    """The panel as an ASGI application.

    Args:
        catalogue: what to serve.
        token: the secret that opens the panel, from `panel.access.make_token`.
        allowed_hosts: names accepted in the `Host` header besides those of loopback.
        root_path: prefix under which a proxy serves the panel; proxies may leave it in the
            address that they pass on, or not.
    """
    # The interactive documentation would fetch its scripts from outside.
    application = FastAPI(title="Dreamscope", docs_url=None, redoc_url=None)
    application.add_exception_handler(UnknownItemError, _answer_unknown)
    application.add_exception_handler(DamagedItemError, _answer_damaged)
    application.add_exception_handler(RequestValidationError, _answer_invalid)
    application.add_exception_handler(404, _answer_absent)
    _add_page(application, catalogue)
    _add_catalogue(application, catalogue)
    _add_rollouts(application, catalogue)
    _add_results(application, catalogue)
    _add_behaviours(application, catalogue)
    _add_measurements(application, catalogue)
    compressed = GZipMiddleware(
        application,
        minimum_size=2048,
        compresslevel=COMPRESSION_LEVEL,
        # Arrays are compressed where they are made, or on purpose not.
        exclude_content_types=(*DEFAULT_EXCLUDED_CONTENT_TYPES, MEDIA_TYPE),
    )
    prefix = root_path.rstrip("/")
    access = TokenAccess(token, prefix)
    return ReadOnlyGuard(_dispatcher(compressed, prefix), access, allowed_hosts)


def _dispatcher(application: ASGIApp, prefix: str) -> ASGIApp:
    """Takes a proxy's prefix off; the page's files do not go through the application's layers."""
    files = PageFiles(STATIC_PREFIX)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if prefix and path.startswith(f"{prefix}/"):
            scope = {**scope, "path": path[len(prefix) :]}
        chosen = files if scope["path"].startswith(STATIC_PREFIX) else application
        await chosen(scope, receive, send)

    return answer


def _add_page(application: FastAPI, catalogue: Catalogue) -> None:
    @application.get("/", include_in_schema=False)
    def page() -> Response:
        ids = catalogue.opened_datasets()
        parts = (ids[at : at + TABLES_PER_ANSWER] for at in range(0, len(ids), TABLES_PER_ANSWER))
        tables = (f"api/episodes?datasets={','.join(part)}" for part in parts)
        return page_answer(["api/catalogue", *tables])

    @application.get("/vendor/plotly.min.js", include_in_schema=False)
    def plotly_script(request: Request) -> Response:
        return plotly_answer(request.headers)


def _add_catalogue(application: FastAPI, catalogue: Catalogue) -> None:
    @application.get("/api/catalogue", responses=ERROR_ANSWERS)
    def describe_catalogue() -> PlainAnswer:
        """Every rollout dataset and result file, with the errors of unreadable ones."""
        content = {**catalogue.describe(), "version": metadata.version("dreamscope")}
        return PlainAnswer(content, headers={"cache-control": "no-store"})

    @application.get("/api/progress", responses=ERROR_ANSWERS)
    def progress() -> PlainAnswer:
        """How many files there are, and how many were opened; the first catalogue waits for all."""
        found = catalogue.count()
        content = {"found": found.datasets + found.results, "opened": found.opened}
        return PlainAnswer(content, headers={"cache-control": "no-store"})

    @application.get("/api/items/{item_id}/provenance", responses=ERROR_ANSWERS)
    def provenance(item_id: ItemId) -> PlainAnswer:
        """Command, configuration, code version and input hashes of any item."""
        return PlainAnswer(catalogue.provenance(item_id), headers={"cache-control": "no-store"})


def _add_rollouts(application: FastAPI, catalogue: Catalogue) -> None:
    items = _Items(catalogue)

    @_arrays_route(application, "/api/episodes")
    def episode_tables(request: Request, datasets: DatasetIds) -> Response:
        """Container of the episode tables of several datasets, comma-separated; each array is
        called `DATASET/COLUMN`. A folder may hold hundreds of recordings of few episodes each."""
        sources = {name: catalogue.open_as(name, RolloutSource) for name in datasets.split(",")}
        content_hash = " ".join(source.content_hash for source in sources.values())
        return _answer_arrays(
            request,
            content_hash,
            lambda: joined_tables({name: one.episode_table() for name, one in sources.items()}),
        )

    @_arrays_route(application, "/api/datasets/{item_id}/episodes")
    def episode_table(request: Request, item_id: ItemId) -> Response:
        """Container of arrays, one entry per episode."""
        return items.answer(request, item_id, RolloutSource, RolloutSource.episode_table)

    @_arrays_route(application, "/api/datasets/{item_id}/episodes/{episode_id}/steps")
    def steps(request: Request, item_id: ItemId, episode_id: EpisodeId) -> Response:
        """Container of arrays, one row per step of the episode."""
        return items.answer(
            request, item_id, RolloutSource, lambda source: source.steps(episode_id)
        )

    @_arrays_route(application, "/api/datasets/{item_id}/episodes/{episode_id}/frames")
    def frames(
        request: Request,
        item_id: ItemId,
        episode_id: EpisodeId,
        start: int = 0,
        stop: int = MAX_FRAMES_PER_REQUEST,
    ) -> Response:
        """Container with `frames`, (stop − start, H, W, C) uint8 as the agent saw them."""
        return items.answer(
            request,
            item_id,
            RolloutSource,
            lambda source: {"frames": source.frames(episode_id, start, stop)},
        )


def _add_behaviours(application: FastAPI, catalogue: Catalogue) -> None:
    items = _Items(catalogue)

    @_arrays_route(application, "/api/behaviours/{item_id}/samples")
    def behaviour_samples(request: Request, item_id: ItemId) -> Response:
        """Container with the behaviour of each sample, and the actions of each cluster."""
        return items.answer(request, item_id, BehaviourSource, BehaviourSource.samples)

    @_arrays_route(application, "/api/behaviours/{item_id}/exemplars/{behaviour}/{position}")
    def exemplar(
        request: Request, item_id: ItemId, behaviour: Position, position: Position
    ) -> Response:
        """Container with `frames`, (T, H, W, C) uint8 of one sample near a cluster's centre."""
        return items.answer(
            request, item_id, BehaviourSource, lambda source: source.exemplar(behaviour, position)
        )

    @_arrays_route(application, "/api/cross/{item_id}/{quantity}/{group}")
    def cross_matrices(
        request: Request,
        item_id: ItemId,
        quantity: str,
        group: str,
        environment_gradient: str | None = None,
    ) -> Response:
        """Container with the matrices of all lags, (L, D, D), their intervals and q-values."""
        return items.answer(
            request,
            item_id,
            CrossSource,
            lambda source: source.matrices(quantity, group, environment_gradient),
        )

    @_arrays_route(application, "/api/jacobians/{item_id}/effects")
    def jacobian_effects(
        request: Request,
        item_id: ItemId,
        source_component: Position,
        target_component: Position,
        lag: Position,
        environment_gradient: str,
    ) -> Response:
        """Container with one entry of the Jacobian of each sample."""
        return items.answer(
            request,
            item_id,
            JacobianSource,
            lambda source: source.effects(
                source_component, target_component, lag, environment_gradient
            ),
        )

    @_arrays_route(application, "/api/consistency/{item_id}/agreement/{group}")
    def agreement(request: Request, item_id: ItemId, group: str) -> Response:
        """Container with the agreement of gradients with dynamics by lag, and that by chance."""
        return items.answer(
            request, item_id, ConsistencySource, lambda source: source.agreement(group)
        )

    @_arrays_route(application, "/api/consistency/{item_id}/statements")
    def statements(request: Request, item_id: ItemId) -> Response:
        """Container with the ranked statements, column by column."""
        return items.answer(request, item_id, ConsistencySource, ConsistencySource.statements)


def _add_measurements(application: FastAPI, catalogue: Catalogue) -> None:
    items = _Items(catalogue)

    @application.get("/api/effects/{item_id}/findings", responses=ERROR_ANSWERS)
    def findings(item_id: ItemId) -> PlainAnswer:
        """What every measure says of an intervention, in numbers and words."""
        source, item = catalogue.open_as(item_id, EffectsSource), catalogue.item(item_id)
        with _named_damage(item):
            return PlainAnswer(source.findings(), headers={"cache-control": "no-store"})

    @_arrays_route(application, "/api/effects/{item_id}/rows/{measure}")
    def effect_rows(request: Request, item_id: ItemId, measure: str) -> Response:
        """Container with the effects on one measure at each step, and what was predicted."""
        return items.answer(request, item_id, EffectsSource, lambda source: source.rows(measure))

    @_arrays_route(application, "/api/probes/{item_id}/table")
    def probe_table(request: Request, item_id: ItemId) -> Response:
        """Container with the correlations of components with variables."""
        return items.answer(request, item_id, ProbeSource, ProbeSource.table)

    @_arrays_route(application, "/api/trust/{item_id}")
    def trust(request: Request, item_id: ItemId) -> Response:
        """Container with `sample_id` and `trust` of each sample."""
        return items.answer(request, item_id, TrustSource, TrustSource.scores)


def _add_results(application: FastAPI, catalogue: Catalogue) -> None:
    items = _Items(catalogue)

    @_arrays_route(application, "/api/fidelity/{item_id}/{measure}")
    def fidelity(request: Request, item_id: ItemId, measure: str) -> Response:
        """Container with the curves of one measure over the horizon."""
        return items.answer(request, item_id, FidelitySource, lambda source: source.curves(measure))

    @_arrays_route(application, "/api/training/{item_id}")
    def training(request: Request, item_id: ItemId) -> Response:
        """Container with every numeric column of a training log."""
        return items.answer(request, item_id, TrainingSource, TrainingSource.curves)

    @_arrays_route(application, "/api/analyses/{item_id}/columns/{name}")
    def column(
        request: Request, item_id: ItemId, name: str, component: int | None = None
    ) -> Response:
        """Container with `values`, one per row of the analysis."""
        return items.answer(
            request,
            item_id,
            AnalysisSource,
            lambda source: {"values": source.column(name, component)},
        )

    @_arrays_route(application, "/api/analyses/{item_id}/episodes/{source_name}/{episode_id}")
    def analysed_episode(
        request: Request, item_id: ItemId, source_name: str, episode_id: EpisodeId
    ) -> Response:
        """Container with `step` and the coordinates of each analysed row of one episode."""
        return items.answer(
            request, item_id, AnalysisSource, lambda source: source.episode(source_name, episode_id)
        )

    @_arrays_route(application, "/api/saliency/{item_id}/components")
    def component_gradients(request: Request, item_id: ItemId, view: GradientView) -> Response:
        """Container with `gradient`, (N, T, K) float32 of all samples in one view."""
        return items.answer(
            request, item_id, SaliencySource, lambda source: source.component_gradients(view)
        )

    @_arrays_route(application, "/api/saliency/{item_id}/samples/{sample_id}/components")
    def components(
        request: Request, item_id: ItemId, sample_id: EpisodeId, view: GradientView
    ) -> Response:
        """Container with `activation` and `gradient`, (T, K) float32 of one sample and view."""
        return items.answer(
            request, item_id, SaliencySource, lambda source: source.components(sample_id, view)
        )

    @_arrays_route(application, "/api/saliency/{item_id}/samples/{sample_id}/integrated")
    def integrated(
        request: Request, item_id: ItemId, sample_id: EpisodeId, view: IntegratedView
    ) -> Response:
        """Container with `saliency`, (T, H, W) signed float32 of one sample by integrated
        gradients, with what they have to sum to and what they miss of it."""
        return items.answer(
            request, item_id, SaliencySource, lambda source: source.integrated_map(sample_id, view)
        )

    @_arrays_route(application, "/api/saliency/{item_id}/samples/{sample_id}")
    def saliency(
        request: Request, item_id: ItemId, sample_id: EpisodeId, view: GradientView
    ) -> Response:
        """Container with `saliency`, (T, H, W) signed float32 of one sample and view."""
        return items.answer(
            request, item_id, SaliencySource, lambda source: source.signed_map(sample_id, view)
        )


def _arrays_route(application: FastAPI, path: str) -> Callable[[Endpoint], Endpoint]:
    """Decorator for a route that answers with a container of arrays."""
    return application.get(path, response_class=ArraysAnswer, responses=ARRAY_ANSWERS)


@dataclass(frozen=True)
class _Items:
    """Answers about the items of a catalogue with arrays."""

    catalogue: Catalogue

    def answer(
        self,
        request: Request,
        item_id: str,
        source_type: type[SourceType],
        read: Callable[[SourceType], dict[str, Any]],
    ) -> Response:
        """Arrays that `read` takes from an item, opened as a source of one type."""
        source = self.catalogue.open_as(item_id, source_type)

        def read_named() -> dict[str, Any]:
            with _named_damage(self.catalogue.item(item_id)):
                return read(source)

        return _answer_arrays(request, source.content_hash, read_named)


def _answer_arrays(
    request: Request, content_hash: str, read: Callable[[], dict[str, Any]]
) -> Response:
    """Arrays that `read` returns.

    The entity tag is made of the content's hash and the address asked for: a client that has
    the arrays already gets 304 without a file being read. The tag is weak, since the same
    arrays may travel compressed or not.
    """
    address = f"{content_hash} {request.url.path}?{request.url.query}"
    tag = f'W/"{hashlib.sha256(address.encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "Accept-Encoding"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    with _READING:
        content = encode_arrays(read())
        if takes_gzip(request.headers) and _is_compressible(content):
            # Here and not on the way, so that only so many answers are held uncompressed.
            content = gzip.compress(content, COMPRESSION_LEVEL, mtime=0)
            headers["content-encoding"] = "gzip"
    return ArraysAnswer(content, headers=headers)


@contextmanager
def _named_damage(item: Item) -> Iterator[None]:
    """What reading the content of a damaged file raises is told in words."""
    try:
        yield
    except READ_ERRORS as error:
        raise DamagedItemError(describe_damage(item, error)) from error


def _is_compressible(content: bytes) -> bool:
    """Whether the middle of some content shrinks enough: frames do, columns of floats do not."""
    middle = len(content) // 2
    probe = content[middle : middle + PROBE_BYTES]
    return len(zlib.compress(probe, COMPRESSION_LEVEL)) < WORTHWHILE_RATIO * len(probe)


def _answer_unknown(_: Request, error: Exception) -> PlainAnswer:
    return PlainAnswer({"detail": str(error)}, 404, {"cache-control": "no-store"})


def _answer_absent(_: Request, error: Exception) -> PlainAnswer:
    return PlainAnswer({"detail": "nothing lies at this address; the page itself is at /"}, 404)


def _answer_damaged(_: Request, error: Exception) -> PlainAnswer:
    return PlainAnswer({"detail": str(error)}, 422, {"cache-control": "no-store"})


def _answer_invalid(_: Request, error: Exception) -> PlainAnswer:
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return PlainAnswer({"detail": "; ".join(problems)}, 422, {"cache-control": "no-store"})
