"""Every knob of training, as frozen dataclasses with the defaults of the command line."""

from dataclasses import dataclass
from enum import StrEnum

from recon3d.config import Precision

STATE_FILE = "state.safetensors"
"""What `--resume` reads, in the folder of a training."""


class Optimizer(StrEnum):
    """What training follows the gradient with."""

    ADAMW = "adamw"
    MUON = "muon"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What training and pretraining on procedural scenes have in common.

    The budget is `minutes` of time or `pairs` ordered pairs, whichever ends first, counted over all
    resumed pieces and all processes; time is that of the whole command, compiling included. After
    `stop_after` minutes of one command a training pauses, to be resumed. `stages` is the
    curriculum: until the given share of the budget, images of that long edge, or from `least_size`
    times that, drawn for every rendering. Over the first `easy_share` of it, the views of a scene
    go from having much in common to all that is asked of them; `usual_lenses` of the scenes are
    seen through lenses like most. `compile` and `smooth_edges`, which casts twice as many rays, are
    about the renderer; on CUDA it works on `render_ahead` batches ahead. `compile_network` is about
    the blocks of the transformer. The probe judges the averaged weights on `probe_batches` held-out
    batches of long edge `probe_size`.

    Every rendering is used `uses` times: photographed anew, and every second time in a mirror.
    `optimizer` is AdamW for everything, or Muon for the matrices of the blocks and AdamW for the
    rest.
    """

    minutes: float = 30.0
    pairs: int = 1_000_000_000
    textures: str | None = None
    n_procedural_textures: int = 512
    resume: bool = False
    device: str = "auto"
    precision: Precision = Precision.AUTO
    compile: bool = True
    compile_network: bool = False
    smooth_edges: bool = True
    render_ahead: int = 2
    uses: int = 1
    stop_after: float | None = None
    seed: int = 0
    scenes_per_step: int = 8
    views_per_scene: int = 3
    stages: tuple[tuple[float, int], ...] = ((0.65, 128), (0.88, 160), (1.0, 224))
    least_size: float = 1.0
    easy_share: float = 0.6
    usual_lenses: float = 0.5
    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_share: float = 0.5
    weight_decay: float = 0.03
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    log_every_steps: int = 20
    probe_batches: int = 6
    probe_size: int = 160
    probe_every_s: float = 180.0
    save_every_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """Training of a two-view network.

    For the first `matching_share` of the budget only the encoder learns, to find true
    correspondences. Points are compared at every `pixel_step`-th row and column, which divides the
    patch size; `ray_weight` is that of the directions in which view i sees its points, which tell
    its focal length. `negative_share` of the pairs show two different scenes. `init` is a file of
    weights to start from, of a two-view network or of cross-view completion; without a `preset` its
    sizes are taken, or those of "tiny".
    """

    preset: str | None = None
    init: str | None = None
    negative_share: float = 0.08
    alpha: float = 0.2
    matching_share: float = 0.2
    attention_weight: float = 0.4
    ray_weight: float = 0.0
    pixel_step: int = 2
    attention_layers: tuple[int, ...] = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LoopConfig):
    """Pretraining by cross-view completion; `mask_ratio` of one view's patches are hidden."""

    preset: str = "tiny"
    stages: tuple[tuple[float, int], ...] = ((0.6, 160), (1.0, 224))
    mask_ratio: float = 0.9


@dataclass(frozen=True, kw_only=True)
class DescriptorConfig:
    """How the descriptor of patches is trained.

    `textures` is a folder of photos, for surfaces and as places of their own; `init` weights to go
    on from. At most `max_places` places, some 2 MB each, are kept to draw from.
    """

    minutes: float = 60.0
    textures: str | None = None
    init: str | None = None
    seed: int = 0
    learning_rate: float = 2e-3
    compile: bool = True
    max_places: int = 2000
