"""What users may rely on: public names and options, results of earlier versions, warnings before anything goes, bounds."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

import regframe
from regframe.versions import Deprecated, deprecated, renamed

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_surface_is_the_one_that_was_promised() -> None:
    now = list(script(ROOT / "docs" / "make_api.py").lines())
    promised = (HERE / "api.txt").read_text(encoding="utf-8").splitlines()
    gone, new = [x for x in promised if x not in now], [x for x in now if x not in promised]
    told = "; if that is meant, run `python docs/make_api.py` and say in the changelog what users have to do"
    assert not gone, f"changed or gone: {gone}{told}"
    assert not new, f"new: {new}{told}"


@pytest.mark.parametrize("archive", sorted(HERE.glob("result_*.zip")), ids=lambda path: path.stem)
def test_a_result_of_an_earlier_version_carries_the_same_points(archive: Path, tmp_path: Path) -> None:
    """Each archive was written once by the version in its name, with the positions that it carried the points to, in µm."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    version = archive.stem.removeprefix("result_")
    result = regframe.load(tmp_path / f"result_{version}.ome.zarr")
    known = json.loads((tmp_path / f"points_{version}.json").read_text())
    moving, fixed, back = (torch.tensor(known[name], dtype=torch.float64) for name in ("moving", "fixed", "back"))
    assert float((fixed - moving).abs().max()) > 5
    torch.testing.assert_close(result.to_fixed(moving), fixed, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.to_moving(fixed), back, rtol=0, atol=1e-9)
    assert result.verdict == "warn"
    assert result.reasons == ("made for a test",)
    assert result.fixed_grid.unit == "µm"
    result.save(tmp_path / "again.ome.zarr")  # and may be saved anew
    torch.testing.assert_close(regframe.load(tmp_path / "again.ome.zarr").to_fixed(moving), fixed, rtol=0, atol=1e-9)


def test_a_store_of_a_later_format_is_refused_in_words(tmp_path: Path) -> None:
    with zipfile.ZipFile(HERE / "result_0_1_0.zip") as packed:
        packed.extractall(tmp_path)
    store = tmp_path / "result_0_1_0.ome.zarr"
    header = json.loads((store / "zarr.json").read_text())
    header["attributes"]["regframe"]["format"] = 99
    (store / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="99 of a newer version; upgrade regframe"):
        regframe.load(store)


def test_what_goes_warns_first_and_still_works() -> None:
    @deprecated("0.2", "0.4", "twice(x)")
    def double(x: int) -> int:
        """Documented."""
        return 2 * x

    with pytest.warns(
        Deprecated, match=r"double is deprecated since regframe 0\.2 and goes in 0\.4; write twice\(x\)"
    ) as seen:
        assert double(3) == 6
    assert seen[0].filename == __file__
    assert double.__doc__ == "Documented."


def test_arguments_keep_their_former_names_for_a_while() -> None:
    @renamed("0.2", "0.3", spacing_um="spacing")
    def draw(size: int, *, spacing: float = 1.0) -> float:
        return size * spacing

    assert draw(2, spacing=3.0) == 6
    with pytest.warns(Deprecated, match=r"spacing_um= of .*draw is spacing= since regframe 0\.2"):
        assert draw(2, spacing_um=3.0) == 6  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="got spacing_um= too"):
        draw(2, spacing=1.0, spacing_um=3.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("until", ["0.2", "0.1.9", "0.2.5"])
def test_nothing_goes_before_the_next_minor_version(until: str) -> None:
    with pytest.raises(ValueError, match="people need time"):
        deprecated("0.2", until, "something else")
    with pytest.raises(ValueError, match="people need time"):
        renamed("0.2", until, old="new")


def test_every_requirement_states_a_version_that_the_oldest_environment_pins() -> None:
    oldest = script(ROOT / ".ci" / "oldest.py")
    pins = oldest.pins("tables", "view", "batch")
    assert "numpy==2" in pins
    assert len(pins) > 15


def test_equal_entries_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    for name, order, date in (("one", "ab", 2001), ("two", "ba", 2020)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for letter in order:
                file.writestr(zipfile.ZipInfo(f"{letter}.txt", (date, 1, 1, 0, 0, 0)), letter * 100)
        script(ROOT / ".ci" / "sorted_zip.py").rewrite(tmp_path / f"{name}.zip", tmp_path / f"{name}.whl")
    assert (tmp_path / "one.whl").read_bytes() == (tmp_path / "two.whl").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.whl") as file:
        assert file.namelist() == ["a.txt", "b.txt"]
        assert file.read("b.txt") == b"b" * 100
