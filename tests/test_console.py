import io
import logging
import sys

import pytest

from recon3d.console import Console

LOGGER = logging.getLogger("recon3d.anything")


def test_the_log_goes_to_stderr_only_inside_the_block(capsys: pytest.CaptureFixture[str]):
    before = list(logging.getLogger("recon3d").handlers)
    with Console():
        LOGGER.info("read %d photos", 5)
        LOGGER.debug("a detail")
        LOGGER.warning("left out one")
    LOGGER.info("afterwards")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "read 5 photos\nwarning: left out one\n"
    assert logging.getLogger("recon3d").handlers == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"quiet": True}, ["warning: three"]), ({"verbose": True}, ["one", "two", "three"])],
)
def test_quiet_and_verbose(
    capsys: pytest.CaptureFixture[str], options: dict[str, bool], expected: list[str]
):
    with Console(**options):
        LOGGER.debug("one")
        LOGGER.info("two")
        LOGGER.warning("three")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    assert all(line.endswith(end) for line, end in zip(lines, expected, strict=True))


def test_time_is_booked_on_the_stage_that_reports(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 1.0, 3.0, 3.5, 10.0])
    monkeypatch.setattr("recon3d.console.time.perf_counter", lambda: next(now))
    console = Console()
    console("photos", 1, 2)
    console("photos", 2, 2)
    console("pairs", 20, 20)
    with console.stage("fuse"):
        pass
    assert console.seconds == {"photos": 3.0, "pairs": 0.5, "fuse": 6.5}
    assert console.counts == {"photos": 2, "pairs": 20, "fuse": 1}
    assert console.total_s == 10.0


def test_a_stage_that_begins_again_counts_its_time_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Console() as console:
        console("features", 1, 2)
        console("features", 2, 2)
        (bar,) = console._progress.tasks
        assert bar.finished
        console("features", 1, 5)
        assert not bar.finished
        assert (bar.completed, bar.total) == (1, 5)
        assert console.counts == {"features": 3}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Console() as console:
            console("photos", 3, 7)
            LOGGER.info("beside the bar")
        assert ("3/7" in stream.getvalue()) is drawn
        assert "beside the bar" in stream.getvalue()
