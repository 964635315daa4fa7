"""Totals by hand, the JSON document, and the text that people read."""

import io
import json
import math
from typing import Any

import pytest

from recon3d.ground_truth import TrueScene
from recon3d.score_table import Result, Table, document, text, totals, write_table

DECILES = tuple(0.5 - 0.04 * k for k in range(10))


def scene(name: str) -> TrueScene:
    return TrueScene(
        name=name, photos=(), pairs=(), is_pair_set=False, metric=True, gt_kind="made up"
    )


def result(name: str, method: str = "recon3d", **blocks: Any) -> Result:
    return Result(scene=name, method=method, figures=blocks)


@pytest.fixture
def table() -> Table:
    ours = Result(
        scene="a",
        method="recon3d",
        figures={
            "two_view": {"pairs": 3, "failed": 1, "rotation_deg": 2.0, "auc_20": 0.25},
            "multi_view": {"maa_30": 0.5, "rotation_deg": math.inf, "ate_pct": math.nan},
            "cost": {"seconds": 2.0, "peak_memory_mb": 1234.0},
            "depth": {"abs_rel": 0.123},
        },
        error_by_decile=DECILES,
    )
    return Table(
        scenes=(scene("a"), scene("b")),
        results=(
            ours,
            result("a", "sift", two_view_known={"pairs": 3, "auc_20": 1.0}),
            Result(scene="b", method="recon3d", figures={}, failure="nothing overlaps"),
        ),
        settings={"weights": "embedded", "max_photos": None},
    )


def test_totals_by_hand() -> None:
    (total,) = totals(
        [
            result(
                "a",
                two_view={"pairs": 3, "failed": 0, "auc_20": 0.2, "rotation_deg": 4.0},
                cost={"seconds": 1.5, "peak_memory_mb": 900.0},
            ),
            result(
                "b",
                two_view={"pairs": 5, "failed": 2, "auc_20": 0.4, "rotation_deg": math.inf},
                cost={"seconds": 2.0, "peak_memory_mb": 400.0},
            ),
            result(
                "c",
                two_view={"pairs": 1, "failed": 1, "auc_20": 0.0, "rotation_deg": 6.0},
                depth={"abs_rel": math.nan},
            ),
        ]
    )
    assert total.figures["two_view"] == {
        "pairs": 9, "failed": 3, "auc_20": pytest.approx(0.2), "rotation_deg": 6.0
    }  # fmt: skip
    assert total.figures["cost"] == {"seconds": 3.5, "peak_memory_mb": 900.0}
    assert "depth" not in total.figures  # never known
    assert total.error_by_decile == ()


def test_each_method_has_its_total(table: Table) -> None:
    assert table.methods == ("recon3d", "sift")
    ours, sift = totals(table.results)
    assert (ours.method, sift.method) == ("recon3d", "sift")
    assert ours.error_by_decile == pytest.approx(DECILES)
    assert math.isinf(ours.figures["multi_view"]["rotation_deg"])


def test_the_document_is_versioned_and_pure_json(table: Table) -> None:
    file = io.BytesIO()
    write_table(table, file)
    read = json.loads(file.getvalue(), parse_constant=lambda name: pytest.fail(name))
    assert (read["format"], read["version"]) == ("recon3d-evaluation", 1)
    assert read["weights"] == "embedded"
    assert read["max_photos"] is None
    first, second = read["scenes"]
    assert (first["name"], first["units"], first["gt_kind"]) == ("a", "metres", "made up")
    ours = first["methods"]["recon3d"]
    assert ours["two_view"] == {"pairs": 3, "failed": 1, "rotation_deg": 2.0, "auc_20": 0.25}
    assert ours["multi_view"]["rotation_deg"] is None
    assert ours["confidence"] == {"error_by_decile": pytest.approx(DECILES), "falls": True}
    assert "confidence" not in first["methods"]["sift"]
    assert second["methods"]["recon3d"] == {"failure": "nothing overlaps"}
    assert read["total"]["sift"]["two_view_known"]["auc_20"] == 1.0
    assert json.loads(json.dumps(document(table))) == read


def test_the_text_has_a_section_for_each_kind_of_figure(table: Table) -> None:
    lines = text(table).splitlines()
    at = lines.index("Two views")
    assert lines[at + 1].split()[:4] == ["scene", "method", "pairs", "failed"]
    assert lines[at + 2].split() == ["a", "recon3d", "3", "1", "2.0", "-", "-", "-", "0.250", "-"]
    assert lines[at + 3].split()[0] == "total"
    together = lines[lines.index("All views together") + 2].split()
    assert together == ["a", "recon3d", "-", "-", "-", "-", "0.500", "-", "-", "2.0", "1.23"]
    known = lines[lines.index("Two views, intrinsics known") + 2]
    assert known.startswith("a      sift")
    falls = [line for line in lines if line.endswith("yes")]
    assert len(falls) == 2
    assert lines[-1] == "b, recon3d: nothing overlaps"
    assert all(line == line.rstrip() for line in lines)


def test_an_infinite_error_reads_as_failed() -> None:
    failed = result("a", two_view={"rotation_deg": math.inf, "auc_20": 0.0})
    table = Table(scenes=(scene("a"),), results=(failed,), settings={})
    assert "failed" in text(table).splitlines()[2]
    assert "total" not in text(table)  # of one scene it says nothing new
