"""The options that commands share, and how commands speak to people."""

from pathlib import Path
from typing import Annotated, Any

import typer

from recon3d.config import CamerasAre, Precision
from recon3d.settings import default
from recon3d.streams import tell


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
WeightsOption = Annotated[
    str | None, _option("--weights", "embedded, a name of `weights list`, a file or a folder.")
]
SizeOption = Annotated[
    int | None,
    typer.Option("--size", help="Long edge in pixels.", show_default="that of the weights"),
]
PairsOption = Annotated[
    str | None,
    _option(
        "--pairs",
        "auto, complete, window:K, logwin:K, oneref:I, retrieval:K or file:PATH (two photos a line,"
        " by name or by number from 0).",
    ),
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
CamerasOption = Annotated[
    str | None,
    typer.Option(
        "--cameras", help="Known cameras: cameras.json, transforms.json or a COLMAP model."
    ),
]
CamerasAreOption = Annotated[
    CamerasAre | None, _option("--cameras-are", "Known cameras are exact, or a prior.")
]
MasksOption = Annotated[
    str | None,
    typer.Option(
        "--masks",
        help="Folder of masks IMG.jpg.png; black is ignored, like what is transparent in photos.",
    ),
]
ScaleFromOption = Annotated[
    str | None,
    typer.Option(
        "--scale-from",
        metavar="I,J,METRES",
        help="Distance between the cameras of two photos (numbers from 0 among all, or names).",
    ),
]
RefineOption = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Adjust all cameras to image features at the end.",
        show_default="if pycolmap is installed, up to 200 photos",
    ),
]
DenseOption = Annotated[
    bool | None,
    typer.Option(
        "--dense/--no-dense",
        help="Take depth from the photos where cameras are exact.",
        show_default="where two cameras are exact",
    ),
]
AllComponentsOption = Annotated[
    bool | None, _option("--all-components", "Reconstruct every group of photos: OUT, OUT-2, ...")
]
MatchesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--matches",
        metavar="OUT",
        help="Write the network's matches: .npz, or .db for COLMAP; may be repeated.",
    ),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(
        "--min-confidence",
        help="Least confidence of a point (1 keeps all), in place of --confidence-percentile.",
    ),
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
TexturesOption = Annotated[
    Path | None, typer.Option(help="Folder of photos to use as textures, beside procedural ones.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Everything.")]


def say(text: str, quiet: bool) -> None:
    """Write a line for people to stderr."""
    if not quiet:
        tell(text)
