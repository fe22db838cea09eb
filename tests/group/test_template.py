"""Groups without a reference: the mean shape, which favours none, and the mean of what the images show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_rounds import MAPS, SIZE, Register, as_path, rounds, section, shown
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.cli import main
from regframe.group import align, pairs, template
from regframe.maps.displacement import Displacement
from regframe.maps.sequence import in_a_row

NAMES = "abcdef"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps of the rounds."""
    stand_in = Register({name: MAPS[k] for k, name in enumerate(NAMES)})
    monkeypatch.setattr(pairs, "register", stand_in)

    return stand_in


def bent(result: rf.Result, by: float, seed: int) -> rf.Result:
    """A result with a smooth bend of up to ``by`` pixels added."""
    nodes = result.fixed_grid.resampled(tuple(e / 16 for e in result.fixed_grid.extent))
    field = np.random.default_rng(seed).standard_normal((2, *nodes.shape))
    field = np.stack([gaussian_filter(each, 4.0, mode="reflect") for each in field])
    field *= by / np.abs(field).max()
    return dataclasses.replace(
        result, transform=in_a_row([result.transform, Displacement(torch.from_numpy(field), nodes)])
    )


def test_the_mean_favours_none(known: Register) -> None:
    """What is left over of all shapes, in the mean, is nothing; and two images lie to each other as they did."""
    images = rounds(4)
    found = rf.register_group(images, reference="a")
    start = [None if r is None else bent(r, 4.0, k) for k, r in enumerate(found.results)]
    assert template.bias(start, images[0].grid) > 0.2
    mean = template.template(images, start, 0, ())
    assert mean.bias_px < 0.05
    assert mean.shape_px > 0.2
    for k in (1, 2, 3):
        assert apart(start, mean.results, k, 0) < 0.05


def test_what_a_pair_adds_of_its_own_averages_out(known: Register) -> None:
    """Pairs are off by smooth errors of their own: by way of the mean two images are nearer to the truth than by way of one."""
    images = rounds(6)
    group = rf.register_group(images, reference="a")
    pairs_of = [
        pairs.Pair(a, b, bent(known(images[a], images[b], config=rf.Config()), 2.0, 7 * a + b))
        for a in range(6)
        for b in range(a + 1, 6)
    ]
    star = [group.results[0], *(pair.result for pair in pairs_of if pair.fixed == 0)]
    mean = template.template(images, star, 0, pairs_of)
    assert mean.bias_px < 0.05
    couples = [(k, j) for k in range(6) for j in range(k)]
    by_one = np.mean([apart(group.results, star, k, j) for k, j in couples])
    by_all = np.mean([apart(group.results, mean.results, k, j) for k, j in couples])
    assert by_all < 0.7 * by_one


def apart(one: Sequence[rf.Result | None], other: Sequence[rf.Result | None], k: int, j: int) -> float:
    """Root mean square distance of two sets of maps from image ``k`` to image ``j``, in pixels."""
    at = torch.cartesian_prod(torch.arange(20.0, SIZE - 20, 6), torch.arange(20.0, SIZE - 20, 6)).double()
    ends = []
    for results in (one, other):
        there, back = results[k], results[j]
        assert there is not None
        assert back is not None
        ends.append(back.transform.inverse().points(there.transform.points(at)))
    return float((ends[0] - ends[1]).square().sum(dim=1).mean().sqrt())


def test_the_pose_is_no_part_of_the_mean(known: Register) -> None:
    """Images that are only turned and shifted have the shape of each other: nothing moves."""
    group = rf.register_group(rounds(4), reference="none")
    assert group.metrics["template"]["shape_px"] < 1e-3
    assert group.metrics["template"]["bias_px"] < 1e-3
    assert not any(image["reference"] for image in group.metrics["images"])
    assert group.metrics["images"][group.reference]["drift"]["moved_px"] < 1e-2


def test_the_mean_has_less_noise_than_one_image(known: Register) -> None:
    """The mean foretells another image of the section better than one image does; the variance is little more than noise."""
    images = rounds(5)
    group = rf.register_group(images, reference="none")
    assert group.template is not None
    assert group.variance is not None
    inside = (slice(None), slice(16, SIZE - 16), slice(16, SIZE - 16))
    k = group.reference
    own, again = (shown(section(0), MAPS[k], seed).data[inside].float().flatten().numpy() for seed in (k, 99))
    mean = group.template.data[inside].flatten().numpy()
    assert 1 - np.corrcoef(mean, again)[0, 1] < 0.8 * (1 - np.corrcoef(own, again)[0, 1])
    assert float(group.variance.data[inside].mean()) < 0.1 * float(own.var())


def test_each_image_is_registered_to_enough_others(known: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    rf.register_group(rounds(6), reference="none")
    assert len(known.calls) == 15
    known.calls.clear()
    monkeypatch.setattr(align, "MEAN_OF", 1)
    rf.register_group(rounds(6), reference="none")
    assert len(known.calls) == 9  # neighbours, the last and the first among them, and the reference's


def test_it_is_saved_loaded_and_used(known: Register, tmp_path: Path) -> None:
    images = rounds(3)
    files = [as_path(image, tmp_path) for image in images]
    out = tmp_path / "OUT"
    outcome = CliRunner().invoke(main, ["rounds", *map(str, files), "-o", str(out), "--reference", "none"])
    assert outcome.exit_code == 0, outcome.output
    assert "placed on their mean" in outcome.output
    group = rf.load_group(out)
    assert group.template is not None
    assert group.variance is not None
    assert group.template.grid.shape == images[group.reference].grid.shape
    assert "the mean of all" in (out / "report.html").read_text()
    matches = rf.match_nuclei(group)
    first = matches[group.names[group.reference]][0]
    assert float(np.median(first.residual)) == 0.0
    assert first.share == 1.0
    merged = rf.merge_group(group, tmp_path / "merged.ome.zarr")
    slide = rf.open(merged[0])
    assert isinstance(slide, rf.Image)
    assert slide.data.shape[0] == 3


def test_an_image_that_is_called_none_is_a_reference(known: Register) -> None:
    images = rounds(3)
    known.maps = {**known.maps, "none": MAPS[1]}
    group = rf.register_group([images[0], images[1].replace(name="none"), images[2]], reference="none")
    assert group.template is None
    assert group.names[group.reference] == "none"
