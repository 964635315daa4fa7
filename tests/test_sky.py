"""Sky by colour, smoothness and place, on painted pictures."""

import pytest
import torch

from recon3d.sky import MIN_SHARE, sky_pixels

BLUE, GREY, WARM, DARK = (0.45, 0.65, 0.95), (0.85, 0.86, 0.88), (0.9, 0.6, 0.3), (0.1, 0.1, 0.3)
GROUND = (0.4, 0.35, 0.25)


def picture(sky: tuple = BLUE, *, height: int = 40, width: int = 60) -> torch.Tensor:
    """Return 20 rows of one colour above rough ground, from -1 to 1."""
    generator = torch.Generator().manual_seed(0)
    rgb = torch.tensor(GROUND)[:, None, None] * (
        0.5 + torch.rand(1, height, width, generator=generator)
    )
    rgb[:, : height // 2] = torch.tensor(sky)[:, None, None]
    return 2 * rgb - 1


@pytest.mark.parametrize("sky", [BLUE, GREY])
def test_blue_and_bright_grey_sky(sky):
    found = sky_pixels(picture(sky))
    assert found[:20].all()
    assert not found[20:].any()


@pytest.mark.parametrize("colour", [WARM, DARK, GROUND, (0.5, 0.5, 0.5)])
def test_other_colours_are_no_sky(colour):
    assert not sky_pixels(picture(colour)).any()


def test_a_gradient_is_smooth():
    image = picture()
    image[:, :20] += torch.linspace(-0.2, 0.1, 20)[None, :, None]
    found = sky_pixels(image)
    assert found[:20].float().mean() > 0.99
    assert not found[20:].any()


def test_rough_blue_is_no_sky():
    image = picture()
    image[:, :20] += 0.3 * torch.randn(1, 20, 60, generator=torch.Generator().manual_seed(1))
    assert sky_pixels(image).float().mean() < 0.02


def test_blue_that_does_not_reach_the_top_is_no_sky():
    found = sky_pixels(picture().flip(1))  # water below
    assert not found.any()
    image = picture(GROUND)
    image[:, 5:20, 10:50] = 2 * torch.tensor(BLUE)[:, None, None] - 1
    assert not sky_pixels(image).any()


def test_a_roof_stays_whole_up_to_its_edge():
    image = picture()
    roof = torch.zeros(40, 60, dtype=torch.bool)
    for row in range(8, 20):
        roof[row, 30 - (row - 8) : 30 + (row - 8)] = True
    image[:, roof] = 2 * torch.tensor(WARM)[:, None] - 1
    found = sky_pixels(image)
    assert not found[roof].any()
    assert found[:20][~roof[:20]].float().mean() > 0.97


def test_sky_on_both_sides_of_a_tower():
    image = picture()
    image[:, :20, 25:35] = 2 * torch.tensor(GROUND)[:, None, None] - 1
    found = sky_pixels(image)
    assert found[:20, :25].all()
    assert found[:20, 35:].all()
    assert not found[:, 25:35].any()


def test_small_patches_do_not_count():
    image = picture(GROUND, height=100, width=200)
    side = int((MIN_SHARE * 100 * 200) ** 0.5) - 2
    image[:, :side, :side] = 2 * torch.tensor(BLUE)[:, None, None] - 1
    assert not sky_pixels(image).any()
    image[:, : 3 * side, : 3 * side] = 2 * torch.tensor(BLUE)[:, None, None] - 1
    assert sky_pixels(image).any()


def test_a_white_wall_at_the_top_is_taken_for_sky():
    """The known weakness, and why it has to be asked for."""
    assert sky_pixels(picture((1.0, 1.0, 1.0)))[:20].all()


def test_black_and_tiny_images():
    assert not sky_pixels(-torch.ones(3, 16, 16)).any()
    assert sky_pixels(picture(height=2, width=1)).shape == (2, 1)
