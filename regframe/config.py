"""Every setting of a registration, each with a default that needs no tuning; ``None`` means: estimated from the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sobolev(Section):
    """The smoothness operator ``L = (id - scale² Δ)^order`` on velocities (docs/method.md, R)."""

    scale: float | None = Field(None, gt=0, description="length a, in the moving image's unit; None: from its extent")
    order: float | None = Field(None, ge=1, le=6, description="power p; None: from how alike the textures are")


class Pyramid(Section):
    """Resolutions, coarse to fine."""

    levels: int | None = Field(
        None, ge=1, le=12, description="number of levels; None: until the coarsest is about 40 px"
    )
    finest: int = Field(0, ge=0, le=12, description="halvings of the input at the finest level")
    max_pixels: int | None = Field(
        None,
        ge=64,
        description="the finest level is halved until the fixed side is within this; None: 1.5 million pixels, "
        "2.2 million voxels of a volume",
    )


class Optimizer(Section):
    """Iteration limits and stopping rule of L-BFGS, which runs in whitened variables (docs/method.md, R)."""

    max_iter: int = Field(200, ge=0, le=100_000, description="iterations per pyramid level at most")
    memory: int = Field(12, ge=1, le=100, description="pairs kept by L-BFGS")
    tolerance: float = Field(
        0.003, gt=0, description="stop when a step moves no fixed pixel by more than this many pixels of the level"
    )


class Matching(Section):
    """Weights estimated by EM: whether a fixed pixel shows matching tissue, background or artefact (docs/method.md, W)."""

    enabled: bool = True
    rounds: int = Field(3, ge=1, le=100, description="E steps per level")


MOST_PIXELS = 1_500_000
"""Most pixels of the finest level of a fit, where nothing else is asked for: the maps of pictures do not gain by more."""
MOST_VOXELS = 2_200_000
"""The same for two volumes: 128³ and a little. Made volumes of 256³ voxels, bent by 1.6 of them in the median, are 0.25 of a
voxel off with it in place of 0.45 with an eighth of it, in 25 s in place of 14 (two cores)."""
PREVIEW = 100_000
"""Most pixels, or voxels, of the finest level of a fit with ``effort: low``. On the 1 Mpx pair of the benchmarks that is a level
of 256 × 256, where the mean error is 0.110 px already (0.105 px at full effort), in half of the time."""


class Config(Section):
    """All settings of `regframe.register`; the values that a run used are saved beside its result."""

    transform: str = Field("lddmm", description="model of the map: one that the solver of the pair offers")
    metric: str = "auto"
    metric_options: dict[str, Any] = Field(default_factory=dict)
    init: str = Field("auto", description="where the fit begins: auto (a search), or the name of a start")
    init_options: dict[str, Any] = Field(default_factory=dict)
    solver: str = Field("auto", description="which solver registers the pair: auto (the surest), or the name of one")
    solver_options: dict[str, Any] = Field(default_factory=dict)
    device: str = Field("cpu", description="where images are fitted: cpu, cuda, cuda:N, or auto (a GPU where it pays)")
    effort: Literal["low", "auto", "full"] = Field(
        "auto",
        description="of the fit of images: low (a preview), full (every level), or auto (what loses no accuracy)",
    )
    seed: int = Field(0, ge=0)
    n_slices: int | None = Field(
        None, ge=1, le=64, description="time slices T of the velocity; None: 3, in volumes of pixels 1"
    )
    n_steps: int | None = Field(
        None, ge=1, le=1024, description="Euler steps, a multiple of n_slices; None: as many as the velocity needs"
    )
    sigma_match: float | None = Field(
        None, gt=0, description="noise of the contrast-mapped intensities; None: estimated"
    )
    sigma_regularizer: float | None = Field(
        None,
        gt=0,
        description="scale of the velocity prior, as a displacement in the moving unit; None: from the data",
    )
    sigma_landmarks: float | None = Field(
        None, gt=0, description="landmark accuracy in the fixed unit; None: landmarks give the start only"
    )
    hold_landmarks: bool = Field(
        False, description="with sigma_landmarks: hold the map to them even where the images agree better without"
    )
    sobolev: Sobolev = Sobolev()
    pyramid: Pyramid = Pyramid()
    optimizer: Optimizer = Optimizer()
    matching: Matching = Matching()

    @property
    def most_pixels(self) -> int:
        """Pixels that the finest level of a fit of two pictures has at most on the fixed side."""
        return self.most_of((2, 2))

    def most_of(self, shape: Sequence[int]) -> int:
        """Pixels or voxels that the finest level has at most for a fixed side of this shape; a plane of a volume is a picture."""
        volume = len(shape) == 3 and min(shape) > 1
        most = self.pyramid.max_pixels or (MOST_VOXELS if volume else MOST_PIXELS)
        return min(most, PREVIEW) if self.effort == "low" else most
