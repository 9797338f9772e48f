from experiment import progress
from experiment.progress import Progress, WaitingTime


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


def test_units_that_are_done_together_count_together(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(100, "sample") as counted:
        counted.advance(count=0)
        now[0] = 60.0
        counted.advance(count=25)
    assert capsys.readouterr().out == "sample 25 of 100, 3 min left\n"


def test_work_that_stops_at_a_time_is_expected_to_last_until_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "step", seconds_left=600.0) as counted:
        for now[0] in (120.0, 700.0):
            counted.advance("a loss")
    assert capsys.readouterr().out == (
        "step 1 of 1000, 8 min left, a loss\nstep 2 of 1000, 0 min left, a loss\n"
    )


def test_the_share_of_waiting_is_that_of_the_time_until_items_are_there(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

    def items():
        for seconds in (3.0, 0.0, 1.0):
            now[0] += seconds
            yield seconds

    waiting, shares = WaitingTime(), []
    for _ in waiting.over(items()):
        now[0] += 1.0
        shares.append(waiting.share_since_last_asked())
    assert shares == [3 / 4, 0.0, 1 / 2]
    assert waiting.share == 4 / 7
