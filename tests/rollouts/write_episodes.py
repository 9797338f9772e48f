"""Run as a process by the tests of the store.

`write_episodes.py FOLDER WRITER FIRST_ID NUM_EPISODES [FILE_SIZE_LIMIT]`: writes episodes of 20
rows into shards of three. With a negative number of episodes it never ends. Prints the id of
each episode once it is written.
"""

import resource
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import build_metadata, build_rollout

from experiment.errors import run_entry_point
from rollouts.store import RolloutWriter


def main() -> None:
    folder, writer_name, first_id, num_episodes = sys.argv[1:5]
    if len(sys.argv) > 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), int(sys.argv[5])))
    metadata = build_metadata()
    numbers = count() if int(num_episodes) < 0 else range(int(num_episodes))
    shard_bytes = metadata.row_bytes * 60
    with RolloutWriter(folder, metadata, writer_name, shard_bytes) as writer:
        for number in numbers:
            writer.write(build_rollout(int(first_id) + number, length=20))
            print(int(first_id) + number, flush=True)


if __name__ == "__main__":
    run_entry_point(main)
