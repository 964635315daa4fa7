"""How many threads pay, with simulated processors and container quotas."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recon3d.cli import main
from recon3d.control_groups import Mounted
from recon3d.threads import limit_threads, n_processors


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the process may use 64 processors, and that nobody spoke of threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is undone afterwards
        monkeypatch.delenv(name)


def quota(tmp_path: Path, text: str) -> Mounted:
    (tmp_path / "cpu.max").write_text(text)
    return Mounted(groups=tmp_path / "missing", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("max 100000\n", 64),
        ("9900000 100000\n", 64),
        ("200000 0\n", 64),
        ("-1 100000\n", 64),
        ("nonsense", 64),
    ],
)
def test_the_quota_of_a_container_bounds_the_processors(
    many: None, tmp_path: Path, text: str, expected: int
):
    assert n_processors(quota(tmp_path, text)) == expected


def test_without_a_quota_the_affinity_counts(
    many: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert n_processors(Mounted(root=tmp_path / "missing")) == 64
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert n_processors(Mounted(root=tmp_path / "missing")) == 3


def test_threads_are_lowered_but_never_raised_nor_against_the_user(
    many: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit_threads(quota(tmp_path, "max 100000"))
    assert "OMP_NUM_THREADS" not in os.environ
    limit_threads(quota(tmp_path, "300000 100000"))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    limit_threads(quota(tmp_path, "300000 100000"))
    assert os.environ["OMP_NUM_THREADS"] == "16"


def test_threads_wait_as_the_user_says_else_not_busily_for_long(
    many: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit_threads(Mounted(root=tmp_path / "missing"))
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 100_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_threads(Mounted(root=tmp_path / "missing"))
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_threads(Mounted(root=tmp_path / "missing"))
    assert "GOMP_SPINCOUNT" not in os.environ


def test_torch_takes_the_limit_over(tmp_path: Path):
    """Told that there are many processors, a new process starts one thread, as its quota says."""
    code = """
import os, sys
from pathlib import Path
from recon3d.control_groups import Mounted
from recon3d.control_groups import Mounted
from recon3d.threads import limit_threads
os.sched_getaffinity = lambda _: set(range(64))
limit_threads(Mounted(root=Path(sys.argv[1])))
import torch
print(torch.get_num_threads())
"""
    quota(tmp_path, "100000 100000")
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=100,
    )
    assert int(found.stdout) == 1


def test_the_command_line_limits_them_before_it_loads_anything(
    many: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("recon3d.cli.limit_threads", lambda: limit_threads(place))
    place = quota(tmp_path, "200000 100000")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["OMP_NUM_THREADS"] == "2"
