"""``progress``: bars from Python, on a terminal, in a notebook, and as lines where there is neither."""

from __future__ import annotations

import io
import sys
import threading
import types

import pytest
import torch

import regframe as rf
from regframe.contracts import Progress
from regframe.display import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps() -> list[Progress]:
    fit = [Progress("affine", k, 10, level, 2, -float(k)) for level in (0, 1) for k in range(1, 4)]
    return [*fit, *(Progress("shards", k, 8) for k in range(1, 9))]


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.shown(True) as told:
        assert told is not None
        for step in steps():
            told(step)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0].split() for line in lines[:2]] == [
        ["affine", "level", "1", "of", "2"],
        ["affine", "level", "2", "of", "2"],
    ]
    assert lines[2:] == [f"shards: {k} of 8" for k in (2, 4, 6, 8)]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with bars.shown(True) as told:
        assert told is not None
        for step in steps():
            told(step)
    said = terminal.getvalue()
    assert "shards" in said
    assert "8 / 8" in said


def test_a_cell_of_a_notebook_without_widgets_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(bars.importlib.util, "find_spec", lambda name: None)
    with bars.Bars() as shown:
        assert shown.live is None


def test_what_progress_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    coarse = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")[0]
    fixed, moving = (rf.Image(data, rf.Grid((64, 64))) for data in (image, image.roll(2, dims=1)))
    quick = rf.Config.model_validate({"transform": "affine", "init": "identity", "optimizer": {"max_iter": 2}})
    rf.register(fixed, moving, config=quick, progress=True)
    assert " iterations, energy " in capsys.readouterr().err
    rf.register(fixed, moving, config=quick, progress=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="wanted progress=True, False or a function of one step, got 'yes'"):
        rf.register(fixed, moving, config=quick, progress="yes")  # type: ignore[arg-type]


class ZMQInteractiveShell:
    """Named as the shell of a notebook's kernel."""


def drawn() -> bool:
    """Whether bars are drawn where nothing is said."""
    with bars.shown(None) as told:
        return told is not None


def test_bars_by_default_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn()  # a test
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delattr(sys, "ps1", raising=False)
    assert not drawn()  # a script on a terminal
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert drawn()
    with bars.shown(None) as told, bars.shown(None) as inner:  # a registration within a stack
        assert told is not None
        assert inner is None
    with bars.shown(False):
        assert not drawn()  # who wants silence has it of what is called within, too
    assert drawn()
    seen: list[bool] = []
    one = threading.Thread(target=lambda: seen.append(drawn()))
    one.start()
    one.join()
    assert seen == [False]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not drawn()  # a prompt whose messages go to a file


def test_a_cell_of_a_notebook_shows_bars_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    shell: object = ZMQInteractiveShell()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert drawn()
    shell = object()  # of IPython in a terminal that is redirected
    assert not drawn()
