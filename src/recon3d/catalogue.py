"""Published weights by name: what they are, where they lie once downloaded, whether they are whole.

Sources of the figures: the papers' own releases on the Hugging Face hub; parameters are counted
without the second names of shared tensors, and files hold four bytes for each.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from recon3d.errors import UsageError, WeightsError

FILES = ("config.json", "model.safetensors")
"""The files of a set of weights, as the hub lays them out."""
RECORD = "recon3d-download.json"
"""Beside them: where they came from, when their licence was accepted, and their SHA-256."""
_MAX_RECORD_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Under what terms weights may be used."""

    name: str
    url: str
    terms: str


CC_BY_NC_SA = Licence(
    name="CC BY-NC-SA 4.0",
    url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    terms="non-commercial use only, with attribution, derivatives under the same licence",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A set of weights that others published; `image_size` is the long edge in pixels."""

    name: str
    repository: str
    parameters: int
    image_size: int
    gives: str
    source: str
    licence: Licence = CC_BY_NC_SA

    @property
    def bytes(self) -> int:
        """The size of the download, but for a few kilobytes."""
        return 4 * self.parameters


_DUST3R = "DUSt3R (Wang et al., CVPR 2024)"
CATALOGUE = {
    entry.name: entry
    for entry in (
        Published(
            name="dust3r-224-linear",
            repository="naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
            parameters=532_342_784,
            image_size=224,
            gives="points",
            source=_DUST3R,
        ),
        Published(
            name="dust3r-512-linear",
            repository="naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
            parameters=532_342_784,
            image_size=512,
            gives="points",
            source=_DUST3R,
        ),
        Published(
            name="dust3r-512-dpt",
            repository="naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
            parameters=571_171_208,
            image_size=512,
            gives="points",
            source=_DUST3R,
        ),
        Published(
            name="mast3r-512",
            repository="naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
            parameters=688_638_856,
            image_size=512,
            gives="points in metres, descriptors",
            source="MASt3R (Leroy et al., ECCV 2024)",
        ),
    )
}


def cache_folder() -> Path:
    """Return where downloads are kept: RECON3D_CACHE, else the platform's place for caches.

    Raises:
        UsageError: the user has no home folder to keep them in.
    """
    try:
        return _cache_folder()
    except RuntimeError as error:  # no HOME, and no entry in the list of users, as in containers
        raise UsageError(
            "there is no home folder to keep downloads in. Set RECON3D_CACHE to a folder."
        ) from error


def _cache_folder() -> Path:
    if chosen := os.environ.get("RECON3D_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "recon3d" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recon3d"
    # the XDG base directory specification: a relative path is to be ignored
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "recon3d"


def folder_of(name: str) -> Path:
    """Return where the files of a name in the catalogue lie, downloaded or not."""
    return cache_folder() / "weights" / name


def is_downloaded(name: str) -> bool:
    """Return whether a download of this name was finished; its files may have changed since."""
    try:
        return (folder_of(name) / RECORD).is_file()
    except (UsageError, OSError):  # no folder, or one that may not be looked into
        return False


def verified(name: str) -> Path:
    """Return the folder of downloaded weights after comparing every file with its recorded SHA-256.

    Raises:
        WeightsError: not downloaded yet, or a file is missing or has changed; says what to do.
    """
    entry, folder = CATALOGUE[name], folder_of(name)
    again = f"recon3d weights download {name} --accept-licence"
    if not is_downloaded(name):
        raise WeightsError(
            f"{name} is not downloaded yet. Run `{again}` "
            f"({entry.bytes / 1e9:.2f} GB, {entry.licence.name}: {entry.licence.terms})."
        )
    for file, recorded in _recorded(folder / RECORD, again).items():
        path = folder / file
        found = sha256(path) if path.is_file() else "missing"
        if found != recorded:
            raise WeightsError(
                f"{path} is not what was downloaded (SHA-256 {found[:16]}, not {recorded[:16]}). "
                f"Run `{again}` again."
            )
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error


def _recorded(path: Path, again: str) -> dict[str, str]:
    """Return the SHA-256 of each of FILES as the download recorded it."""
    fault = f"{path} is damaged. Run `{again}` again."
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise WeightsError(fault)
        record = json.loads(path.read_text(encoding="utf-8"))
        return {file: str(record["sha256"][file]) for file in FILES}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise WeightsError(fault) from error
