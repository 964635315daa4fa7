"""What a run says when it is done."""

from dataclasses import replace

import torch

from exact_scene import exact_scene
from recon3d.align import align
from recon3d.align_verdicts import ELSEWHERE
from recon3d.bundle_check import RefineReport
from recon3d.config import AlignConfig
from recon3d.dense import DenseReport
from recon3d.summary import sentence
from recon3d.types import EdgeVerdict, LeftOut, Scene

IMPROVED = RefineReport(improved=True, reason="", sharp_pairs=3, n_tracks=50)
REFUSED = RefineReport(improved=False, reason="no texture", sharp_pairs=0, n_tracks=0)


def scene(left_out: tuple[LeftOut, ...] = ()) -> Scene:
    truth = exact_scene(3)
    found = align(truth.predictions(), truth.views, AlignConfig())
    fields = {name: getattr(found, name) for name in Scene.__dataclass_fields__}
    return Scene(**(fields | {"left_out": left_out}))


def dense(share: float, views: int, *, used: bool = True) -> DenseReport:
    return DenseReport(used=used, views=views, share=share)


def test_everything_placed_and_refined():
    text = sentence([scene()], [IMPROVED], [dense(0.625, 3)])
    assert text == "3 of 3 photos placed; cameras refined; 62 % of the depth confirmed"


def test_given_cameras_are_not_called_a_failure():
    text = sentence([scene()], [], [dense(0.5, 3)], cameras_given=True)
    assert text == "3 of 3 photos placed; cameras as given; 50 % of the depth confirmed"


def test_given_cameras_that_were_scaled_are_not_as_given():
    text = sentence([replace(scene(), metric=True)], [], [None], cameras_given=True)
    assert text == "3 of 3 photos placed; cameras as given, but scaled"


def test_given_cameras_are_not_called_estimated():
    text = sentence([scene()], [replace(IMPROVED, improved=False)], [None], cameras_given=True)
    assert text == "3 of 3 photos placed; cameras as given"


def test_a_second_place_among_what_was_left_out_is_said():
    def pair(first: str, second: str, reason: str) -> EdgeVerdict:
        return EdgeVerdict(first=first, second=second, used=False, reason=reason, confidence=9.0)

    left_out = tuple(LeftOut(name=name, reason="no overlap") for name in "abcde")
    edges = (
        pair("a", "b", ELSEWHERE),
        pair("b", "c", ELSEWHERE),
        pair("c", "d", "low confidence"),
        pair("e", "0.jpg", ELSEWHERE),
    )
    found = replace(scene(left_out), edges=edges)
    hint = "5 left out (3 of them belong together: --all-components gives them a scene): a (no over"
    assert hint in sentence([found])
    assert "all-components" not in sentence([found, scene()])
    assert "all-components" not in sentence([replace(found, edges=edges[2:])])


def test_cameras_that_features_fit_badly_are_said_to_be():
    poor = replace(IMPROVED, error_after=5e-3)
    assert sentence([scene()], [poor]).endswith("cameras refined, but features fit them badly")
    assert "badly" not in sentence([scene()], [replace(IMPROVED, error_after=2.6e-3)])


def test_missing_parallax_is_said():
    text = sentence([scene()], [replace(IMPROVED, parallax=False)], [None])
    assert text == (
        "3 of 3 photos placed; cameras refined; no parallax, so that positions are guesses"
    )


def test_what_was_not_done_is_not_claimed():
    out = (LeftOut(name="a.jpg", reason="damaged"),)
    text = sentence([scene(out)], [REFUSED], [dense(0.02, 3, used=False)])
    assert text == (
        "3 of 4 photos placed; cameras as estimated, not refined; 1 left out: a.jpg (damaged)"
    )
    assert sentence([scene()], [], [None]) == "3 of 3 photos placed"


def test_the_share_of_several_groups_counts_their_views():
    one, two = scene(), scene()
    text = sentence([one, two], [IMPROVED, IMPROVED], [dense(0.5, 3), dense(0.2, 1)])
    assert "in 2 groups (3 + 3)" in text
    share = torch.tensor([0.5, 0.5, 0.5, 0.2]).mean()
    assert f"{100 * share:.0f} % of the depth confirmed" in text
