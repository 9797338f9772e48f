"""How a finished file of a dataset gets its name: whole, exclusively, and safely on disk.

No process ever sees half a file under its final name, and none replaces another's, also on network
disks, some of which have no hard links.
"""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from experiment.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHARD_NAME = re.compile(r"shard-(?P<writer>\w+)-(?P<number>\d+)\.h5")
_PARTIAL_NAME = re.compile(r"shard-(?P<writer>\w+)-(?P<number>\d+)\.h5(\.\w+)?\.partial")
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def list_shards(folder: Path | str, writer: str | None = None) -> list[Path]:
    """Sealed shards, of one writer or of all, ordered by writer and number (`2` before `10`)."""
    found = ((_SHARD_NAME.fullmatch(path.name), path) for path in Path(folder).iterdir())
    keyed = [
        ((len(m["writer"]), m["writer"], int(m["number"])), path)
        for m, path in found
        if m and writer in (None, m["writer"])
    ]
    return [path for _, path in sorted(keyed)]


def remove_stale_partials(folder: Path, writer: str) -> None:
    """Remove what an earlier, killed writer of the same name left half-written."""
    for path in folder.iterdir():
        match = _PARTIAL_NAME.fullmatch(path.name)
        if match and match["writer"] == writer:
            path.unlink()


def write_shard(
    folder: Path, writer: str, image: bytes, check_rivals: Callable[[], None] = lambda: None
) -> Path:
    """Seal a finished shard under the writer's next free number, and return its path.

    A shard that is there already is never replaced, even if another process goes by the same
    writer's name. `check_rivals` is called after the number is chosen and before it is taken, so
    that it sees every shard of that name with a lower number, and may raise.

    Raises:
        UserError: the disk is full; nothing is left of the shard.
    """
    number = -1
    while True:
        number = max(number + 1, _next_number(folder, writer))
        check_rivals()
        path = folder / f"shard-{writer}-{number:05d}.h5"
        if _seal(path, image):
            return path


def _next_number(folder: Path, writer: str) -> int:
    names = (_SHARD_NAME.fullmatch(path.name) for path in folder.iterdir())
    taken = [int(name["number"]) for name in names if name and name["writer"] == writer]
    return max(taken, default=-1) + 1


def _seal(path: Path, image: bytes) -> bool:
    """Write a shard under the name `path`; False where the name is taken."""
    # Two processes of one writer's name must not write into one file.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write_synced(partial, image)
        publish(partial, path)
        _sync_folder(path.parent)
    except (FileExistsError, FileNotFoundError):
        # Not found: another process took it for what a killed writer had left.
        if not path.parent.is_dir():
            raise
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return True


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, whole and exclusively; `temporary` is gone or may go then.

    Raises:
        FileExistsError: the name is taken, or on a disk without hard links just being taken.
    """
    try:
        # A link appears whole, and unlike a rename it never replaces another writer's file.
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_exclusively(temporary, path)


def _rename_exclusively(temporary: Path, path: Path) -> None:
    """Rename under a claim, an empty file that only one process can create at a time.

    A process killed in between leaves its claim behind, and the name is not used any more.
    """
    claim = claim_of(path)
    os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)
    finally:
        claim.unlink()


def claim_of(path: Path) -> Path:
    """The file that is there while a process names a file `path` on a disk without hard links."""
    return path.with_name(f".{path.name}.claim")


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path) -> Exception:
    """What to raise for `error`: a `UserError` where the disk, a quota or a limit is full."""
    if error.errno in _DISK_FULL:
        return UserError(
            f"disk full while writing {path} ({error.strerror}); the sealed shards are intact"
        )
    return error
