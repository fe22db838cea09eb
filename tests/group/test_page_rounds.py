"""Every command and line of docs/rounds.md runs; registration itself is a stand-in that knows the maps."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_rounds import MAPS, Register, as_path, rounds, section, shown

from regframe.cli import main
from regframe.group import pairs

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"r{k + 1}": MAPS[k] for k in range(3)}
    monkeypatch.setattr(pairs, "register", Register(names))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rounds").mkdir()
    for k, image in enumerate(rounds(3)):
        marker = shown(section(50 + k), MAPS[k], 70 + k, f"CD{k}")
        as_path(dataclasses.replace(image, name=f"r{k + 1}"), tmp_path / "rounds", marker)
    (tmp_path / "rounds.csv").write_text("file,name\n" + "".join(f"rounds/{n}.ome.tif,{n}\n" for n in names))
    found = FENCE.findall((root / "docs" / "rounds.md").read_text(encoding="utf-8"))
    lines = [line for kind, body in found if kind == "console" for line in body.splitlines()]
    assert len(lines) == 6
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[2:])
        assert result.exit_code == 0, (line, result.output)
    for kind, body in found:
        if kind == "python":
            exec(compile(body, "rounds.md", "exec"), {})
    text = (root / "docs" / "rounds.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([\w.]+?)/?(?:NNN_NAME/)?`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    assert {path.name for path in (tmp_path / "OUT3").iterdir()} <= listed
    assert (tmp_path / "less.ome.tif").is_file()
