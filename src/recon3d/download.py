"""Weights of the catalogue from a hub into the cache: resumable, checked, licence accepted."""

import json
import logging
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from recon3d.catalogue import (
    CATALOGUE,
    FILES,
    RECORD,
    Published,
    folder_of,
    is_downloaded,
    sha256,
    verified,
)
from recon3d.errors import ResourceError, UsageError, WeightsError
from recon3d.files import atomic_write, not_writable

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1_000_000
_KEPT_FREE_BYTES = 100_000_000


class _Remote(NamedTuple):
    """One file on the hub; `etag` is its SHA-256 where the hub stores it as a large file."""

    url: str
    revision: str
    etag: str
    bytes: int


def download(name: str, *, licence_accepted: bool) -> Path:
    """Return the folder of the weights called `name`, fetched from the hub unless it is there.

    The hub is huggingface.co or what HF_ENDPOINT names. An interrupted download goes on where it
    ended. Files appear under their name only when all are complete; their SHA-256 is recorded
    beside them, and compared with the hub's where it tells one.

    Args:
        name: of the catalogue.
        licence_accepted: whether the user agrees to the licence of these weights.

    Raises:
        UsageError: an unknown name, the licence not accepted, or huggingface_hub not installed.
        WeightsError: the hub cannot be reached, has no such file, or sends something else.
        ResourceError: the disk is full or not writable.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        known = ", ".join(CATALOGUE)
        raise UsageError(f"{name!r} is no published set of weights. Known are {known}.")
    terms = f"{entry.licence.name} ({entry.licence.terms}; {entry.licence.url})"
    if not licence_accepted:
        raise UsageError(
            f"{name} is {entry.bytes / 1e9:.2f} GB under {terms}. "
            "Add --accept-licence if you accept this licence."
        )
    if is_downloaded(name):
        try:
            folder = verified(name)
        except WeightsError as error:
            logger.warning("%s", error)
        else:
            logger.info("%s is there already: %s", name, folder)
            return folder
    logger.info("%s: %.2f GB under %s", name, entry.bytes / 1e9, terms)
    return _fetch(entry)


def _fetch(entry: Published) -> Path:
    """Fetch the files into a folder beside the final one, record them, and rename the folder."""
    folder = folder_of(entry.name)
    partial = folder.with_name(f"{entry.name}.part")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = not_writable(partial, error)
        raise type(fault)(f"{fault} RECON3D_CACHE says where downloads are kept.") from error
    revision = "main"
    for file in FILES:
        remote = _ask(entry.repository, file, revision)
        revision = remote.revision  # all files of one state of the repository
        bound = _SMALL_BYTES if file.endswith(".json") else entry.bytes + _SMALL_BYTES
        if remote.bytes > bound:
            raise WeightsError(
                f"{remote.url} is {remote.bytes} bytes, more than the {bound} it may have."
            )
        _fetch_file(remote, partial / file)
    checksums = {file: sha256(partial / file) for file in FILES}
    record = {
        "format": "recon3d-download",
        "version": 1,
        "name": entry.name,
        "repository": entry.repository,
        "revision": revision,
        "licence": entry.licence.name,
        "licence_accepted": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": checksums,
    }
    with atomic_write(partial / RECORD) as out:
        out.write((json.dumps(record, indent=2) + "\n").encode())
    try:
        for other in partial.iterdir():  # parts of other versions
            if other.name not in (*FILES, RECORD):
                other.unlink()
        if folder.exists():  # damaged, or it would not have been fetched again
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise not_writable(folder, error) from error
    logger.info("%s: SHA-256 %s", folder / FILES[1], checksums[FILES[1]])
    return folder


def _ask(repository: str, file: str, revision: str) -> _Remote:
    """Return what the hub says about a file; no credentials are sent."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
    except ImportError as error:
        raise UsageError(
            "downloads need the package huggingface_hub. Run `pip install 'huggingface-hub>=1.0'`."
        ) from error

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
    try:
        found = get_hf_file_metadata(url, token=False, endpoint=endpoint)
    except Exception as error:  # the classes differ between the versions of huggingface_hub
        raise _unreachable(url, error) from error
    if found.commit_hash is None or found.etag is None or found.size is None:
        raise WeightsError(f"{url} does not look like a file of a hub. Check HF_ENDPOINT.")
    url = hf_hub_url(repository, file, revision=found.commit_hash, endpoint=endpoint)
    return _Remote(url, found.commit_hash, found.etag, found.size)


def _fetch_file(remote: _Remote, path: Path) -> None:
    """Append what is missing to the part that is there; then check its size and SHA-256.

    A file that is whole already, by the hub's SHA-256, is left as it is.
    """
    from huggingface_hub.file_download import http_get

    told = remote.etag.lower()
    is_sha256 = re.fullmatch(r"[0-9a-f]{64}", told) is not None
    if is_sha256 and path.is_file() and sha256(path) == told:
        logger.info("%s is there already", path)
        return
    # its retries are no news; what it gives up on is raised
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # a part of another version of the file has another name and is not continued
    version = re.sub(r"\W", "", remote.etag)[:64]
    part = path.with_name(f"{path.name}.{version}")
    have = part.stat().st_size if part.is_file() else 0
    if have > remote.bytes:
        part.unlink()
        have = 0
    free = shutil.disk_usage(path.parent).free
    if remote.bytes - have > free - _KEPT_FREE_BYTES:
        raise ResourceError(
            f"{path.parent} has {free / 1e9:.2f} GB free, {path.name} needs "
            f"{(remote.bytes - have) / 1e9:.2f} GB. Free some space or set RECON3D_CACHE."
        )
    if have:
        logger.info("%s: going on after %.2f GB", path.name, have / 1e9)
    try:
        with part.open("ab") as out:
            http_get(
                remote.url,
                out,
                resume_size=have,
                headers={"Accept-Encoding": "identity"},
                expected_size=remote.bytes,
                displayed_filename=path.name,
            )
    except Exception as error:  # the classes differ between the versions of huggingface_hub
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise not_writable(part, error) from error
        raise _unreachable(remote.url, error) from error
    if part.stat().st_size != remote.bytes or (is_sha256 and sha256(part) != told):
        part.unlink()
        raise WeightsError(f"{remote.url} came damaged. Run the download again.")
    part.replace(path)


def _unreachable(url: str, error: Exception) -> WeightsError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return WeightsError(
        f"{url} cannot be downloaded: {reason}. Run the same command again to go on; "
        "HF_ENDPOINT names another hub."
    )
