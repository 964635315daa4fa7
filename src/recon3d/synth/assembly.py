"""How a family's scenes are put together: things collected, materials dealt out, world made."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.synth.draw import Draw
from recon3d.synth.furniture import Thing
from recon3d.synth.ground import FLOOR
from recon3d.synth.materials import ROLE, draw_materials
from recon3d.synth.shapes import quadric, solids
from recon3d.synth.textures import Atlas
from recon3d.synth.trace import N_CUT
from recon3d.synth.world import ROOM_FACES, Solids, Surroundings, World, join_solids, rows_of

N_SOLIDS = 64
N_VANTAGES = 8


class Vantage(NamedTuple):
    """Where photographers of a scene may stand, and what they look at."""

    position: Float[Tensor, "scene vantage 3"]
    target: Float[Tensor, "scene vantage 3"]
    low: Float[Tensor, "scene 3"]
    """Cameras stay in this box."""
    high: Float[Tensor, "scene 3"]


@dataclass(kw_only=True)
class Assembly:
    """Collects the things of n scenes of one family."""

    n: int
    draw: Draw
    parts: list[Solids] = field(default_factory=list)
    roles: list[Tensor] = field(default_factory=list)
    leaders: list[int] = field(default_factory=list)

    def add(self, item: Thing) -> None:
        """Add a thing once to every scene."""
        start = len(self.leaders)
        self.parts.append(item.solids)
        self.roles.append(item.role)
        self.leaders += [start + item.group.index(number) for number in item.group]

    def scatter(self, part: Solids, roles: tuple[str, ...]) -> None:
        """Add solids, each with a material of its own, of any of the roles."""
        n, k = part.centre.shape[:2]
        choice = torch.tensor([ROLE[name] for name in roles])
        self.add(Thing(part, choice[self.draw.number(n, k, below=len(roles))], tuple(range(k))))

    def world(
        self,
        around: Surroundings,
        atlas: Atlas,
        walls: str,
        floor: str,
    ) -> World:
        """Return the scenes: room and things with their materials, filled up to N_SOLIDS.

        Raises:
            ValueError: when there are more solids than that.
        """
        count = len(self.leaders)
        spare = N_SOLIDS - count
        if spare < 0:
            raise ValueError(f"{count} solids in a scene, more than {N_SOLIDS}")
        below = torch.tensor([0.0, 0.0, -1e3]).expand(self.n, spare, 3)
        filler = solids("nothing", below, torch.full((self.n, spare, 3), 1e-3))
        faces = torch.full((self.n, ROOM_FACES), ROLE[walls])
        faces[:, FLOOR] = ROLE[floor]
        role = torch.cat((faces, *self.roles, torch.zeros(self.n, spare, dtype=torch.int64)), dim=1)
        materials = draw_materials(role, atlas, self.draw)
        one_wall = self.draw.chance(self.n, 1, share=0.6)
        sides = torch.where(one_wall, torch.tensor([0, 0, 2, 0, 0, 5]), torch.arange(ROOM_FACES))
        rest = torch.tensor([*self.leaders, *range(count, N_SOLIDS)]) + ROOM_FACES
        leader = torch.cat((sides, rest.expand(self.n, -1)), dim=1)
        parts = join_solids([*self.parts, filler])
        # Cut solids go first, where the caster looks for them; too many cuts are forgone.
        is_cut = parts.cut_quadric[..., 4] > 0
        order = is_cut.int().argsort(dim=1, descending=True, stable=True)
        parts = rows_of(parts, order)
        late = torch.arange(N_SOLIDS)[None, :, None] >= N_CUT
        parts = replace(parts, cut_quadric=torch.where(late, quadric("nothing"), parts.cut_quadric))
        surfaces = torch.cat((torch.arange(ROOM_FACES).expand(self.n, -1), order + ROOM_FACES), 1)
        return World(
            solids=parts,
            materials=rows_of(rows_of(materials, leader), surfaces),
            around=around,
        )


def _tinted(draw: Draw, n: int, low: float, high: float, warmth: float) -> Tensor:
    """Return light of random strength and colour [n, 3]; warm where `warmth` is positive."""
    strength = draw.log_uniform(n, 1, low=low, high=high)
    warm = warmth + 0.15 * draw.normal(n, 1)
    return strength * torch.exp(warm * torch.tensor([0.5, 0.0, -0.9]))


def _sky(draw: Draw, n: int) -> tuple[Tensor, Tensor]:
    """Return (colours of horizon, zenith and clouds; shapes of clouds)."""
    overcast = draw.chance(n, 1, 1, share=0.3)
    blue = draw.box(n, 3, low=(0.1, 0.2, 0.45), high=(0.3, 0.45, 0.9))
    pale = draw.box(n, low=(0.85, 0.93, 1.0), high=(1.05, 1.02, 1.05))
    blue[:, 0] = pale * draw.uniform(n, 1, low=0.6, high=0.95)
    grey = draw.uniform(n, 1, 1, low=0.5, high=0.95).expand(n, 3, 3) * torch.tensor([0.97, 1, 1.04])
    colours = torch.where(overcast, grey, blue)
    colours[:, 2] = draw.uniform(n, 1, low=0.7, high=1.2) * torch.tensor([1.0, 0.99, 0.97])
    clouds = draw.box(n, low=(0.05, 0.4, 0.0, 0.0), high=(0.75, 2.0, 50.0, 50.0))
    return colours, clouds


def outdoors(
    draw: Draw, n: int, bounds: Tensor, waves: Tensor, *, open_share: float = 1.0
) -> Surroundings:
    """Return open surroundings: ground to the bounds [scene, 3], sun or clouds, haze.

    Sides are walls in 1 - `open_share` of the scenes.
    """
    rise = waves[..., 3].abs().sum(-1)
    low = torch.stack((-bounds[:, 0], -bounds[:, 1], -rise - 0.5), dim=-1)
    is_open = draw.chance(n, share=open_share)
    sky = torch.zeros(n, ROOM_FACES, dtype=torch.bool)
    sky[:, [0, 1, 3, 4]] = is_open[:, None]
    sky[:, 5] = True
    azimuth = draw.uniform(n, low=-torch.pi, high=torch.pi)
    height = draw.uniform(n, low=0.25, high=1.3)
    sun = torch.stack(
        (azimuth.cos() * height.cos(), azimuth.sin() * height.cos(), height.sin()), -1
    )
    light = draw.normal(n, 4, 3) * 10 + torch.tensor([0.0, 0.0, 8.0])
    light[:, 0] = sun * 70
    colour = torch.stack([_tinted(draw, n, 0.02, 0.3, 0.0) for _ in range(4)], 1)
    sunny = draw.chance(n, share=0.65)
    colour[:, 0] = _tinted(draw, n, 1.2, 3.2, 0.12) * torch.where(sunny, 1.0, 0.15)[:, None]
    reach = draw.uniform(n, 4, low=3.0, high=10.0)
    reach[:, 0] = 1e3
    colours, clouds = _sky(draw, n)
    above = colours[:, 1] * 0.5 + colours[:, 0] * 0.3 + 0.15
    above = above * torch.where(sunny, 0.7, 1.2)[:, None]
    below = 0.35 * above * draw.uniform(n, 1, low=0.5, high=1.2) * torch.tensor([1.1, 1.0, 0.85])
    haze = draw.log_uniform(n, low=2e-4, high=6e-3)
    return Surroundings(
        bounds_low=low,
        bounds_high=bounds,
        face_is_sky=sky,
        waves=waves,
        light=light,
        light_colour=colour,
        reach=reach,
        shadow=torch.where(sunny, draw.uniform(n, low=0.75, high=1.0), 0.5),
        ambient=torch.stack((below, above), dim=1),
        sky=colours,
        clouds=clouds,
        haze=haze,
    )


def indoors(draw: Draw, n: int, extent: Tensor) -> Surroundings:
    """Return rooms of half width, half depth and height [scene, 3], lit from ceiling or window."""
    low = torch.stack((-extent[:, 0], -extent[:, 1], torch.full((n,), -0.5)), dim=-1)
    light = draw.uniform(n, 4, 3, low=-0.8, high=0.8) * extent[:, None]
    light[..., 2] = extent[:, None, 2] * draw.uniform(n, 4, low=0.6, high=0.95)
    colour = torch.stack([_tinted(draw, n, 0.15, 1.2, 0.15) for _ in range(4)], 1)
    colour = colour * (torch.arange(4) < 1 + draw.number(n, 1, below=4))[..., None]
    colour[:, 0] = _tinted(draw, n, 0.8, 2.5, 0.1)
    above = _tinted(draw, n, 0.3, 0.9, 0.05)
    colours, clouds = _sky(draw, n)
    return Surroundings(
        bounds_low=low,
        bounds_high=extent,
        face_is_sky=torch.zeros(n, ROOM_FACES, dtype=torch.bool),
        waves=torch.zeros(n, 6, 4),
        light=light,
        light_colour=colour,
        reach=draw.uniform(n, 4, low=1.5, high=5.0),
        shadow=draw.uniform(n, low=0.5, high=1.0) * draw.chance(n, share=0.75),
        ambient=torch.stack((above * draw.uniform(n, 1, low=0.4, high=0.9), above), dim=1),
        sky=colours,
        clouds=clouds,
        haze=torch.zeros(n),
    )


def pick_scenes(first: Surroundings, second: Surroundings, chosen: Tensor) -> Surroundings:
    """Return the first where `chosen` [scene], the second elsewhere."""
    return Surroundings(
        **{
            name: torch.where(chosen.reshape(-1, *(1,) * (value.ndim - 1)), value, other)
            for (name, value), other in zip(vars(first).items(), vars(second).values(), strict=True)
        }
    )
