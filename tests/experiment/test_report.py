import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from experiment.errors import UserError
from experiment.provenance import collect_provenance, to_plain
from experiment.report import stage_report

ROOT = Path(__file__).resolve().parents[2]


def test_a_report_is_written_at_the_end(tmp_path, capsys):
    path = tmp_path / "reports" / "train.json"
    with stage_report("train", path) as report:
        report.outputs.append("logs/run")
        report.metrics["reward"] = 1.5
        report.earlier_seconds = 100.0
        assert not path.exists()
    content = json.loads(path.read_text())
    seconds = content.pop("seconds")
    assert 100 <= seconds < 110
    assert content == {
        "stage": "train",
        "outputs": ["logs/run"],
        "metrics": {"reward": 1.5},
        "status": "done",
    }
    assert "train: 100." in capsys.readouterr().out


def test_a_stage_that_raises_leaves_no_report(tmp_path):
    def fail() -> None:
        with stage_report("train", tmp_path / "train.json"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_refused_before_the_stage_begins(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "report.json", tmp_path):
        with pytest.raises(UserError, match="--report"), stage_report("train", path):
            pytest.fail("the stage began")


def test_plain_values_go_through_json():
    @dataclass(frozen=True)
    class Inner:
        path: Path
        sizes: tuple[int, ...]

    plain = to_plain({"inner": Inner(Path("a/b"), (1, 2)), 3: None})
    assert plain == {"inner": {"path": "a/b", "sizes": [1, 2]}, "3": None}
    assert json.loads(json.dumps(plain)) == plain


def test_provenance_names_what_made_an_artefact():
    provenance = collect_provenance({"lr": 0.1}, seed=5, inputs={"agent": "hash"})
    assert provenance.seed == 5
    assert provenance.config == {"lr": 0.1}
    assert provenance.inputs == {"agent": "hash"}
    assert provenance.packages["numpy"] == np.__version__
    assert provenance.command
    assert provenance.code_version


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (ROOT / "record.py", ["record.py"]),
        (ROOT / "analysis" / "sml_analysis_precompute.py", ["analysis/sml_analysis_precompute.py"]),
        (ROOT / "rollouts" / "__main__.py", ["-m", "rollouts"]),
        (Path("/elsewhere/bin/tool"), ["tool"]),
    ],
)
def test_the_command_can_be_typed_again_after_python(
    monkeypatch: pytest.MonkeyPatch, program: Path, command: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(program), "--seed", "3"])
    assert collect_provenance({}, seed=3, inputs={}).command == [*command, "--seed", "3"]
