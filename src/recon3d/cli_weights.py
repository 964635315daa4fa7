"""The commands of `recon3d weights`."""

import json
from typing import Annotated

import typer

from recon3d.cli_options import JsonOption, emit
from recon3d.settings import default

app = typer.Typer(help="Look at network weights.", no_args_is_help=True)


@app.command("info")
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
        emit(json.dumps(facts))
    else:
        for name, value in (facts | facts.pop("config", {})).items():
            emit(f"{name}: {value}")
