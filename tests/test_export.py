import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recon3d import export as export_module
from recon3d.config import FuseConfig
from recon3d.errors import ResourceError, UsageError
from recon3d.export import FOLDER_FILES, WRITERS, check_outputs, export, load_scene, save_scene
from recon3d.fuse import fuse
from recon3d.types import PointCloud, Scene, Verdict, View


def small_scene() -> Scene:
    generator = torch.Generator().manual_seed(0)
    return Scene(
        views=(
            View(
                name="a.jpg",
                sha256="0" * 64,
                image=torch.rand(3, 8, 12, generator=generator) * 2 - 1,
                photo2view=torch.eye(3),
                photo_width=12,
                photo_height=8,
                focal_px=None,
            ),
        ),
        cam2world=torch.eye(4)[None],
        intrinsics=torch.tensor([[[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]]),
        depth=(torch.full((8, 12), 2.0),),
        confidence=(torch.full((8, 12), 3.0),),
        verdicts=(
            Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="given"),
        ),
    )


@pytest.fixture
def scene() -> Scene:
    return small_scene()


@pytest.fixture
def cloud(scene: Scene) -> PointCloud:
    return fuse(scene, FuseConfig())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("output", ["a.ply", "a.glb", "a.npz", "cameras.json", "A.PLY"])
def test_the_ending_decides_the_format(folder: Path, scene: Scene, cloud: PointCloud, output: str):
    export(scene, cloud, output)
    first_bytes = {".ply": b"ply\n", ".glb": b"glTF", ".npz": b"PK\x03\x04", ".json": b"{\n"}
    assert Path(output).read_bytes().startswith(first_bytes[Path(output).suffix.lower()])
    assert names_in(folder) == [output]


def test_a_folder_receives_every_format(folder: Path, scene: Scene, cloud: PointCloud):
    check_outputs(["out/"], overwrite=False)
    export(scene, cloud, "out/")
    assert names_in(folder / "out") == sorted(FOLDER_FILES)
    assert {Path(name).suffix for name in FOLDER_FILES} == set(WRITERS)
    assert torch.equal(load_scene("out/scene.npz").depth[0], scene.depth[0])
    with pytest.raises(UsageError, match=r"scene\.ply exists; add --overwrite"):
        check_outputs(["out"], overwrite=False)
    export(scene, cloud, "out", overwrite=True)


@pytest.mark.parametrize("output", ["scene.xyz", "scene", "", "colmap:out"])
def test_an_unknown_ending_names_the_known_ones(folder: Path, output: str):
    with pytest.raises(UsageError, match=r"\.ply, \.glb, \.npz, \.json") as caught:
        check_outputs([output], overwrite=True)
    assert repr(output) in str(caught.value)


def test_an_existing_file_is_kept_unless_overwrite_is_given(
    folder: Path, scene: Scene, cloud: PointCloud
):
    Path("a.ply").write_text("mine")
    for refused in (
        lambda: check_outputs(["a.ply"], overwrite=False),
        lambda: export(scene, cloud, "a.ply"),
    ):
        with pytest.raises(UsageError, match=r"a\.ply exists; add --overwrite or choose another"):
            refused()
    assert Path("a.ply").read_text() == "mine"
    check_outputs(["a.ply"], overwrite=True)
    export(scene, cloud, "a.ply", overwrite=True)
    assert Path("a.ply").read_bytes().startswith(b"ply\n")


@pytest.mark.parametrize(
    "outputs", [["a.ply", "a.ply"], ["a.ply", "./a.ply"], ["out/", "out/scene.ply"]]
)
def test_two_equal_outputs_are_refused(folder: Path, outputs: list[str]):
    (folder / "out").mkdir()
    with pytest.raises(UsageError, match="would be written twice"):
        check_outputs(outputs, overwrite=True)


def test_different_outputs_pass_and_leave_no_trace(folder: Path):
    check_outputs(["a.ply", "b.ply", "a.glb", "cameras.json", "out/"], overwrite=False)
    check_outputs([], overwrite=False)
    assert names_in(folder) == []


@pytest.mark.parametrize("output", ["missing/a.ply", "missing/out/"])
def test_a_missing_parent_folder_is_a_usage_error(folder: Path, output: str):
    with pytest.raises(UsageError, match=r"the folder missing does not exist") as caught:
        check_outputs([output], overwrite=False)
    assert output in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("output", ["/proc/self/a.ply", "/proc/self/"])
def test_an_unwritable_folder_is_a_resource_error(output: str):
    with pytest.raises(ResourceError, match=f"{output.rstrip('/')} cannot be written"):
        check_outputs([output], overwrite=False)


def test_a_folder_in_the_place_of_a_file_and_the_reverse(folder: Path):
    (folder / "a.ply").mkdir()
    (folder / "plain").touch()
    with pytest.raises(UsageError, match=r"a\.ply is a folder"):
        check_outputs(["a.ply"], overwrite=True)
    for output in ("plain/", "plain/a.ply"):
        with pytest.raises(UsageError, match=r"plain is a file, not a folder"):
            check_outputs([output], overwrite=True)


@pytest.mark.parametrize("output", ["a.ply", "a.npz", "cameras.json", "a.glb"])
def test_a_failed_rename_leaves_the_old_file_and_nothing_beside_it(
    folder: Path, scene: Scene, cloud: PointCloud, monkeypatch: pytest.MonkeyPatch, output: str
):
    def fail(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    Path(output).write_text("mine")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ResourceError, match=f"{output} cannot be written: Permission denied"):
        export(scene, cloud, output, overwrite=True)
    assert Path(output).read_text() == "mine"
    assert names_in(folder) == [output]


def test_a_full_disk_half_way_through_a_folder_changes_no_file(
    folder: Path, scene: Scene, cloud: PointCloud, monkeypatch: pytest.MonkeyPatch
):
    def full(scene: Scene, cloud: PointCloud, file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    out = folder / "out"
    out.mkdir()
    (out / "scene.ply").write_text("mine")
    monkeypatch.setitem(export_module.WRITERS, ".npz", full)
    with pytest.raises(ResourceError, match=r"scene\.npz cannot be written: No space left"):
        export(scene, cloud, "out/", overwrite=True)
    assert names_in(out) == ["scene.ply"]
    assert (out / "scene.ply").read_text() == "mine"


def test_no_output_needs_open3d_or_trimesh_or_scipy(folder: Path, scene: Scene):
    save_scene(scene, "in.npz")
    program = """
import sys
for name in ("open3d", "trimesh", "scipy"):
    sys.modules[name] = None  # makes every import of it fail
from recon3d.config import FuseConfig
from recon3d.export import export, load_scene
from recon3d.fuse import fuse
scene = load_scene("in.npz")
cloud = fuse(scene, FuseConfig())
for output in ("scene.ply", "scene.glb", "scene.npz", "cameras.json"):
    export(scene, cloud, output)
try:
    import open3d
except ImportError:
    print("no open3d")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(export_module.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "no open3d\n"), done.stderr
    assert names_in(folder) == ["cameras.json", "in.npz", "scene.glb", "scene.npz", "scene.ply"]
    assert Path("scene.npz").read_bytes() == Path("in.npz").read_bytes()
