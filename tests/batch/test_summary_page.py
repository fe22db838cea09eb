"""The summary of a batch: what needs eyes comes first, and what nothing speaks for never looks confirmed."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from fake_result import fake_result

import regframe as rf
from regframe.batch import summary
from regframe.batch.work import Outcome
from regframe.report import results

CONFIDENCE = {"good": 0.99, "doubtful": 0.6, "poor": 0.4, "unrelated": 0.01}
VERDICTS = {"good": "pass", "doubtful": "warn", "poor": "warn", "unrelated": "fail"}


def test_what_needs_eyes_comes_first(tmp_path: Path) -> None:
    grid = rf.Grid((60, 70))
    image = rf.Image(torch.rand((1, 60, 70), generator=torch.Generator().manual_seed(0)), grid)
    outcomes = []
    for name, verdict in VERDICTS.items():
        (tmp_path / name).mkdir()
        results.write(fake_result(grid, grid, verdict=verdict), image, image, tmp_path / name / "report.html")
        figures = {"confidence": CONFIDENCE[name]}
        outcomes.append(Outcome(name, verdict, verdict, (), figures=figures))
    text = summary.page(outcomes, tmp_path)
    assert re.findall(r"<h3>(\w+)</h3>", text) == ["unrelated", "poor", "doubtful", "good"]
    assert "<b>3 need your eyes</b>" in text
    assert text.count("data:image/jpeg;base64,") == 8  # before and after of each, taken from its report
    assert text.count("No map to use") == 1
    assert ".job.fail .two a::after" in text  # struck through
    assert "prefers-color-scheme: dark" in text
