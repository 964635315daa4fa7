"""Matches of pointmaps -> matches of image features near them, exact to a fraction of a pixel.

A match says roughly where a pixel reappears; a SIFT feature near it is looked for only there, so
repeated texture confuses less. What survives the mutual, ratio and similarity tests of the
descriptors must also lie on common epipolar lines.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.features import (
    Features,
    RgbOf,
    all_on_epipolar_lines,
    gather_features,
    most_similar,
    root_sift,
)
from recon3d.matches import Matches, select, without_repeats
from recon3d.progress import Track, silent
from recon3d.types import View

logger = logging.getLogger(__name__)

_N_GUESSES = 3  # nearest matches that each predict where a feature reappears


def sharpen_matches(
    matches: Sequence[Matches],
    views: Sequence[View],
    rgb_of: RgbOf,
    config: RefineConfig,
    *,
    known: dict[int, Features] | None = None,
    track: Track = silent,
) -> list[Matches]:
    """Return the feature matches of every pair that has enough of them, in pixels of the views.

    Confidence is the cosine of the two descriptors. Pairs without enough texture are left out.
    `known` holds features of views that were found before, and receives those found now. `track`
    is told the stage "features".
    """
    features = {} if known is None else known
    wanted = {n for one in matches for n in (one.i, one.j)}
    gather_features(wanted, views, rgb_of, config, features, track=track)
    guided = [
        guided_matches(one, features[one.i], features[one.j], views, config) for one in matches
    ]
    sharp = all_on_epipolar_lines(guided, views)
    logger.info("image features sharpen %d of %d pairs", len(sharp), len(matches))
    return sharp


def guided_matches(
    one: Matches, first: Features, second: Features, views: Sequence[View], config: RefineConfig
) -> Matches:
    """Return the features of i and j that are mutually most similar near where `one` says."""
    from scipy.spatial import KDTree

    n_i, n_j, n_known = len(first.pixels), len(second.pixels), len(one.pixels_i)
    if not n_i or not n_j or not n_known:
        return select(one, torch.zeros(0, dtype=torch.int64))
    radius_i, radius_j = (
        config.search_radius * max(views[n].image.shape[-2:]) for n in (one.i, one.j)
    )
    n_guesses = min(_N_GUESSES, n_known)
    far, nearest = KDTree(one.pixels_i.numpy()).query(first.pixels.numpy(), k=n_guesses)
    far, nearest = far.reshape(n_i, n_guesses), nearest.reshape(n_i, n_guesses)
    moved = first.pixels[:, None] - one.pixels_i[nearest]
    guess = (one.pixels_j[nearest] + moved).numpy()
    predicted = far <= radius_i  # a match further off predicts nothing
    partners = KDTree(second.pixels.numpy())

    def near(rows: slice) -> Bool[Tensor, "some n_j"]:
        allowed = np.zeros((len(guess[rows]), n_j), dtype=bool)
        for k in range(n_guesses):
            some = np.flatnonzero(predicted[rows, k])
            around = KDTree(guess[rows, k][some]).sparse_distance_matrix(
                partners, radius_j, output_type="ndarray"
            )
            allowed[some[around["i"]], around["j"]] = True
        return torch.from_numpy(allowed)

    index_i, index_j, similarity = most_similar(
        root_sift(first.descriptors), root_sift(second.descriptors), config.max_ratio, near
    )
    found = Matches(
        i=one.i,
        j=one.j,
        pixels_i=first.pixels[index_i],
        pixels_j=second.pixels[index_j],
        confidence=similarity,
    )
    return without_repeats(found)  # SIFT gives one pixel several orientations
