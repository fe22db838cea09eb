"""regframe: registration of spatial omics and histology images.

The public names, loaded when they are first used, so that ``import regframe`` and ``regframe --help`` need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any


def _ask_for_sleep() -> bool:
    """Whether torch came first; where it did not, threads are asked to sleep while they wait.

    OpenMP threads that wait by spinning starve each other as soon as another process wants a core: a fit then takes many times
    as long. OpenMP reads the variable once, when torch is loaded; what the user has set is kept.
    """
    import os
    import sys

    if "torch" in sys.modules:
        return not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return False


torch_came_first = _ask_for_sleep()
"""Whether torch was loaded before this package, with threads that spin while they wait (see `regframe.machine.settle`)."""

_HOME = {
    "Adapter": "contracts",
    "Affine": "maps.affine",
    "Candidate": "contracts",
    "Config": "config",
    "Descent": "fit.lbfgs",
    "Displacement": "maps.displacement",
    "Finding": "verdict",
    "Fitted": "contracts",
    "Flow": "maps.flow",
    "Grid": "data",
    "Group": "group.group",
    "Held": "remote.held",
    "Image": "data",
    "Known": "contracts",
    "Level": "data",
    "MapFormat": "contracts",
    "Metric": "contracts",
    "Mosaic": "mosaic.mosaic",
    "OME_UNITS": "data",
    "Original": "data",
    "PluginError": "plugins",
    "PluginWarning": "plugins",
    "PointSet": "data",
    "PointTable": "io.tables",
    "Progress": "contracts",
    "Pyramid": "data",
    "PyramidAdapter": "slides.reader",
    "RangedFile": "remote.ranged",
    "Reading": "data",
    "Remote": "remote.address",
    "RemoteError": "remote.errors",
    "RemoteZarr": "remote.zarrstore",
    "Result": "result",
    "Section": "contracts",
    "Sequence": "maps.sequence",
    "Series": "data",
    "Shapes": "maps.shapes",
    "SlideOptions": "slides.warp",
    "SlideWarp": "slides.warp",
    "Solver": "contracts",
    "Stack": "stack.align",
    "StackOptions": "stack.align",
    "Start": "contracts",
    "Task": "contracts",
    "TileWriter": "slides.reader",
    "Transform": "maps.base",
    "Written": "contracts",
    "adapter": "plugins",
    "align_stack": "stack.align",
    "canonical_unit": "data",
    "canvas": "fit.clouds",
    "carry_points": "evaluation",
    "choose_level": "slides.levels",
    "compose": "composition",
    "displacement_of": "maps.displacement",
    "find_adapter": "plugins",
    "gate": "",
    "hookimpl": "hookspecs",
    "is_text": "io.text",
    "labels_at": "evaluation",
    "landmarks": "starts.landmarks",
    "later": "",
    "load": "io.store",
    "load_group": "group.group",
    "load_mosaic": "mosaic.mosaic",
    "locate": "remote.address",
    "match_nuclei": "group.nuclei",
    "match_points": "evaluation",
    "merge_group": "group.merge",
    "metric": "plugins",
    "minimize": "fit.lbfgs",
    "move_points": "maps.resample",
    "move_shapes": "maps.edges",
    "native_path": "io.paths",
    "open": "plugins",
    "open_pyramid": "plugins",
    "open_sides": "view.recorded",
    "ops": "",
    "pair_points": "io.tables",
    "position_columns": "io.tables",
    "read_label_names": "io.tables",
    "read_landmarks": "io.tables",
    "read_level": "slides.levels",
    "read_map": "formats.exchange",
    "read_points": "io.tables",
    "read_shapes": "io.shapes",
    "read_table": "io.tables",
    "refine": "slides.refine",
    "register": "registration",
    "register_group": "group.align",
    "register_mosaic": "mosaic.align",
    "register_pieces": "pieces.align",
    "resample": "maps.resample",
    "staged": "io.outputs",
    "unit_ratio": "data",
    "warp_slide": "slides.warp",
    "write_map": "formats.exchange",
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
