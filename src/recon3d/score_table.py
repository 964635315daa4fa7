"""The result of an evaluation: per scene and method, in total, as JSON and as text.

Figures come in blocks. `two_view`, `two_view_known` (known intrinsics), both also `_forced`: pairs
solved one by one; `multi_view`: all pairs of cameras of one reconstruction (for SIFT, which has
none, its single pairs); `photos`, `focal`, `depth`, `cloud` and `cost`. A figure that does not
exist for a method or scene is absent.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

from recon3d.ground_truth import TrueScene
from recon3d.metrics import falls_monotonically

FORMAT = "recon3d-evaluation"
VERSION = 1
TOTAL = "total"

Blocks = Mapping[str, Mapping[str, float | int]]

_SUMS = ("pairs", "failed", "given", "placed", "seconds")
_MEDIANS = ("rotation_deg", "direction_deg", "ate_pct", "error_pct")
_LARGEST = ("peak_memory_mb", "peak_gpu_mb")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """What one method made of one scene.

    `error_by_decile` is the mean relative depth error of each tenth of the pixels, the least
    confident first; empty where there is no true depth. `failure` says why a method ended early.
    """

    scene: str
    method: str
    figures: Blocks
    error_by_decile: tuple[float, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """All results, scene by scene, and what they were made with (names and settings)."""

    scenes: tuple[TrueScene, ...]
    results: tuple[Result, ...]
    settings: Mapping[str, str | int | None]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order they were run."""
        return tuple(dict.fromkeys(result.method for result in self.results))


def totals(results: Sequence[Result]) -> tuple[Result, ...]:
    """Return one result for each method over all its scenes; every scene counts alike.

    Shares and areas: mean. Errors that are medians within a scene (`rotation_deg`,
    `direction_deg`, `ate_pct`, focal `error_pct`): median over the scenes, infinite where a failure
    is in the middle. Counts and seconds: sum. Memory: the largest.
    """
    summed = []
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        names = dict.fromkeys(
            (block, name) for result in own for block in result.figures
            for name in result.figures[block]
        )  # fmt: skip
        figures: dict[str, dict[str, float | int]] = {}
        for block, name in names:
            values = (result.figures.get(block, {}).get(name, math.nan) for result in own)
            known = [value for value in values if not math.isnan(value)]
            if known:
                figures.setdefault(block, {})[name] = _rule(name)(known)
        deciles = [result.error_by_decile for result in own if result.error_by_decile]
        summed.append(
            Result(
                scene=TOTAL,
                method=method,
                figures=figures,
                error_by_decile=tuple(np.mean(deciles, axis=0).tolist()) if deciles else (),
            )
        )
    return tuple(summed)


def document(table: Table) -> dict[str, Any]:
    """Return the versioned content of table.json; what is infinite or unknown is null."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **table.settings,
        "scenes": [
            {
                "name": scene.name,
                "photos": len(scene.photos),
                "pair_set": scene.is_pair_set,
                "units": "metres" if scene.metric else "arbitrary",
                "gt_kind": scene.gt_kind,
                "methods": {
                    result.method: _figures(result)
                    for result in table.results
                    if result.scene == scene.name
                },
            }
            for scene in table.scenes
        ],
        TOTAL: {result.method: _figures(result) for result in totals(table.results)},
    }


def write_table(table: Table, file: BufferedIOBase) -> None:
    """Write `document` as ASCII JSON."""
    text = json.dumps(document(table), indent=1, allow_nan=False)
    file.write((text + "\n").encode("ascii"))


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    name: str
    digits: int = 2
    block: str = ""
    scale: float = 1.0


_POSES = (
    _Column("pairs", "pairs", 0),
    _Column("failed", "failed", 0),
    _Column("rot deg", "rotation_deg", 1),
    _Column("dir deg", "direction_deg", 1),
    *(_Column(f"AUC@{limit}", f"auc_{limit}", 3) for limit in (5, 10, 20, 30)),
)
_MULTI = (
    _Column("placed", "placed", 0, "photos"),
    _Column("of", "given", 0, "photos"),
    _Column("RRA@15", "rra_15", 3),
    _Column("RTA@15", "rta_15", 3),
    _Column("mAA@30", "maa_30", 3),
    _Column("ATE %", "ate_pct", 1),
    _Column("focal %", "error_pct", 1, "focal"),
    _Column("seconds", "seconds", 1, "cost"),
    _Column("GB", "peak_memory_mb", 2, "cost", 1e-3),
)
_SURFACE = (
    _Column("AbsRel", "abs_rel", 3),
    _Column("by ratio", "abs_rel_by_ratio", 3),
    _Column("<1.25", "delta_125", 3),
    _Column("covered", "coverage", 3),
    _Column("acc %", "accuracy_pct", 2, "cloud"),
    _Column("comp %", "completeness_pct", 2, "cloud"),
)
_SECTIONS = (
    ("Two views", "two_view", _POSES),
    ("Two views, intrinsics known", "two_view_known", _POSES),
    ("Two views, an answer forced", "two_view_forced", _POSES),
    ("Two views, an answer forced, intrinsics known", "two_view_known_forced", _POSES),
    ("All views together", "multi_view", _MULTI),
    ("Depth and cloud", "depth", _SURFACE),
)


def text(table: Table) -> str:
    """Return the table for people: a section for each kind of figure, totals last."""
    results = [*table.results, *(totals(table.results) if len(table.scenes) > 1 else ())]
    sections = []
    for title, block, columns in _SECTIONS:
        rows = [
            [result.scene, result.method, *(_cell(result, block, column) for column in columns)]
            for result in results
            if block in result.figures
        ]
        if rows:
            head = ["scene", "method", *(column.title for column in columns)]
            sections.append("\n".join([title, *_aligned([head, *rows])]))
    calibrated = [result for result in results if result.error_by_decile]
    if calibrated:
        head = ["scene", "method", *(str(k + 1) for k in range(10)), "falls"]
        rows = [
            [r.scene, r.method, *(f"{error:.3f}" for error in r.error_by_decile), _falls(r)]
            for r in calibrated
        ]
        title = "Depth error by decile of confidence, the least confident first"
        sections.append("\n".join([title, *_aligned([head, *rows])]))
    failures = [f"{r.scene}, {r.method}: {r.failure}" for r in results if r.failure]
    if failures:
        sections.append("\n".join(["Failures", *failures]))
    return "\n\n".join(sections)


def _rule(name: str) -> Callable[[list[float | int]], float | int]:
    if name in _SUMS:
        return sum
    if name in _LARGEST:
        return max
    middle = np.median if name in _MEDIANS else np.mean
    return lambda values: float(middle(values))


def _figures(result: Result) -> dict[str, Any]:
    blocks: dict[str, Any] = {
        block: {name: _finite(value) for name, value in figures.items()}
        for block, figures in result.figures.items()
    }
    if result.error_by_decile:
        blocks["confidence"] = {
            "error_by_decile": [_finite(error) for error in result.error_by_decile],
            "falls": falls_monotonically(np.array(result.error_by_decile)),
        }
    blocks["failure"] = result.failure
    return blocks


def _finite(value: float | int) -> float | int | None:
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(value, 6)


def _cell(result: Result, block: str, column: _Column) -> str:
    value = result.figures.get(column.block or block, {}).get(column.name, math.nan)
    if math.isnan(value):
        return "-"
    return "failed" if math.isinf(value) else f"{value * column.scale:.{column.digits}f}"


def _falls(result: Result) -> str:
    return "yes" if falls_monotonically(np.array(result.error_by_decile)) else "no"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines with the first two columns to the left and the others to the right."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
