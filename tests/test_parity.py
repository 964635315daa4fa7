"""The network gives the published system's numbers, on the cases of the fixtures folder.

The folder is named by the variable RECON3D_FIXTURES; without one these tests are skipped.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon3d import weights
from recon3d.checkpoint import read_checkpoint
from recon3d.config import Precision, PredictConfig
from recon3d.model import TwoViewModel
from recon3d.predict import predict_pairs
from recon3d.published import parse_constructor, two_view_config
from recon3d.torch_file import read_torch_file
from recon3d.types import PairPrediction, View

FOLDER = Path(os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "weights_recipe.py").is_file(), reason=f"no parity fixtures in {FOLDER}"
)
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2

SEEDS = {"dust3r_linear_tiny": 1, "dust3r_dpt_narrow": 2, "mast3r_narrow": 4}
"""Networks that come with a checkpoint, and the seed their weights were made with."""
FULL_WIDTH = ("dust3r_dpt_fullwidth", "mast3r_fullwidth")
"""Networks of which only the list of tensors is kept."""
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
    ("mast3r_narrow", "landscape"),
    ("mast3r_narrow", "portrait"),
    ("mast3r_fullwidth", "landscape"),
)
MANY_AR = ("dust3r_linear_tiny", "dust3r_dpt_narrow")
OUTPUTS_OF_J = ("pts3d_in_other_view", "conf2")
# (ours, theirs) for what the heads give
OUTPUTS = (
    ("pointmap_i", "pts3d"),
    ("confidence_i", "conf"),
    ("pointmap_j", "pts3d_in_other_view"),
    ("confidence_j", "conf2"),
    ("descriptors_i", "desc"),
    ("descriptors_j", "desc2"),
    ("descriptor_confidence_i", "desc_conf"),
    ("descriptor_confidence_j", "desc_conf2"),
)


def manifest(name: str) -> dict:
    content = json.loads((FOLDER / f"{name}_manifest.json").read_text())
    return content if isinstance(content, dict) else {"params": content, "seed": SEEDS[name]}


def recipe_tensors(name: str) -> dict[str, Tensor]:
    """Generate the weights of a case from its list of names and shapes, aliases included."""
    spec = importlib.util.spec_from_file_location("weights_recipe", FOLDER / "weights_recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    listed = manifest(name)
    made = recipe.state_dict(listed["params"], listed["seed"])
    return {key: torch.from_numpy(value) for key, value in made.items()}


def built(name: str) -> TwoViewModel:
    """Return the network of a case: from its checkpoint, or from the text and list it left."""
    if name in SEEDS:
        return weights.load(str(FOLDER / f"{name}.pth"))
    tensors = recipe_tensors(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    options = parse_constructor(manifest(name)["model"], name)
    config, assumed = two_view_config(shapes, options, name, name)
    assert assumed == ()
    model = TwoViewModel(config).eval()
    weights.load_tensors(model, tensors, name)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, TwoViewModel]:
    return {name: built(name) for name in (*SEEDS, *FULL_WIDTH)}


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours.float().numpy() - theirs) / np.linalg.norm(theirs))


def run(model: TwoViewModel, image_i: Tensor, image_j: Tensor) -> dict[str, Tensor]:
    """Return every intermediate the fixtures hold, under the fixtures' names."""
    patch = model.config.patch_size
    grids = [(x.shape[2] // patch, x.shape[3] // patch) for x in (image_i, image_j)]
    with torch.no_grad():
        tokens = [model.encode(x) for x in (image_i, image_j)]
        decoded = model.decode_tokens(*tokens, *grids)
        output = model.decode(*tokens, *grids)
    heads = {theirs: getattr(output, ours) for ours, theirs in OUTPUTS}
    return {
        "enc1": tokens[0],
        "enc2": tokens[1],
        "dec1": torch.stack(decoded.tokens_i[1:]),
        "dec2": torch.stack(decoded.tokens_j[1:]),
    } | {theirs: values for theirs, values in heads.items() if values is not None}


def case_of(name: str, case: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}_{case}.npz") as file:
        return dict(file)


def test_every_case_of_the_folder_is_tested() -> None:
    present = {path.stem for path in FOLDER.glob("*st3r_*.npz")}
    assert present == {f"{n}_{c}" for n, c in CASES} | {f"{n}_many_ar" for n in MANY_AR}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_stage_matches_the_published_system(
    models: dict[str, TwoViewModel], name: str, case: str
) -> None:
    arrays = case_of(name, case)
    found = run(models[name], *(torch.from_numpy(arrays[k]) for k in ("img1", "img2")))
    inputs = {"img1", "img2", "true_shape1", "true_shape2", "pos1", "pos2"}
    assert found.keys() == arrays.keys() - inputs
    errors = {key: relative_error(value, arrays[key]) for key, value in found.items()}
    assert max(errors.values()) <= FP32_TOLERANCE, errors


@pytest.mark.parametrize(("name", "case"), CASES)
def test_bf16_stays_near_the_published_fp32(
    models: dict[str, TwoViewModel], name: str, case: str
) -> None:
    arrays = case_of(name, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(models[name], *(torch.from_numpy(arrays[k]) for k in ("img1", "img2")))
    errors = {key: relative_error(value, arrays[key]) for key, value in found.items()}
    assert max(errors.values()) <= BF16_TOLERANCE, errors
    assert max(errors.values()) > 1e-4, "bf16 was not used"


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 1e-3), (Precision.BF16, BF16_TOLERANCE)]
)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_pairs_as_the_program_runs_them_match_too(
    models: dict[str, TwoViewModel], name: str, case: str, precision: Precision, tolerance: float
) -> None:
    # the results are stored in fp16, which rounds to 5e-4
    arrays = case_of(name, case)
    views = [
        View(
            name=name,
            sha256="",
            image=torch.from_numpy(arrays[f"img{k}"][0]),
            photo2view=torch.eye(3),
            photo_width=1,
            photo_height=1,
            focal_px=None,
        )
        for k in (1, 2)
    ]
    config = PredictConfig(device="cpu", precision=precision)
    forward: PairPrediction = next(predict_pairs(models[name], views, [(0, 1)], config))
    assert (forward.i, forward.j) == (0, 1)
    renamed = {"pointmap_i": "pointmap_i_in_i", "pointmap_j": "pointmap_j_in_i"}
    for ours, theirs in OUTPUTS:
        values = getattr(forward, renamed.get(ours, ours))
        if theirs in arrays:
            assert relative_error(values, arrays[theirs][0]) <= tolerance, ours
        else:
            assert values is None


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MANY_AR)
def test_portraits_stored_transposed_match_too(
    models: dict[str, TwoViewModel], name: str, bf16: bool
) -> None:
    # The published system trains on landscape storage: a portrait image is transposed on entry
    # and its maps are transposed on exit. Ours takes the portrait as it is.
    arrays = case_of(name, "many_ar")
    portraits, errors = 0, {}
    for sample in range(len(arrays["img1"])):
        images, upright = [], []
        for view in ("1", "2"):
            image = torch.from_numpy(arrays[f"img{view}"][sample : sample + 1])
            height, width = arrays[f"true_shape{view}"][sample]
            upright.append(height > width)
            images.append(image.mT.contiguous() if height > width else image)
        portraits += sum(upright)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            found = run(models[name], *images)
        for turned, names in zip(upright, (("pts3d", "conf"), OUTPUTS_OF_J), strict=True):
            for key in names:
                ours = found[key].transpose(1, 2) if turned else found[key]
                theirs = arrays[key][sample : sample + 1]
                errors[sample, key] = relative_error(ours, theirs)
    assert portraits == 4
    assert max(errors.values()) <= (BF16_TOLERANCE if bf16 else FP32_TOLERANCE), errors
    assert not bf16 or max(errors.values()) > 1e-4, "bf16 was not used"


@pytest.mark.parametrize("name", SEEDS)
def test_published_checkpoints_hold_the_recipe_under_our_names(
    models: dict[str, TwoViewModel], name: str
) -> None:
    recipe = recipe_tensors(name)
    for key, tensor in models[name].state_dict().items():
        assert torch.equal(tensor, recipe[key]), key


def test_hub_folder_is_the_same_network(models: dict[str, TwoViewModel]) -> None:
    found = weights.load(str(FOLDER / "dust3r_linear_tiny_hub"))
    for key, tensor in models["dust3r_linear_tiny"].state_dict().items():
        assert torch.equal(tensor, found.state_dict()[key]), key


def test_one_decoder_becomes_two_as_in_the_published_system(
    models: dict[str, TwoViewModel], tmp_path: Path
) -> None:
    expected = json.loads((FOLDER / "notes.json").read_text())["one_decoder_load"]
    whole = models["dust3r_linear_tiny"].state_dict()
    content = read_torch_file(FOLDER / "dust3r_linear_tiny.pth")
    for name in [name for name in content["model"] if "dec_blocks2" in name or "head" in name]:
        del content["model"][name]
    torch.save(content, tmp_path / "one.pth")
    found = read_checkpoint(tmp_path / "one.pth").tensors
    assert sorted(whole.keys() - found.keys()) == sorted(expected["missing"])
    assert sorted(found.keys() - whole.keys()) == expected["unexpected"]
    second = [name for name in found if name.startswith("dec_blocks2.")]
    assert len(second) == 48
    same = [torch.equal(found[n], whole[n.replace("dec_blocks2", "dec_blocks")]) for n in second]
    assert all(same) is expected["dec_blocks2_equals_dec_blocks"]
