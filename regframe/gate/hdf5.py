"""HDF5 files looked through by a process of their own before another opens them.

The library is written in C, follows links into any other file, and a damaged file may end the process or hold it for ever. The
child checks that nothing leads out of the file and that no data set declares more than the file can hold, and reads every small
data set, as whoever opens the file will; the parent only hears a sentence, or that the child did not come back.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .boundary import same_file
from .limits import FREE
from .places import check_file

_DEADLINE = 15.0
"""Seconds after which the child is ended: it reads `_SMALL` bytes of each of `_MOST_NODES` nodes at most, in under two."""
_MEMORY = 2 << 30
"""Bytes of address space of the child beyond the libraries that it loads."""
_MOST_NODES = 100_000
"""Groups and data sets that a file may have; an AnnData of a thousand layers has some ten thousand."""
_DEPTH = 64
"""Groups within groups."""
_SMALL = 1 << 20
"""Bytes of a data set that are read by the child, from its beginning."""
_RATIO = 1100
"""Bytes of a data set that one byte of the file can become at most: deflate's 1032, with room."""


def check_hdf5(path: str | os.PathLike[str]) -> None:
    """ValueError in one sentence where an HDF5 file is damaged, leads out of itself, or declares more than it can hold.

    A file that was found sound is known again by inode, size and time, once per process. ImportError where h5py is missing.
    """
    path = Path(path)
    check_file(path, folder=False)
    reason = _verdict(str(path.resolve()), same_file(path))
    if reason:
        raise ValueError(f"wanted a sound HDF5 file, got {str(path)!r} ({reason}); write it anew")


@functools.lru_cache(maxsize=64)
def _verdict(path: str, _: tuple[int, int, int]) -> str:
    """What is wrong with a file; empty for a sound one."""
    if not sys.executable:  # an interpreter inside another program: there is none to start
        return _looked_through(path)
    folder = str(Path(__file__).resolve().parent.parent.parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); from regframe.gate import hdf5; hdf5.child(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, path],
            capture_output=True,
            timeout=_DEADLINE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"its reader did not come back within {_DEADLINE:g} s"
    if done.returncode < 0:
        return f"its reader was ended by signal {-done.returncode}: it is damaged"
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode or not lines:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
        if "No module named" in last[0]:
            raise ImportError(last[0])
        return f"its reader failed: {last[0][:200]}"
    return str(json.loads(lines[-1]))


def child(path: str) -> None:
    """What the process does that looks a file through: print the verdict as one line of JSON."""
    import resource

    import h5py  # noqa: F401 - before the limit, which the libraries would fall under

    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if Path("/proc/self/statm").exists()
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(_looked_through(path)))


def _looked_through(path: str) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _walk(file, file, "", set(), Path(path).stat().st_size)
    except MemoryError:
        return "it takes more memory than it may"
    except Exception as error:  # noqa: BLE001 - the library documents no exceptions
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


def _walk(group: Any, file: Any, name: str, seen: set[Any], size: int) -> None:
    """Look at every link of a group, and at what it leads to; ValueError, half a sentence, for what is refused."""
    import h5py

    if len(seen) > _MOST_NODES or name.count("/") > _DEPTH:
        raise ValueError(
            f"it has more than {_MOST_NODES} groups and data sets, or more than {_DEPTH} within each other"
        )
    _attributes(group, name or "/")
    for key in group:
        where = f"{name}/{key}"
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"its entry {where} is a link to another file, {link.filename!r}, which is not followed")
        if isinstance(link, h5py.SoftLink) and group.get(key) is None:
            continue
        node = group[key]
        mark = h5py.h5o.get_info(node.id)
        if (mark.fileno, mark.addr) in seen:
            continue
        seen.add((mark.fileno, mark.addr))
        if isinstance(node, h5py.Group):
            _walk(node, file, where, seen, size)
        elif isinstance(node, h5py.Dataset):
            _data(node, where, size)


def _attributes(node: Any, where: str) -> None:
    for key in node.attrs:
        declared = node.attrs.get_id(key)
        if math.prod(declared.shape or ()) * declared.dtype.itemsize > FREE:
            raise ValueError(f"the attribute {key!r} of {where} declares shape {declared.shape}")
        try:
            node.attrs[key]
        except (TypeError, NotImplementedError):  # of a type that h5py does not know, which its readers pass over
            continue


def _data(data: Any, where: str, size: int) -> None:
    """Check one data set, and read its beginning."""
    _attributes(data, where)
    if data.is_virtual or data.external:
        raise ValueError(f"its data set {where} lies in other files, which are not read")
    declared = data.size * data.dtype.itemsize if data.shape is not None else 0
    if declared > max(FREE, _RATIO * size):
        raise ValueError(f"its data set {where} of shape {data.shape} declares {declared} bytes in a file of {size}")
    if data.chunks is not None:
        chunk = math.prod(data.chunks) * data.dtype.itemsize
        if chunk > max(FREE, 4 * declared):
            raise ValueError(f"its data set {where} has chunks of {chunk} bytes for {declared} bytes of data")
    if declared > FREE and not data.id.get_storage_size():
        raise ValueError(f"its data set {where} of shape {data.shape} was never written")
    if not data.shape:
        data[()]
    elif data.size:
        row = max(1, data.dtype.itemsize * (data.size // data.shape[0]))
        data[: max(1, min(data.shape[0], _SMALL // row))] if row <= FREE else None
