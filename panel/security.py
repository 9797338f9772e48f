"""What keeps other people's pages and machines away from a panel that listens on loopback.

A web page that the user visits elsewhere can make the browser send requests to 127.0.0.1, under a
name of its own (DNS rebinding). So the `Host` header must name this machine; any port is
accepted, since tunnels change it. Only reading methods exist.
"""

import json
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
READ_METHODS = frozenset({"GET", "HEAD"})
MAX_URL_BYTES = 4096

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


class ReadOnlyGuard:
    """ASGI middleware: foreign hosts and origins and writing methods are refused.

    Every answer, refusals included, carries the security headers. HEAD is answered as GET without
    its body.
    """

    def __init__(self, application: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.application = application
        self.allowed_hosts = LOOPBACK_HOSTS | {host.lower() for host in allowed_hosts}

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
            await _send_refusal(guarded_send, *refusal)
            return
        scope = {**scope, "method": "GET"} if is_head else scope
        await self.application(scope, receive, guarded_send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self.allowed_hosts:
            return 421, "this panel answers only to localhost: open it as http://127.0.0.1:PORT/"
        for name, value in headers:
            if name == b"origin" and host_name(urlsplit(value).netloc) not in self.allowed_hosts:
                return 403, "requests from other origins are refused"
        if scope["method"] not in READ_METHODS:
            return 405, "the panel is read-only: GET and HEAD are the methods it knows"
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL_BYTES:
            return 414, f"the address is longer than {MAX_URL_BYTES} bytes"
        return None


async def _send_refusal(send: Send, status: int, message: str) -> None:
    body = json.dumps({"detail": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
