"""`register_group`: the reference, the pairs, which of them lead where, what is named when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_rounds import MAPS, Register, affine, as_path, bytes_of, error, rounds, section, shown

import regframe as rf
from regframe.cli import main
from regframe.group import align, pairs


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps of rounds named a to f."""
    stand_in = Register({name: MAPS[k] for k, name in enumerate("abcdef")})
    monkeypatch.setattr(pairs, "register", stand_in)
    return stand_in


def test_rounds_are_found_by_registering(tmp_path: Path) -> None:
    group = rf.register_group(rounds(2), transform="affine")
    assert (group.verdict, group.reference, len(group.pairs)) == ("pass", 0, 1)
    assert error(group["b"], MAPS[1]) < 0.15
    drift = group.metrics["images"][1]["drift"]
    assert drift["turn_degrees"] == pytest.approx(1.0, abs=0.1)
    assert drift["scale"] == pytest.approx(1, abs=0.01)
    group.save(tmp_path / "OUT")
    again = rf.load_group(tmp_path / "OUT")
    assert (again.names, again.verdict, again.reference) == (group.names, group.verdict, group.reference)
    assert [p.verdict for p in again.pairs] == [p.verdict for p in group.pairs]
    at = torch.tensor([[20.0, 30.0]], dtype=torch.float64)
    assert torch.equal(again["b"].to_fixed(at), group["b"].to_fixed(at))
    assert rf.load(tmp_path / "OUT" / "rounds" / "001_b").verdict == "pass"


def test_few_are_all_registered_and_many_to_the_next_and_the_reference(known: Register) -> None:
    rf.register_group(rounds(4), transform="affine")
    assert len(known.calls) == 6
    known.calls.clear()
    group = rf.register_group(rounds(6), transform="affine")
    assert sorted(known.calls) == sorted(
        [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f"), *(("a", x) for x in "cdef")]
    )
    assert max(error(r, m) for r, m in zip(group.results, MAPS, strict=True) if r is not None) < 1e-3


@pytest.mark.parametrize("transform", ["rigid", "affine", "lddmm"])
def test_one_wrong_pair_is_left_out_and_spreads_nowhere(known: Register, transform: str) -> None:
    known.off = {("a", "c"): 25.0}
    known.verdicts = {("a", "c"): ("pass", 0.75)}
    group = rf.register_group(rounds(5), transform=transform, reference="a")
    for result, matrix in zip(group.results, MAPS, strict=False):
        assert result is not None
        assert error(result, matrix) < 0.05
    assert [p["used"] for p in group.metrics["pairs"]].count(False) == 1
    assert group.metrics["images"][2]["via"] != []
    assert "contradicts the others" in " ".join(group.metrics["images"][2]["reasons"])
    assert [i["verdict"] for i in group.metrics["images"]].count("warn") == 1


def test_a_stranger_is_named_and_the_rest_is_as_without_it(known: Register) -> None:
    names = "abcde"
    fails: dict[Any, Any] = {p: ("fail", 0.01) for x in names for p in ((x, "d"), ("d", x))}
    known.verdicts = fails
    group = rf.register_group(rounds(5), transform="affine")
    assert group.verdict == "warn"
    assert group.results[3] is None
    assert "d" in group.reasons[0]
    assert group.metrics["images"][3]["verdict"] == "fail"
    assert "matches none of" in group.metrics["images"][3]["reasons"][0]
    with pytest.raises(ValueError, match="wanted one that could be placed, got d"):
        group["d"]
    assert max(error(r, m) for r, m in zip(group.results, MAPS, strict=False) if r is not None) < 1e-3


def test_a_far_one_is_reached_by_way_of_another(known: Register) -> None:
    known.verdicts = {("a", "d"): ("fail", 0.0), ("b", "d"): ("fail", 0.0)}
    group = rf.register_group(rounds(4), transform="lddmm", reference="a")
    assert group.metrics["images"][3]["via"] == ["c"]
    assert error(group["d"], MAPS[3]) < 0.02
    assert group.verdict == "pass"


def test_a_pair_that_is_not_confirmed_is_said_unless_others_support_it(known: Register) -> None:
    known.verdicts = {("a", "b"): ("warn", 0.5)}
    assert rf.register_group(rounds(2), transform="affine").metrics["images"][1]["verdict"] == "warn"
    assert rf.register_group(rounds(3), transform="affine").metrics["images"][1]["verdict"] == "pass"


def test_other_ways_correct_a_pose(known: Register) -> None:
    known.off = {("a", "b"): 0.4}
    alone = rf.register_group(rounds(2), transform="affine")
    many = rf.register_group(rounds(5), transform="affine")
    assert error(alone["b"], MAPS[1]) == pytest.approx(0.4, abs=0.01)
    assert error(many["b"], MAPS[1]) < 0.2
    assert many.metrics["pairs"][0]["residual_px"] > 0.1


def test_the_reference_is_the_best_matched_or_the_named(known: Register) -> None:
    known.verdicts = dict.fromkeys([("a", x) for x in "bcd"], ("pass", 0.75))
    assert rf.register_group(rounds(4), transform="affine").reference == 1
    group = rf.register_group(rounds(4), transform="affine", reference="c")
    assert group.reference == 2
    assert error(group["b"], np.linalg.inv(MAPS[2]) @ MAPS[1]) < 0.02
    with pytest.raises(ValueError, match="wanted as reference auto, none, or one of a, b, c, d, got 'z'"):
        rf.register_group(rounds(4), reference="z")


def test_a_blurred_round_is_named(known: Register) -> None:
    from scipy.ndimage import gaussian_filter

    images = rounds(5)
    soft = gaussian_filter(images[3].data[0].numpy().astype(float), 3.0)
    images[3] = images[3].replace(data=torch.from_numpy(soft.astype(np.uint16))[None])
    group = rf.register_group(images, transform="affine")
    assert [i["name"] for i in group.metrics["images"] if i["verdict"] == "warn"] == ["d"]
    assert "blurred" in group.metrics["images"][3]["reasons"][0]


def test_an_image_without_tissue_is_left_out(known: Register) -> None:
    images = rounds(3)
    images[1] = images[1].replace(data=torch.full_like(images[1].data, 7))
    group = rf.register_group(images, transform="affine")
    assert group.results[1] is None
    assert group.metrics["images"][1]["verdict"] == "fail"
    assert all("b" not in call for call in known.calls)


def test_a_pair_is_not_registered_twice_and_the_bytes_are_the_same(known: Register, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for image in rounds(4):
        as_path(image, folder)
    arguments = ["rounds", str(folder), "--transform", "affine", "--json", "-o"]
    whole = CliRunner().invoke(main, [*arguments, str(tmp_path / "whole")])
    assert whole.exit_code == 0, whole.output
    known.calls.clear()

    class Killed(BaseException):
        pass

    def dies(*args: Any, **kwargs: Any) -> Any:
        if len(known.calls) == 3:
            raise Killed
        return known(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "register", dies)
        with pytest.raises(Killed):
            CliRunner().invoke(main, [*arguments, str(tmp_path / "cut")], catch_exceptions=False)
    assert not (tmp_path / "cut").exists()
    again = CliRunner().invoke(main, [*arguments, str(tmp_path / "cut")])
    assert again.exit_code == 0, again.output
    assert len(known.calls) == len(set(known.calls)) == 6
    files = bytes_of(tmp_path / "cut")  # its page says how this very folder is read
    own, other = (f"load_group(&#34;{tmp_path / name}&#34;)".encode() for name in ("cut", "whole"))
    assert files["report.html"].count(own) == 1
    assert files | {"report.html": files["report.html"].replace(own, other)} == bytes_of(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "in", "whole"]
    third = CliRunner().invoke(main, [*arguments, str(tmp_path / "cut")])
    assert third.exit_code == 0
    assert json.loads(third.stdout)["kept"] is True
    other = CliRunner().invoke(main, ["rounds", str(folder), "--transform", "rigid", "-o", str(tmp_path / "cut")])
    assert other.exit_code == 2
    assert "exists" in other.output


def test_a_folder_a_table_or_files(known: Register, tmp_path: Path) -> None:
    known.maps = {**known.maps, "first": MAPS[0], "second": MAPS[1]}
    files = [as_path(image, tmp_path) for image in rounds(2)]
    table = tmp_path / "rounds.csv"
    table.write_text("file,name,channel\na.ome.tif,first,DAPI\nb.ome.tif,second,0\n")
    result = CliRunner().invoke(
        main, ["rounds", str(table), "-o", str(tmp_path / "t"), "--json", "--transform", "affine"]
    )
    assert result.exit_code == 0, result.output
    assert [image["name"] for image in json.loads(result.stdout)["images"]] == ["first", "second"]
    result = CliRunner().invoke(main, ["rounds", *map(str, files), "-o", str(tmp_path / "f"), "--transform", "affine"])
    assert result.exit_code == 0, result.output
    assert "2 of 2 images placed on a" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.ome.tif", "nowhere.tif"], "does not exist"),
        (["a.ome.tif"], "wanted at least two images"),
        (["a.ome.tif", "b.ome.tif", "--channel", "CD3"], "wanted the channel 'CD3' in a, got"),
        (["a.ome.tif", "b.ome.tif", "--reference", "q"], "wanted as reference auto, none, or one of a, b"),
        (["bad.csv"], "column 'file'"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    known: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for image in rounds(2):
        as_path(image, tmp_path)
    (tmp_path / "bad.csv").write_text("image\na.ome.tif\n")
    result = CliRunner().invoke(main, ["rounds", *arguments, "-o", "OUT"])
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", " ")
    assert not (tmp_path / "OUT").exists()


def test_images_of_two_units_or_axes_are_refused() -> None:
    one, other = rounds(2)
    with pytest.raises(ValueError, match=r"wanted images in one unit, got px .a. and µm .b."):
        rf.register_group([one, other.replace(grid=rf.Grid(other.grid.shape, 0.5, unit="µm"))])
    with pytest.raises(ValueError, match="wanted 2 different names"):
        rf.register_group([one, other], names=["x", "x"])
    with pytest.raises(ValueError, match="wanted transform rigid or affine or lddmm"):
        rf.register_group([one, other], transform="similarity")


def test_no_more_than_all_pairs_of_few() -> None:
    assert align.ALL_PAIRS * (align.ALL_PAIRS - 1) / 2 <= 10


def test_turned_rounds_keep_their_size_where_rigid(known: Register) -> None:
    group = rf.register_group(rounds(3), transform="rigid")
    for result in group.results:
        assert result is not None
        assert float(torch.linalg.det(result.affine.parts()[0].matrix[:2, :2])) == pytest.approx(1, abs=1e-9)  # type: ignore[attr-defined]


def test_a_shown_section_differs_from_another() -> None:
    assert shown(section(1), affine(0, 0, 0), 0).data.ne(shown(section(2), affine(0, 0, 0), 0).data).any()


def test_chains_of_maps_that_bend_are_saved_and_read(known: Register, tmp_path: Path) -> None:
    known.bend = 0.005  # more would be sampled finely, for its kinks
    known.verdicts = {("a", "c"): ("fail", 0.0)}
    group = rf.register_group(rounds(3), transform="lddmm", reference="a")
    assert group.metrics["images"][2]["via"] == ["b"]
    group.save(tmp_path / "OUT")
    again = rf.load_group(tmp_path / "OUT")
    at = torch.tensor([[40.0, 50.0]], dtype=torch.float64)
    for name in "bc":
        assert torch.equal(again[name].to_fixed(at), group[name].to_fixed(at))
        there = group[name].transform.inverse().points(group[name].to_fixed(at))
        assert torch.allclose(there, at, atol=1e-3)


def test_pairs_that_are_kept_are_those_of_the_same_call(known: Register, tmp_path: Path) -> None:
    images = rounds(3)
    first = rf.register_group(images, transform="affine", folder=tmp_path / "kept")
    again = rf.register_group(images, transform="affine", folder=tmp_path / "kept", reference="b")
    assert (first.reference, again.reference) == (0, 1)
    assert len(known.calls) == len(set(known.calls)) == 4  # of the three pairs, one the other way round
    with pytest.raises(
        ValueError, match=r"wanted to go on with the pairs in .*, got other images, channels or settings"
    ):
        rf.register_group(images, transform="rigid", folder=tmp_path / "kept")
