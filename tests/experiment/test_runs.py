import contextlib
import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiment.distributed import ALONE
from experiment.errors import UserError
from experiment.runs import (
    MetricLog,
    StopRequest,
    _write_torch_file,
    exit_stopped,
    export_folder,
    has_training_state,
    hold_run,
    load_training_state,
    new_run_path,
    open_run,
    require_finite,
    save_training_state,
    stop_on_signals,
)

ROOT = Path(__file__).parents[2]


def test_open_run_continues_what_it_began(tmp_path):
    config = {"seed": 1, "rate": 0.1, "nested": {"sizes": (1, 2)}, "device": "cpu"}
    assert not open_run(tmp_path / "run", config, ("device",), {}).continued
    again = open_run(tmp_path / "run", {**config, "device": "cuda"}, ("device",), {})
    assert again.continued
    assert again.config["device"] == "cpu"


@pytest.mark.parametrize("had_begun", [True, False])
def test_a_run_is_rid_of_what_a_killed_process_was_writing(tmp_path, had_begun):
    if had_begun:
        open_run(tmp_path, {"seed": 1}, (), {})
    (tmp_path / ".training_state.7.partial.pt").write_text("half")
    (tmp_path / ".config.7.partial.json").write_text("{")
    for name in (".model_3.7.partial", ".model_2.7.replaced", "model_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.json").write_text("{}")
    open_run(tmp_path, {"seed": 1}, (), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model_2",
        "provenance.json",
    ]


def test_open_run_names_the_setting_that_differs(tmp_path):
    open_run(tmp_path, {"seed": 1, "nested": {"size": 3}}, (), {})
    with pytest.raises(UserError, match=r"nested\.size = 3, now 4"):
        open_run(tmp_path, {"seed": 1, "nested": {"size": 4}}, (), {})


def test_open_run_refuses_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run_dir"):
        open_run(tmp_path / "file" / "run", {"seed": 1}, (), {})


def test_one_training_at_a_time_works_in_a_folder(tmp_path):
    run = tmp_path / "run"
    with hold_run(run, ALONE):
        refusal = f"--run_dir {run}: another training is at work there"
        with pytest.raises(UserError, match=refusal), hold_run(run, ALONE):
            pass
        with hold_run(tmp_path / "other", ALONE):
            pass
    with hold_run(run, ALONE):
        pass


def test_a_lock_goes_with_a_killed_process(tmp_path):
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time; from pathlib import Path; from experiment.distributed import ALONE;"
            "from experiment.runs import hold_run\n"
            "with hold_run(Path(sys.argv[1]), ALONE): print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another training"), hold_run(tmp_path, ALONE):
        pass
    holder.kill()
    holder.communicate()
    with hold_run(tmp_path, ALONE):
        pass


def test_a_disk_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with hold_run(tmp_path, ALONE), hold_run(tmp_path, ALONE):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_as_such():
    with pytest.raises(OSError, match="No space left") as refusal:
        _write_torch_file(Path("/dev/full"), {"weights": torch.zeros(100_000)})
    assert refusal.value.errno == errno.ENOSPC
    assert refusal.value.filename == "/dev/full"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_no_numbers_end_a_training(value):
    require_finite({"policy": 1.0, "value": 2.0}, "update 3", "--learning_rate")
    with pytest.raises(UserError, match=f"--learning_rate: .*value is {value} at update 3"):
        require_finite({"policy": 1.0, "value": value}, "update 3", "--learning_rate")


def test_new_run_path_is_new(tmp_path):
    first = new_run_path(tmp_path, 3)
    first.mkdir()
    second = new_run_path(tmp_path, 3)
    assert first.name.startswith("seed_3_")
    assert not second.exists()


def test_training_state_round_trip(tmp_path):
    state = {"weights": torch.randn(3), "count": 3, "nested": [{"name": None}]}
    save_training_state(tmp_path / "s.pt", state)
    loaded = load_training_state(tmp_path / "s.pt")
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert load_training_state(tmp_path / "absent.pt") is None
    assert not has_training_state(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02garbage", b"PK\x03\x04" + b"0" * 50])
def test_damaged_training_state_is_refused(tmp_path, content):
    (tmp_path / "s.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.pt: not a readable training state"):
        load_training_state(tmp_path / "s.pt")


def test_training_state_never_runs_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"x": Malicious()}, tmp_path / "s.pt")
    with pytest.raises(UserError, match="not a readable"):
        load_training_state(tmp_path / "s.pt")
    assert not (tmp_path / "pwned").exists()


def test_log_is_cut_at_the_saved_step_and_loses_half_a_row(tmp_path):
    log = MetricLog(tmp_path, ("step", "loss", "extra"))
    for step in (1, 2, 3):
        log.append({"step": step, "loss": step / 4})
    log.close()
    with (tmp_path / "log.csv").open("a") as handle:
        handle.write("4,0.")
    MetricLog(tmp_path, ("step", "loss", "extra"), last_step=2).close()
    assert (tmp_path / "log.csv").read_text().split() == ["step,loss,extra", "1,0.25,", "2,0.5,"]


def test_log_refuses_unknown_and_changed_columns(tmp_path):
    log = MetricLog(tmp_path, ("step", "loss"))
    with pytest.raises(KeyError, match="lsos"):
        log.append({"step": 1, "lsos": 2.0})
    log.close()
    with pytest.raises(UserError, match="columns differ"):
        MetricLog(tmp_path, ("step", "other"), last_step=0)


def test_signals_become_requests_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.by == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_run_says_so_until_it_goes_on(tmp_path):
    open_run(tmp_path, {"seed": 1}, (), {})
    with pytest.raises(SystemExit) as exit_request:
        exit_stopped(StopRequest(True, "SIGUSR1"), tmp_path)
    assert exit_request.value.code == 75
    assert (tmp_path / "stopped").read_text() == "SIGUSR1\n"
    open_run(tmp_path, {"seed": 1}, (), {})
    assert not (tmp_path / "stopped").exists()


def test_export_replaces_the_whole_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "new").write_text("1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("1")
    export_folder(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["new"]


def test_kept_states_are_the_newest_and_the_newest_that_is_whole_is_read(tmp_path, capsys):
    file = tmp_path / "s.pt"
    for number in range(5):
        save_training_state(file, {"number": number}, keep_last=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.1.pt", "s.2.pt", "s.pt"]
    for expected in (4, 3, 2):
        state = load_training_state(file)
        assert state is not None
        assert state["number"] == expected
        newest = next(p for p in (file, tmp_path / "s.1.pt", tmp_path / "s.2.pt") if p.exists())
        newest.unlink() if expected == 4 else newest.write_bytes(b"torn")
    assert "s.1.pt: not a readable training state" in capsys.readouterr().out
    (tmp_path / "s.2.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"s\.1\.pt"):
        load_training_state(file)


@pytest.mark.parametrize("call", range(1, 9))
def test_kill_while_saving_over_a_damaged_state_loses_nothing(tmp_path, monkeypatch, call):
    """The newest state is torn, the one before is whole: it must outlive a kill at any rename."""
    file, calls = tmp_path / "s.pt", []

    def dies_at_call(function):
        def perhaps(*arguments, **keywords):
            calls.append(function)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return perhaps

    for number in range(2):
        save_training_state(file, {"number": number}, keep_last=2)
    file.write_bytes(b"torn")
    for owner, name in ((os, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync")):
        monkeypatch.setattr(owner, name, dies_at_call(getattr(owner, name)))
    with contextlib.suppress(KeyboardInterrupt):
        save_training_state(file, {"number": 2}, keep_last=2)
    monkeypatch.undo()
    assert has_training_state(file)
    state = load_training_state(file)
    assert state is not None
    assert state["number"] in (0, 2)
    save_training_state(file, {"number": 3}, keep_last=2)
    assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".")]) == 2


def test_fewer_states_are_kept_from_when_it_is_asked(tmp_path):
    file = tmp_path / "s.pt"
    for number, keep_last in enumerate((4, 4, 4, 4, 2)):
        save_training_state(file, {"number": number}, keep_last)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.1.pt", "s.pt"]
    save_training_state(file, {"number": 5})
    assert [p.name for p in tmp_path.iterdir()] == ["s.pt"]


def test_setting_that_an_earlier_release_did_not_know_has_its_default(tmp_path):
    open_run(tmp_path, {"seed": 1}, (), {})
    assert open_run(tmp_path, NewerSettings(), (), {}).continued
    with pytest.raises(UserError, match="added = 3, now 4"):
        open_run(tmp_path, NewerSettings(added=4), (), {})


@dataclass(frozen=True)
class NewerSettings:
    seed: int = 1
    added: int = 3
