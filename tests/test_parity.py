"""The network gives the published system's numbers, on the cases of the fixtures folder.

The folder is named by the variable RECON3D_FIXTURES; without one these tests are skipped.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recon3d.config import HeadType, ModelConfig
from recon3d.model import TwoViewModel
from recon3d.weights import load_tensors

FOLDER = Path(os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "weights_recipe.py").is_file(), reason=f"no parity fixtures in {FOLDER}"
)
TOLERANCE = 1e-5

CONFIGS = {
    "dust3r_linear_tiny": ModelConfig(
        enc_dim=64, enc_depth=2, enc_heads=2, dec_dim=48, dec_depth=2, dec_heads=2
    ),
    "dust3r_dpt_narrow": ModelConfig(
        enc_dim=64,
        enc_depth=2,
        enc_heads=2,
        dec_dim=32,
        dec_depth=10,
        dec_heads=2,
        head=HeadType.DPT,
        dpt_layer_dims=(8, 12, 16, 24),
        dpt_feature_dim=16,
        dpt_last_dim=8,
    ),
    "dust3r_dpt_fullwidth": ModelConfig(
        enc_dim=64,
        enc_depth=2,
        enc_heads=2,
        dec_dim=48,
        dec_depth=10,
        dec_heads=2,
        head=HeadType.DPT,
    ),
}
SEEDS = {"dust3r_linear_tiny": 1, "dust3r_dpt_narrow": 2, "dust3r_dpt_fullwidth": 3}
CASES = (
    ("dust3r_linear_tiny", "landscape"),
    ("dust3r_linear_tiny", "portrait"),
    ("dust3r_linear_tiny", "mixed"),
    ("dust3r_linear_tiny", "square_sym_batch"),
    ("dust3r_dpt_narrow", "landscape"),
    ("dust3r_dpt_narrow", "portrait"),
    ("dust3r_dpt_narrow", "mixed"),
    ("dust3r_dpt_fullwidth", "landscape"),
    ("dust3r_dpt_fullwidth", "portrait"),
    ("dust3r_dpt_fullwidth", "mixed"),
)
OUTPUTS_OF_J = ("pts3d_in_other_view", "conf2")
# (ours, theirs) for what the heads give
OUTPUTS = (
    ("pointmap_i", "pts3d"),
    ("confidence_i", "conf"),
    ("pointmap_j", "pts3d_in_other_view"),
    ("confidence_j", "conf2"),
)


def recipe_tensors(name: str) -> dict[str, Tensor]:
    """Generate the weights of a case from its list of names and shapes, aliases included."""
    spec = importlib.util.spec_from_file_location("weights_recipe", FOLDER / "weights_recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    manifest = json.loads((FOLDER / f"{name}_manifest.json").read_text())
    parameters = manifest["params"] if isinstance(manifest, dict) else manifest
    return {k: torch.from_numpy(v) for k, v in recipe.state_dict(parameters, SEEDS[name]).items()}


@pytest.fixture(scope="module")
def models() -> dict[str, TwoViewModel]:
    built = {}
    for name, config in CONFIGS.items():
        built[name] = TwoViewModel(config).eval()
        load_tensors(built[name], recipe_tensors(name), name)
    return built


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs))


def run(model: TwoViewModel, image_i: Tensor, image_j: Tensor) -> dict[str, Tensor]:
    """Return every intermediate the fixtures hold, under the fixtures' names."""
    patch = model.config.patch_size
    grids = [(x.shape[2] // patch, x.shape[3] // patch) for x in (image_i, image_j)]
    with torch.no_grad():
        tokens = [model.encode(x) for x in (image_i, image_j)]
        decoded = model.decode_tokens(*tokens, *grids)
        output = model.decode(*tokens, *grids)
    return {
        "enc1": tokens[0],
        "enc2": tokens[1],
        "dec1": torch.stack(decoded.tokens_i[1:]),
        "dec2": torch.stack(decoded.tokens_j[1:]),
    } | {theirs: getattr(output, ours) for ours, theirs in OUTPUTS}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_stage_matches_the_published_system(
    models: dict[str, TwoViewModel], name: str, case: str
) -> None:
    with np.load(FOLDER / f"{name}_{case}.npz") as file:
        arrays = dict(file)
    found = run(models[name], *(torch.from_numpy(arrays[k]) for k in ("img1", "img2")))
    errors = {key: relative_error(value, arrays[key]) for key, value in found.items()}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", ["dust3r_linear_tiny", "dust3r_dpt_narrow"])
def test_portraits_stored_transposed_match_too(models: dict[str, TwoViewModel], name: str) -> None:
    # The published system trains on landscape storage: a portrait image is transposed on entry
    # and its maps are transposed on exit. Ours takes the portrait as it is.
    with np.load(FOLDER / f"{name}_many_ar.npz") as file:
        arrays = dict(file)
    portraits = 0
    for sample in range(len(arrays["img1"])):
        images, upright = [], []
        for view in ("1", "2"):
            image = torch.from_numpy(arrays[f"img{view}"][sample : sample + 1])
            height, width = arrays[f"true_shape{view}"][sample]
            upright.append(height > width)
            images.append(image.mT.contiguous() if height > width else image)
        portraits += sum(upright)
        found = run(models[name], *images)
        for turned, names in zip(upright, (("pts3d", "conf"), OUTPUTS_OF_J), strict=True):
            for key in names:
                ours = found[key].transpose(1, 2) if turned else found[key]
                theirs = arrays[key][sample : sample + 1]
                assert relative_error(ours, theirs) <= TOLERANCE, (sample, key)
    assert portraits == 4


@pytest.mark.parametrize("name", ["dust3r_linear_tiny", "dust3r_dpt_narrow"])
def test_published_checkpoints_hold_the_recipe_under_our_names(name: str) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(FOLDER / f"{name}.pth", weights_only=True)  # noqa: TID251
    model = TwoViewModel(CONFIGS[name])
    load_tensors(model, checkpoint["model"], name)
    recipe = recipe_tensors(name)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, recipe[key]), key


def test_hub_folder_gives_the_same_numbers(models: dict[str, TwoViewModel]) -> None:
    model = TwoViewModel(CONFIGS["dust3r_linear_tiny"])
    path = FOLDER / "dust3r_linear_tiny_hub" / "model.safetensors"
    load_tensors(model, load_file(path), str(path))
    with np.load(FOLDER / "dust3r_linear_tiny_landscape.npz") as file:
        arrays = dict(file)
    found = run(model, torch.from_numpy(arrays["img1"]), torch.from_numpy(arrays["img2"]))
    for key, value in found.items():
        assert relative_error(value, arrays[key]) <= TOLERANCE, key
