"""Predictions of a pair graph; `auto` looks at the first ones and compares some more photos."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from recon3d.align_samples import mean_log_confidence
from recon3d.config import PredictConfig
from recon3d.model import TwoViewModel
from recon3d.pairs_extra import extra_pairs
from recon3d.predict import EncodedViews, predict_encoded
from recon3d.progress import Track, silent
from recon3d.types import PairPrediction

logger = logging.getLogger(__name__)

EXTRA_SHARE = 0.5
"""Most pairs of the second step, relative to the number of views."""


def predict_in_two_steps(
    model: TwoViewModel,
    encoded: EncodedViews,
    pairs: Sequence[tuple[int, int]],
    config: PredictConfig,
    *,
    similarity: Float[np.ndarray, "view view"] | None,
    min_confidence: float,
    most_pairs: int | None = None,
    track: Track = silent,
) -> Iterator[PairPrediction]:
    """Yield the predictions of `pairs`, then those of pairs that hold weak places better.

    A prediction counts as strong as its mean log-confidence, or not at all where its mean
    confidence is below `min_confidence`. `recon3d.pairs_extra` says which pairs are added; where
    nothing is weak there are none, and `most_pairs` bounds those of both steps together. Other
    arguments and errors as for `predict_encoded`.
    """
    strength: dict[tuple[int, int], float] = dict.fromkeys(pairs, 0.0)
    for prediction in predict_encoded(model, encoded, pairs, config, track=track):
        log_confidence = mean_log_confidence(prediction.confidence_j)
        if log_confidence >= math.log(min_confidence):
            i, j = prediction.i, prediction.j
            strength[(i, j) if (i, j) in strength else (j, i)] += log_confidence / 2
        yield prediction
    n_views = len(encoded.tokens)
    budget = math.ceil(EXTRA_SHARE * n_views)
    if most_pairs is not None:
        budget = min(budget, max(0, most_pairs - len(pairs)))
    extra = extra_pairs(n_views, pairs, np.array(list(strength.values())), similarity, budget)
    if extra:
        logger.info("%d more pairs join or strengthen what few pairs hold", len(extra))
        yield from predict_encoded(model, encoded, extra, config, track=track)
