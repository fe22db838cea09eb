"""Two sdists of the same files have equal bytes, whoever packed them and when."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sorted_tar() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sorted_tar", ROOT / ".ci" / "sorted_tar.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(path: Path, names: str, date: int, owner: str) -> None:
    with tarfile.open(path, "w:gz") as file:
        folder = tarfile.TarInfo("p-1")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700, date
        file.addfile(folder)
        for letter in names:
            entry = tarfile.TarInfo(f"p-1/{letter}")
            entry.size, entry.mtime, entry.uname, entry.mode = 100, date, owner, 0o755 if letter == "b" else 0o600
            file.addfile(entry, io.BytesIO(letter.encode() * 100))


def test_equal_files_give_equal_bytes(sorted_tar: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    for name, order, date, owner in (("one", "abc", 1, "x"), ("two", "cab", 2_000_000_000, "y")):
        packed(tmp_path / f"{name}.tmp", order, date, owner)
        sorted_tar.rewrite(tmp_path / f"{name}.tmp", tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as file:
        assert file.getnames() == ["p-1", "p-1/a", "p-1/b", "p-1/c"]
        assert {member.mtime for member in file} == {1767225600}
        assert file.getmember("p-1/b").mode == 0o755
        held = file.extractfile("p-1/c")
        assert held is not None
        assert held.read() == b"c" * 100


def test_a_link_is_refused(sorted_tar: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as file:
        link = tarfile.TarInfo("p-1/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        file.addfile(link)
    with pytest.raises(ValueError, match=r"got p-1/link, a link or device"):
        sorted_tar.rewrite(tmp_path / "odd.tar.gz", tmp_path / "out.tar.gz")
