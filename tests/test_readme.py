"""What the README promises: its blocks, tables, examples and links."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import typer

from recon3d import errors
from recon3d.cli import app
from recon3d.export import FOLDER_FILES, WRITERS
from recon3d.settings import OPTIONS, run_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("mark", ["system", "main", "test"])
def test_ci_finds_each_command(mark: str) -> None:
    found = re.findall(rf"<!-- ci:{mark} -->\n```sh\n(.+)\n```", README)
    assert len(found) == 1
    assert f"run_block {mark}\n" in (ROOT / ".ci" / "run").read_text()


def test_every_option_in_an_example_exists() -> None:
    run = typer.main.get_command(app).commands["run"]
    known = {name for option in run.params for name in (*option.opts, *option.secondary_opts)}
    assert known >= set(OPTIONS)
    for block in fenced("sh"):
        for line in block.splitlines():
            command = line.partition("recon3d run")[2].partition("#")[0]
            assert set(re.findall(r"--[a-z-]+", command)) <= known


def test_the_commands_named_exist() -> None:
    known = set(typer.main.get_command(app).commands)
    assert set(re.findall(r"`recon3d ([a-z]+)", README)) <= known


def test_the_settings_file_is_legal(tmp_path: Path) -> None:
    (block,) = fenced("toml")
    path = tmp_path / "mine.toml"
    path.write_text(block)
    config = run_config(path, {})
    assert config.pairs == tomllib.loads(block)["pairs"]
    assert config.align.shared_focal


def test_the_table_of_exit_codes_is_complete() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    faults = {fault.exit_code for fault in errors.ReconError.__subclasses__()}
    stopped = {errors.EXIT_INTERRUPTED, errors.EXIT_TERMINATED}
    assert codes == {0, 1, errors.EXIT_PARTIAL} | stopped | faults


def test_the_table_of_outputs_is_complete() -> None:
    rows = set(re.findall(r"^\| `([\w.]+/?)` \|", README, flags=re.MULTILINE))
    assert rows == {*FOLDER_FILES, "out/"}
    assert {Path(row).suffix for row in FOLDER_FILES} == set(WRITERS)


def test_the_names_of_the_python_example_exist() -> None:
    (block,) = fenced("python")
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
