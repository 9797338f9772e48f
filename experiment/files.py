"""Writing files so that a reader never sees half of one, and hashing them."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiment.errors import UserError


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    On an exception the temporary file is removed and an earlier `path` stays as it was. The
    temporary name keeps the suffix, since writers of images and HDF5 choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder; on success it replaces the folder `path` as a whole.

    Without `replace`, `path` must be absent or empty: `UserError` where another process has
    filled it in the meantime.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if replace:
            _replace_folder(temporary, path)
        else:
            _name_new_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex}.replaced")
    if path.exists():
        os.replace(path, replaced)
    os.replace(temporary, path)
    shutil.rmtree(replaced, ignore_errors=True)


def _name_new_folder(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(f"{path}: another process has filled it in the meantime") from None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing in `folder`; no other may be writing there now."""
    for path in (*folder.glob(".*.partial*"), *folder.glob(".*.replaced")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _fsync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises `UserError` naming the file when it is absent or malformed."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def hash_bytes(*parts: bytes) -> str:
    """SHA-256 of the concatenated `parts`, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_writable_folder(path: Path | str, flag: str) -> Path:
    """Create the folder `path` if need be and prove that it takes files.

    Raises `UserError` naming `flag` when it cannot be created or written.
    """
    path = Path(path)
    # Processes of several machines that start together may have the same id.
    probe = path / f".writable.{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{flag}: folder {path} is not writable ({reason})") from None
    return path


def require_small(folder: Path, max_bytes: int, flag: str) -> None:
    """Raise `UserError` when the files in `folder`, an asset, have more than `max_bytes`."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > max_bytes:
        raise UserError(
            f"{flag}: an asset of {size / 1e6:.1f} MB, at most {max_bytes / 1e6:.0f} MB are allowed"
        )


def free_bytes(path: Path | str) -> int:
    """Free space on the disk that holds `path`, or will hold it."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_free_space(path: Path | str, needed_bytes: int, flag: str) -> None:
    """Raise `UserError` when the disk that holds `path` has less than `needed_bytes` free."""
    found = free_bytes(path)
    if found < needed_bytes:
        raise UserError(
            f"{flag}: {path} has {found / 1e9:.2f} GB free, "
            f"about {needed_bytes / 1e9:.2f} GB are needed"
        )
