"""Photos that the alignment left out, offered to the refinement: image features may place them.

They join the scene with a camera that is no more than a placeholder and the depth that the network
gives them alone. If the refinement places them they stay, with the depth bent to their tracks; if
not, they are left out as before.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.align_focal import choose_focals, lenses
from recon3d.align_samples import Cameras, base_point, pixel_weight
from recon3d.config import AlignConfig
from recon3d.geometry import compose, invert_rigid, pixel_grid
from recon3d.known_cameras import is_fixed, poses_of
from recon3d.types import KnownCamera, PairPrediction, Scene, Verdict, View


def with_strays(
    scene: Scene,
    strays: Mapping[int, PairPrediction],
    views: Sequence[View],
    config: AlignConfig,
    cameras: Cameras = (),
) -> Scene:
    """Return the scene with photos that it lacks behind its own.

    They are where they were given to be (with float64 then, as that may be far away), others at the
    first camera's place.

    Args:
        scene: what was aligned.
        strays: by their indices in `views`, any prediction in which each is the first view.
        views: all of them.
        config: how focal lengths are found.
        cameras: what is known of all views, or nothing.
    """
    alone = strays_alone(strays, views, config, cameras)
    order = list(strays)
    poses = poses_of(cameras, order)
    cam2world = scene.cam2world.double() if poses else scene.cam2world
    places = cam2world[:1].repeat(len(strays), 1, 1)
    for n, pose in poses.items():
        places[order.index(n)] = pose.to(places)
    return replace(
        scene,
        views=scene.views + alone.views,
        cam2world=torch.cat((cam2world, places)),
        intrinsics=torch.cat((scene.intrinsics, alone.intrinsics.to(scene.intrinsics))),
        depth=scene.depth + alone.depth,
        confidence=scene.confidence + alone.confidence,
        verdicts=scene.verdicts + alone.verdicts,
    )


def strays_alone(
    strays: Mapping[int, PairPrediction],
    views: Sequence[View],
    config: AlignConfig,
    cameras: Cameras = (),
) -> Scene:
    """Return a scene of photos that nothing joins, all at one place; arguments as above."""
    intrinsics, depth, confidence, verdicts = [], [], [], []
    for n, prediction in strays.items():
        points = prediction.pointmap_i_in_i.float()
        mask = views[n].mask
        if mask is not None:
            points = points.masked_fill(~mask.to(points.device)[..., None], torch.nan)
        trust = prediction.confidence_i.float()
        known = (points[..., 2] > 0) & points.isfinite().all(-1) & trust.isfinite()
        given = cameras[n] if cameras else None
        matrix, source = _intrinsics(views[n], points, trust, config, given)
        intrinsics.append(matrix)
        depth.append(torch.where(known, points[..., 2], 0.0))
        confidence.append(torch.where(known, trust, 0.0))
        verdicts.append(
            Verdict(
                residual=torch.nan,
                edges=0,
                rotation_uncertainty_deg=torch.nan,
                focal_source=source,
            )
        )
    return Scene(
        views=tuple(views[n] for n in strays),
        cam2world=torch.eye(4).repeat(len(strays), 1, 1),
        intrinsics=torch.stack(intrinsics),
        depth=tuple(depth),
        confidence=tuple(confidence),
        verdicts=tuple(verdicts),
    )


def without_unplaced(
    scene: Scene,
    n_placed: int,
    refined: Collection[str],
    views: Sequence[View],
    *,
    keep_world: bool,
) -> Scene:
    """Return the scene without the strays that the refinement did not place, in order of `views`.

    The first `n_placed` views were placed before. World is again the camera of the first view,
    unless `keep_world`.
    """
    place = {view.name: n for n, view in enumerate(views)}
    kept = [k for k, view in enumerate(scene.views) if k < n_placed or view.name in refined]
    kept.sort(key=lambda k: place[scene.views[k].name])
    cam2world = scene.cam2world[kept].double()
    if not keep_world:
        cam2world = compose(invert_rigid(cam2world[0]), cam2world)
    names = {scene.views[k].name for k in kept}
    return replace(
        scene,
        views=tuple(scene.views[k] for k in kept),
        cam2world=cam2world.to(scene.cam2world),
        intrinsics=scene.intrinsics[kept],
        depth=tuple(scene.depth[k] for k in kept),
        confidence=tuple(scene.confidence[k] for k in kept),
        verdicts=tuple(scene.verdicts[k] for k in kept),
        left_out=tuple(entry for entry in scene.left_out if entry.name not in names),
    )


def _intrinsics(
    view: View,
    points: Float[Tensor, "height width 3"],
    confidence: Float[Tensor, "height width"],
    config: AlignConfig,
    given: KnownCamera | None,
) -> tuple[Float[Tensor, "3 3"], str]:
    if given is not None and given.intrinsics is not None:
        return given.intrinsics.float(), "given" if is_fixed(given, config) else "prior"
    centre = base_point(view, None)
    flat, trust = points.reshape(1, -1, 3).double(), confidence.reshape(1, -1).double()
    weight = pixel_weight(flat, trust)
    pixel = pixel_grid(*confidence.shape).double().reshape(1, -1, 2) - centre
    known = torch.where(weight[..., None] > 0, flat, 0.0)
    found = choose_focals(known, weight, pixel, lenses([view], config), config)
    matrix = torch.eye(3)
    matrix[[0, 1], [0, 1]] = found.focal[0].float()
    matrix[:2, 2] = (centre + found.centre[0]).float()
    return matrix, found.source[0]
