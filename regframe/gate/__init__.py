"""The gate: nothing that a file says is believed before it was held against what is there.

``limits`` says how much may be read and unpacked, ``places`` which files are opened at all, ``unpack`` unpacks in bounded steps,
``boundary`` turns whatever a reader's library raises into one sentence and keeps its chatter, ``hdf5`` looks an HDF5 file through
in a process of its own before any other opens it, ``zarrs`` holds every chunk of a Zarr store against its size, ``documents``
reads YAML and JSON, ``screen`` shows a file's words without their control characters, and ``meant`` says what a
mistyped name may have been.

It imports nothing of regframe, so that every room and every plug-in may use it (``regframe.gate``).
"""

from __future__ import annotations

from .boundary import FileError, chatter, guarded, muted, passes, reading
from .documents import read_json, read_yaml
from .hdf5 import check_hdf5
from .limits import FREE, MOST_BYTES, allowance, check_declared, check_unpacks, most_bytes, set_most_bytes
from .places import check_file, check_inside, is_file
from .screen import printable
from .unpack import expand, head_of, read_plain, unpacked_size

__all__ = [
    "FREE",
    "MOST_BYTES",
    "FileError",
    "allowance",
    "chatter",
    "check_declared",
    "check_file",
    "check_hdf5",
    "check_inside",
    "check_unpacks",
    "expand",
    "guarded",
    "head_of",
    "is_file",
    "most_bytes",
    "muted",
    "passes",
    "printable",
    "read_json",
    "read_plain",
    "read_yaml",
    "reading",
    "set_most_bytes",
    "unpacked_size",
]
