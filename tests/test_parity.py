"""Numerical parity with reference figures, where the folder of fixtures is at hand."""

import argparse
import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recon3d.config import HeadType, ModelConfig
from recon3d.model import TwoViewModel
from recon3d.weights import load_tensors

FIXTURES = Path(
    os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")
)
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no fixtures at {FIXTURES} (set RECON3D_FIXTURES)"
)
TOLERANCE = 1e-5

LINEAR = ModelConfig(
    enc_dim=64, enc_depth=2, enc_heads=2, dec_dim=48, dec_depth=2, dec_heads=2, image_size=96
)
NARROW = replace(
    LINEAR,
    head=HeadType.DPT,
    dec_dim=32,
    dec_depth=10,
    dpt_layer_dims=(8, 12, 16, 24),
    dpt_feature_dim=16,
    dpt_last_dim=8,
)
FULL_WIDTH = replace(LINEAR, head=HeadType.DPT, dec_depth=10)


def from_pth(name: str) -> dict[str, torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(FIXTURES / name, weights_only=True)["model"]


def from_hub(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / name / "model.safetensors")


def from_recipe(name: str) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("recipe", FIXTURES / "weights_recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    manifest = json.loads((FIXTURES / f"{name}_manifest.json").read_text())
    seed = next(manifest[key] for key in manifest if re.search("seed", key))
    state = recipe.state_dict(manifest["params"], seed)
    return {key: torch.from_numpy(value) for key, value in state.items()}


SOURCES = {
    "dust3r_linear_tiny": (LINEAR, lambda: from_pth("dust3r_linear_tiny.pth")),
    "dust3r_linear_tiny_hub": (LINEAR, lambda: from_hub("dust3r_linear_tiny_hub")),
    "dust3r_dpt_narrow": (NARROW, lambda: from_pth("dust3r_dpt_narrow.pth")),
    "dust3r_dpt_fullwidth": (FULL_WIDTH, lambda: from_recipe("dust3r_dpt_fullwidth")),
}
_models: dict[str, TwoViewModel] = {}


def model_of(name: str) -> TwoViewModel:
    if name not in _models:
        config, read = SOURCES[name]
        model = TwoViewModel(config)
        load_tensors(model, read(), name)
        _models[name] = model.eval()
    return _models[name]


def relative(ours: torch.Tensor, reference: np.ndarray) -> float:
    truth = torch.from_numpy(reference).double()
    return float((ours.double() - truth).norm() / truth.norm())


def compare(model: TwoViewModel, case: dict[str, np.ndarray]) -> dict[str, float]:
    images = [torch.from_numpy(case[key]) for key in ("img1", "img2")]
    grids = [(im.shape[2] // 16, im.shape[3] // 16) for im in images]
    with torch.inference_mode():
        tokens = [model.encode(im) for im in images]
        decoded = model.decode_tokens(*tokens, *grids)
        out = model.heads(decoded, *grids)
    errors = {"enc1": relative(tokens[0], case["enc1"]), "enc2": relative(tokens[1], case["enc2"])}
    for layer in range(len(case["dec1"])):
        errors[f"dec1.{layer}"] = relative(decoded.tokens_i[layer + 1], case["dec1"][layer])
        errors[f"dec2.{layer}"] = relative(decoded.tokens_j[layer + 1], case["dec2"][layer])
    return errors | {
        "pts3d": relative(out.pointmap_i, case["pts3d"]),
        "conf": relative(out.confidence_i, case["conf"]),
        "pts3d_in_other_view": relative(out.pointmap_j, case["pts3d_in_other_view"]),
        "conf2": relative(out.confidence_j, case["conf2"]),
    }


CASES = [
    (model, f"{model.removesuffix('_hub')}_{shape}")
    for model in SOURCES
    for shape in ("landscape", "portrait", "mixed", "square_sym_batch")
    if shape != "square_sym_batch" or "linear" in model
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_parity(name: str, case: str) -> None:
    errors = compare(model_of(name), dict(np.load(FIXTURES / f"{case}.npz")))
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.2e}"


@pytest.mark.parametrize("name", ["dust3r_linear_tiny", "dust3r_dpt_narrow"])
def test_parity_of_mixed_aspect_batches(name: str) -> None:
    """The reference stores portrait views transposed; each pair alone must give the same."""
    batch = dict(np.load(FIXTURES / f"{name}_many_ar.npz"))
    for b in range(len(batch["img1"])):
        portrait = [
            bool(batch[f"true_shape{k}"][b, 0] > batch[f"true_shape{k}"][b, 1]) for k in (1, 2)
        ]

        def upright(array: np.ndarray, side: int, axes: tuple[int, int]) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return tensor.transpose(*axes) if portrait[side] else tensor  # noqa: B023

        images = [upright(batch[f"img{k + 1}"][b : b + 1], k, (2, 3)) for k in (0, 1)]
        grids = [(im.shape[2] // 16, im.shape[3] // 16) for im in images]
        model = model_of(name)
        with torch.inference_mode():
            out = model.decode(*[model.encode(im) for im in images], *grids)
        for key, side, ours in (
            ("pts3d", 0, out.pointmap_i),
            ("conf", 0, out.confidence_i),
            ("pts3d_in_other_view", 1, out.pointmap_j),
            ("conf2", 1, out.confidence_j),
        ):
            truth = upright(batch[key][b : b + 1], side, (1, 2)).numpy()
            assert relative(ours, truth) <= TOLERANCE, (b, key)
