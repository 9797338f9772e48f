"""The report that each stage of the chain leaves: seconds, outputs, metrics, status."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.errors import UserError
from experiment.files import require_writable_folder, write_json


@dataclass
class StageReport:
    """Filled in by a stage while it runs, written as JSON when it ends."""

    stage: str
    outputs: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    """Time spent by earlier processes on the same stage, when this one resumed their work."""


def _require_writable_file(path: Path) -> None:
    require_writable_folder(path.parent, "--report")
    if path.is_dir():
        raise UserError(f"--report {path}: a folder, expected the name of a file")


@contextmanager
def stage_report(stage: str, path: Path | None) -> Iterator[StageReport]:
    """Time a stage; on success print its outputs and write the report to `path`, if one is given.

    The report is `{"stage", "seconds", "outputs", "metrics", "status"}`. A stage that raises
    leaves no report.

    Raises:
        UserError: no file can be written at `path`; this is found out before the stage begins.
    """
    if path is not None:
        _require_writable_file(path)
    report = StageReport(stage)
    start = time.perf_counter()
    yield report
    seconds = report.earlier_seconds + time.perf_counter() - start
    print(f"{stage}: {seconds:.1f} s -> {', '.join(report.outputs)}", flush=True)
    if path is not None:
        write_json(
            path,
            {
                "stage": report.stage,
                "seconds": round(seconds, 2),
                "outputs": report.outputs,
                "metrics": report.metrics,
                "status": "done",
            },
        )
