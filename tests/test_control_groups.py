"""What control groups of both versions allow, from files like those that Linux shows."""

from pathlib import Path

import pytest

from recon3d.control_groups import Mounted, memory_left_bytes, processors_granted

UNBOUNDED = "9223372036854771712"


def put(folder: Path, **files: str) -> None:
    """Write the files of a group; a dot in a name is two underscores here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def mounted(tmp_path: Path, groups: str) -> Mounted:
    (tmp_path / "list").write_text(groups)
    return Mounted(groups=tmp_path / "list", root=tmp_path / "fs")


def test_files_that_were_read_are_not_memory_that_is_lacking(tmp_path: Path):
    place = mounted(tmp_path, "0::/\n")
    stat = (
        "anon 900000000\nfile 7000000000\nshmem 100000000\n"
        "inactive_file 4900000000\nactive_file 2000000000\n"
    )
    put(place.root, memory__max="max\n", memory__current="7900000000\n", memory__stat=stat)
    assert memory_left_bytes(place) is None
    put(place.root, memory__max="8000000000\n")
    assert memory_left_bytes(place) == 7_000_000_000


def test_the_tightest_group_counts(tmp_path: Path):
    """As of a batch system, whose jobs have steps with groups of their own."""
    place = mounted(tmp_path, "0::/system.slice/job_7/step_0\n")
    job = place.root / "system.slice" / "job_7"
    put(place.root)  # the root of a machine has no limits
    put(job.parent, memory__max="max", memory__current="50", memory__stat="", cpu__max="max 100000")
    put(job, memory__max="9000", memory__current="4000", memory__stat="", cpu__max="250000 100000")
    put(job / "step_0", memory__max="max", memory__current="4000", cpu__max="300000 100000")
    put(job / "other", memory__max="5", memory__current="4", cpu__max="1000 100000")
    assert memory_left_bytes(place) == 5000
    assert processors_granted(place) == 2.5
    put(job / "step_0", memory__max="4500")
    assert memory_left_bytes(place) == 500


def test_version_1(tmp_path: Path):
    place = mounted(tmp_path, "5:cpu,cpuacct:/slurm/job\n4:memory:/slurm/job\n0::/\n")
    memory, cpu = (place.root / name / "slurm" for name in ("memory", "cpu"))
    put(
        memory / "job",
        memory__limit_in_bytes=UNBOUNDED,
        memory__usage_in_bytes="4000",
        memory__stat="cache 9\nactive_file 7\ntotal_inactive_file 300\ntotal_active_file 200\n",
    )
    put(
        memory,
        memory__limit_in_bytes="6000\n",
        memory__usage_in_bytes="5000\n",
        memory__stat="total_inactive_file 350\ntotal_active_file 200\n",
    )
    put(cpu / "job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert memory_left_bytes(place) == 1550
    assert processors_granted(place) is None
    put(cpu, cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    assert processors_granted(place) == 1.5


def test_in_a_container_of_version_1_its_group_is_the_root(tmp_path: Path):
    place = mounted(tmp_path, "4:memory:/docker/0123abcd\n")
    put(place.root / "memory", memory__limit_in_bytes="600", memory__usage_in_bytes="100")
    assert memory_left_bytes(place) == 500


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "0::/../..\n", "1:cpu\n::::\n"])
def test_what_cannot_be_read_bounds_nothing(tmp_path: Path, text: str):
    place = mounted(tmp_path, text)
    assert memory_left_bytes(place) is None
    assert processors_granted(place) is None
    put(place.root, memory__max="-3", memory__current="a", cpu__max="1 0")
    assert memory_left_bytes(place) is None
    assert processors_granted(place) is None
    assert memory_left_bytes(Mounted(groups=tmp_path, root=tmp_path / "missing")) is None


def test_more_in_use_than_allowed_leaves_nothing(tmp_path: Path):
    place = mounted(tmp_path, "0::/")
    put(place.root, memory__max="100", memory__current="150", memory__stat="active_file 20")
    assert memory_left_bytes(place) == 0
