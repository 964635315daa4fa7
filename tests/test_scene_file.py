import dataclasses
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recon3d.errors import InputError
from recon3d.scene_file import load_scene, save_scene, write_scene
from recon3d.types import EdgeVerdict, LeftOut, Scene, Verdict, View


def random_scene() -> Scene:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    sizes = [(32, 48), (48, 32)]
    return Scene(
        views=tuple(
            View(
                name=name,
                sha256=str(index) * 64,
                image=rand(3, *size) * 2 - 1,
                photo2view=rand(3, 3),
                photo_width=4000 + index,
                photo_height=3000,
                focal_px=focal_px,
            )
            for index, (name, size, focal_px) in enumerate(
                zip(("a/ä b.jpg", "bad\udce4.jpg"), sizes, (None, 1234.1), strict=True)
            )
        ),
        cam2world=rand(2, 4, 4, dtype=torch.float64),
        intrinsics=rand(2, 3, 3),
        depth=tuple(rand(*size) for size in sizes),
        confidence=tuple(rand(*size, dtype=torch.float16) for size in sizes),
        verdicts=(
            Verdict(
                residual=0.1,
                edges=1,
                rotation_uncertainty_deg=math.inf,
                focal_source="exif",
                inliers=0.75,
                position_uncertainty=1e-3,
            ),
            Verdict(residual=1 / 3, edges=2, rotation_uncertainty_deg=0.0, focal_source="given"),
        ),
        edges=(
            EdgeVerdict(
                first="a/ä b.jpg",
                second="bad\udce4.jpg",
                used=True,
                reason="",
                confidence=3.5,
                residual=0.04,
                rotation_error_deg=1.5,
                inliers=0.9,
            ),
            EdgeVerdict(
                first="a/ä b.jpg", second="c.jpg", used=False, reason="low", confidence=1.1
            ),
        ),
        left_out=(LeftOut(name="c.jpg", reason="unreadable"),),
        metric=True,
    )


def same(first: object, second: object) -> bool:
    """Compare values of any depth; tensors must agree in type, shape and every bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if dataclasses.is_dataclass(first) and type(first) is type(second):
        names = [field.name for field in dataclasses.fields(first)]
        return all(same(getattr(first, name), getattr(second, name)) for name in names)
    both_nan = first != first and second != second
    return type(first) is type(second) and (first == second or both_nan)


def test_round_trip_is_exact(tmp_path: Path):
    scene = random_scene()
    save_scene(scene, tmp_path / "scene.npz")
    assert same(load_scene(tmp_path / "scene.npz"), scene)


def test_the_comparison_sees_one_changed_bit(tmp_path: Path):
    scene = random_scene()
    depth = (scene.depth[0].clone(), scene.depth[1])
    depth[0][3, 4] += 1e-7
    assert not same(dataclasses.replace(scene, depth=depth), scene)


def test_the_same_scene_gives_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    write_scene(random_scene(), first)
    write_scene(random_scene(), second)
    assert first.getvalue() == second.getvalue()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.npz does not exist"):
        load_scene(tmp_path / "nowhere.npz")


def test_a_folder_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_scene(tmp_path)


def saved_bytes() -> bytes:
    file = io.BytesIO()
    write_scene(random_scene(), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a scene at all" * 100, id="text"),
        pytest.param(saved_bytes()[:-1000], id="end cut off"),
        pytest.param(saved_bytes()[5000:], id="start cut off"),
    ],
)
def test_damaged_bytes_are_an_input_error(tmp_path: Path, content: bytes):
    (tmp_path / "scene.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"scene\.npz is damaged or no scene"):
        load_scene(tmp_path / "scene.npz")


def test_every_flipped_byte_is_an_input_error_or_harmless(tmp_path: Path):
    scene, good = random_scene(), saved_bytes()
    rng = np.random.default_rng(0)
    caught = 0
    for position in rng.integers(0, len(good), size=150):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "scene.npz").write_bytes(bytes(bad))
        try:
            assert same(load_scene(tmp_path / "scene.npz"), scene), position
        except InputError:
            caught += 1
    assert caught > 100


def rewritten(path: Path, **changes: np.ndarray | None) -> None:
    arrays = dict(np.load(io.BytesIO(saved_bytes()), allow_pickle=False)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def meta_with(**changes: object) -> np.ndarray:
    with np.load(io.BytesIO(saved_bytes()), allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].tobytes())
    return np.frombuffer(json.dumps(meta | changes).encode(), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": np.array("recon3d-scene/9")}, "format 'recon3d-scene/9'"),
        ({"format": None}, "format"),
        ({"depth_1": None}, "do not fit its number of views"),
        ({"extra": np.zeros(1)}, "do not fit its number of views"),
        ({"depth_1": np.zeros((32, 48), np.float32)}, "depth_1 is float32"),
        ({"image_0": np.zeros((3, 32), np.float32)}, "not enough values"),
        ({"image_0": np.zeros((4, 32, 48), np.float32)}, "image_0 is float32"),
        ({"cam2world": np.zeros((3, 4, 4))}, "cam2world"),
        ({"intrinsics": np.zeros((2, 3, 3), np.int64)}, "intrinsics is int64"),
        ({"intrinsics": np.zeros((2, 3, 3), ">f4")}, "intrinsics is >f4"),
        ({"meta": np.array([123, 125], np.uint8)}, "expected an object with metric"),
        ({"meta": meta_with(metric=1)}, "metric is '1'"),
        ({"meta": meta_with(verdicts=[])}, "2 views"),
        ({"meta": meta_with(left_out=[{"name": "c.jpg", "reason": 3}])}, "reason is '3'"),
        ({"meta": meta_with(views=[{}, {}])}, "expected an object with name"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], words: str
):
    rewritten(tmp_path / "scene.npz", **changes)
    with pytest.raises(InputError, match=r"scene\.npz is damaged") as caught:
        load_scene(tmp_path / "scene.npz")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path):
    arrays = dict(np.load(io.BytesIO(saved_bytes()), allow_pickle=False))
    arrays["meta"] = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "scene.npz", **arrays)
    with pytest.raises(InputError, match="allow_pickle=False"):
        load_scene(tmp_path / "scene.npz")


def test_compressed_members_are_refused_before_they_unfold(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "scene.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("format.npy", bytes(1_000_000))
    with pytest.raises(InputError, match="a member is compressed"):
        load_scene(tmp_path / "scene.npz")
