from pathlib import Path

from experiment.files import read_json, write_json
from experiment.summary import format_summary, write_summary


def test_summary_merges_reports_and_tells_what_is_missing(tmp_path: Path) -> None:
    report = {"stage": "record", "seconds": 2.5, "outputs": ["work"], "metrics": {"rows": 7}}
    write_json(tmp_path / "first.json", {**report, "status": "done"})
    reports = {"first": tmp_path / "first.json", "second": tmp_path / "second.json"}
    write_summary(reports, {"first": ["data"], "second": ["figures"]}, tmp_path / "summary.json")
    assert read_json(tmp_path / "summary.json") == {
        "stages": {
            "first": {
                "seconds": 2.5,
                "outputs": ["data"],
                "metrics": {"rows": 7},
                "status": "done",
            },
            "second": {"seconds": None, "outputs": [], "metrics": {}, "status": "missing"},
        }
    }


def test_table_has_a_line_per_stage_and_per_metric() -> None:
    stages = {
        "first": {
            "seconds": 2.0,
            "outputs": ["a", "b"],
            "metrics": {"error": {"mode": [0.12345, 2.0]}},
            "status": "done",
        },
        "second": {"seconds": None, "outputs": [], "metrics": {}, "status": "missing"},
    }
    lines = format_summary({"stages": stages}).splitlines()
    assert lines[1].split() == ["first", "2.0", "a,", "b"]
    assert lines[2].split() == ["error.mode:", "0.1235", "2"]
    assert lines[3].split() == ["second", "-", "missing"]
    assert lines[4].split() == ["total", "2.0"]
