"""Light: what a surface sends back to the camera, and what the sky shows. All values are linear."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon3d.synth.atlas import look_up
from recon3d.synth.ground import height_at
from recon3d.synth.surface import Surface, take
from recon3d.synth.trace import blocked
from recon3d.synth.world import N_LIGHTS, Surroundings, World

_LIFT_M = 3e-3


def sky_colour(
    around: Surroundings, direction: Float[Tensor, "group ray 3"]
) -> Float[Tensor, "group ray 3"]:
    """Return what is seen along unit directions where nothing is in the way: a dome with clouds."""
    colours = around.sky[:, None]
    up = direction[..., 2].clamp(0, 1)
    dome = torch.lerp(colours[..., 0, :], colours[..., 1, :], up.sqrt()[..., None])
    cover, frequency, phase_x, phase_y = around.clouds[:, None].unbind(-1)
    reach = frequency / (up + 0.15)
    x, y = direction[..., 0] * reach, direction[..., 1] * reach
    density = torch.zeros_like(x)
    warp = torch.zeros_like(x)
    for octave, (kx, ky) in enumerate(
        ((1.0, 0.3), (-0.5, 1.1), (1.7, 1.2), (-2.3, 2.9), (5.1, 3.7))
    ):
        wave = torch.sin(kx * x + ky * y + phase_x * (1 + octave) + phase_y + warp)
        density = density + wave / (1 + 0.7 * octave)
        warp = warp + 1.3 * wave
    cloud = ((density * 0.5 + cover * 2 - 1) * 0.9).clamp(0, 1) * (up * 6).clamp_max(1)
    sun = around.light[:, None, 0] / around.light[:, None, 0].norm(dim=-1, keepdim=True)
    glow = (direction * sun).sum(-1).clamp_min(0) ** 32
    glow = glow[..., None] * around.light_colour[:, None, 0] * 0.12
    return torch.lerp(dome, colours[..., 2, :], cloud[..., None]) + glow


def albedo(
    world: World,
    atlas: Int[Tensor, "texture texel"],
    seen: Surface,
    pixel: Tensor,
    cosine: Tensor,
) -> Float[Tensor, "group ray 3"]:
    """Return the share of light that the surface sends back, by colour; `pixel` is in metres."""
    materials = world.materials
    texture, tile = take(materials.texture, seen.material), take(materials.tile, seen.material)
    blend = torch.where(seen.inside, 1.0, take(materials.blend, seen.material))
    footprint = pixel / cosine.clamp_min(0.15)
    colour = torch.zeros_like(seen.point)
    for layer in range(2):
        scale = tile[..., layer]
        sample = look_up(
            atlas,
            texture[..., layer],
            seen.u / scale + 0.5,
            seen.v / scale + 0.5,
            footprint / scale,
        )
        weight = blend if layer else 1 - blend
        colour = colour + weight[..., None] * torch.stack(sample, dim=-1)
    return colour * colour * take(materials.tint, seen.material)  # textures hold gamma 2


def _open_share(
    around: Surroundings, balls: Float[Tensor, "group 4 solid"], seen: Surface
) -> Float[Tensor, "group ray"]:
    """Return how much of the light from all around arrives: what is near takes its share.

    Solids count as balls of their smallest half size, corners of the room as soft edges.
    """
    dx, dy, dz = (balls[:, axis, None] - seen.point[..., axis, None] for axis in range(3))
    square = dx * dx + dy * dy + dz * dz
    rising = (
        dx * seen.normal[..., 0, None]
        + dy * seen.normal[..., 1, None]
        + dz * seen.normal[..., 2, None]
    )
    share = (
        rising.clamp_min(0) * balls[:, 3, None].square() / (square * square.sqrt()).clamp_min(1e-6)
    )
    open_share = torch.exp(-1.2 * share.clamp_max(0.5).sum(-1))
    low, high = around.bounds_low[:, None], around.bounds_high[:, None]
    above = seen.point[..., 2] - height_at(
        around.waves[:, None], seen.point[..., 0], seen.point[..., 1]
    )
    corner = torch.exp(-above.clamp_min(0) * 3) * (1 - seen.normal[..., 2].abs())
    for axis in range(2):
        to_wall = torch.minimum(
            seen.point[..., axis] - low[..., axis], high[..., axis] - seen.point[..., axis]
        )
        corner = corner + torch.exp(-to_wall.clamp_min(0) * 3) * (1 - seen.normal[..., axis].abs())
    open_share = open_share * (1 - 0.3 * corner.clamp(0, 1))
    return torch.where(seen.inside, 0.6 * open_share, open_share)


def lit(
    world: World,
    atlas: Int[Tensor, "texture texel"],
    lights: Float[Tensor, "group row solid"],
    balls: Float[Tensor, "group 4 solid"],
    seen: Surface,
    is_sky: Bool[Tensor, "group ray"],
    ray: Float[Tensor, "group ray 3"],
    pixel_angle: Float[Tensor, " group"],
) -> Float[Tensor, "group ray 3"]:
    """Return the light that arrives along rays, from surfaces or the sky.

    `lights` is the table of solids seen from the first light, `balls` their middles and radii.
    """
    materials, around = world.materials, world.around
    length = ray.norm(dim=-1)
    towards = -ray / length[..., None]
    normal = seen.normal
    cosine = (normal * towards).sum(-1).abs()
    colour = albedo(world, atlas, seen, seen.t * length * pixel_angle[:, None], cosine)
    gloss = take(materials.gloss, seen.material)

    open_share = _open_share(around, balls, seen)
    ambient = around.ambient[:, None]
    up = (0.5 + 0.5 * normal[..., 2])[..., None]
    light = torch.lerp(ambient[..., 0, :], ambient[..., 1, :], up) * open_share[..., None]
    shine = torch.zeros_like(light)

    # The first light casts shadows: rays from it to just before the surface.
    position = around.light
    end = (seen.hull + normal * _LIFT_M - position[:, None, 0]).mT
    dimmed = blocked(lights, end).to(ray.dtype) * around.shadow[:, None]
    for number in range(N_LIGHTS):
        to_light = position[:, None, number] - seen.point
        distance = to_light.norm(dim=-1).clamp_min(1e-3)
        direction = to_light / distance[..., None]
        facing = (normal * direction).sum(-1).clamp_min(0)
        fall_off = 1 / (1 + (distance / around.reach[:, None, number]) ** 2)
        power = fall_off * ((1 - dimmed) if number == 0 else 1.0)
        if number == 0:
            power = torch.where(seen.inside, 0.5 * power, power)
        coloured = power[..., None] * around.light_colour[:, None, number]
        light = light + coloured * facing[..., None]
        half_way = direction + towards
        half_way = half_way / half_way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        glint = (normal * half_way).sum(-1).clamp_min(0)
        exponent = 8 + 120 * gloss
        shine = shine + coloured * (torch.exp(exponent * (glint - 1)) * gloss * 0.8)[..., None]

    # Glossy surfaces and window panes mirror the sky; the more, the flatter the look at them.
    mirrored = -towards + 2 * (normal * towards).sum(-1, keepdim=True) * normal
    pane = take(materials.glass, seen.material) * seen.inside
    fresnel = 0.04 + 0.96 * (1 - cosine).clamp(0, 1) ** 5
    reflect = torch.maximum(gloss * gloss * fresnel, pane * (0.25 + 0.75 * fresnel))[..., None]
    shown = sky_colour(around, torch.where(is_sky[..., None], -towards, mirrored))
    sky = torch.lerp(ambient[..., 0, :], shown, up.clamp(0.3, 1))
    # Behind panes it is dark, save for a curtain here and there.
    curtain = torch.frac((torch.sin(seen.cell * 12.9898 + 4.1) * 43758.5453).abs())
    dark = torch.where(curtain < 0.3, 0.5, 0.06)
    colour = torch.where(
        (pane > 0)[..., None], torch.lerp(colour, colour * dark[..., None], 0.95), colour
    )
    colour = colour * light * (1 - reflect) + sky * reflect * open_share[..., None] + shine
    clear = torch.exp(-around.haze[:, None] * seen.t * length)[..., None]
    colour = torch.lerp(around.sky[:, None, 0], colour, clear)
    return torch.where(is_sky[..., None], shown, colour)
