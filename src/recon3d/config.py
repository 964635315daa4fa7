"""Every knob, as frozen dataclasses with the defaults that the command line shows."""

from dataclasses import dataclass, field
from enum import StrEnum

SYNTH_PHOTOS = (2, 1000)
"""Fewest and most photos of a procedural scene."""
SYNTH_PIXELS = (64, 4096)
"""Least and largest width and height of such photos."""


class Precision(StrEnum):
    """Arithmetic of the network; `auto` is bf16 where the machine is good at it, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Compile(StrEnum):
    """Whether torch.compile is tried on the network; `auto` does in long runs."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class CamerasAre(StrEnum):
    """What given cameras are: exact, or a start that the photos may correct."""

    FIXED = "fixed"
    PRIOR = "prior"


class HeadType(StrEnum):
    """How tokens become pixels: one linear layer a patch, or the DPT convolutional decoder.

    `catmlp+dpt` is DPT with an MLP beside it that gives descriptors for matching.
    """

    LINEAR = "linear"
    DPT = "dpt"
    CATMLP_DPT = "catmlp+dpt"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the two-view network; the state-dict layout is the same for every size.

    `image_size` is the long edge in pixels the weights were trained at and the default of
    `--size`. The `dpt_*` fields matter only for the heads with DPT, `descriptor_dim` only for the
    one with descriptors.
    """

    name: str = "custom"
    image_size: int = 224
    patch_size: int = 16
    enc_dim: int = 192
    enc_depth: int = 6
    enc_heads: int = 3
    dec_dim: int = 192
    dec_depth: int = 6
    dec_heads: int = 3
    mlp_ratio: int = 4
    rope_base: float = 100.0
    head: HeadType = HeadType.LINEAR
    dpt_layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_feature_dim: int = 256
    dpt_last_dim: int = 128
    descriptor_dim: int = 24

    @property
    def has_descriptors(self) -> bool:
        """Whether the network gives descriptors."""
        return self.head is HeadType.CATMLP_DPT


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(name="tiny", dec_depth=5),
    "small": ModelConfig(
        name="small", enc_dim=384, enc_depth=10, enc_heads=6, dec_dim=192, dec_depth=6, dec_heads=3
    ),
    "base": ModelConfig(
        name="base", enc_dim=768, enc_depth=12, enc_heads=12, dec_dim=512, dec_depth=8, dec_heads=8
    ),
    "large": ModelConfig(
        name="large",
        image_size=512,
        enc_dim=1024,
        enc_depth=24,
        enc_heads=16,
        dec_dim=768,
        dec_depth=12,
        dec_heads=12,
        head=HeadType.DPT,
    ),
}


class PositionType(StrEnum):
    """How a network knows where a patch lies: embeddings that are added, or turned queries."""

    COSINE = "cosine"
    ROPE = "rope"


@dataclass(frozen=True, kw_only=True)
class CrocoConfig:
    """Sizes of a cross-view completion network; its state-dict layout is the published one.

    `position` is COSINE for CroCo v1, ROPE for v2. `image_size` is the side of the square images
    it was trained on, which fixes the table of cosine embeddings. `imagenet_input` says that images
    are normalised by ImageNet's mean and deviation, as for the published weights, not to [-1, 1].
    """

    name: str = "custom"
    image_size: int = 224
    patch_size: int = 16
    enc_dim: int = 192
    enc_depth: int = 6
    enc_heads: int = 3
    dec_dim: int = 192
    dec_depth: int = 6
    dec_heads: int = 3
    mlp_ratio: int = 4
    position: PositionType = PositionType.ROPE
    rope_base: float = 100.0
    mask_ratio: float = 0.9
    imagenet_input: bool = False


@dataclass(frozen=True, kw_only=True)
class PhotoConfig:
    """Reading and resizing photographs.

    `size` is the long edge of a view in pixels; None takes the size of the weights. `threads` None
    is two a processor, for one may wait for the disk, at most four: each holds a whole photo.
    """

    size: int | None = None
    patch_size: int = 16
    max_pixels: int = 300_000_000
    max_bytes: int = 512 * 1024 * 1024
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Running the network: `batch_size` None chooses from the device.

    `tokens_on_host` keeps the encoded views in the memory of the host, where the device has its own
    and little of it. `compile` tries compiled blocks and keeps them where they are faster.
    """

    device: str = "auto"
    precision: Precision = Precision.AUTO
    compile: Compile = Compile.AUTO
    batch_size: int | None = None
    tokens_on_host: bool = False


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Global alignment.

    `focal_px` is a known focal length in pixels of the full photograph, for all photos.
    `max_edge_residual` is the relative residual (median distance over median depth) above which
    a pair does not hold a photo; `max_edge_rotation_deg` the largest disagreement between the
    two orders of a pair. `cameras_are` is about given cameras.
    `max_map_bytes` bounds the pointmaps that are kept to fuse depth from.
    """

    focal_px: float | None = None
    shared_focal: bool = False
    estimate_principal_point: bool = False
    cameras_are: CamerasAre = CamerasAre.FIXED
    max_map_bytes: int = 1_500_000_000
    samples_per_edge: int = 512
    max_iterations: int = 60
    max_edge_residual: float = 0.35
    max_edge_rotation_deg: float = 40.0
    min_edge_confidence: float = 1.2
    seed: int = 0


GUESS = 1.001
"""Confidence (1 + e^c) up to which depth is but a guess: no network says so little, but dense
stereo does where depth may be far off."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """From a scene to a point cloud.

    A point is kept if its confidence (1 + e^c, the network's unit) is at least `min_confidence`
    (1 keeps all), or, without, among the best (100 - `confidence_percentile`) % and above `GUESS`;
    percentile 0 keeps all.
    `voxel` is the edge of the thinning grid in scene units, 0 keeps all. A point that stands in
    front of what another camera sees more confidently, by more than `free_space` of its depth, is
    dropped; `depth_edge` is the largest relative step between neighbouring pixels; 0 turns either
    off. `sky` drops what looks like sky: smooth patches of blue or white at the top of a photo,
    some ceilings and white walls among them.
    """

    min_confidence: float | None = None
    confidence_percentile: float = 25.0
    depth_edge: float = 0.06
    free_space: float = 0.1
    sky: bool = False
    max_points: int = 3_000_000
    voxel: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Reciprocal matches between the two views of a pair.

    The search starts from every `stride`-th pixel of the first view, both ways; a pixel takes part
    if its confidence (1 + e^c) is at least `min_confidence`. Without descriptors, two matched
    points lie at most `max_distance` apart, relative to their distance from the camera.
    `max_bytes` bounds the working memory of a descriptor search.
    """

    stride: int = 4
    min_confidence: float = 1.2
    max_distance: float = 0.05
    max_matches: int = 4000
    max_bytes: int = 64_000_000


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Bundle adjustment after the alignment.

    Image features are searched at most `feature_size` pixels along the long edge of the photo, up
    to `max_features` each; the partner of one lies within `search_radius` (relative to the long
    edge) of where the matches predict it, and is nearer than `max_ratio` times the second best in
    descriptor space. `max_error` is the largest plausible distance of an observation from its
    point, relative to the long edge. `held_out` is the share of the tracks kept for the check
    that the cameras became better. All pairs together give at most `max_tracks` tracks; where image
    features find too little, a pair gives at most `max_coarse` matches as they are. Where the
    alignment is no start, features are matched in the whole photos: each with the `max_partners`
    that its largest features fit best, of all pairs up to `max_all_pairs` photos, beyond that of
    those that the network saw. Photos that are still without a place get features as seen from
    aside, up to `wide_features` in the photo itself, shrunk to as many pixels as a square of
    `wide_size` has, in at most `max_wide_pairs` pairs of `max_wide_views` photos.
    `shared_focal` None takes one focal length for photos of equal size where EXIF does not speak
    against it, unless focal lengths of their own fit much better.
    """

    feature_size: int = 1600
    max_features: int = 4000
    search_radius: float = 0.06
    max_ratio: float = 0.85
    max_error: float = 0.02
    held_out: float = 0.2
    min_tracks: int = 40
    max_tracks: int = 20_000
    max_coarse: int = 200
    max_partners: int = 10
    max_all_pairs: int = 200
    max_wide_pairs: int = 30
    max_wide_views: int = 12
    wide_size: int = 560
    wide_features: int = 2000
    max_iterations: int = 50
    shared_focal: bool | None = None
    refine_focal: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Dense stereo after a refinement.

    Views get a long edge of `size` pixels and are compared with up to `neighbours` others each.
    Below `min_share` confirmed pixels the depth of the network stays.
    """

    size: int = 320
    neighbours: int = 4
    min_share: float = 0.1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All stages of `recon3d run`.

    `cameras` is a file or COLMAP model of known cameras, `masks` a folder of masks, `scale_from`
    "I,J,METRES": the distance between two cameras. `refine` adds a bundle adjustment; None does so
    where pycolmap is installed, for up to 200 photos. `dense` takes depth from the photos where
    cameras are exact (refined, or given and fixed): None where there are any, True warns where
    there are none. `all_components` reconstructs every group of photos, not the largest alone.
    `deterministic` gives the same bytes on every run on the same machine.
    """

    weights: str = "embedded"
    pairs: str = "auto"
    cameras: str | None = None
    masks: str | None = None
    scale_from: str | None = None
    refine: bool | None = None
    dense: bool | None = None
    all_components: bool = False
    deterministic: bool = False
    photos: PhotoConfig = field(default_factory=PhotoConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    matches: MatchConfig = field(default_factory=MatchConfig)
    bundle: RefineConfig = field(default_factory=RefineConfig)
    stereo: DenseConfig = field(default_factory=DenseConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)


class Baseline(StrEnum):
    """What `recon3d evaluate` compares with: SIFT with the true intrinsics, and COLMAP."""

    SIFT = "sift"
    COLMAP = "colmap"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measuring against ground truth.

    `run` is how recon3d itself is run. Of each scene at most `max_photos` photos take part (None:
    all) and at most `max_pairs` pairs are solved by themselves, both spread evenly. `scenes` are
    names of folders; empty takes all.
    """

    run: RunConfig = field(default_factory=RunConfig)
    baselines: tuple[Baseline, ...] = ()
    scenes: tuple[str, ...] = ()
    max_photos: int | None = None
    max_pairs: int = 50
