"""The command line: parse, one library call, print. Heavy imports happen inside the commands."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from recon3d import __version__
from recon3d.config import PRESETS, Precision, TrainConfig
from recon3d.console import Console
from recon3d.errors import EXIT_INTERRUPTED, EXIT_PARTIAL, ReconError, ResourceError, UsageError
from recon3d.settings import default, run_config

app = typer.Typer(
    name="recon3d",
    help="Photographs in, a coloured point cloud and cameras out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
weights_app = typer.Typer(help="Look at network weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
DEFAULT_PRESET = Preset(TrainConfig.preset)


class SceneKind(StrEnum):
    """What `recon3d synth` renders."""

    ROOM = "room"
    OBJECT = "object"


def _option(flag: str, help_text: str, **limits: Any) -> Any:
    """Return an option of `run` whose default is that of the configuration."""
    return typer.Option(flag, help=help_text, show_default=default(flag), **limits)


PhotosArgument = Annotated[
    list[str], typer.Argument(metavar="PHOTOS", help="Folders, files or patterns of photos.")
]
OutputOption = Annotated[
    list[str],
    typer.Option(
        "-o", "--output", help="scene.ply, .glb, .npz, cameras.json or a folder/; may be repeated."
    ),
]
WeightsOption = Annotated[str | None, _option("--weights", "embedded, or a .safetensors file.")]
SizeOption = Annotated[
    int | None,
    typer.Option("--size", help="Long edge in pixels.", show_default="that of the weights"),
]
PairsOption = Annotated[
    str | None,
    _option("--pairs", "auto, complete, window:K, logwin:K, oneref:I or file:PATH."),
]
DeviceOption = Annotated[str | None, _option("--device", "auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOption = Annotated[Precision | None, _option("--precision", "Arithmetic of the network.")]
FocalOption = Annotated[
    float | None,
    typer.Option(
        "--focal",
        help="Known focal length in pixels of the full photos.",
        show_default="from EXIF, else estimated",
    ),
]
SharedFocalOption = Annotated[
    bool | None, _option("--shared-focal", "One focal length for all photos.")
]
MinConfidenceOption = Annotated[
    float | None, typer.Option("--min-confidence", help="Least confidence of a point, above 1.")
]
PercentileOption = Annotated[
    float | None,
    _option("--confidence-percentile", "Drop this share (in %) of the least confident points."),
]
MaxPointsOption = Annotated[int | None, _option("--max-points", "Most points in the cloud.")]
VoxelOption = Annotated[
    float | None, _option("--voxel", "Thinning grid in scene units; 0 keeps all points.")
]
SeedOption = Annotated[int | None, _option("--seed", "Seed of everything random.")]
DeterministicOption = Annotated[
    bool | None, _option("--deterministic", "The same bytes on every run on one machine.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings; options win over it.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Everything.")]


def _version(wanted: bool | None) -> None:
    if wanted:
        _emit(f"recon3d {__version__}")
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
        from recon3d.export import check_outputs, export
        from recon3d.fuse import fuse
        from recon3d.pipeline import reconstruct

        check_outputs(output, overwrite=overwrite)
        console("start", 1, 1)
        scene = reconstruct(photos, config, track=console)
        with console.stage("fuse"):
            cloud = fuse(scene, config.fuse)
        with console.stage("export"):
            for target in output:
                export(scene, cloud, target, overwrite=overwrite)
    text = f"{summary.sentence(scene)}; wrote {', '.join(output)} in {console.total_s:.1f} s"
    _say(text, quiet and not scene.left_out)
    if json_output:
        _emit(json.dumps(summary.document(scene, cloud, output, config.predict, console)))
    if scene.left_out:
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def synth(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    scene: Annotated[SceneKind, typer.Option(help="What to render.")] = SceneKind.ROOM,
    photos: Annotated[int, typer.Option(min=2, max=1000, help="Number of photos.")] = 5,
    width: Annotated[int, typer.Option(min=16, max=8192, help="Pixels.")] = 640,
    height: Annotated[int, typer.Option(min=16, max=8192, help="Pixels.")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Which scene.")] = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Render a procedural scene: photos with exact ground truth."""
    with Console(quiet=quiet, verbose=verbose):
        from recon3d.synth import write_folder

        write_folder(
            output,
            kind=scene.value,
            n_photos=photos,
            width=width,
            height=height,
            seed=seed,
            overwrite=overwrite,
        )
    _say(f"rendered {photos} photos of a {scene.value} into {output}", quiet)


@app.command()
def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for weights and log.")],
    preset: Annotated[Preset, typer.Option(help="Size of the network.")] = DEFAULT_PRESET,
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of time.")] = TrainConfig.minutes,
    pairs: Annotated[int, typer.Option(min=1, help="Budget of pairs.")] = TrainConfig.pairs,
    textures: Annotated[
        Path | None,
        typer.Option(help="Folder of photos to use as textures, beside procedural ones."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a training ended.")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")
    ] = TrainConfig.device,
    precision: Annotated[Precision, typer.Option(help="Arithmetic.")] = TrainConfig.precision,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = TrainConfig.seed,
    batch_scenes: Annotated[
        int, typer.Option(min=1, help="Scenes a step.")
    ] = TrainConfig.scenes_per_step,
    views: Annotated[
        int, typer.Option(min=2, max=16, help="Views a scene.")
    ] = TrainConfig.views_per_scene,
    learning_rate: Annotated[
        float, typer.Option(help="Peak of AdamW.")
    ] = TrainConfig.learning_rate,
    alpha: Annotated[
        float, typer.Option(min=0.001, help="Weight of log-confidence in the loss.")
    ] = TrainConfig.alpha,
    matching_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the budget for matching alone.")
    ] = TrainConfig.matching_share,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the renderer.")
    ] = TrainConfig.compile,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a network on procedural scenes; leaves model.safetensors and log.jsonl in a folder."""
    if not (resume or overwrite) and (output / "state.safetensors").exists():
        raise UsageError(f"{output} holds a training; add --resume, --overwrite or choose another.")
    config = TrainConfig(
        preset=preset.value,
        minutes=minutes,
        pairs=pairs,
        textures=None if textures is None else str(textures),
        resume=resume,
        device=device,
        precision=precision,
        compile=compiled,
        seed=seed,
        scenes_per_step=batch_scenes,
        views_per_scene=views,
        learning_rate=learning_rate,
        alpha=alpha,
        matching_share=matching_share,
    )
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d.train import train as train_network

        train_network(output, config, track=console)


@weights_app.command("info")
def weights_info(
    weights: Annotated[
        str, typer.Argument(metavar="[NAME|PATH]", help="embedded, or a .safetensors file.")
    ] = default("--weights"),
    json_output: JsonOption = False,
) -> None:
    """Show what a set of weights is: sizes, layout, origin."""
    from recon3d.weights import describe

    facts = describe(weights)
    if json_output:
        _emit(json.dumps(facts))
    else:
        for name, value in (facts | facts.pop("config", {})).items():
            _emit(f"{name}: {value}")


@app.command()
def doctor(json_output: JsonOption = False) -> None:
    """Show what this machine can do, what is missing, and the line that installs it."""
    from dataclasses import asdict

    from recon3d.doctor import checks

    found = checks()
    if json_output:
        _emit(
            json.dumps({"format": "recon3d-doctor", "version": 1, "checks": [*map(asdict, found)]})
        )
    else:
        for check in found:
            mark = "ok" if check.ok else "MISSING" if check.needed else "no"
            _emit(f"{mark:8}{check.name:12}{check.detail}")
            if check.remedy and not check.ok:
                _emit(f"{'':20}-> {check.remedy}")
    if not all(check.ok for check in found if check.needed):
        raise typer.Exit(ResourceError.exit_code)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str]) -> int:
    """Run a command; every fault becomes one line on stderr and its code."""
    try:
        code = int(app(args=arguments, prog_name="recon3d", standalone_mode=False) or 0)
        # typer has caught Ctrl-C already, without a word
        return _fault("interrupted.", code) if code == EXIT_INTERRUPTED else code
    except ReconError as error:
        return _fault(str(error), error.exit_code)
    except typer.TyperException as error:
        # an empty message is the help page, shown already
        text = error.format_message()
        return _fault(f"{text} See recon3d --help.", UsageError.exit_code) if text else 2
    except MemoryError:
        return _fault("out of memory. Use a smaller --size or fewer photos.", 6)
    except Exception as error:  # a bug: say so in one line
        if {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        return _fault(f"unexpected fault, please report it ({what}); -v shows more.", 1)


def _fault(text: str, code: int) -> int:
    sys.stderr.write("recon3d: " + " ".join(text.splitlines()) + "\n")
    return code


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        sys.stderr.write(text + "\n")


def _emit(text: str) -> None:
    """Write a line to stdout; a reader that has gone away is no fault."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at exit: let that go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
