"""The commands that make and judge networks: synth, train."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recon3d.cli_options import OverwriteOption, QuietOption, VerboseOption, say
from recon3d.config import PRESETS, Precision, TrainConfig
from recon3d.console import Console
from recon3d.errors import UsageError

app = typer.Typer()

Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
DEFAULT_PRESET = Preset(TrainConfig.preset)


class SceneKind(StrEnum):
    """What `recon3d synth` renders."""

    ROOM = "room"
    OBJECT = "object"


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
    say(f"rendered {photos} photos of a {scene.value} into {output}", quiet)


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
