"""Loss curves on the result page: every point within the axes, and a legend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xraygpt.evaluation import result_page
from xraygpt.evaluation.history import History
from xraygpt.evaluation.loss_curves import loss_chart

TOP, BOTTOM = 14.0, 190.0  # edges of the plot


def run_folder(tmp_path: Path, rows: list[dict], task: str = "report_generation") -> Path:
    run = tmp_path / "stage1" / "20260101-000000-abcd"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(f"run: {{task: {{name: {task}}}}}\n")
    return run


def log_rows(first: float = 0.3) -> list[dict]:
    """A training loss that falls slowly, and a control that rises far above it."""
    training = [{"step": 10 * i, "train/loss": first if i == 1 else 0.3 - 0.003 * i}
                for i in range(1, 57)]  # fmt: skip
    validation = [
        {"step": 280, "val/loss": 0.35, "val/loss_shuffled": 0.69, "val/loss_blank": 0.71},
        {"step": 560, "val/loss": 0.29, "val/loss_shuffled": 0.79, "val/loss_blank": 0.75},
    ]
    return training + validation


def points(line: dict) -> list[tuple[float, float]]:
    return [tuple(map(float, p.split(","))) for p in line["points"].split()]


def lines_by_key(chart: dict) -> dict[str, dict]:
    return {line["key"]: line for line in chart["lines"]}


def test_a_control_that_rises_is_drawn_where_its_values_are(tmp_path):
    chart = loss_chart(run_folder(tmp_path, log_rows()))
    ticks = {float(tick["label"]): tick["at"] for tick in chart["grid"]}
    low, high = min(ticks), max(ticks)
    assert low <= 0.132 and high >= 0.79 and ticks[low] == BOTTOM and ticks[high] == TOP
    (_, before), (_, after) = points(lines_by_key(chart)["shuffled"])
    scale = (BOTTOM - TOP) / (high - low)
    assert before - after == pytest.approx(0.1 * scale, abs=0.11)
    assert after == pytest.approx(BOTTOM - (0.79 - low) * scale, abs=0.06)
    for line in chart["lines"]:
        assert all(TOP <= y <= BOTTOM and 52 <= x <= 410 for x, y in points(line))
    assert chart["cut"] == "" and len(points(lines_by_key(chart)["train"])) == 56


def test_only_a_training_loss_that_starts_high_is_cut_and_the_page_says_so(tmp_path):
    chart = loss_chart(run_folder(tmp_path, log_rows(first=40.0)))
    lines = lines_by_key(chart)
    assert chart["cut"].startswith("The training loss starts at 40.000, above the axis")
    assert lines["train"]["cut"] and len(points(lines["train"])) < 56
    assert lines["shuffled"]["cut"] is None and len(points(lines["shuffled"])) == 2
    assert all(TOP <= y <= BOTTOM for line in chart["lines"] for _, y in points(line))


def test_a_control_is_never_cut(tmp_path):
    rows = [*log_rows(), {"step": 561, "val/loss_shuffled": 50.0}]
    chart = loss_chart(run_folder(tmp_path, rows))
    assert len(points(lines_by_key(chart)["shuffled"])) == 3 and chart["cut"] == ""


def test_the_legend_names_every_curve_and_the_axes_have_units(tmp_path):
    run = run_folder(tmp_path, log_rows(first=40.0))
    page = tmp_path / "page.html"
    facts = {"x": 1}
    result_page.write_page(
        page, title="t", subtitle="s", cases=[], history=History((run,)), facts=facts
    )
    text = page.read_text()
    for name in (
        "training, moving average: 0.",
        "validation, true image: 0.290 at the end",
        "validation, another study&#39;s image: 0.790 at the end",
        "validation, black image: 0.750 at the end",
        "loss, nats per target token</text>",
        "training step</text>",
        "▲ The training loss starts at 40.000",
    ):
        assert name in text, name


def test_a_loss_per_row_has_its_own_unit(tmp_path):
    rows = [{"step": 1, "val/loss": 2.0}]
    chart = loss_chart(run_folder(tmp_path, rows, "qformer_alignment"))
    assert chart["unit"] == "nats per row"
    assert chart["lines"][0]["dots"]  # a single value is visible
    assert chart["lines"][0]["name"] == "validation"


def test_a_run_without_losses_has_no_chart(tmp_path):
    assert loss_chart(run_folder(tmp_path, [])) is None
