"""The command that renders: synth."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recon3d.cli_options import OverwriteOption, QuietOption, TexturesOption, VerboseOption, say
from recon3d.config import SYNTH_PHOTOS, SYNTH_PIXELS
from recon3d.console import Console
from recon3d.errors import UsageError

app = typer.Typer()

PhotosOption = Annotated[
    int, typer.Option(min=SYNTH_PHOTOS[0], max=SYNTH_PHOTOS[1], help="Number of photos.")
]
PixelsOption = Annotated[
    int, typer.Option(min=SYNTH_PIXELS[0], max=SYNTH_PIXELS[1], help="Pixels.")
]


class SceneKind(StrEnum):
    """What `recon3d synth` renders."""

    ROOM = "room"
    STREET = "street"
    TERRAIN = "terrain"
    TABLE = "table"
    CLUTTER = "clutter"
    FLOATERS = "floaters"
    OBJECT = "object"


@app.command()
def synth(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default=False)
    ] = None,
    scene: Annotated[SceneKind, typer.Option(help="What to render.")] = SceneKind.ROOM,
    photos: PhotosOption = 5,
    width: PixelsOption = 640,
    height: PixelsOption = 480,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Which scene.")] = 0,
    textures: TexturesOption = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Picture to write, .png or .jpg: pairs as a network is shown them."),
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Render a procedural scene: photos with exact ground truth; or a sheet of training pairs."""
    if (output is None) == (contact_sheet is None):
        raise UsageError("give either -o FOLDER or --contact-sheet FILE.")
    with Console(quiet=quiet, verbose=verbose) as console:
        if contact_sheet is not None:
            from recon3d.contact_sheet import write_contact_sheet

            shown = write_contact_sheet(
                contact_sheet,
                seed=seed,
                textures=textures,
                overwrite=overwrite,
                track=console,
            )
            say(
                f"drew {len(shown)} pairs into {contact_sheet}: of each kind of scene in turn, the "
                "last of views that share nothing",
                quiet,
            )
            return
        from recon3d.synth import write_folder

        assert output is not None
        write_folder(
            output,
            kind=scene.value,
            n_photos=photos,
            width=width,
            height=height,
            seed=seed,
            overwrite=overwrite,
            textures=textures,
            track=console,
        )
    say(f"rendered {photos} photos of a {scene.value} into {output}", quiet)
