"""Run folders of trainings: configuration, resumable state, metrics, polite stopping.

A run folder holds `config.json` (every setting, resolved), `provenance.json` (one entry per
process that worked on it), `log.csv` and TensorBoard events, and `training_state.pt`, which is
all that a later process needs to go on as if nothing had happened. States saved before it may
be kept as `training_state.1.pt` and so on, the higher the older. `stopped` is there while a run
that was asked to stop waits to go on.
"""

import contextlib
import csv
import dataclasses
import errno
import fcntl
import io
import json
import math
import pickle
import random
import shutil
import signal
import time
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import torch

from experiment.distributed import Ranks
from experiment.errors import UserError
from experiment.files import (
    atomic_file,
    atomic_folder,
    read_json,
    remove_leftovers,
    require_writable_folder,
    write_json,
)
from experiment.provenance import collect_provenance, to_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

Config = TypeVar("Config", bound=Any)

STOPPED_EXIT_CODE = 75
"""Exit code of a training that was asked to stop and saved itself (EX_TEMPFAIL: try again)."""

CONFIG_FILE = "config.json"
PROVENANCE_FILE = "provenance.json"
STATE_FILE = "training_state.pt"
LOG_FILE = "log.csv"
LOCK_FILE = ".lock"
STOPPED_FILE = "stopped"
"""Is there from when a training stopped, as it was asked to, until it goes on: the exit code for
those who only see that of a launcher, as torchrun, which ends with 1 whatever happened."""

# What torch.load raises on truncated and foreign files; older formats fail inside the unpickler.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
    AttributeError,
    TypeError,
)


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder."""

    path: Path
    config: dict[str, Any]
    """Every setting as saved; of a continued run, those that it began with."""
    continued: bool
    """Whether an earlier process began it."""

    @property
    def state_file(self) -> Path:
        """Where the training state is kept."""
        return self.path / STATE_FILE


def new_run_path(parent: Path | str, seed: int) -> Path:
    """`<parent>/seed_<seed>_<YYYYmmdd_HHMMSS>`, with a suffix where that exists already."""
    stem = f"seed_{seed}_{datetime.now():%Y%m%d_%H%M%S}"
    candidates = (
        Path(parent) / f"{stem}{suffix}" for suffix in ("", *map("_{}".format, range(99)))
    )
    return next(path for path in candidates if not path.exists())


@contextmanager
def hold_run(path: Path, ranks: Ranks) -> "Iterator[None]":
    """Let no other training write into the folder `path` meanwhile.

    The kernel drops the lock when its holder dies, so that a kill leaves nothing to clean up. On a
    disk that has no locks nobody is kept out.

    Raises:
        UserError: another training is at work there, or the folder is not writable.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(_lock(path))

        ranks.from_main(hold)
        yield


def _lock(path: Path) -> IO[str]:
    """Open the lock of a run folder; closing it lets go."""
    handle = (require_writable_folder(path, "--run_dir") / LOCK_FILE).open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(
            f"--run_dir {path}: another training is at work there; wait for its end, stop it, or "
            "choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            handle.close()
            raise
    return handle


def open_run(
    path: Path | str, config: Any, operational: Collection[str], inputs: Mapping[str, str]
) -> RunFolder:
    """Begin a run at `path`, or continue the one that is there.

    Args:
        path: the run folder.
        config: dataclass or mapping with every setting, and with `seed`.
        operational: settings that may differ between processes of one run (device, report, ...).
        inputs: hashes of input artefacts, by role.

    Raises:
        UserError: the folder is not writable, or holds a run with another value of a setting. A
            setting that an earlier release did not know counts as having its default.
    """
    path = require_writable_folder(path, "--run_dir")
    settings = to_plain(config)
    continued = (path / CONFIG_FILE).exists()
    # A kill while the very first file was written leaves one, too.
    remove_leftovers(path)
    if continued:
        saved = read_run_config(path, "--run_dir")
        _require_same_settings(f"--run_dir {path}", config, saved, operational)
        (path / STOPPED_FILE).unlink(missing_ok=True)
        settings = saved
    else:
        write_json(path / CONFIG_FILE, settings)
    history = read_history(path)
    history.append(to_plain(collect_provenance(config, settings["seed"], dict(inputs))))
    write_json(path / PROVENANCE_FILE, history)
    return RunFolder(path, settings, continued)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Provenance of every process that worked on the run at `path`, in order."""
    return read_json(path / PROVENANCE_FILE) if (path / PROVENANCE_FILE).exists() else []


def read_run_config(path: Path | str, flag: str) -> dict[str, Any]:
    """Settings of the run at `path`; raises `UserError` naming `flag` when there is no run."""
    file = Path(path) / CONFIG_FILE
    if not file.exists():
        raise UserError(f"{flag} {path}: no run there ({CONFIG_FILE} is missing)")
    return read_json(file)


def choose_seed(seed: int | None, run_dir: Path | None) -> int:
    """The given seed, else that of the run to be continued in `run_dir`, else a drawn one."""
    if seed is not None:
        return seed
    if run_dir is not None and (run_dir / CONFIG_FILE).exists():
        return read_run_config(run_dir, "--run_dir")["seed"]
    return random.SystemRandom().randrange(10_000)


def share_done(done: int, total: int, seconds: float, max_minutes: float | None) -> float:
    """Share of a training that is done, by count or by time, whichever is further."""
    by_time = seconds / (60 * max_minutes) if max_minutes else 0.0
    return min(1.0, max(done / total, by_time))


def seconds_left(seconds: float, max_minutes: float | None) -> float | None:
    """Of the time that a training may take, after so many; `None` where there is no limit."""
    return max(60 * max_minutes - seconds, 0.0) if max_minutes else None


def require_finite(losses: Mapping[str, float], when: str, flag: str) -> None:
    """Raise `UserError` where a training has diverged, before anything of that is saved."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise UserError(
                f"{flag}: the training has diverged, {name} is {value} at {when}; nothing of it "
                "was saved, a lower rate may help"
            )


def _defaults(config: Any) -> dict[str, Any]:
    """What the settings of a dataclass are when nobody gives them; a mapping has no defaults."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return {}
    try:
        return _flatten(json.loads(json.dumps(to_plain(type(config)()))))
    except TypeError:  # some setting has to be given
        return {}


def continued(config: Config, run: Path | None, operational: Collection[str]) -> Config:
    """The settings with which the run that `--resume` names goes on, named by `run_dir` now.

    Args:
        config: the run's settings, a dataclass with `run_dir` and `resume`, overridden by the flags
            that were given.
        run: the run folder.
        operational: settings that may differ.

    Raises:
        UserError: a flag that changes what the run is.
    """
    if run is None or config.run_dir != run:
        raise UserError(f"--run_dir {config.run_dir}: --resume {run} names the run already")
    saved = read_run_config(run, "--resume")
    _require_same_settings(f"--resume {run}", config, saved, operational)
    return dataclasses.replace(config, resume=None)


def _require_same_settings(
    flag: str, config: Any, saved: Mapping[str, Any], operational: Collection[str]
) -> None:
    saved_flat = {**_defaults(config), **_flatten(saved)}
    given_flat = _flatten(json.loads(json.dumps(to_plain(config))))
    for name in sorted(saved_flat.keys() | given_flat.keys()):
        if name.split(".")[0] in operational or name in operational:
            continue
        if saved_flat.get(name) != given_flat.get(name):
            raise UserError(
                f"{flag}: holds a run with {name} = {saved_flat.get(name)!r}, "
                f"now {given_flat.get(name)!r}; give the same settings or another folder"
            )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def save_training_state(file: Path, state: Mapping[str, Any], keep_last: int = 1) -> None:
    """Write tensors and plain values in one step; a kill leaves the earlier file whole.

    Bytes go in as uint8 tensors: the safe reader does not take them otherwise.

    Args:
        file: the newest state; the one that was there becomes the first of the older ones.
        state: what to save.
        keep_last: states to keep, the new one included.
    """
    with atomic_file(file) as temporary:
        _write_torch_file(temporary, dict(state))
        _make_older(file)
    # Only now: the newest of the earlier states may be damaged, and the one to drop the last whole.
    for path in _older_states(file)[keep_last - 1 :]:
        path.unlink()


def _write_torch_file(file: Path, content: Any) -> None:
    try:
        with file.open("wb") as handle:
            torch.save(content, handle)
    except (OSError, RuntimeError) as error:
        # torch's writer does not say that a disk is full; what it stumbled over does.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, str(file)) from None
        raise


def load_training_state(file: Path) -> dict[str, Any] | None:
    """Read what `save_training_state` wrote, on the CPU; None when there is nothing yet.

    Where the newest state is damaged, the next older one that is whole is taken, with a warning.

    Raises:
        UserError: there are files, but all are damaged or something else.
    """
    refusal: UserError | None = None
    for candidate in [file, *_older_states(file)]:
        if not candidate.exists():
            continue
        try:
            state = load_torch_file(candidate, "training state")
        except UserError as error:
            refusal = refusal or error
            continue
        if refusal is not None:
            print(f"warning: {refusal}; going on from {candidate.name}", flush=True)
        return state
    if refusal is not None:
        raise refusal
    return None


def has_training_state(file: Path) -> bool:
    """Whether there is a state to go on from.

    While a new state takes the place of the newest one there are for a moment only older ones, and
    a kill then leaves it so.
    """
    return file.exists() or bool(_older_states(file))


def _older_states(file: Path) -> list[Path]:
    """States kept beside the newest one, newest first."""
    found = file.parent.glob(f"{file.stem}.*{file.suffix}")
    numbered = {number: path for path in found if (number := _number(file, path))}
    return [numbered[number] for number in sorted(numbered)]


def _make_older(file: Path) -> None:
    """Number all states one higher, which leaves the newest one's name free."""
    for path in reversed(_older_states(file)):
        path.rename(_numbered(file, _number(file, path) + 1))
    if file.exists():
        file.rename(_numbered(file, 1))


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.{number}{file.suffix}")


def _number(file: Path, older: Path) -> int:
    """Inverse of `_numbered`; 0 for a name that holds no number."""
    text = older.name.removeprefix(f"{file.stem}.").removesuffix(file.suffix)
    return int(text) if text.isdecimal() else 0


def load_torch_file(file: Path, kind: str) -> Any:
    """Read a file of `torch.save` onto the CPU: tensors and plain values, never code.

    Raises:
        UserError: the file cannot be read, or is not what `kind` says.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return load_torch_bytes(content, file, kind)


def load_torch_bytes(content: bytes, source: Path | str, kind: str) -> Any:
    """As `load_torch_file`, for what has been read already; `source` is for the complaint."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own message goes on to recommend reading the file unsafely.
        raise UserError(f"{source}: not a readable {kind} ({type(error).__name__})") from None


def export_folder(source: Path, destination: Path) -> Path:
    """Copy an artefact folder to `destination`, which appears or is replaced as a whole."""
    with atomic_folder(destination) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return destination


class MetricLog:
    """Rows of numbers, kept in `log.csv` and shown in TensorBoard.

    Opening it for a continued run cuts the rows after the saved state, which the run will write
    anew; a row that a kill left half-written is cut too.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], last_step: float | None = None
    ) -> None:
        """Open the log.

        Args:
            folder: the run folder.
            columns: names of the columns; the first one counts the steps and never falls.
            last_step: rows beyond this step are cut; None begins an empty log.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always needed

        self.file = folder / LOG_FILE
        self.columns = tuple(columns)
        rows = self._rows_up_to(last_step) if last_step is not None else []
        with atomic_file(self.file) as temporary, temporary.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(self.columns)
            writer.writerows(rows)
        purge_step = None if last_step is None else int(last_step) + 1
        self._board: SummaryWriter = SummaryWriter(str(folder), purge_step=purge_step)

    def append(self, row: Mapping[str, float | int | None]) -> None:
        """Add one row; columns without a value stay empty. Unknown names raise `KeyError`."""
        unknown = row.keys() - set(self.columns)
        if unknown:
            raise KeyError(f"no such column in {self.file}: {', '.join(sorted(unknown))}")
        with self.file.open("a", newline="") as handle:
            csv.writer(handle).writerow(
                ["" if row.get(c) is None else row[c] for c in self.columns]
            )
        step = int(row[self.columns[0]] or 0)
        for name in self.columns[1:]:
            value = row.get(name)
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self._board.close()

    def _rows_up_to(self, last_step: float) -> list[list[str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as handle:
            header, *rows = csv.reader(handle)
        if tuple(header) != self.columns:
            raise UserError(f"{self.file}: columns differ from those this release writes")
        complete = [row for row in rows if len(row) == len(self.columns)]
        return [row for row in complete if float(row[0]) <= last_step]


@dataclass
class StopRequest:
    """Whether the process has been asked to stop."""

    requested: bool = False
    by: str = ""


@contextmanager
def stop_on_signals() -> "Iterator[StopRequest]":
    """Turn SIGTERM and SIGUSR1 into a request that the training loop looks at between updates.

    Slurm sends one of them before it ends a job. The earlier handlers come back on leaving.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.requested, request.by = True, signal.Signals(number).name

    earlier = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def share_request(request: StopRequest, ranks: Ranks) -> None:
    """Let all processes stop when one has been asked to."""
    asked = [by for by in ranks.gather(request.by) if by]
    if asked:
        request.requested, request.by = True, asked[0]


def exit_stopped(request: StopRequest, run: Path) -> NoReturn:
    """Leave with `STOPPED_EXIT_CODE` after the state of the run in that folder has been saved."""
    (run / STOPPED_FILE).write_text(f"{request.by}\n")
    print(f"stopped by {request.by}; state saved, go on with --run_dir {run}", flush=True)
    raise SystemExit(STOPPED_EXIT_CODE)


@dataclass
class SaveClock:
    """Says when the training state is due to be saved."""

    every_seconds: float
    _last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether `every_seconds` have passed since the last time this was true."""
        now = time.monotonic()
        if now - self._last < self.every_seconds:
            return False
        self._last = now
        return True
