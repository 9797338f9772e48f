"""Nothing is asked of a network at run time: whatever a command needs is on the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GUARD = """
import os, runpy, sys

REFUSED = 42
LOCAL = ("localhost", "127.", "::1")
ADDRESS_AT = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")

def is_local(host):
    host = host.decode() if isinstance(host, bytes) else host
    return not host or host.startswith(LOCAL)

def refuse(event, arguments):
    host = None
    if event in LOOK_UPS:
        host = arguments[0]
    elif event in ADDRESS_AT:
        address = arguments[ADDRESS_AT[event]]
        host = address[0] if isinstance(address, tuple) else None
    if not is_local(host):
        # Libraries that ask for news catch what goes wrong, so the process itself must end.
        os.write(2, f"{event}: {host!r}\\n".encode())
        os._exit(REFUSED)

sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script in a process that ends at the first address or name that is not the machine's.

What Python's own sockets do, that is; a library in another language could go past it.
"""
REFUSED = 42


def run_guarded(folder: Path, script: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", GUARD, str(script), *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("asked", "return_code"),
    [
        ("socket.create_connection(('192.0.2.1', 80), timeout=0.1)", REFUSED),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 80))", REFUSED),
        ("urllib.request.urlopen('http://example.invalid/')", REFUSED),
        ("socket.create_connection(('127.0.0.1', 1), timeout=0.1)", 0),
        ("socket.socket(socket.AF_UNIX).connect('nowhere')", 0),
    ],
)
def test_the_guard_ends_a_script_that_hides_its_failures(tmp_path, asked, return_code):
    script = tmp_path / "ask.py"
    script.write_text(
        f"import contextlib, socket, urllib.request\n"
        f"with contextlib.suppress(OSError):\n    {asked}\n"
    )
    result = run_guarded(tmp_path, script)
    assert result.returncode == return_code, result.stderr


@pytest.mark.medium
def test_training_recording_and_analysis_ask_nothing_of_a_network(tmp_path):
    commands = (
        ("train.py", "--param_name", "tiny", "--env_name", "fake", "--run_dir", "run"),
        ("record.py", "--model_file", "run/model_128", "--max_episodes", "12"),
        ("analysis/hidden_analysis_precompute.py", "--interpreting_params_name", "tiny"),
    )
    for script, *flags in commands:
        result = run_guarded(tmp_path, ROOT / script, *flags)
        assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"
