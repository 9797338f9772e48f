"""Run as a process by `test_killed_recordings.py`: starts `record.py` many times, quickly.

Imports once, then reads commands from stdin, one JSON list per line, and answers each with a line:

- `["start", LOG, FLAG, ...]` forks a process that runs `record.py FLAG ...` and answers its id.
  The process appends to LOG the id of each episode once it is written, and `seal` after a seal.
- `["wait", ID]` answers the exit code of that process, negative for a signal.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import record
from experiment.errors import run_entry_point
from rollouts.store import RolloutWriter


def main() -> None:
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "start":
            process_id = os.fork()
            if process_id == 0:
                run_recorder(arguments[0], arguments[1:])
            print(process_id, flush=True)
        else:
            _, status = os.waitpid(arguments[0], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


def run_recorder(log: str, flags: list[str]) -> NoReturn:
    # The parent's answers are no place for what the recorder prints.
    os.dup2(os.open(Path(log).with_suffix(".out"), os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    write, seal = RolloutWriter.write, RolloutWriter.seal

    def write_and_log(self, rollout):
        write(self, rollout)
        os.write(descriptor, f"{rollout.info.episode_id}\n".encode())

    def seal_and_log(self):
        seal(self)
        os.write(descriptor, b"seal\n")

    RolloutWriter.write, RolloutWriter.seal = write_and_log, seal_and_log
    sys.argv = ["record.py", *flags]
    run_entry_point(record.main)


if __name__ == "__main__":
    main()
