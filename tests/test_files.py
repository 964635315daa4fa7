import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recon3d import files
from recon3d.errors import ResourceError, UsageError
from recon3d.files import atomic_write


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write_half(path: Path, fault: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise fault


def test_a_new_file_holds_what_was_written_and_nothing_lies_beside_it(tmp_path: Path):
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("fault", [ValueError("bug"), KeyboardInterrupt(), UsageError("user")])
def test_a_fault_in_the_block_passes_and_keeps_the_old_file(tmp_path: Path, fault: BaseException):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(type(fault)):
        write_half(tmp_path / "a.bin", fault)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_a_resource_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(os, name, full)
    with (
        pytest.raises(ResourceError, match=r"a\.bin cannot be written: No space left"),
        atomic_write(tmp_path / "a.bin") as file,
    ):
        file.write(b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_fails_at_the_kernel_is_a_resource_error(tmp_path: Path):
    with (
        pytest.raises(ResourceError, match="No space left"),
        atomic_write(tmp_path / "a.bin"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["missing/a.bin", "file/a.bin", "a" * 300])
def test_a_path_that_cannot_be_is_a_usage_error(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"cannot be written: .*\. Choose another path"),
        atomic_write(tmp_path / name),
    ):
        pass


def test_a_symbolic_link_keeps_pointing_at_its_file(tmp_path: Path):
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    with atomic_write(tmp_path / "link.bin") as file:
        file.write(b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_a_killed_process_leaves_the_old_file_whole(tmp_path: Path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom recon3d.files import atomic_write\n"
        f"with atomic_write(Path({str(target)!r})) as file:\n"
        "    file.write(b'x' * 1_000_000)\n    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
