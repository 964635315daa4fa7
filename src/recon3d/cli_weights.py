"""The commands of `recon3d weights`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recon3d.cli_options import (
    JsonOption,
    OverwriteOption,
    QuietOption,
    VerboseOption,
    say,
)
from recon3d.console import Console
from recon3d.settings import default
from recon3d.streams import emit

app = typer.Typer(help="Network weights: embedded, published, own.", no_args_is_help=True)

EMBEDDED = default("--weights")
WeightsArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PATH",
        help="embedded, a name of `weights list`, a .safetensors or .pth file, or a hub folder.",
    ),
]


@app.command("list")
def weights_list(json_output: JsonOption = False) -> None:
    """List the weights that have a name, with size, licence and where they are."""
    from recon3d.weights_info import listing

    entries = listing()
    if json_output:
        emit(json.dumps({"format": "recon3d-weights", "version": 1, "weights": entries}))
        return
    rows = [("name", "size", "parameters", "photos", "licence", "state"), *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        emit("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    size = entry["bytes"]
    return (
        entry["name"],
        f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB",
        f"{entry['parameters'] / 1e6:.1f} M",
        f"{entry['image_size']} px",
        entry["licence"],
        entry["path"] or "not downloaded",
    )


@app.command("info")
def weights_info(
    weights: WeightsArgument = EMBEDDED,
    json_output: JsonOption = False,
) -> None:
    """Show what a set of weights is: sizes, layout, origin."""
    from recon3d.weights_info import describe

    facts = describe(weights)
    if json_output:
        emit(json.dumps(facts))
    else:
        for name, value in (facts | facts.pop("config", {})).items():
            emit(f"{name}: {value}")


@app.command("download")
def weights_download(
    name: Annotated[str, typer.Argument(help="A name of `weights list`.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You accept the licence of these weights.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch published weights once; afterwards `--weights NAME` works without a network."""
    with Console(quiet=quiet, verbose=verbose):
        from recon3d.download import download
        from recon3d.weights_info import describe

        folder = download(name, licence_accepted=accept_licence)
        facts = describe(name)  # what cannot be loaded is said now, not at the first run
    say(f"{name}: {facts['parameters'] / 1e6:.1f} M parameters in {folder}", quiet)


@app.command("convert")
def weights_convert(
    source: WeightsArgument,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file to write.")],
    half: Annotated[
        bool, typer.Option("--half", help="Store fp16: half the size. What is fp16 stays so.")
    ] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write any weights that recon3d reads as its own .safetensors file.

    Two-view weights get a .json beside it; those of cross-view completion (CroCo) need none.
    """
    from recon3d.weights_info import convert

    written = convert(source, target, half=half, overwrite=overwrite)
    say(f"wrote {' and '.join(map(str, written))}", quiet)
