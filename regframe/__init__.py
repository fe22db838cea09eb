"""regframe: registration of spatial omics and histology images.

The public names, loaded when they are first used, so that ``import regframe`` and ``regframe --help`` need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Adapter": "contracts",
    "Affine": "maps.affine",
    "Config": "config",
    "Displacement": "maps.displacement",
    "Flow": "maps.flow",
    "Grid": "data",
    "Held": "remote.held",
    "Image": "data",
    "Level": "data",
    "MapFormat": "contracts",
    "Metric": "contracts",
    "OME_UNITS": "data",
    "PluginError": "plugins",
    "PluginWarning": "plugins",
    "PointSet": "data",
    "PointTable": "io.tables",
    "Progress": "contracts",
    "Pyramid": "data",
    "Reading": "data",
    "RangedFile": "remote.ranged",
    "Remote": "remote.address",
    "RemoteError": "remote.errors",
    "RemoteZarr": "remote.zarrstore",
    "Result": "result",
    "Sequence": "maps.sequence",
    "Series": "data",
    "Shapes": "maps.shapes",
    "SlideOptions": "slides.warp",
    "SlideWarp": "slides.warp",
    "Stack": "stack.align",
    "StackOptions": "stack.align",
    "Transform": "maps.base",
    "Written": "contracts",
    "adapter": "plugins",
    "align_stack": "stack.align",
    "canonical_unit": "data",
    "carry_points": "evaluation",
    "choose_level": "slides.levels",
    "compose": "composition",
    "displacement_of": "maps.displacement",
    "find_adapter": "plugins",
    "gate": "",
    "hookimpl": "hookspecs",
    "landmarks": "starts.landmarks",
    "is_text": "io.text",
    "load": "io.store",
    "locate": "remote.address",
    "match_points": "evaluation",
    "metric": "plugins",
    "native_path": "io.paths",
    "move_points": "maps.resample",
    "move_shapes": "maps.edges",
    "ops": "",
    "open": "plugins",
    "open_pyramid": "plugins",
    "pair_points": "io.tables",
    "position_columns": "io.tables",
    "read_landmarks": "io.tables",
    "read_map": "formats.exchange",
    "read_level": "slides.levels",
    "labels_at": "evaluation",
    "read_label_names": "io.tables",
    "read_points": "io.tables",
    "read_shapes": "io.shapes",
    "read_table": "io.tables",
    "refine": "slides.refine",
    "register": "registration",
    "resample": "maps.resample",
    "staged": "io.outputs",
    "unit_ratio": "data",
    "write_map": "formats.exchange",
    "warp_slide": "slides.warp",
    "write_points": "io.tables",
    "write_report": "report",
    "write_shapes": "io.shapes",
}
"""Module in which each public name is defined; ``""`` where the name is a module itself. ``__init__.pyi`` states these names
for type checkers; a test compares the two."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name from its module and keep it (PEP 562)."""
    if name == "__version__":
        from .versions import version

        value: Any = version()
    elif name in _HOME:
        home = _HOME[name]
        value = (
            getattr(importlib.import_module(f"{__name__}.{home}"), name)
            if home
            else importlib.import_module(f"{__name__}.{name}")
        )
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
