"""A class of a plug-in that lies in a Python file of the user's and is named as ``FILE.py:CLASS``, without a package."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

from .state import restored

_MARK = ".py:"
OF_A_FILE = "(file)"
"""End of the provider of such a class, where that of a package has its entry point."""

_loaded: dict[tuple[str, str], type] = {}
"""Classes by name and by the hash of the file's content."""


class _Anew(importlib.machinery.SourceFileLoader):
    """Runs the file as it is now: what is kept compiled beside it may be from before an edit of the same length."""

    def path_stats(self, path: str) -> dict[str, int]:
        """No times to compare with: nothing that is kept is read, and nothing is kept."""
        raise OSError(path)


def absolute(name: str) -> str:
    """A name as it is recorded: ``FILE.py:CLASS`` with the whole path, so that it holds from another folder; others unchanged."""
    file, mark, cls = name.rpartition(_MARK)
    return f"{Path(file + '.py').absolute()}:{cls}" if mark else name


def in_file(name: str) -> bool:
    """Whether a name says ``FILE.py:CLASS``."""
    return _MARK in name


def load(name: str) -> tuple[type, str]:
    """The class that ``FILE.py:CLASS`` names, and its provider, ``"FILE.py HASH (file)"``; the file runs once per content.

    The class's ``name`` becomes the whole path and the class, by which results record it. Raises ValueError, in one sentence,
    where there is no such file or class, or the file does not run.
    """
    name = absolute(name)
    file, _, word = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"wanted a Python file before the colon, got {str(path)!r}, which is no file; check the path")
    content = path.read_bytes()
    sha = hashlib.sha256(content).hexdigest()[:12]
    provider = f"{path.name.replace(' ', '_')} {sha} {OF_A_FILE}"
    found = _loaded.get((name, sha))
    if found is None:
        module = f"file_{path.stem}_{sha}".replace(".", "_")
        spec = importlib.util.spec_from_file_location(module, path, loader=_Anew(module, str(path)))
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[module] = made
        try:
            with restored():
                spec.loader.exec_module(made)
        except (Exception, SystemExit) as error:
            del sys.modules[module]
            told = " ".join(str(error).split())[:200]
            raise ValueError(
                f"wanted {path} to run, got {type(error).__name__}{f': {told}' if told else ''}; mend the file"
            ) from error
        found = getattr(made, word, None)
        if not isinstance(found, type):
            there = sorted(key for key, value in vars(made).items() if getattr(value, "__module__", "") == module)
            raise ValueError(
                f"wanted a class {word!r} in {path}, got {'none of this name' if found is None else type(found).__name__}; "
                f"there is {', '.join(there) or 'none'}"
            )
        found.name = name  # type: ignore[attr-defined]
        _loaded[name, sha] = found
    return found, provider
