"""Starting the panel: its command line, its socket, the lines it prints."""

import getpass
import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import uvicorn

from experiment.command_line import parse_flags
from experiment.errors import UserError
from experiment.memory import return_freed_memory
from panel.access import TOKEN_PARAMETER, make_token
from panel.application import make_application
from panel.catalogue import Catalogue, DamagedItemError
from panel.page_files import prepare_page
from panel.security import LOOPBACK_HOSTS, MAX_HEADER_BYTES

MAX_CONNECTIONS = 1024
"""Open at once; a browser keeps up to six."""

DESCRIPTION = (
    "Serve the web panel over rollout datasets and result files. It only reads. "
    "It listens on this machine alone; from elsewhere, reach it through the ssh line it prints. "
    "`python -m panel export` writes a page about some samples that needs no server; "
    "see its --help."
)


@dataclass(frozen=True)
class PanelConfig:
    """Flags of `python -m panel`."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders to look in, with everything below them: rollout datasets (recorded or simulated),
    result files of analyses, training logs, descriptions of agents and simulators."""
    port: int = 8050
    """Port to listen on; 0 takes any free one."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback also needs --allow_remote."""
    allow_remote: bool = False
    """Listen on an address that other machines reach. The token then travels over the network
    unencrypted: whoever can listen there can read the data."""
    allowed_host: tuple[str, ...] = ()
    """Further names accepted in the Host header, for a proxy or a remote address."""
    root_path: str = ""
    """Prefix under which a proxy serves the panel, e.g. /user/me/proxy/8050."""


def main() -> None:
    """Parse the command line and serve until interrupted."""
    config = parse_flags(PanelConfig, DESCRIPTION)
    serve(config)


def serve(config: PanelConfig) -> None:
    """Serve until interrupted.

    Raises:
        UserError: a folder does not exist, the address is not allowed or already in use.
    """
    check_config(config)
    return_freed_memory()
    listener = bind(config.host, config.port)
    with closing(listener):
        catalogue = Catalogue(config.folders)
        token = make_token()
        application = make_application(catalogue, token, config.allowed_host, config.root_path)
        print(greeting(config, catalogue, listener.getsockname()[1], token), flush=True)
        threading.Thread(target=prepare, args=(catalogue,), daemon=True).start()
        settings = uvicorn.Config(
            application,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=2 * MAX_HEADER_BYTES,
            http="h11",
        )
        uvicorn.Server(settings).run(sockets=[listener])


def prepare(catalogue: Catalogue) -> None:
    """Do what the first reader would else wait for, while the address is being opened."""
    prepare_page()
    open_ahead(catalogue)


def open_ahead(catalogue: Catalogue) -> None:
    """Open every item: some dozens take seconds, as long as a reader takes to open the address."""
    # Whoever asks for a damaged item is told.
    with suppress(DamagedItemError):
        catalogue.describe()


def check_config(config: PanelConfig) -> None:
    """Refuse what cannot work, before anything is opened."""
    if not config.folders:
        raise UserError("DATA_DIR: no folder given; name at least one, e.g. `python -m panel demo`")
    for folder in config.folders:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise UserError(f"DATA_DIR: found {found} at {folder}, expected a folder")
    if not 0 <= config.port < 2**16:
        raise UserError(f"--port: {config.port} found, 0 to 65535 expected")
    if config.host.strip("[]") not in LOOPBACK_HOSTS and not config.allow_remote:
        raise UserError(
            f"--host: {config.host} is reachable from other machines; "
            "use the ssh tunnel instead, or add --allow_remote"
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; raises `UserError` when that cannot be had."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it every answer
    # waits 40 ms for its header to be acknowledged.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Whoever reads the address and asks before the server is at work waits, and is not refused.
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"--port: {host}:{port} cannot be used ({reason}); choose another port"
        ) from None
    return listener


def address_to_open(config: PanelConfig) -> str:
    """Host that a browser is to ask for: one that the check of the `Host` header lets through."""
    host = config.host.strip("[]")
    if host in LOOPBACK_HOSTS:
        return "[::1]" if host == "::1" else host
    return config.allowed_host[0] if config.allowed_host else "127.0.0.1"


def greeting(config: PanelConfig, catalogue: Catalogue, port: int, token: str) -> str:
    """What is printed at start: how to open the page, here and from elsewhere."""
    host = address_to_open(config)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "USER"
    found = catalogue.count()
    return "\n".join(
        (
            f"panel: {found.datasets} rollout datasets, {found.results} result files below "
            + ", ".join(str(folder) for folder in config.folders),
            f"open   http://{host}:{port}{config.root_path.rstrip('/')}/?{TOKEN_PARAMETER}={token}",
            f"from elsewhere, first: ssh -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}",
            "stop with Ctrl-C",
        )
    )
