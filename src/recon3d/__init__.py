"""recon3d: a folder of ordinary photographs in, a coloured point cloud and cameras out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "PairPrediction": "types",
    "Photo": "types",
    "PointCloud": "types",
    "RunConfig": "config",
    "Scene": "types",
    "View": "types",
    "reconstruct": "pipeline",
}

if TYPE_CHECKING:
    from recon3d.config import RunConfig as RunConfig
    from recon3d.pipeline import reconstruct as reconstruct
    from recon3d.types import PairPrediction as PairPrediction
    from recon3d.types import Photo as Photo
    from recon3d.types import PointCloud as PointCloud
    from recon3d.types import Scene as Scene
    from recon3d.types import View as View

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import recon3d` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'recon3d' has no attribute {name!r}")
    return getattr(import_module(f"recon3d.{_HOME[name]}"), name)
