"""Who may read, how the token leaves the address, and how much may be asked at once."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from starlette.types import Receive, Scope, Send

from panel import security
from panel.access import TokenAccess, make_token, query_without_token
from panel.binary import decode_arrays
from panel.security import MAX_HEADER_BYTES, ReadOnlyGuard

ROUTES = ("/", "/static/panel.js", "/vendor/plotly.min.js", "/api/catalogue", "/openapi.json")
PROJECT = Path(__file__).parents[2]
NUM_READERS = 50


@pytest.mark.parametrize("route", ROUTES)
def test_without_the_token_nothing_is_answered(route: str, panel_client: Any) -> None:
    name = panel_client.cookie.partition("=")[0]
    for cookie in ("", "other=1", f"{name}=", f"{name}=wrong", f"{name}=\xff", "=;;=,\x01"):
        response = panel_client.request(route, headers={"cookie": cookie.encode("latin-1")})
        assert response.status_code == 401
        assert "token is missing or wrong" in response.json()["detail"]
        assert "set-cookie" not in response.headers


def test_token_moves_from_the_address_into_a_cookie(panel_client: Any) -> None:
    token = panel_client.cookie.partition("=")[2]
    response = panel_client.request(f"/?a=1&token={token}&b=%26", headers={"cookie": ""})
    assert response.status_code == 303
    assert response.headers["location"] == "./?a=1&b=%26"
    assert response.headers["cache-control"] == "no-store"
    cookie, *attributes = response.headers["set-cookie"].split("; ")
    assert cookie == panel_client.cookie
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Lax"]
    assert panel_client.request("/", headers={"cookie": cookie}).status_code == 200


def test_redirect_stays_on_this_site(panel_client: Any) -> None:
    token = panel_client.cookie.partition("=")[2]
    for path in ("//evil.example/x", "/%0d%0aset-cookie:a=b", "/https://evil.example"):
        location = panel_client.request(f"{path}?token={token}").headers["location"]
        assert location.startswith("./")
        assert "\n" not in location


def test_wrong_token_in_the_address_is_refused_even_with_the_cookie(panel_client: Any) -> None:
    assert panel_client.request("/?token=wrong").status_code == 401
    assert panel_client.request("/?token=%ff%fe").status_code == 401


def test_rebound_name_is_refused_even_with_the_token(panel_client: Any) -> None:
    token = panel_client.cookie.partition("=")[2]
    # A page of evil.example whose name now resolves to 127.0.0.1.
    for path in (f"/?token={token}", "/api/catalogue"):
        response = panel_client.request(path, headers={"host": "evil.example:8050"})
        assert response.status_code == 421
        assert "set-cookie" not in response.headers


def test_cookie_is_bound_to_the_prefix_of_the_proxy(panel_data: Any, client_maker: Any) -> None:
    client = client_maker(panel_data.folder, root_path="/user/me/proxy/8050")
    token = client.cookie.partition("=")[2]
    response = client.request(f"/user/me/proxy/8050/?token={token}", headers={"cookie": ""})
    assert "Path=/user/me/proxy/8050/;" in response.headers["set-cookie"]
    assert response.headers["location"] == "./"


def test_tokens_and_cookie_names_differ_between_panels() -> None:
    tokens = [make_token() for _ in range(8)]
    assert len(set(tokens)) == 8
    assert min(map(len, tokens)) >= 43
    assert len({TokenAccess(token).cookie_name for token in tokens}) == 8
    first, second = TokenAccess(tokens[0]), TokenAccess(tokens[1])
    both = f"{first.set_cookie().partition(';')[0]}; {second.set_cookie().partition(';')[0]}"
    assert first.is_cookie_valid([both])
    assert second.is_cookie_valid(["a=b", both])
    assert not first.is_cookie_valid([second.set_cookie().partition(";")[0]])


@pytest.mark.parametrize(
    "other", ['a={"x": 1}', "a=b c", "a", "x[y]=1", 'a="x', "a@b=1", "a=\xe9", "Path=/x", "a==", ""]
)
def test_cookies_of_other_programs_lock_nobody_out(other: str) -> None:
    access = TokenAccess("secret")
    own = f"{access.cookie_name}=secret"
    for header in (f"{other}; {own}", f"{own}; {other}", f"{other};{own}"):
        assert access.is_cookie_valid([header])
    assert access.is_cookie_valid([other, own])
    wrong = (f"x{own}", f"{own}x", f"{access.cookie_name}=", f"{access.cookie_name}", f"a={own}")
    assert not any(access.is_cookie_valid([f"{other}; {pair}"]) for pair in wrong)


def test_cookie_name_does_not_tell_the_token() -> None:
    token = make_token()
    assert token[:6] not in TokenAccess(token).cookie_name


def test_query_keeps_everything_but_the_token() -> None:
    assert query_without_token("token=x") == ""
    assert query_without_token("a=&token=x&b=1&token=y") == "a=&b=1"


def test_bodies_are_refused(panel_client: Any) -> None:
    response = panel_client.request("/api/catalogue", content=b"x")
    assert response.status_code == 413
    chunked = {"transfer-encoding": "chunked"}
    assert panel_client.request("/api/catalogue", headers=chunked).status_code == 413
    assert panel_client.request("/", headers={"content-length": "0"}).status_code == 200


def test_long_headers_are_refused(panel_client: Any) -> None:
    headers = {"x-long": "x" * MAX_HEADER_BYTES}
    assert panel_client.request("/", headers=headers).status_code == 431


def test_more_requests_than_the_limit_are_put_off(
    monkeypatch: pytest.MonkeyPatch, panel_client: Any
) -> None:
    monkeypatch.setattr(security, "MAX_CONCURRENT_REQUESTS", 3)
    statuses = asyncio.run(_ask_slow_application(panel_client.application.access, 5))
    assert sorted(statuses[:-1]) == [200, 200, 200, 503, 503]
    assert statuses[-1] == 200


async def _ask_slow_application(access: TokenAccess, num_requests: int) -> list[int]:
    """Statuses of requests that overlap, then of one that comes when they are through."""
    gate = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(app=ReadOnlyGuard(slow, access, ()))
    headers = {"cookie": access.set_cookie().partition(";")[0]}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=headers
    ) as client:
        waiting = [asyncio.create_task(client.get("/")) for _ in range(num_requests)]
        while sum(task.done() for task in waiting) < num_requests - 3:
            await asyncio.sleep(0)
        gate.set()
        answers = [*await asyncio.gather(*waiting), await client.get("/")]
    return [answer.status_code for answer in answers]


@contextmanager
def running_panel(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a user starts it, and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "panel", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        yield process, lines[1].split()[1]
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.medium
def test_command_serves_those_who_know_the_token_and_logs_nothing(panel_data: Any) -> None:
    with running_panel(panel_data.folder) as (process, address):
        base = address.partition("?")[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        assert httpx.get(base).status_code == 401
        foreign = httpx.get(address, headers={"host": "evil.example"})
        assert foreign.status_code == 421
        with httpx.Client(follow_redirects=True) as client:
            page = client.get(address)
            assert str(page.url) == base
            assert "<title>Dreamscope</title>" in page.text
            assert len(client.get(f"{base}api/catalogue").json()["datasets"]) == 2
        assert b" 400 " in _send_raw(address, b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        assert b" 400 " in _send_raw(address, b"\x16\x03\x01 no HTTP\r\n\r\n")
    token = address.partition("token=")[2]
    assert process.stdout is not None
    assert process.stderr is not None
    assert token not in process.stdout.read() + process.stderr.read()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.medium
def test_fifty_readers_at_once_are_all_answered(panel_data: Any) -> None:
    with running_panel(panel_data.folder) as (process, address):
        answers = asyncio.run(_read_at_once(address, NUM_READERS))
    assert process.communicate()[1] == ""
    expected = panel_data.real.read_episode(1).obs[:8]
    for frames in answers:
        np.testing.assert_array_equal(frames, expected)


async def _read_at_once(address: str, num_readers: int) -> list[np.ndarray]:
    """Frames that each of several readers gets who open the page and a rollout at the same time."""
    base = address.partition("?")[0]
    limits = httpx.Limits(max_connections=num_readers, max_keepalive_connections=num_readers)
    async with httpx.AsyncClient(follow_redirects=True, limits=limits, timeout=60) as client:
        await client.get(address)

        async def read(path: str) -> httpx.Response:
            answer = await client.get(f"{base}{path}")
            return answer.raise_for_status()

        async def open_rollout() -> np.ndarray:
            await read("")
            datasets = (await read("api/catalogue")).json()["datasets"]
            [real] = [one["id"] for one in datasets if one["kind"] == "real"]
            episode = f"api/datasets/{real}/episodes/3"
            await read(f"{episode}/steps")
            return decode_arrays((await read(f"{episode}/frames?start=0&stop=8")).content)["frames"]

        return await asyncio.gather(*(open_rollout() for _ in range(num_readers)))


def _send_raw(address: str, content: bytes) -> bytes:
    parts = urlsplit(address)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), 20) as connection:
        connection.sendall(content)
        return connection.recv(100)
