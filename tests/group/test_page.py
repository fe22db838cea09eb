"""The page of a group: every image and pair is on it, it runs no script, and names are text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_rounds import MAPS, Register, rounds

import regframe as rf
from regframe.group import pairs
from regframe.report import groups


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps of rounds named a to f."""
    stand_in = Register({name: MAPS[k] for k, name in enumerate("abcdef")})
    monkeypatch.setattr(pairs, "register", stand_in)
    return stand_in


def test_every_image_and_pair_is_on_the_page(known: Register, tmp_path: Path) -> None:
    known.verdicts = {p: ("fail", 0.0) for x in "abc" for p in ((x, "d"), ("d", x))}
    known.refused = {("b", "d")}
    images = rounds(4)
    group = rf.register_group(images, transform="affine")
    rf.write_report(group, tmp_path / "r.html", images)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in re.sub(r"data:[^\"']+", "", text).replace("http-equiv", "")
    assert text.count("animation-delay") == 3  # of four, one has no place
    assert len(re.findall(r'<td class="(pass|warn|fail)"', text)) == 4 + 6
    assert text.count('<td class="none"') == 6
    assert "matches none of" in text
    assert "99%" in text
    assert groups.render(group, images) == text
    with pytest.raises(ValueError, match="wanted 4 images, got 3"):
        groups.render(group, images[:3])


def test_names_are_text(known: Register) -> None:
    bad = "<img src=x onerror=alert(1)>"
    images = rounds(2)
    images[1] = images[1].replace(name=bad)
    known.maps = {**known.maps, bad: MAPS[1]}
    text = groups.render(rf.register_group(images, transform="affine"), images)
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_of_many_the_verdicts_alone(known: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_CELLS", 2)
    monkeypatch.setattr(groups, "MOST_FRAMES", 2)
    images = rounds(3)
    text = groups.render(rf.register_group(images, transform="affine"), images)
    assert text.count("animation-delay") == 2
    assert text.count("<img") == 3 + 2 + 2 + 1  # the diagonal, the frames, tissue lost, the chart
