"""What this machine can do, what is missing, and the line that installs it."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from recon3d.compiler import find_compiler
from recon3d.errors import ReconError

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding: `detail` says what was found, `remedy` what to do where `ok` is false.

    `needed` says whether `recon3d run -o scene.ply` needs it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    needed: bool = True


def checks() -> list[Check]:
    """Return all findings; nothing is changed, installed or downloaded."""
    return list(_checks())


def _checks() -> Iterator[Check]:
    yield Check(
        name="python", ok=True, detail=f"{platform.python_version()} on {platform.system()}"
    )
    torch_check = _package("torch", "torch")
    yield torch_check
    if torch_check.ok:
        yield _torch_devices()
        yield _arithmetic()
        yield _weights()
    yield _package(
        "opencv",
        "cv2",
        "opencv-python",
        remedy="pip install opencv-python; on Debian also apt-get install libgl1 libglib2.0-0",
    )
    yield _package(
        "open3d",
        "open3d",
        needed=False,
        remedy="pip install open3d; on Debian also apt-get install libusb-1.0-0 libegl1 libgl1 "
        "libx11-6 libidn2-0 libudev1",
    )
    yield _package("trimesh", "trimesh", needed=False)
    yield _package("scipy", "scipy", needed=False)
    yield _package(
        "refinement",
        "pycolmap",
        "pycolmap",
        needed=False,
        remedy="pip install 'pycolmap>=4.0'",
    )
    yield _package(
        "downloads",
        "huggingface_hub",
        "huggingface_hub",
        needed=False,
        remedy="pip install 'huggingface-hub>=1.0'",
    )
    yield _package(
        "heic photos",
        "pillow_heif",
        "pillow-heif",
        needed=False,
        remedy="pip install 'pillow-heif>=0.18'",
    )
    yield _compiler()
    yield _memory()
    yield _disk()


def _package(
    name: str,
    module: str,
    distribution: str | None = None,
    *,
    needed: bool = True,
    remedy: str | None = None,
) -> Check:
    """Import the module: only an attempt sees missing system libraries."""
    distribution = distribution or module
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        return Check(
            name=name,
            ok=False,
            detail=f"cannot be imported: {reason}",
            remedy=remedy or f"pip install {distribution}",
            needed=needed,
        )
    try:
        return Check(name=name, ok=True, detail=version(distribution), needed=needed)
    except PackageNotFoundError:
        return Check(name=name, ok=True, detail="version unknown", needed=needed)


def _torch_devices() -> Check:
    import torch

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        gib = torch.cuda.get_device_properties(index).total_memory / GIB
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, {gib:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} processors"
    return Check(name="devices", ok=True, detail=f"{', '.join(devices)}; {threads}")


def _arithmetic() -> Check:
    import torch

    from recon3d.config import Precision
    from recon3d.predict import resolve_device, resolve_precision

    probes: dict[str, Callable[[], bool]] = {
        label: getattr(torch.cpu, probe)
        for label, probe in (
            ("AVX2", "_is_avx2_supported"),
            ("AVX512", "_is_avx512_supported"),
            ("AVX512-bf16", "_is_avx512_bf16_supported"),
            ("AMX", "_is_amx_tile_supported"),
        )
        if hasattr(torch.cpu, probe)
    }
    device = resolve_device("auto")
    dtype = str(resolve_precision(Precision.AUTO, device)).removeprefix("torch.")
    features = [label for label, probe in probes.items() if probe()]
    return Check(
        name="arithmetic",
        ok=True,
        detail=f"auto is {dtype} on {device}; processor has {', '.join(features) or 'no AVX'}",
    )


def _weights() -> Check:
    from recon3d.patch_net import packaged_patch_net
    from recon3d.weights import EMBEDDED
    from recon3d.weights_info import describe

    try:
        facts = describe(EMBEDDED)
        packaged_patch_net()
    except ReconError as error:
        return Check(
            name="weights",
            ok=False,
            detail=str(error),
            remedy="pip install --force-reinstall --no-deps . in a clone of recon3d",
        )
    shown = ", ".join(
        f"{key} {str(facts[key])[:16]}" for key in ("name", "parameters", "sha256") if key in facts
    )
    return Check(name="weights", ok=True, detail=f"embedded: {shown}")


def _compiler() -> Check:
    """torch.compile, which makes `train` faster, calls a C++ compiler."""
    found = find_compiler()
    if found:
        return Check(name="compiler", ok=True, detail=found, needed=False)
    return Check(
        name="compiler",
        ok=False,
        detail="no C++ compiler: train runs uncompiled, slower",
        remedy="apt-get install g++",
        needed=False,
    )


def _memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES") / GIB
        free = page * os.sysconf("SC_AVPHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):  # not on Windows, not on every system
        return Check(name="memory", ok=True, detail="size unknown", needed=False)
    return Check(
        name="memory",
        ok=total >= 3,
        detail=f"{total:.1f} GiB, {free:.1f} GiB unused",
        remedy=None if total >= 3 else "use a machine with at least 4 GiB",
    )


def _disk() -> Check:
    free = shutil.disk_usage(".").free / GIB
    return Check(
        name="disk",
        ok=free >= 1,
        detail=f"{free:.1f} GiB free here",
        remedy=None if free >= 1 else "free some space, or work in another folder",
    )
