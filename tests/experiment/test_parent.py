import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

# It stops itself, so that SIGKILL alone ends it, and holds the pipe of its output open till then.
CHILD = """
import os, signal
from experiment.parent import signal_at_end_of_parent
signal_at_end_of_parent(signal.SIGKILL)
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
def test_a_stopped_process_ends_with_its_killed_parent() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        try:
            closed, _, _ = select.select([parent.stdout], [], [], 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    assert closed
