"""Published weights: where they lie, and a download end to end against a small hub on 127.0.0.1."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recon3d import catalogue, weights, weights_info
from recon3d.catalogue import CATALOGUE, RECORD, cache_folder, folder_of, is_downloaded, verified
from recon3d.cli import main
from recon3d.config import PRESETS, HeadType, ModelConfig
from recon3d.download import download
from recon3d.errors import ResourceError, UsageError, WeightsError
from recon3d.model import TwoViewModel

NAME = "dust3r-512-dpt"
REPOSITORY = CATALOGUE[NAME].repository
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = ModelConfig(
    name=NAME,
    image_size=96,
    enc_dim=32,
    enc_depth=1,
    enc_heads=2,
    dec_dim=16,
    dec_depth=2,
    dec_heads=2,
    head=HeadType.DPT,
    dpt_layer_dims=(4, 6, 8, 10),
    dpt_feature_dim=8,
    dpt_last_dim=4,
)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECON3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository as the public hub does, with byte ranges.

    `break_after` cuts the next transfer of the tensors after so many bytes and refuses the rest.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.break_after: int | None = None
        self.refuse = False
        self.etags = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.etags["config.json"] = "c" * 40  # small files go by another checksum

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub = self.server
        wanted = self.headers.get("Range")
        hub.requests.append((self.command, self.path, wanted))
        hub.headers_seen.append(dict(self.headers))
        prefixes = [f"/{REPOSITORY}/resolve/{revision}/" for revision in ("main", COMMIT)]
        name = next((self.path.removeprefix(p) for p in prefixes if self.path.startswith(p)), None)
        if name not in hub.files or (body and hub.refuse):
            self.send_response(503 if name in hub.files else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = hub.files[name], 0
        if wanted:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hub.etags[name]}"')
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            last = f"{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {start}-{last}")
        self.end_headers()
        if not body:
            return
        if hub.break_after is not None and name == "model.safetensors":
            self.wfile.write(content[start : start + hub.break_after])
            hub.break_after, hub.refuse = None, True
            self.close_connection = True
            return
        self.wfile.write(content[start:])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    infinity = float("inf")
    options = dict(
        pos_embed="RoPE100",
        img_size=[96, 96],
        head_type="dpt",
        output_mode="pts3d",
        depth_mode=["exp", -infinity, infinity],
        conf_mode=["exp", 1, infinity],
        enc_embed_dim=32,
        enc_depth=1,
        enc_num_heads=2,
        dec_embed_dim=16,
        dec_depth=2,
        dec_num_heads=2,
        landscape_only=False,
    )
    torch.manual_seed(3)
    save_file(TwoViewModel(TINY).state_dict(), tmp_path / "served.safetensors")
    tensors = (tmp_path / "served.safetensors").read_bytes()
    server = Hub({"config.json": json.dumps(options).encode(), "model.safetensors": tensors})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # a part is kept in pieces of this size: 10 MB, more than the whole file here
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# --- the list and the cache


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("dust3r-224-linear", HeadType.LINEAR),
        ("dust3r-512-linear", HeadType.LINEAR),
        ("dust3r-512-dpt", HeadType.DPT),
        ("mast3r-512", HeadType.CATMLP_DPT),
    ],
)
def test_the_catalogue_counts_the_parameters_of_its_networks(name: str, head: HeadType) -> None:
    from dataclasses import replace

    with torch.device("meta"):
        model = TwoViewModel(replace(PRESETS["large"], head=head))
    assert CATALOGUE[name].parameters == sum(p.numel() for p in model.parameters())
    assert CATALOGUE[name].licence.name == "CC BY-NC-SA 4.0"
    assert str(CATALOGUE[name].image_size) in name


def test_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RECON3D_CACHE")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/me/.cache/recon3d")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert cache_folder() == Path("/var/caches/recon3d")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/me/.cache/recon3d")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path("/home/me/Library/Caches/recon3d")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/recon3d/Cache")


def test_without_a_home_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RECON3D_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert not any(is_downloaded(name) for name in CATALOGUE)
    with pytest.raises(UsageError, match=r"no home folder .* Set RECON3D_CACHE"):
        cache_folder()


def test_a_cache_that_may_not_be_looked_into_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    assert not is_downloaded(next(iter(CATALOGUE)))


def test_list_shows_every_name_and_the_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("weights", "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "recon3d-weights"
    assert [entry["name"] for entry in found["weights"]] == ["embedded", *CATALOGUE]
    assert all(entry["path"] is None for entry in found["weights"][1:])
    assert call("weights", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    row = next(line for line in lines if line.startswith(NAME))
    for text in ("2.28 GB", "571.2 M", "512 px", "CC BY-NC-SA 4.0", "not downloaded"):
        assert text in row


def test_info_of_what_is_not_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("weights", "info", NAME, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] is None
    assert found["repository"] == REPOSITORY


def test_run_never_downloads_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match=r"download dust3r-512-dpt --accept-licence.*2\.28 GB"):
        weights.load(NAME)
    assert not (tmp_path / "cache").exists()
    assert capsys.readouterr().out == ""


# --- the download


def test_nothing_is_fetched_before_the_licence_is_accepted(
    hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("weights", "download", NAME) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for text in ("2.28 GB", "CC BY-NC-SA 4.0", "non-commercial", "--accept-licence"):
        assert text in err
    assert hub.requests == []
    assert not cache.exists()


def test_download_once_then_load_offline(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("weights", "download", NAME, "--accept-licence") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "CC BY-NC-SA 4.0" in err
    folder = folder_of(NAME)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", RECORD]
    assert sorted(p.name for p in folder.parent.iterdir()) == [NAME]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    record = json.loads((folder / RECORD).read_text())
    assert record["revision"] == COMMIT
    assert record["licence"] == "CC BY-NC-SA 4.0"
    assert record["sha256"]["model.safetensors"] == hub.etags["model.safetensors"]
    # every file of one state of the repository, and no credentials
    fetched = [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]
    assert [path.split("/")[4] for path in fetched] == [COMMIT, COMMIT]
    assert not any("authorization" in map(str.lower, headers) for headers in hub.headers_seen)

    asked = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = weights.load(NAME)
    torch.manual_seed(3)
    for name, tensor in TwoViewModel(TINY).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert call("weights", "info", NAME, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["licence"] == "CC BY-NC-SA 4.0"
    assert facts["sha256"] == hub.etags["model.safetensors"]
    assert call("weights", "download", NAME, "--accept-licence") == 0
    assert "is there already" in capsys.readouterr().err
    assert len(hub.requests) == asked


def test_an_interrupted_download_goes_on_where_it_ended(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(hub.files["model.safetensors"])
    hub.break_after = size // 2
    assert call("weights", "download", NAME, "--accept-licence") == 7
    err = capsys.readouterr().err
    assert "Run the same command again to go on" in err
    assert not is_downloaded(NAME)
    with pytest.raises(WeightsError, match="not downloaded yet"):
        verified(NAME)
    hub.refuse = False
    hub.requests.clear()
    assert call("weights", "download", NAME, "--accept-licence") == 0
    ranges = [r for method, path, r in hub.requests if method == "GET" and r is not None]
    assert ranges == [f"bytes={size // 2 // 1024 * 1024}-"]
    assert (folder_of(NAME) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


@pytest.mark.parametrize("damaged", [False, True])
def test_tensors_that_are_whole_are_not_fetched_again(hub: Hub, damaged: bool) -> None:
    """As after a kill between the last byte and the record."""
    tensors = bytearray(hub.files["model.safetensors"])
    tensors[-1] ^= damaged
    partial = folder_of(NAME).with_name(f"{NAME}.part")
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(tensors)
    download(NAME, licence_accepted=True)
    fetched = [path for method, path, _ in hub.requests if method == "GET"]
    assert any("model.safetensors" in path for path in fetched) == damaged
    assert (verified(NAME) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_part_of_another_version_is_not_continued(hub: Hub) -> None:
    hub.break_after = 5000
    with pytest.raises(WeightsError):
        download(NAME, licence_accepted=True)
    hub.refuse = False
    changed = bytearray(hub.files["model.safetensors"])
    changed[-1] ^= 1
    hub.files["model.safetensors"] = bytes(changed)
    hub.etags["model.safetensors"] = hashlib.sha256(changed).hexdigest()
    hub.requests.clear()
    download(NAME, licence_accepted=True)
    assert not any(wanted for *_, wanted in hub.requests)
    assert (verified(NAME) / "model.safetensors").read_bytes() == changed
    assert sorted(p.name for p in folder_of(NAME).iterdir()) == [
        "config.json", "model.safetensors", RECORD
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["change", "remove"])
def test_every_later_load_compares_the_checksums(hub: Hub, file: str, damage: str) -> None:
    download(NAME, licence_accepted=True)
    path = folder_of(NAME) / file
    if damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{file} is not what was downloaded.*download"):
        weights.load(NAME)
    assert download(NAME, licence_accepted=True) == folder_of(NAME)  # mends it
    weights.load(NAME)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": {}}', '{"sha256": 3}', " " * 70_000])
def test_a_damaged_record_is_a_fault(hub: Hub, text: str) -> None:
    download(NAME, licence_accepted=True)
    (folder_of(NAME) / RECORD).write_text(text)
    with pytest.raises(WeightsError, match=r"damaged\. Run"):
        weights.load(NAME)


def test_what_the_hub_says_of_the_checksum_is_compared(hub: Hub) -> None:
    hub.etags["model.safetensors"] = "0" * 64
    with pytest.raises(WeightsError, match="came damaged"):
        download(NAME, licence_accepted=True)
    assert not is_downloaded(NAME)


def test_files_larger_than_the_weights_are_not_fetched(hub: Hub) -> None:
    hub.files["config.json"] = bytes(2_000_000)
    with pytest.raises(WeightsError, match="more than the 1000000"):
        download(NAME, licence_accepted=True)
    assert not any(method == "GET" for method, *_ in hub.requests)


def test_weights_that_cannot_be_loaded_are_said_at_the_download(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["config.json"] = b'{"pos_embed": "cosine"}'
    assert call("weights", "download", NAME, "--accept-licence") == 7
    assert "pos_embed is cosine" in capsys.readouterr().err


def test_faults_of_the_hub_are_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("weights", "download", "mast3r-512", "--accept-licence", "-q") == 7
    err = capsys.readouterr().err
    assert "404" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert call("weights", "download", NAME, "--accept-licence", "-q") == 7
    err = capsys.readouterr().err
    assert "cannot be downloaded" in err
    assert err.count("\n") == 1
    assert call("weights", "download", "dust4r", "--accept-licence") == 2
    assert NAME in capsys.readouterr().err


def test_a_full_disk_is_said_before_anything_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    with pytest.raises(ResourceError, match=r"0\.10 GB free.*RECON3D_CACHE"):
        download(NAME, licence_accepted=True)
    assert not any(method == "GET" for method, *_ in hub.requests)


def test_a_cache_that_cannot_be_written(hub: Hub, cache: Path) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(UsageError, match=r"cannot be written: .* RECON3D_CACHE says where"):
        download(NAME, licence_accepted=True)


def test_without_the_extra_the_line_to_install_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'huggingface-hub>=1"):
        download(NAME, licence_accepted=True)


# --- convert


def test_convert_writes_our_own_file(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(NAME, licence_accepted=True)
    out = tmp_path / "own.safetensors"
    assert call("weights", "convert", NAME, out) == 0
    assert str(out) in capsys.readouterr().err
    own, theirs = weights.load(str(out)), weights.load(NAME)
    assert own.config == theirs.config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {
            "format": "recon3d",
            "licence": "CC BY-NC-SA 4.0",
            "converted_from_sha256": catalogue.sha256(folder_of(NAME) / "model.safetensors"),
        }
    # the licence stays with the weights, through a second conversion too
    assert call("weights", "convert", out, tmp_path / "half.safetensors", "--half", "-q") == 0
    assert weights_info.describe(str(tmp_path / "half.safetensors"))["licence"] == "CC BY-NC-SA 4.0"
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * out.stat().st_size
    capsys.readouterr()
    assert call("weights", "convert", out, tmp_path / "half.safetensors") == 2
    assert "Add --overwrite" in capsys.readouterr().err
    assert call("weights", "convert", out, tmp_path / "half.safetensors", "--overwrite") == 0
    assert call("weights", "convert", out, tmp_path / "half.pth") == 2
    assert call("weights", "convert", tmp_path / "none.pth", tmp_path / "x.safetensors") == 7


@pytest.mark.parametrize("copied", [False, True])
def test_convert_keeps_licence_and_type_of_the_packaged_weights(
    tmp_path: Path, copied: bool
) -> None:
    source = weights.locate(weights.EMBEDDED)
    if copied:
        for file in (source, source.with_suffix(".json")):
            shutil.copy(file, tmp_path)
        source = tmp_path / source.name
    out = tmp_path / "own.safetensors"
    assert call("weights", "convert", source, out, "-q") == 0
    facts = weights_info.describe(str(out))
    assert facts["licence"] == weights_info.LICENCE
    own, theirs = load_file(out), load_file(source)
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())
    assert {tensor.dtype for tensor in own.values()} == {torch.float16}


def test_an_unknown_name_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("weights", "info", "nope") == 7
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("nope", weights.EMBEDDED, *CATALOGUE))
    assert shown.count("\n") == 1
