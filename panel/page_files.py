"""The files of the page: where they lie, and how the server sends them."""

import gzip
import hashlib
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from panel.bundle import imported_modules

STATIC_FOLDER = Path(__file__).parent / "static"
PAGE = STATIC_FOLDER / "index.html"
ENTRY_MODULE = "main.js"
LIVE_SCRIPT = f'<script src="static/{ENTRY_MODULE}" type="module"></script>'
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ABSENT = JSONResponse({"detail": "the page has no file of that name"}, 404)
COMPRESSION_LEVEL = 1
"""The quickest: most answers travel no further than to this machine."""


def _plotly_folder() -> Path:
    """Of the installed package, which is not imported: only its script is of use here."""
    spec = find_spec("plotly")
    origin = spec and spec.origin
    assert origin, "plotly is not installed"
    return Path(origin).parent


PLOTLY_FILE = _plotly_folder() / "package_data" / "plotly.min.js"


class PageFiles:
    """ASGI application that answers with the style sheet, the modules and the icon, by name.

    A browser asks for some fifty of them at once and waits for the last, so that each has to take
    less time than a general server of files needs. They carry entity tags, and a browser asks
    again each time, lest it mix scripts of two versions.

    Args:
        prefix: of the paths, e.g. `/static/`.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        found = (path for path in STATIC_FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
        self._files = {path.name: path for path in found}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = self._files.get(scope["path"].removeprefix(self._prefix))
        response = ABSENT if path is None else self._answer(path, scope)
        await response(scope, receive, send)

    def _answer(self, path: Path, scope: Scope) -> Response:
        content, asked = path.read_bytes(), Headers(scope=scope)
        # Weak, since the same content may travel compressed or not.
        tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-cache", "vary": "Accept-Encoding"}
        if tag in asked.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if takes_gzip(asked):
            content = _compressed(content)
            headers["content-encoding"] = "gzip"
        return Response(content, media_type=MEDIA_TYPES[path.suffix], headers=headers)


def page_answer() -> Response:
    """index.html, with links that have the browser fetch at once what it would learn of too late.

    Of a module it hears when it has read the one that imports it, of the catalogue when all
    modules have run.
    """
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(LIVE_SCRIPT) == 1, f"index.html has not one {LIVE_SCRIPT}"
    modules = imported_modules(STATIC_FOLDER, ENTRY_MODULE)
    links = [
        '<link rel="preload" href="api/catalogue" as="fetch" crossorigin="anonymous">',
        *(f'<link rel="modulepreload" href="static/{module}">' for module in modules),
    ]
    page = page.replace(LIVE_SCRIPT, "\n    ".join((*links, LIVE_SCRIPT)))
    return HTMLResponse(page, headers={"cache-control": "no-cache"})


def plotly_answer(asked: Headers) -> Response:
    """Plotly's script, for a day: its megabytes are sent and compressed only once."""
    headers = {"cache-control": "private, max-age=86400", "vary": "Accept-Encoding"}
    if takes_gzip(asked):
        headers["content-encoding"] = "gzip"
        content = _compressed_plotly()
    else:
        content = PLOTLY_FILE.read_bytes()
    return Response(content, media_type=MEDIA_TYPES[".js"], headers=headers)


def takes_gzip(asked: Headers) -> bool:
    """Whether who asks with these headers can read compressed content."""
    return "gzip" in asked.get("accept-encoding", "")


@lru_cache(maxsize=256)
def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, COMPRESSION_LEVEL, mtime=0)


@cache
def _compressed_plotly() -> bytes:
    return gzip.compress(PLOTLY_FILE.read_bytes(), COMPRESSION_LEVEL, mtime=0)
