"""The commands that make and judge networks: pretrain, train, train-descriptor, evaluate."""

import json
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from recon3d.cli_options import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    RefineOption,
    SizeOption,
    TexturesOption,
    VerboseOption,
    WeightsOption,
    say,
)
from recon3d.config import PRESETS, Baseline, EvaluateConfig, Precision
from recon3d.console import Console
from recon3d.errors import UsageError
from recon3d.settings import run_config
from recon3d.streams import emit
from recon3d.train_config import (
    STATE_FILE,
    DescriptorConfig,
    Optimizer,
    PretrainConfig,
    TrainConfig,
)

app = typer.Typer()

Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
DEFAULT_PRESET = Preset(PretrainConfig.preset)

FolderOption = Annotated[
    Path, typer.Option("-o", "--output", help="Folder for weights, state and log.")
]
PresetOption = Annotated[Preset, typer.Option(help="Size of the network.")]
MinutesOption = Annotated[
    float, typer.Option(min=0.01, help="Budget of time, that of all resumed pieces together.")
]
BudgetOption = Annotated[int, typer.Option(min=1, help="Budget of pairs.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where a training ended.")]
TrainDeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
TrainPrecisionOption = Annotated[Precision, typer.Option(help="Arithmetic.")]
TrainSeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed.")]
ScenesOption = Annotated[int, typer.Option(min=1, help="Scenes a step.")]
ViewsOption = Annotated[int, typer.Option(min=2, max=16, help="Views a scene.")]
UsesOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="Steps that a rendering serves: photographed anew, every second time in a mirror.",
    ),
]
OptimizerOption = Annotated[
    Optimizer, typer.Option(help="muon: for the matrices of the blocks, AdamW for the rest.")
]
RateOption = Annotated[float, typer.Option(min=0.0, help="Peak of the learning rate.")]
StagesOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE:PIXELS,...",
        help="Long edge of the images until that share of the budget, as 0.8:160,1:224.",
        show_default=False,
    ),
]
LeastSizeOption = Annotated[
    float,
    typer.Option(
        min=0.1, max=1.0, help="Long edges are drawn from so many times that of the stage up to it."
    ),
]
LensesOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of lenses that are like those of most.")
]
EasyOption = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of the budget until scenes are at their hardest."),
]
StopOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Pause after so many minutes of this command, to go on with --resume.",
        show_default=False,
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Compile the renderer.")
]
CompileNetworkOption = Annotated[
    bool,
    typer.Option(
        "--compile-network/--no-compile-network",
        help="Compile the blocks of the network: a minute more at the start, faster steps.",
    ),
]


def read_stages(text: str) -> tuple[tuple[float, int], ...]:
    """Return the curriculum that `--stages` gives.

    Raises:
        UsageError: other than rising shares up to 1, each with a multiple of 16 pixels.
    """
    try:
        stages = tuple(
            (float(share), int(pixels))
            for share, pixels in (part.split(":") for part in text.split(","))
        )
    except ValueError:
        stages = ()
    shares = [share for share, _ in stages]
    rising = all(low < high for low, high in pairwise([0.0, *shares]))
    sizes = all(pixels % 16 == 0 and 32 <= pixels <= 1024 for _, pixels in stages)
    if not (rising and sizes and shares and shares[-1] == 1):
        raise UsageError(
            f"--stages {text!r} is not of the form 0.8:160,1:224: shares of the budget that rise "
            "to 1, each with a long edge from 32 to 1024 that is a multiple of 16."
        )
    return stages


_TRAINED = (STATE_FILE, "model.safetensors", "croco.safetensors")
"""What `train` and `pretrain` write that is worth keeping."""


def check_new(output: Path, resume: bool, overwrite: bool) -> None:
    """Raise UsageError where a training, or weights, would be lost."""
    held = [name for name in _TRAINED if (output / name).exists()]
    if held and not (resume or overwrite):
        raise UsageError(
            f"{output} holds {' and '.join(held)}; add --resume to go on, --overwrite to begin"
            " anew, or choose another folder."
        )


@app.command()
def pretrain(
    output: FolderOption,
    preset: PresetOption = DEFAULT_PRESET,
    minutes: MinutesOption = PretrainConfig.minutes,
    pairs: BudgetOption = PretrainConfig.pairs,
    textures: TexturesOption = None,
    resume: ResumeOption = False,
    device: TrainDeviceOption = PretrainConfig.device,
    precision: TrainPrecisionOption = PretrainConfig.precision,
    seed: TrainSeedOption = PretrainConfig.seed,
    batch_scenes: ScenesOption = PretrainConfig.scenes_per_step,
    views: ViewsOption = PretrainConfig.views_per_scene,
    uses: UsesOption = PretrainConfig.uses,
    optimizer: OptimizerOption = PretrainConfig.optimizer,
    learning_rate: RateOption = PretrainConfig.learning_rate,
    mask_ratio: Annotated[
        float, typer.Option(min=0.1, max=0.95, help="Share of one view's patches to hide.")
    ] = PretrainConfig.mask_ratio,
    stages: StagesOption = None,
    least_size: LeastSizeOption = PretrainConfig.least_size,
    easy_share: EasyOption = PretrainConfig.easy_share,
    usual_lenses: LensesOption = PretrainConfig.usual_lenses,
    compiled: CompileOption = PretrainConfig.compile,
    compile_network: CompileNetworkOption = PretrainConfig.compile_network,
    stop_after: StopOption = PretrainConfig.stop_after,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Pretrain by completing one view from another; leaves croco.safetensors for train --init."""
    check_new(output, resume, overwrite)
    config = PretrainConfig(
        preset=preset.value,
        minutes=minutes,
        pairs=pairs,
        textures=None if textures is None else str(textures),
        resume=resume,
        device=device,
        precision=precision,
        compile=compiled,
        compile_network=compile_network,
        stop_after=stop_after,
        seed=seed,
        scenes_per_step=batch_scenes,
        views_per_scene=views,
        uses=uses,
        optimizer=optimizer,
        learning_rate=learning_rate,
        mask_ratio=mask_ratio,
        stages=PretrainConfig.stages if stages is None else read_stages(stages),
        least_size=least_size,
        easy_share=easy_share,
        usual_lenses=usual_lenses,
    )
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d.pretrain import pretrain as pretrain_network

        pretrain_network(output, config, track=console)


@app.command()
def train(
    output: FolderOption,
    preset: Annotated[
        Preset | None,
        typer.Option(help="Size of the network; without, that of --init, or tiny."),
    ] = None,
    minutes: MinutesOption = TrainConfig.minutes,
    pairs: BudgetOption = TrainConfig.pairs,
    textures: TexturesOption = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: of pretrain, a two-view network, or embedded; smaller ones"
            " grow to the preset."
        ),
    ] = None,
    resume: ResumeOption = False,
    device: TrainDeviceOption = TrainConfig.device,
    precision: TrainPrecisionOption = TrainConfig.precision,
    seed: TrainSeedOption = TrainConfig.seed,
    batch_scenes: ScenesOption = TrainConfig.scenes_per_step,
    views: ViewsOption = TrainConfig.views_per_scene,
    uses: UsesOption = TrainConfig.uses,
    optimizer: OptimizerOption = TrainConfig.optimizer,
    learning_rate: RateOption = TrainConfig.learning_rate,
    alpha: Annotated[
        float, typer.Option(min=0.001, help="Weight of log-confidence in the loss.")
    ] = TrainConfig.alpha,
    ray_weight: Annotated[
        float,
        typer.Option(min=0.0, help="Weight in the loss of directions, which tell focal lengths."),
    ] = TrainConfig.ray_weight,
    matching_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the budget for matching alone.")
    ] = TrainConfig.matching_share,
    stages: StagesOption = None,
    least_size: LeastSizeOption = TrainConfig.least_size,
    easy_share: EasyOption = TrainConfig.easy_share,
    usual_lenses: LensesOption = TrainConfig.usual_lenses,
    compiled: CompileOption = TrainConfig.compile,
    compile_network: CompileNetworkOption = TrainConfig.compile_network,
    stop_after: StopOption = TrainConfig.stop_after,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a network on procedural scenes; leaves model.safetensors and log.jsonl in a folder."""
    check_new(output, resume, overwrite)
    config = TrainConfig(
        preset=None if preset is None else preset.value,
        minutes=minutes,
        pairs=pairs,
        textures=None if textures is None else str(textures),
        init=init,
        resume=resume,
        device=device,
        precision=precision,
        compile=compiled,
        compile_network=compile_network,
        stop_after=stop_after,
        seed=seed,
        scenes_per_step=batch_scenes,
        views_per_scene=views,
        uses=uses,
        optimizer=optimizer,
        learning_rate=learning_rate,
        alpha=alpha,
        ray_weight=ray_weight,
        matching_share=matching_share,
        stages=TrainConfig.stages if stages is None else read_stages(stages),
        least_size=least_size,
        easy_share=easy_share,
        usual_lenses=usual_lenses,
    )
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d.train import train as train_network

        train_network(output, config, track=console)


@app.command("train-descriptor")
def train_descriptor(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File of weights to write, .safetensors.")
    ],
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Budget of time.")
    ] = DescriptorConfig.minutes,
    textures: TexturesOption = None,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from.", show_default=False)
    ] = None,
    seed: TrainSeedOption = DescriptorConfig.seed,
    learning_rate: RateOption = DescriptorConfig.learning_rate,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the renderer.")
    ] = DescriptorConfig.compile,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the descriptor that compares features of photos from very different places."""
    if output.suffix.lower() != ".safetensors":
        raise UsageError(f"the output {output} must end in .safetensors.")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; add --overwrite or choose another.")
    config = DescriptorConfig(
        minutes=minutes,
        textures=None if textures is None else str(textures),
        init=None if init is None else str(init),
        seed=seed,
        learning_rate=learning_rate,
        compile=compiled,
    )
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d.patch_training import train_descriptor as train_network

        train_network(output, config, track=console)


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder with gt.json or pairs.json, or one of such."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="table.json to write.")],
    weights: WeightsOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    refine: RefineOption = None,
    baseline: Annotated[
        list[Baseline] | None, typer.Option(help="Compare with it; may be repeated.")
    ] = None,
    scenes: Annotated[
        str | None, typer.Option(help="Names of scenes with commas between.", show_default="all")
    ] = None,
    max_photos: Annotated[
        int | None, typer.Option(min=2, help="Most photos of a scene.", show_default="all")
    ] = None,
    max_pairs: Annotated[
        int, typer.Option(min=1, help="Most pairs of a scene that are solved one by one.")
    ] = EvaluateConfig.max_pairs,
    config_file: ConfigOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure accuracy against ground truth, beside the baselines."""
    options = {
        "--weights": weights,
        "--size": size,
        "--device": device,
        "--precision": precision,
        "--refine": refine,
    }
    config = EvaluateConfig(
        run=run_config(config_file, options),
        baselines=tuple(baseline or ()),
        scenes=tuple(name.strip() for name in (scenes or "").split(",") if name.strip()),
        max_photos=max_photos,
        max_pairs=max_pairs,
    )
    if output.suffix.lower() != ".json":
        raise UsageError(f"the output {output} must end in .json. Name it table.json, say.")
    with Console(quiet=quiet, verbose=verbose) as console:
        from recon3d import score_table
        from recon3d.evaluate import evaluate as measure
        from recon3d.export import check_outputs
        from recon3d.files import atomic_write

        check_outputs([str(output)], overwrite=overwrite)
        table = measure(data, config, track=console)
    say(score_table.text(table), quiet)  # first: nothing is lost if it cannot be written
    if json_output:
        emit(json.dumps(score_table.document(table)))
    with atomic_write(output) as file:
        score_table.write_table(table, file)
    say(f"\nwrote {output}", quiet)
