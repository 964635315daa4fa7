import importlib.metadata
import re
import shutil
from pathlib import Path

import pytest

from recon3d import doctor, patch_net, weights
from recon3d.config import ModelConfig
from recon3d.model import TwoViewModel

SMALL = ModelConfig(enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1, image_size=32)


@pytest.fixture(autouse=True)
def small_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a tiny network in the place of the packaged one."""
    path = tmp_path / "embedded.safetensors"
    weights.save(TwoViewModel(SMALL), path)
    monkeypatch.setattr(weights, "locate", lambda _: path)
    return path


def by_name() -> dict[str, doctor.Check]:
    found = doctor.checks()
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def test_what_the_suite_itself_needs_is_found():
    found = by_name()
    for name in ("python", "torch", "devices", "arithmetic", "weights", "opencv", "memory", "disk"):
        assert found[name].ok, found[name]
    assert "cpu" in found["devices"].detail
    assert "sha256" in found["weights"].detail


def test_whatever_is_missing_comes_with_a_remedy():
    for check in doctor.checks():
        assert check.ok or check.remedy


def test_remedies_name_what_extras_ask_for_and_never_a_stranger(monkeypatch: pytest.MonkeyPatch):
    """Elsewhere another package is called recon3d."""

    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    wanted = [r.replace('"', "'") for r in importlib.metadata.requires("recon3d") or ()]
    extras = {
        extra: requirement.split(";")[0].strip()
        for requirement in wanted
        for extra in ("colmap", "download", "heic")
        if requirement.endswith(f"extra == '{extra}'")
    }
    monkeypatch.setattr(doctor.importlib, "import_module", missing)
    found = by_name()
    checks = {"colmap": "refinement", "download": "downloads", "heic": "heic photos"}
    for extra, name in checks.items():
        assert found[name].remedy == f"pip install '{extras[extra]}'"
    for path in Path(doctor.__file__).parent.rglob("*.py"):
        assert not re.search(r"install recon3d\b(?! from)|recon3d\[", path.read_text()), path


def test_a_package_that_cannot_be_loaded_names_the_system_library(monkeypatch: pytest.MonkeyPatch):
    real = doctor.importlib.import_module

    def broken(name: str) -> object:
        if name == "open3d":
            raise OSError("libusb-1.0.so.0: cannot open shared object file")
        if name == "trimesh":
            raise ModuleNotFoundError("No module named 'trimesh'")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = by_name()
    assert not found["open3d"].ok
    assert "libusb-1.0.so.0" in found["open3d"].detail
    assert "libusb-1.0-0" in str(found["open3d"].remedy)
    assert not found["open3d"].needed
    assert found["trimesh"].remedy == "pip install trimesh"


def test_a_missing_descriptor_is_found_out(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_net.packaged_patch_net.cache_clear()
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(patch_net, "files", lambda _: tmp_path)
    check = by_name()["weights"]
    patch_net.packaged_patch_net.cache_clear()
    assert not check.ok
    assert "descriptor" in check.detail


def test_damaged_weights_are_needed_and_found_out(small_weights: Path):
    small_weights.write_bytes(b"nothing")
    check = by_name()["weights"]
    assert not check.ok
    assert check.needed
    assert "damaged" in check.detail


def test_without_torch_the_rest_is_still_checked(monkeypatch: pytest.MonkeyPatch):
    real = doctor.importlib.import_module
    monkeypatch.setattr(
        doctor.importlib,
        "import_module",
        lambda name: real("no_such_module" if name == "torch" else name),
    )
    found = by_name()
    assert not found["torch"].ok
    assert "weights" not in found
    assert found["disk"].ok


def test_the_compiler_is_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/bin/c++" if name == "c++" else None)
    assert doctor._compiler().detail == "/opt/bin/c++"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert doctor._compiler().remedy == "apt-get install g++"


def test_little_memory_and_disk_are_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        doctor.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2**18
    )
    assert not doctor._memory().ok
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    assert not doctor._disk().ok
