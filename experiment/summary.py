"""The table that a chain ends with, and the `summary.json` behind it.

`python -m experiment.summary demo/summary.json` prints the table again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.errors import run_entry_point
from experiment.files import read_json, write_json


def write_summary(
    reports: Mapping[str, Path], outputs: Mapping[str, list[str]], path: Path
) -> None:
    """Merge stage reports into `{"stages": {name: {seconds, outputs, metrics, status}}}`.

    A stage without a report has the status `missing`, so that a chain that broke off still tells
    how far it came.

    Args:
        reports: where each stage leaves its report.
        outputs: what each stage leaves for the next; a stage may have worked elsewhere.
        path: the summary to write.
    """
    stages: dict[str, Any] = {}
    for name, report in reports.items():
        if report.exists():
            found = read_json(report)
            stages[name] = {
                "seconds": found["seconds"],
                "outputs": outputs[name],
                "metrics": found["metrics"],
                "status": found["status"],
            }
        else:
            stages[name] = {"seconds": None, "outputs": [], "metrics": {}, "status": "missing"}
    write_json(path, {"stages": stages})


def format_summary(summary: Mapping[str, Any]) -> str:
    """One line per stage: name, seconds, what was made, its metrics."""
    lines = [f"{'stage':<20} {'seconds':>8}  made"]
    for name, stage in summary["stages"].items():
        seconds = "-" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        made = ", ".join(stage["outputs"]) or stage["status"]
        lines.append(f"{name:<20} {seconds:>8}  {made}")
        lines += [f"{'':<31}{line}" for line in _format_metrics(stage["metrics"])]
    total = sum(stage["seconds"] or 0.0 for stage in summary["stages"].values())
    lines.append(f"{'total':<20} {total:>8.1f}")
    return "\n".join(lines)


def _format_metrics(metrics: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            lines += _format_metrics(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name}: {_format_value(value)}")
    return lines


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_format_value(item) for item in value)
    return str(value)


def main() -> None:
    """Print the table of a finished chain and how to look at its results."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("summary", type=Path, help="summary.json of a chain")
    path = parser.parse_args().summary
    print(format_summary(read_json(path)))
    folder = "" if path.parent.name == "demo" else f" OUT={path.parent}"
    print(
        f"\nLook at the results:  make panel{folder}   (python -m panel {path.parent} --port 8050)"
    )


if __name__ == "__main__":
    run_entry_point(main)
