"""The channel by which rounds are aligned: named, the nuclear stain, the repeated one, the most alike."""

from __future__ import annotations

import numpy as np
import pytest
from fake_rounds import MAPS, section, shown

from regframe.data import Grid, Image, Level, Pyramid
from regframe.group.channels import chosen
from regframe.slides.levels import pyramid_of


def headers(*channels: tuple[str, ...]) -> list[Pyramid]:
    """Pyramids whose pixels must not be read."""

    def read(_: object) -> np.ndarray:  # type: ignore[type-arg]
        raise AssertionError("no pixel is needed")

    grid = Grid((64, 64))
    return [Pyramid((Level(grid, (len(c), 64, 64), read),), np.dtype("u2"), c) for c in channels]


@pytest.mark.parametrize(
    ("channels", "wanted", "found"),
    [
        ([("DAPI", "CD3"), ("CD8", "dapi_2")], None, [0, 1]),
        ([("CD3", "Hoechst 33342"), ("DNA_2", "CD8")], None, [1, 0]),
        ([("FITC", "AF1"), ("af1", "CY5")], None, [1, 0]),
        ([("DAPI", "CD3"), ("DAPI", "CD8")], 1, [1, 1]),
        ([("DAPI", "CD3"), ("DAPI", "CD8")], {"b": "CD8"}, [0, 1]),
        ([("DAPI_R1", "CD3"), ("DAPI_R2", "CD8")], "dapi", [0, 0]),
        ([("DAPI", "x"), ("red", "green", "blue")], "DAPI", [0, None]),
        ([("0",), ("0",)], None, [0, 0]),
    ],
)
def test_by_name(channels: list[tuple[str, ...]], wanted: object, found: list[int | None]) -> None:
    choices = chosen(headers(*channels), ["a", "b"], wanted)  # type: ignore[arg-type]
    assert [choice.index for choice in choices] == found


def test_the_most_alike_where_no_name_tells() -> None:
    nuclei, markers = section(0), [section(10 + k) for k in range(4)]

    def image(order: list[np.ndarray], k: int) -> Image:  # type: ignore[type-arg]
        planes = np.stack([shown(base, MAPS[k], 5 * k + i).data[0].numpy() for i, base in enumerate(order)])
        return Image.from_array(planes, "cyx")

    images = [
        image([markers[0], nuclei], 0),
        image([nuclei, markers[1]], 1),
        image([markers[2], markers[3], nuclei], 2),
    ]
    choices = chosen([pyramid_of(one) for one in images], ["a", "b", "c"])
    assert [choice.index for choice in choices] == [1, 0, 2]
    assert {choice.why for choice in choices} == {"most alike"}


def test_a_channel_that_is_not_there_or_for_nobody() -> None:
    with pytest.raises(ValueError, match="wanted the channel 'CD4' in a, got DAPI, CD3"):
        chosen(headers(("DAPI", "CD3"), ("DAPI",)), ["a", "b"], "CD4")
    with pytest.raises(ValueError, match="got one for 'z'"):
        chosen(headers(("DAPI",), ("DAPI",)), ["a", "b"], {"z": 0})
    with pytest.raises(ValueError, match="wanted one channel for each of 2 images, got 1"):
        chosen(headers(("DAPI",), ("DAPI",)), ["a", "b"], [0])
