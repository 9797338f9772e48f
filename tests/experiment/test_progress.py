from experiment import progress
from experiment.progress import Progress


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(10, "episode", done=4) as counted:
        counted.advance("3 rows")
        now[0] = 121.0
        counted.advance("7 rows")
        counted.advance("9 rows")
    # Two episodes took 121 seconds, so the four that are left take 242.
    assert capsys.readouterr().out == "episode 6 of 10, 4 min left, 7 rows\n"
