"""What keeps other people's pages, machines and accounts away from a panel on loopback.

A web page that the user visits elsewhere can make the browser send requests to 127.0.0.1, under a
name of its own (DNS rebinding). So the `Host` header must name this machine; any port is
accepted, since tunnels change it. Other users of the machine can reach the port too: they lack the
token. Only reading methods exist, requests have no body, and only so many are answered at once.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from panel.access import TokenAccess, query_without_token, token_in_query

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ORIGIN_SCHEMES = frozenset({"http", "https"})
READ_METHODS = frozenset({"GET", "HEAD"})
MAX_URL_BYTES = 4096
MAX_HEADER_BYTES = 32 * 1024
"""Of all headers of a request together; cookies of other programs on localhost count."""
MAX_CONCURRENT_REQUESTS = 256
"""Answered at once; fifty browsers with five requests each under way fit in."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # Plotly sets its styles through the DOM; inline styles cannot run code.
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def host_name(authority: str) -> str:
    """Name in a `Host` header, without port and brackets; empty when it is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        parts.port  # noqa: B018 - reading it raises ValueError for a port that is no number
    except ValueError:
        return ""
    if parts.username is not None or parts.netloc != authority:
        return ""
    return (parts.hostname or "").lower()


def origin_host(origin: str) -> str:
    """Name in an `Origin` header; empty unless it is `http://` or `https://` and an authority.

    A proxy may speak https to the browser, which the panel cannot see; other schemes are those of
    extensions, files and applications.
    """
    scheme, separator, authority = origin.partition("://")
    return host_name(authority) if separator and scheme.lower() in ORIGIN_SCHEMES else ""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ReadOnlyGuard:
    """ASGI middleware: answers reading requests of this machine's names that know the token.

    Every answer, refusals included, carries the security headers. HEAD is answered as GET without
    its body.

    Args:
        application: what answers the requests that are let through.
        access: the token and its cookie.
        allowed_hosts: names accepted in the `Host` header besides those of loopback.
    """

    def __init__(
        self, application: ASGIApp, access: TokenAccess, allowed_hosts: Collection[str]
    ) -> None:
        self.application = application
        self.access = access
        self.allowed_hosts = LOOPBACK_HOSTS | {host.lower() for host in allowed_hosts}
        self._num_under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["method"] == "HEAD"

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _send_refusal(guarded_send, refusal)
        elif token_in_query(scope["query_string"].decode("latin-1")) is not None:
            await self._send_cookie(scope, guarded_send)
        else:
            scope = {**scope, "method": "GET"} if is_head else scope
            self._num_under_way += 1
            try:
                await self.application(scope, receive, guarded_send)
            finally:
                self._num_under_way -= 1

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        return (
            self._refuse_origin(headers)
            or _refuse_request(scope, headers)
            or self._refuse_stranger(scope, headers)
        )

    def _refuse_origin(self, headers: list[tuple[bytes, str]]) -> Refusal | None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self.allowed_hosts:
            message = (
                "this panel answers only to localhost: open it as http://127.0.0.1:PORT/, or start "
                "it with --allowed_host NAME for the name in your address"
            )
            return Refusal(421, message)
        for name, value in headers:
            if name == b"origin" and origin_host(value) not in self.allowed_hosts:
                return Refusal(403, "requests from other origins are refused")
        return None

    def _refuse_stranger(self, scope: Scope, headers: list[tuple[bytes, str]]) -> Refusal | None:
        given = token_in_query(scope["query_string"].decode("latin-1"))
        cookies = [value for name, value in headers if name == b"cookie"]
        # A wrong token in the address is refused even beside a valid cookie, so that nobody takes
        # an old address for one that still works.
        if not (
            self.access.is_cookie_valid(cookies) if given is None else self.access.opens(given)
        ):
            return Refusal(
                401,
                "the token is missing or wrong: open the address that `python -m panel` printed, "
                "with its ?token=...",
            )
        if self._num_under_way >= MAX_CONCURRENT_REQUESTS:
            message = f"{MAX_CONCURRENT_REQUESTS} requests are under way; try again in a moment"
            return Refusal(503, message, ((b"retry-after", b"1"),))
        return None

    async def _send_cookie(self, scope: Scope, send: Send) -> None:
        """Redirect to the same address without the token; a fragment survives in the browser."""
        rest = query_without_token(scope["query_string"].decode("latin-1"))
        # Relative, since a proxy may have taken a prefix off the path.
        name = scope["path"].rpartition("/")[2]
        location = quote(f"./{name}") + (f"?{rest}" if rest else "")
        headers = [
            (b"location", location.encode()),
            (b"set-cookie", self.access.set_cookie().encode()),
            (b"cache-control", b"no-store"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _refuse_request(scope: Scope, headers: list[tuple[bytes, str]]) -> Refusal | None:
    """What no request may be, whoever sends it."""
    if scope["method"] not in READ_METHODS:
        message = "the panel is read-only: GET and HEAD are the methods it knows"
        return Refusal(405, message, ((b"allow", b"GET, HEAD"),))
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL_BYTES:
        return Refusal(414, f"the address is longer than {MAX_URL_BYTES} bytes")
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return Refusal(431, f"the headers are longer than {MAX_HEADER_BYTES} bytes")
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != "0"):
            return Refusal(413, "requests to the panel have no body")
    return None


async def _send_refusal(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"detail": refusal.message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
