"""The files of the page: where they lie, and how the server sends them."""

import gzip
import hashlib
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from panel.bundle import bundle_modules
from panel.fingerprint import fingerprint

STATIC_FOLDER = Path(__file__).parent / "static"
PAGE = STATIC_FOLDER / "index.html"
SCRIPT_NAME = "panel.js"
"""All modules in one: a browser that asks for each has its first frame half a second later."""
LIVE_SCRIPT = f'<script src="static/{SCRIPT_NAME}" defer fetchpriority="high"></script>'
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
    """ASGI application that answers with style sheet, script and icon, and each module, by name.

    They carry entity tags, and a browser asks again each time, lest it show the page with the
    script of another version.

    Args:
        prefix: of the paths, e.g. `/static/`.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        found = (path for path in STATIC_FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
        self._readers = {path.name: path.read_bytes for path in found}
        self._readers[SCRIPT_NAME] = page_script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = scope["path"].removeprefix(self._prefix)
        response = self._answer(name, scope) if name in self._readers else ABSENT
        await response(scope, receive, send)

    def _answer(self, name: str, scope: Scope) -> Response:
        content, asked = self._readers[name](), Headers(scope=scope)
        # Weak, since the same content may travel compressed or not.
        tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-cache", "vary": "Accept-Encoding"}
        if tag in asked.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if takes_gzip(asked):
            content = _compressed(content)
            headers["content-encoding"] = "gzip"
        return Response(content, media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)


def page_script() -> bytes:
    """The page's modules as one script, joined anew when one of them has changed."""
    return _joined_modules(fingerprint(*sorted(STATIC_FOLDER.glob("*.js"))))


@lru_cache(maxsize=1)
def _joined_modules(_state: str) -> bytes:
    return bundle_modules(STATIC_FOLDER, ["main.js"]).encode()


def page_answer(addresses: Iterable[str]) -> Response:
    """index.html, with links that have the browser fetch at once what it would learn of too late.

    Args:
        addresses: relative ones that the page's script will ask for in any case.
    """
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(LIVE_SCRIPT) == 1, f"index.html has not one {LIVE_SCRIPT}"
    links = [
        f'<link rel="preload" href="{address}" as="fetch" crossorigin="anonymous">'
        for address in addresses
    ]
    page = page.replace(LIVE_SCRIPT, "\n    ".join((LIVE_SCRIPT, *links)))
    return HTMLResponse(page, headers={"cache-control": "no-cache"})


def prepare_page() -> None:
    """Join and compress the scripts, lest the first reader wait for it."""
    _compressed(page_script())
    _compressed_plotly()


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
