"""The architecture as a test: a module imports only from rows above its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "recon3d"
LAYERS = (
    "errors progress interrupt photo_names compiler kernels lattice essential exif cycles sky "
    "retrieval measure bundle_prior depth_warp sweep_fill control_groups synth.world synth.atlas "
    "synth.draw synth.relief",
    "config streams files threads colmap_extra sweep_doubt pair_geometry catalogue torch_file "
    "image_header pairs colmap synth.trace synth.textures synth.sensor",
    "console settings device download memory types model_config train_config ground_truth "
    "pairs_extra synth.ground synth.materials",
    "geometry bundle_lens attention compiled muon grow published cameras matches ply glb "
    "scene_file views baselines",
    "overlays",
    "heads match_file known_cameras tracks features wide_check given_files masks "
    "scale checkpoint sweep parallel repeats decode synth.shapes",
    "photos given clean model skips losses sharpen patch_net parallax sweep_check partners "
    "align_samples synth.surface synth.furniture",
    "croco wide_features sweep_levels metrics throughput train_state weights predict align_focal "
    "fuse synth.shade synth.assembly",
    "two_step wide_matches fitting dense align_init bundle_solve croco_file workers scores "
    "synth.render synth.layout",
    "align_solve align_polish adopt bundle_scene bundle_check bundle_evidence bundle_doubt "
    "bundle_join bundle_map bundle_pair twin_pose score_table synth.cameras synth.family_indoor "
    "synth.family_outdoor synth.family_piles",
    "bundle_centre bundle_focal bundle_resect bundle_split align_given align_refine "
    "align_dense bundle_conflict warm_start weights_info synth.families",
    "align_place bundle given_check synth.folder",
    "align_verdicts refinement",
    "align synth batches",
    "export supply two_view contact_sheet patch_pairs",
    "training",
    "train pretrain patch_training",
    "pipeline doctor",
    "contestants summary",
    "evaluate",
    "recon3d",
    "cli_options",
    "cli_synth cli_train cli_weights",
    "cli",
    "__main__",
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names.split()}
LIGHT = {
    "recon3d",
    "__main__",
    "cli",
    "cli_options",
    "cli_synth",
    "cli_train",
    "cli_weights",
    "config",
    "console",
    "doctor",
    "errors",
    "progress",
    "settings",
    "streams",
    "train_config",
}
HEAVY = {"torch", "cv2", "numpy", "scipy", "open3d", "trimesh", "safetensors", "rich"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "recon3d"


def own_imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the package that a file imports, as in the table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package == "recon3d":
                while inner and inner not in ROW and not (SOURCE / f"{inner}.py").is_file():
                    inner = inner.rpartition(".")[0]
                yield inner or "recon3d"


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_from_rows_above(name: str) -> None:
    assert name in ROW, f"{name} is in no row of the table"
    tree = ast.parse(MODULES[name].read_text())
    for imported in own_imports(tree):
        assert ROW[imported] < ROW[name], f"{name} imports {imported}"


def test_no_module_of_the_table_is_missing() -> None:
    assert set(ROW) == set(MODULES)


def at_import(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level packages that importing the file imports."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_where_used(name: str) -> None:
    banned = HEAVY if name in LIGHT else {"open3d", "trimesh"}
    assert not banned & set(at_import(ast.parse(MODULES[name].read_text())))


def faults(tree: ast.AST) -> Iterator[str]:
    """Yield what could execute a file's content, and prints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from {"pickle", "marshal", "shelve", "dill", "joblib"} & set(modules)
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "bare except"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "print", "os.system"):
                yield called
            keywords = [ast.unparse(keyword) for keyword in node.keywords]
            if called == "torch.load" and "weights_only=True" not in keywords:
                yield called
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg, value) in (("allow_pickle", True), ("shell", True)):
                    yield f"{called}({keyword.arg}={value})"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_read_is_ever_executed(name: str) -> None:
    assert list(faults(ast.parse(MODULES[name].read_text()))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=trusted)",
        "np.load(p, allow_pickle=True)",
        "print(1)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_check_itself_sees(bad: str) -> None:
    assert list(faults(ast.parse(bad)))
