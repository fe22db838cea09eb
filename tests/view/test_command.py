"""`regframe view` as a command: what it opens, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click.testing
import pytest
import torch

import regframe
from regframe.cli import main
from regframe.report import results


def run(*words: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["view", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "wanted a folder OUT of a run"),
        (("a", "b", "c"), "got 3 paths"),
        (("none",), "does not exist"),
        (("none.png", "none2.png"), "does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run(*words)
    assert answer.exit_code == 2
    assert told in answer.output
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    answer = run(*pair, "-o", tmp_path)
    assert answer.exit_code == 2
    assert "exists" in answer.output


def test_steps_are_repeated_without_a_page(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regframe.view.bend import started

    monkeypatch.setattr(results, "write", lambda *_: None)
    fixed, moving = (regframe.open(path) for path in pair)
    base = started(torch.eye(3), fixed.grid, moving.grid)
    sides = {
        side: {"path": path, "adapter": "image", "options": {}}
        for side, path in zip(("fixed", "moving"), pair, strict=True)
    }
    results.write_run(tmp_path / "run", base, None, sides)
    pairs = [{"id": i, "name": "", "fixed": [y, x], "moving": [y + 4.0, x - 6.0]}
             for i, (y, x) in enumerate([(20, 30), (90, 40), (30, 110), (100, 120)])]  # fmt: skip
    steps = tmp_path / "steps.json"
    steps.write_text(
        json.dumps(
            {"format": 1, "steps": [{"do": "open", "folder": "run"}, {"do": "bend", "pairs": pairs, "by_hand": True}]}
        )
    )
    answer = run(tmp_path / "run", "--replay", steps, "-o", tmp_path / "new")
    assert answer.exit_code == 0, answer.output
    found = regframe.load(tmp_path / "new").transform.points(torch.tensor([[54.0, 64.0]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([50, 70], abs=0.05)
    wrong = {
        "{": "no JSON",
        "[]": "another file",
        '{"format": 9, "steps": []}': "version 1",
        '{"format": 1, "steps": []}': "lead to a map",
        '{"format": 1, "steps": [{"do": "place"}]}': "lacks",
    }
    for text, told in wrong.items():
        steps.write_text(text)
        answer = run(tmp_path / "run", "--replay", steps, "-o", tmp_path / "other")
        assert answer.exit_code == 2
        assert told in answer.output


@pytest.mark.slow
def test_it_answers_and_ends_with_a_signal(pair: tuple[Path, Path], tmp_path: Path) -> None:
    line = [sys.executable, "-c", "from regframe.cli import main; main()", "view", *map(str, pair), "--no-browser"]
    with subprocess.Popen(
        [*line, "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        with urllib.request.urlopen(address, timeout=10) as answer:
            cookie = answer.headers["set-cookie"].partition(";")[0]
        home = address.partition("?")[0]
        asked = urllib.request.Request(f"{home}api/events", headers={"cookie": cookie})
        stream = urllib.request.urlopen(asked, timeout=10)
        assert stream.readline() == b": hello\n"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address, timeout=10)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=5)[1]
        stream.close()
    assert process.returncode in (0, 130), said
    assert "nothing is lost" in said
    assert "Traceback" not in said
