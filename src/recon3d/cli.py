"""The command line: parse, one library call, print. Heavy imports happen inside the commands."""

import errno
import json
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from recon3d import __version__, cli_synth, cli_train, cli_weights
from recon3d.cli_options import (
    AllComponentsOption,
    CamerasAreOption,
    CamerasOption,
    ConfigOption,
    DenseOption,
    DeterministicOption,
    DeviceOption,
    FocalOption,
    JsonOption,
    MasksOption,
    MatchesOption,
    MaxPointsOption,
    MinConfidenceOption,
    OutputOption,
    OverwriteOption,
    PairsOption,
    PercentileOption,
    PhotosArgument,
    PrecisionOption,
    QuietOption,
    RefineOption,
    ScaleFromOption,
    SeedOption,
    SharedFocalOption,
    SizeOption,
    VerboseOption,
    VoxelOption,
    WeightsOption,
    say,
)
from recon3d.console import Console
from recon3d.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    EXIT_TERMINATED,
    ReconError,
    ResourceError,
    UsageError,
)
from recon3d.interrupt import sigterm_exits
from recon3d.settings import run_config
from recon3d.streams import emit, open_closed_streams, settle, tell
from recon3d.threads import limit_threads

app = typer.Typer(
    name="recon3d",
    help="Photographs in, a coloured point cloud and cameras out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool | None) -> None:
    if wanted:
        emit(f"recon3d {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Photographs in, a coloured point cloud and cameras out."""


@app.command()
def run(
    photos: PhotosArgument,
    output: OutputOption,
    weights: WeightsOption = None,
    size: SizeOption = None,
    pairs: PairsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    focal: FocalOption = None,
    shared_focal: SharedFocalOption = None,
    cameras: CamerasOption = None,
    cameras_are: CamerasAreOption = None,
    masks: MasksOption = None,
    scale_from: ScaleFromOption = None,
    refine: RefineOption = None,
    dense: DenseOption = None,
    all_components: AllComponentsOption = None,
    matches: MatchesOption = None,
    min_confidence: MinConfidenceOption = None,
    confidence_percentile: PercentileOption = None,
    max_points: MaxPointsOption = None,
    voxel: VoxelOption = None,
    seed: SeedOption = None,
    deterministic: DeterministicOption = None,
    config_file: ConfigOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Reconstruct a scene from photographs."""
    options = {
        "--weights": weights,
        "--size": size,
        "--pairs": pairs,
        "--device": device,
        "--precision": precision,
        "--focal": focal,
        "--shared-focal": shared_focal,
        "--cameras": cameras,
        "--cameras-are": cameras_are,
        "--masks": masks,
        "--scale-from": scale_from,
        "--refine": refine,
        "--dense": dense,
        "--all-components": all_components,
        "--min-confidence": min_confidence,
        "--confidence-percentile": confidence_percentile,
        "--max-points": max_points,
        "--voxel": voxel,
        "--seed": seed,
        "--deterministic": deterministic,
    }
    config = run_config(config_file, options)
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d import summary
        from recon3d.export import check_groups, check_outputs, export, numbered, wants_clouds
        from recon3d.fuse import fuse_each
        from recon3d.match_file import check_match_output, write_match_files
        from recon3d.pipeline import reconstruct_groups

        match_files = matches or []
        for match_file in match_files:
            check_match_output(match_file, overwrite=overwrite)
        check_outputs(output, overwrite=overwrite, matches=match_files)
        if config.all_components:
            check_groups(output, overwrite=overwrite, matches=match_files)
        console("start", 1, 1)
        keep = partial(write_match_files, match_files) if match_files else None
        found = reconstruct_groups(photos, config, on_matches=keep, track=console)
        with console.stage("fuse"):
            clouds, pointless = fuse_each(found.scenes, config.fuse)
        lacking = pointless if wants_clouds(output) else {}
        written: list[list[str]] = []
        with console.stage("export"):
            for n, (scene, cloud) in enumerate(zip(found.scenes, clouds, strict=True), start=1):
                targets = [numbered(target, n) for target in output]
                written.append([t for t in targets if export(scene, cloud, t, overwrite=overwrite)])
    left_out = found.scenes[0].left_out
    names = [target for targets in written for target in targets]
    names += match_files
    done = summary.sentence(
        found.scenes, found.refinements, found.dense, cameras_given=found.cameras_given
    )
    wrote = ", ".join(names) or "nothing"
    say(f"{done}; wrote {wrote} in {console.total_s:.1f} s", quiet and not left_out)
    if json_output:
        document = summary.document(found, clouds, written, config.predict, console)
        emit(json.dumps(document | {"matches": match_files or None}))
    if len(lacking) == len(clouds):
        raise lacking[0]
    for n, error in lacking.items():
        tell(f"recon3d: group {n + 1}: {error}")
    if left_out or lacking:
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def doctor(json_output: JsonOption = False) -> None:
    """Show what this machine can do, what is missing, and the line that installs it."""
    from dataclasses import asdict

    from recon3d.doctor import checks

    found = checks()
    if json_output:
        emit(
            json.dumps({"format": "recon3d-doctor", "version": 1, "checks": [*map(asdict, found)]})
        )
    else:
        for check in found:
            mark = "ok" if check.ok else "MISSING" if check.needed else "no"
            emit(f"{mark:8}{check.name:12}{check.detail}")
            if check.remedy and not check.ok:
                emit(f"{'':20}-> {check.remedy}")
    if not all(check.ok for check in found if check.needed):
        raise typer.Exit(ResourceError.exit_code)


app.add_typer(cli_synth.app)
app.add_typer(cli_train.app)
app.add_typer(cli_weights.app, name="weights")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    open_closed_streams()
    limit_threads()
    arguments = sys.argv[1:] if argv is None else list(argv)
    code = _exit_code(arguments)
    settle(sys.stdout)
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    """Run a command; every fault becomes one line on stderr and its code."""
    stdout = sys.stdout
    try:
        _check_arguments(arguments)
        with sigterm_exits(EXIT_TERMINATED):
            code = int(app(args=arguments, prog_name="recon3d", standalone_mode=False) or 0)
        # typer has caught Ctrl-C already, without a word
        return _fault("interrupted.", code) if code == EXIT_INTERRUPTED else code
    except SystemExit as left:
        if left.code == EXIT_TERMINATED:
            return _fault("interrupted (SIGTERM).", EXIT_TERMINATED)
        # A pipe broke. If that of the help, rich says so, or stdout itself; it is no fault. Else it
        # is typer that says so, and has put something of its own in the place of stdout.
        if sys.stdout is stdout or settle(stdout):
            return 0
        return _unexpected(left.__context__ or left, arguments)
    except ReconError as error:
        return _fault(str(error), error.exit_code)
    except typer.TyperException as error:
        return _usage_fault(error)
    except MemoryError:
        return _fault("out of memory. Use a smaller --size or fewer photos.", 6)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fault(f"{error}. Free some space.", ResourceError.exit_code)
        if isinstance(error, PermissionError) and error.filename is not None:
            advice = "Check the permissions of it and of the folders that it is in."
            return _fault(f"{error.filename}: {error.strerror}. {advice}", ResourceError.exit_code)
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("recon3d"):
            text = f"the package {error.name} is missing. Run `recon3d doctor`."
            return _fault(text, ResourceError.exit_code)
        return _unexpected(error, arguments)


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse empty arguments: as paths they would mean the current folder, which must be there."""
    try:
        Path.cwd()
    except FileNotFoundError as error:  # libraries end the program with words of their own
        raise UsageError("the current folder was deleted. Change to another one.") from error
    for before, argument in pairwise(["recon3d", *arguments]):
        name, equals, value = argument.partition("=")
        if not argument or (name.startswith("--") and equals and not value):
            where = f"the value of {name}" if argument else f"the argument after {before}"
            raise UsageError(f"{where} is empty. Give it a value; is a variable not set?")


def _usage_fault(error: typer.TyperException) -> int:
    text = error.format_message()
    if not text:
        return UsageError.exit_code  # the help page, shown already
    details: Any = getattr(error.__cause__, "errors", list)()  # pydantic's, where values are wrong
    for detail in details:
        reason = detail["msg"].partition(", unable to")[0].removeprefix("Value error, ")
        reason = reason.replace("Input should be", f"{detail['input']!r}; it must be")
        text = text.replace(detail["msg"], reason)
    command = getattr(getattr(error, "ctx", None), "command_path", "recon3d")
    return _fault(f"{text.rstrip('.')}. See {command} --help.", UsageError.exit_code)


def _unexpected(error: BaseException, arguments: Sequence[str]) -> int:
    """Say in one line that this is a bug."""
    if {"-v", "--verbose"} & set(arguments):
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}"
    return _fault(f"unexpected fault, please report it ({what}); -v shows more.", 1)


def _fault(text: str, code: int) -> int:
    tell("recon3d: " + " ".join(text.splitlines()))
    return code
