"""Commands whose stdout or stderr is closed, full, or without a reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which $P stands for python."""
    source = str(Path(__file__).parents[1] / "src")
    return subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": source, "P": sys.executable},
    )


@needs_full
@pytest.mark.parametrize("arguments", ["--version", "--help", "run --help"])
def test_a_full_disk_is_one_line_and_code_6(arguments: str):
    done = shell(f"$P -m recon3d {arguments} >/dev/full")
    assert done.returncode == 6
    assert done.stderr.startswith("recon3d: ")
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr
    assert "Free some space" in done.stderr


@pytest.mark.parametrize("arguments", ["--version", "--help"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_takes_nothing_away(arguments: str, closed: str):
    done = shell(f"$P -m recon3d {arguments} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == (closed != "2>&-")


@pytest.mark.parametrize("where", ["2>&-", pytest.param("2>/dev/full", marks=needs_full)])
def test_a_fault_that_nobody_hears_keeps_its_code(where: str):
    assert shell(f"$P -m recon3d runn {where}").returncode == 2


@pytest.mark.parametrize("arguments", ["--version", "--help", "run --help"])
def test_a_reader_that_leaves_early_is_no_fault(arguments: str):
    done = shell(f"{{ sleep 0.5; $P -m recon3d {arguments}; echo $? >&2; }} | true")
    assert done.stderr == "0\n"


def test_no_file_gets_the_number_of_a_closed_stream():
    code = (
        "import os, sys; from recon3d.streams import open_closed_streams;"
        " open_closed_streams(); sys.exit(os.open('/dev/null', os.O_RDONLY))"
    )
    assert shell(f'$P -c "{code}" <&- >&- 2>&-').returncode > 2
