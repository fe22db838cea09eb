"""Colours: what the samples of a TIFF mean (PhotometricInterpretation), and which channels are red, green and blue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image as Pillow

from .raw import Array

RGB = ("red", "green", "blue")
"""Channel names by which all of regframe knows that three channels are the colours of one picture."""
_PURE = ("FF0000", "00FF00", "0000FF")
"""Display colours of the channels of a picture that was stored in planes, as Bio-Formats and OMERO write them."""
_UNTOLD = re.compile(r"(?:(?:channel|ch|c|band|sample|image)?[\s:_#=-]*\d*(?:[:_.-]\d+)*)?")
"""Channel names that a writer numbered, which say nothing about a channel."""
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _MASK, _SEPARATED, _YCBCR, _CIELAB, _ICCLAB, _DEPTH = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    9,
    51177,
)
"""Values of the tag PhotometricInterpretation that are read; others are refused."""
_CONVERTS = (6, 7, 33007, 34892, 33005, 50001, 50002, 52546, 22610, 34934)
"""Values of the tag Compression whose decoders give RGB where the tag says YCbCr: JPEG, WebP, JPEG XL and XR."""
_APERIO_YCBCR = 33003
"""Compression of slides whose samples are YCbCr whatever their PhotometricInterpretation says."""
_SIZ = 52
"""Bytes of a JPEG 2000 codestream that hold the sampling of its three components (ISO/IEC 15444-1, A.5.1: the marker SIZ), that
of the chroma along x in bytes 46 and 49."""
_FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
"""ReferenceBlackWhite of YCbCr whose 8 bits are all used, which is what Pillow converts; the default of TIFF 6.0."""
_LUMA = (0.299, 0.587, 0.114)
"""YCbCrCoefficients of CCIR 601-1, the default of TIFF 6.0 and what Pillow converts."""


@dataclass(frozen=True)
class Scheme:
    """What the samples of an image are, and how they become colours.

    Args:
        kind: ``plain`` where they are taken as they are, ``inverted``, ``palette``, ``cmyk``, ``ycbcr``, ``lab`` or ``icclab``.
        dtype: of the values that come out.
        samples: of a pixel that come out; 0 where there is no axis of samples.
        names: of the channels that come out without opacity; empty where they have none.
        alpha: whether the last sample is opacity.
        premultiplied: whether colours were multiplied by it when they were stored.
        top: value that is inverted to 0.
        note: what was done, for `regframe info`; empty where nothing was.
    """

    kind: str
    dtype: np.dtype[Any]
    samples: int
    names: tuple[str, ...] = ()
    alpha: bool = False
    premultiplied: bool = False
    top: int = 0
    note: str = ""

    @property
    def mixes(self) -> bool:
        """Whether a pixel is converted with all its samples at hand."""
        return self.kind != "plain" and (self.kind != "inverted" or self.samples > 1)

    def converted(self, array: Array, colormap: Array | None = None) -> Array:
        """Colours of stored samples.

        Args:
            array: ``[..., samples]``; a palette's numbers ``[...]``.
            colormap: ``[3, entries]``, 16 bits, where there is a palette.
        """
        if self.kind == "plain":
            return array
        if self.kind == "inverted":
            dark: Array = ~array if array.dtype == np.bool_ else (array.dtype.type(self.top) - array)
            return np.concatenate([dark[..., :-1], array[..., -1:]], axis=-1) if self.alpha else dark
        if self.kind == "palette":
            assert colormap is not None
            colours: Array = np.moveaxis(colormap[:, array], 0, -1)
            return (colours if int(colormap.max()) < 256 else colours >> 8).astype(np.uint8)
        n = 4 if self.kind == "cmyk" else 3
        colours = _to_rgb(np.ascontiguousarray(array[..., :n]), self.kind)
        return np.concatenate([colours, array[..., n:]], axis=-1) if array.shape[-1] > n else colours


def _to_rgb(array: Array, kind: str) -> Array:
    """``[..., 3]`` sRGB of uint8 samples ``[..., n]``, by Pillow and, of CIELab, LittleCMS."""
    flat = array.reshape(1, -1, array.shape[-1])
    if not flat.size:
        return np.zeros((*array.shape[:-1], 3), np.uint8)
    size, data = (flat.shape[1], 1), flat.tobytes()
    if kind in ("cmyk", "ycbcr"):
        found = Pillow.frombytes("CMYK" if kind == "cmyk" else "YCbCr", size, data).convert("RGB")
    else:
        from PIL import ImageCms

        if kind == "icclab":  # a and b count from 128 instead of with a sign
            data = (flat ^ np.array([0, 128, 128], np.uint8)).tobytes()
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        mixed = ImageCms.profileToProfile(
            Pillow.frombytes("LAB", size, data, "raw", "LAB"), lab, srgb, outputMode="RGB"
        )
        assert mixed is not None
        found = mixed
    return np.asarray(found).reshape(*array.shape[:-1], 3)


def scheme(page: Any, samples: int, labels: bool) -> Scheme:
    """What the samples of a TIFF page are.

    Args:
        page: of tifffile, the key page of the image.
        samples: stored samples of a pixel; 0 where there is no such axis.
        labels: whether values are ids, which no interpretation changes.

    Raises:
        ValueError: for colours that are not converted here, by their name; it begins with "wanted".
    """
    photometric, dtype = page.photometric, np.dtype(page.dtype)
    extra = tuple(int(e) for e in page.extrasamples or ())
    plain = max(samples, 1) - len(extra)
    opacity = len(extra) == 1 and extra[0] in (1, 2) and plain in (1, 3, 4)
    base = Scheme("plain", dtype, samples, alpha=opacity, premultiplied=opacity and extra[0] == 1)
    if labels or photometric is None:
        return base
    value, kept = int(photometric), len(extra) - opacity
    if value == _PALETTE and page.colormap is not None:
        return Scheme("palette", np.dtype(np.uint8), 3, RGB, note="the colours of its palette are taken")
    mixed = _mixed(page, value, plain, dtype)
    if mixed:
        note = f"its {_word(page)} colours are converted to RGB"
        return replace(base, kind=mixed, samples=3 + len(extra), names=_with_extra(kept), note=note)
    if value == _MINISWHITE and not (dtype.kind == "u" or dtype == np.bool_):
        return replace(base, note=f"it says that 0 is white, which means nothing of {dtype}; it is taken as it is")
    if value == _MINISWHITE:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
        return replace(base, kind="inverted", top=(1 << bits) - 1, note="0 is white in it; it is inverted")
    if (value == _RGB and plain >= 3) or (page.compression == _APERIO_YCBCR and plain == 3):
        return replace(base, names=_with_extra(plain - 3 + kept))
    if value in (_MINISBLACK, _RGB, _PALETTE, _MASK, _DEPTH) or (value == _YCBCR and plain == 1):
        return base
    if value == _SEPARATED and _ink(page) != 1:
        return replace(base, note="its inks are no CMYK; they are taken as channels")
    if value == _YCBCR and plain == 3 and _decoded_to_rgb(page):
        return replace(base, names=RGB)
    raise ValueError(
        f"wanted a TIFF in grey, RGB, palette, CMYK, YCbCr or CIELab colours that can be converted, got "
        f"{_word(page)} of {max(samples, 1)} samples of {dtype} in {page.parent.filename!r}; save it as RGB"
    )


def _with_extra(n: int) -> tuple[str, ...]:
    """The names of three colours and of ``n`` samples beside them."""
    return RGB + tuple(f"extra {i + 1}" for i in range(n))


def _mixed(page: Any, value: int, plain: int, dtype: np.dtype[Any]) -> str:
    """The kind of a scheme that has to be converted and can be; empty for others."""
    if dtype != np.uint8:
        return ""
    if value == _SEPARATED and plain == 4 and _ink(page) == 1 and _tag(page, "DotRange", (0, 255))[:2] == (0, 255):
        return "cmyk"
    if plain != 3:
        return ""
    if page.compression == _APERIO_YCBCR:
        return "ycbcr" if _bare_ycbcr(page) else ""
    if value == _YCBCR and not _decoded_to_rgb(page):
        ends = _fractions(_tag(page, "ReferenceBlackWhite", ()), 6, _FULL_RANGE)
        luma = _fractions(_tag(page, "YCbCrCoefficients", ()), 3, _LUMA)
        full = np.allclose(ends, _FULL_RANGE, atol=0.51) and np.allclose(luma, _LUMA, atol=0.002)
        return "ycbcr" if full and not page.is_subsampled else ""
    return "" if page.compression in _CONVERTS else {_CIELAB: "lab", _ICCLAB: "icclab"}.get(value, "")


def _bare_ycbcr(page: Any) -> bool:
    """Whether the first tile of a page is a bare JPEG 2000 codestream whose chroma has the size of its luma: of any other one the
    decoder knows that it is YCbCr, and gives RGB."""
    if not page.dataoffsets:
        return False
    file = page.parent.filehandle
    before = file.tell()
    file.seek(page.dataoffsets[0])
    head = file.read(_SIZ)
    file.seek(before)
    return bool(head[:4] == b"\xffO\xffQ" and len(head) == _SIZ and head[46] == head[49] == 1)


def _decoded_to_rgb(page: Any) -> bool:
    """Whether the decoder of a page gives RGB where it is YCbCr: of samples that are stored together."""
    return page.compression in _CONVERTS and int(page.planarconfig) == 1 and not page.extrasamples


def _tag(page: Any, name: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    tag = page.tags.get(name)
    if tag is None:
        return default
    return tuple(tag.value) if isinstance(tag.value, (tuple, list)) else (tag.value,)


def _ink(page: Any) -> int:
    """The tag InkSet: 1 for CMYK, 2 for other inks."""
    return int(_tag(page, "InkSet", (1,))[0])


def _fractions(values: tuple[Any, ...], n: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """``n`` numbers that a tag stores as fractions (numerator, denominator) or as they are."""
    if len(values) == 2 * n:
        return tuple(float(a) / float(b or 1) for a, b in zip(values[::2], values[1::2], strict=True))
    return tuple(map(float, values)) if len(values) == n else default


def _word(page: Any) -> str:
    """The name of a page's colours."""
    if page.compression == _APERIO_YCBCR:
        return "YCbCr"
    known = {_SEPARATED: "CMYK", _YCBCR: "YCbCr", _CIELAB: "CIELab", _ICCLAB: "ICCLab"}
    word = known.get(int(page.photometric)) or str(getattr(page.photometric, "name", page.photometric))
    if word == "YCbCr" and page.is_subsampled:
        return "YCbCr with subsampled chroma"
    return word


def is_picture(names: Sequence[str], colors: Sequence[str], dtype: np.dtype[Any]) -> bool:
    """Whether three channels are the red, green and blue of one picture: by their names, or, of 8 bits, by their display colours
    where their names say nothing."""
    said = tuple(str(n).strip().lower() for n in names)
    if said in (RGB, ("r", "g", "b")):
        return True
    silent = all(_UNTOLD.fullmatch(n) for n in said)
    return dtype == np.uint8 and silent and tuple(c.upper() for c in colors) == _PURE
