"""Where an artefact comes from: command, configuration, seed, code version, input hashes."""

import dataclasses
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("torch", "numpy", "procgen-mirror", "h5py", "scikit-learn")


@dataclass(frozen=True)
class Provenance:
    """Everything that must be known to make an artefact again."""

    command: list[str]
    """What follows `python` on the command line, from the project's root."""
    config: dict[str, Any]
    """The resolved configuration, presets and flags applied."""
    seed: int
    code_version: str
    """Git commit of the project, with `+changes` when the working tree differs from it."""
    inputs: dict[str, str]
    """Hash of every input artefact, by role (`agent`, `dataset`, ...)."""
    packages: dict[str, str] = field(default_factory=dict)
    python: str = ""
    created_utc: str = ""


def collect_provenance(config: Any, seed: int, inputs: dict[str, str]) -> Provenance:
    """Describe the running process; `config` is a dataclass or a mapping."""
    return Provenance(
        command=[*_program(), *sys.argv[1:]],
        config=to_plain(config),
        seed=seed,
        code_version=code_version(),
        inputs=inputs,
        packages=_package_versions(),
        python=platform.python_version(),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _program() -> list[str]:
    program, root = Path(sys.argv[0]).absolute(), Path(__file__).parent.parent
    if program.name == "__main__.py":
        return ["-m", program.parent.name]
    return [str(program.relative_to(root) if root in program.parents else program.name)]


def to_plain(value: Any) -> Any:
    """Turn nested dataclasses, tuples and paths into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


@cache
def code_version() -> str:
    """Git commit of the project, `+changes` appended when tracked files differ from it."""
    root = Path(__file__).parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"release {metadata.version('dreamscope')}"
    return commit + ("+changes" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _package_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in RECORDED_PACKAGES}
