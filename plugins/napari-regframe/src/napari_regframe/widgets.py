"""The two panels: align two layers, move a layer to the other side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import napari.viewer
from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton, create_widget
from napari.layers import Image, Labels, Layer, Points, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_info
from qtpy.QtWidgets import QSizePolicy

import regframe as rf

from . import aligning, carrying, landmarks
from .reading import LayerData

_STAGES = {"start": "looking for the start", "affine": "turning and scaling", "lddmm": "bending"}
"""Stages of a fit as the panel calls them."""


def _add(viewer: napari.viewer.Viewer, found: list[LayerData]) -> list[Layer]:
    """Add layers to a viewer and return them."""
    return [viewer.add_layer(Layer.create(data, how, kind)) for data, how, kind in found]


def _words(widget: Label, text: str) -> None:
    """Show text in as many lines as the panel's width needs."""
    widget.value = text
    widget.native.setWordWrap(True)
    widget.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)


class Align(Container):  # type: ignore[misc]
    """Aligns the moving layer to the fixed one and adds it as a new layer; pairs of points help where nothing else does.

    Args:
        viewer: the viewer whose layers are offered.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._viewer = viewer
        self._worker: Any = None
        self.result: rf.Result | None = None
        self.fixed = create_widget(label="fixed", annotation=Image)
        self.moving = create_widget(label="moving", annotation=Image)
        self.model = ComboBox(label="may be", choices=list(aligning.MODELS))
        self.fixed_points = create_widget(label="points on fixed", annotation=Points, options={"nullable": True})
        self.moving_points = create_widget(label="and on moving", annotation=Points, options={"nullable": True})
        self.go = PushButton(text="Align")
        self.stop = PushButton(text="Stop", enabled=False)
        self.bar = ProgressBar(min=0, max=100, value=0, visible=True)
        self.says = Label(value="")
        choices = [self.fixed, self.moving, self.model, self.fixed_points, self.moving_points]
        super().__init__(widgets=[*choices, self.go, self.stop, self.bar, self.says])
        _words(self.says, "Choose the two images. The moving one is brought onto the fixed one, as a new layer.")
        self.go.changed.connect(self.align)
        self.stop.changed.connect(self.end)

    def align(self) -> Any:
        """Begin; returns the worker, None where the layers cannot be aligned, which the panel then says."""
        if self._worker is not None:
            return None
        try:
            if self.fixed.value is None or self.moving.value is None:
                raise ValueError("wanted two image layers, got less; open both images first")
            points = (self.fixed_points.value, self.moving_points.value)
            if (points[0] is None) != (points[1] is None):
                raise ValueError("wanted points on both images or on none, got one layer of them; choose the other too")
            model = aligning.MODELS[self.model.value]
            job = aligning.Job.of(self.fixed.value, self.moving.value, model, None if points[0] is None else points)
        except ValueError as error:
            _words(self.says, str(error))
            return None
        shown = self.moving.value
        self._busy(True)
        self._worker = create_worker(
            aligning.steps,
            job,
            _start_thread=False,
            _connect={
                "yielded": self._step,
                "returned": lambda result: self._done(job, result, shown, points),
                "errored": self._failed,
                "aborted": lambda: _words(self.says, "stopped; nothing was changed"),
                "finished": lambda: self._busy(False),
            },
        )
        self._worker.start()
        return self._worker

    def reset_choices(self, *args: Any) -> None:
        """Offer the layers that are there now; another one as the moving side where both would be the same."""
        super().reset_choices(*args)
        others = [layer for layer in self.moving.choices if layer is not self.fixed.value]
        if self.moving.value is self.fixed.value and others:
            self.moving.value = others[0]

    def end(self) -> None:
        """Stop what is running; the layers stay as they were."""
        if self._worker is not None:
            self._worker.quit()

    def _busy(self, busy: bool) -> None:
        self.go.enabled, self.stop.enabled = not busy, busy
        if busy:
            self.bar.value = 0
            _words(self.says, "reading the images")
        else:
            self._worker = None

    def _step(self, progress: rf.Progress) -> None:
        inside = min(1.0, progress.done / max(1, progress.total))
        share = (progress.level + inside) / max(1, progress.n_levels)
        self.bar.value = max(self.bar.value, round(100 * min(1.0, share)) if progress.stage == "lddmm" else 1)
        _words(
            self.says,
            f"{_STAGES.get(progress.stage, progress.stage)}, resolution {progress.level + 1} of {progress.n_levels}",
        )

    def _done(self, job: aligning.Job, result: rf.Result, shown: Any, points: tuple[Any, Any]) -> None:
        self.result = result
        self.bar.value = 100
        for layer in _add(self._viewer, aligning.layers_of(job, result)):
            if not layer.rgb:
                layer.colormap, layer.contrast_limits = shown.colormap, shown.contrast_limits
        shown.visible = False
        said = [result.headline, *result.reasons]
        error = result.expected_error
        if error is not None:
            unit = result.fixed_grid.unit
            said.append(f"if it is right, nine positions in ten lie within {error:.2g} {unit} of where they belong")
        if points[0] is not None:
            said.append(landmarks.remarks(points[0], points[1], result))
        _words(self.says, "\n".join(said))
        show_info(f"regframe: {result.headline}")

    def _failed(self, error: Exception) -> None:
        _words(self.says, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


class Carry(Container):  # type: ignore[misc]
    """Moves a layer to the other side by an alignment that is in the viewer.

    Args:
        viewer: the viewer whose layers are offered.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._viewer = viewer
        self.layer = ComboBox(
            label="layer", choices=lambda _: self._named(lambda one: isinstance(one, (Image, Labels, Points, Shapes)))
        )
        self.by = ComboBox(
            label="by the alignment of", choices=lambda _: self._named(lambda one: carrying.result_of(one) is not None)
        )
        self.to = ComboBox(label="to", choices=["fixed", "moving"])
        self.go = PushButton(text="Move")
        self.says = Label(value="")
        super().__init__(widgets=[self.layer, self.by, self.to, self.go, self.says])
        _words(
            self.says,
            "What was drawn on one image is moved to the other, as a new layer.",
        )
        self.go.changed.connect(self.carry)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self.renew)
        self.renew()

    def renew(self, event: Any = None) -> None:
        """Offer the layers that are there now."""
        self.layer.reset_choices()
        self.by.reset_choices()

    def carry(self) -> list[Layer]:
        """Add the moved layer and return it; none where it cannot be moved, which the panel then says."""
        try:
            if self.layer.value is None or self.by.value is None:
                raise ValueError(
                    "wanted a layer, and one that regframe has aligned, got none; open or make an alignment first"
                )
            layer = self.layer.value
            result = carrying.result_of(self.by.value)
            assert result is not None
            added = _add(self._viewer, carrying.carry(layer, result, self.to.value))
        except ValueError as error:
            _words(self.says, str(error))
            return []
        _words(self.says, f"added {added[0].name!r}")
        return added

    def _named(self, wanted: Callable[[Layer], bool]) -> list[tuple[str, Layer]]:
        return [(layer.name, layer) for layer in self._viewer.layers if wanted(layer)]
