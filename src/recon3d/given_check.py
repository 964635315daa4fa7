"""Whether image features agree with cameras that were given and stay as they are."""

import logging
from collections import Counter
from collections.abc import Collection

import numpy as np

from recon3d.config import RefineConfig
from recon3d.essential import line_distance
from recon3d.features import Features, RgbOf, gather_features, match_photos
from recon3d.geometry import invert_rigid
from recon3d.progress import Track, silent
from recon3d.types import Scene

logger = logging.getLogger(__name__)

_PARTNERS = 2  # photos that each is compared with
_MOST_PAIRS = 100
_MOST = 0.6  # of the pairs of a photo
_OFF = 0.01  # of the long edge: half the matches are that far from where cameras say they are
_N_NAMED = 5  # photos that one line of warning holds


def warn_of_cameras(
    scene: Scene,
    exact: Collection[str],
    rgb_of: RgbOf,
    config: RefineConfig,
    *,
    track: Track = silent,
) -> None:
    """Warn of given cameras that features contradict: of other photos, or in other conventions.

    Each photo is compared with those that the network pairs it with most confidently; a pair
    contradicts its cameras if half of its features are a hundredth of the long edge or more from
    their epipolar lines.

    Args:
        scene: with the cameras in it.
        exact: names of the views whose cameras were given in full.
        rgb_of: reads a photo.
        config: how features are found.
        track: told the stages "features" and "matching".
    """
    pairs = _pairs(scene, exact)
    known: dict[int, Features] = {}
    wanted = {n for pair in pairs for n in pair}
    gather_features(wanted, scene.views, rgb_of, config, known, track=track)
    found = match_photos(pairs, scene.views, known, config, track=track)
    of_view: Counter[int] = Counter()
    contradicted = 0
    for one in found:
        i2world, j2world = (scene.cam2world[n].double() for n in (one.i, one.j))
        lens_i, lens_j = (scene.intrinsics[n].double().numpy(force=True) for n in (one.i, one.j))
        distance = line_distance(
            one.pixels_i.double().numpy(),
            one.pixels_j.double().numpy(),
            lens_i,
            lens_j,
            (invert_rigid(i2world) @ j2world).numpy(force=True),
        )
        edge = max(max(scene.views[n].image.shape[-2:]) for n in (one.i, one.j))
        if float(np.median(distance)) > _OFF * edge:
            contradicted += 1
            of_view.update((one.i, one.j))
    if not contradicted:
        return
    total = Counter(n for one in found for n in (one.i, one.j))
    worst = [scene.views[n].name for n, count in of_view.most_common() if count > _MOST * total[n]]
    logger.warning(
        "image features contradict the given cameras in %d of %d pairs of photos%s. Check that"
        " --cameras gives those of these photos.",
        contradicted,
        len(found),
        f", in most of {', '.join(worst[:_N_NAMED])}{' and more' * (len(worst) > _N_NAMED)}"
        if worst
        else "",
    )


def _pairs(scene: Scene, exact: Collection[str]) -> list[tuple[int, int]]:
    """Return pairs of exact views, for each the most confident ones."""
    number = {view.name: n for n, view in enumerate(scene.views) if view.name in exact}
    ranked = sorted(
        (edge for edge in scene.edges if {edge.first, edge.second} <= number.keys()),
        key=lambda edge: -edge.confidence if edge.confidence == edge.confidence else 0.0,
    )
    n_partners: Counter[int] = Counter()
    chosen = []
    for edge in ranked:
        i, j = sorted((number[edge.first], number[edge.second]))
        if min(n_partners[i], n_partners[j]) < _PARTNERS:
            n_partners.update((i, j))
            chosen.append((i, j))
    return sorted(set(chosen))[:: -(-len(chosen) // _MOST_PAIRS) or 1]
