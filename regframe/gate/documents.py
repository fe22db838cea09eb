"""YAML and JSON: small, shallow, and without the references by which a few lines become gigabytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .places import check_file

_MOST = 16 << 20
"""Bytes of a document that a user wrote or regframe did: settings have some kilobytes, the figures of a stack a few megabytes."""
_ALIASES = 16
"""References (``*name``) in a YAML document: settings have none or a few; nested ones multiply, at 16 by some hundred at most."""


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file; ValueError in one sentence for a file that is none, or is large, deep or full of references."""
    import yaml

    text = _text(path, "YAML")
    try:
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
        if aliases > _ALIASES:
            raise ValueError(
                f"wanted settings with at most {_ALIASES} references (*name) in {str(path)!r}, got {aliases}; write them out"
            )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"wanted YAML in {path}, got: {error}") from error
    except RecursionError as error:
        raise ValueError(f"wanted settings in {path}, got a document nested too deep; write it anew") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; ValueError in one sentence for a file that is none, or is large or deep."""
    text = _text(path, "JSON")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"wanted JSON in {str(path)!r}, got something else ({error}); write it anew") from error
    except RecursionError as error:
        raise ValueError(f"wanted JSON in {str(path)!r}, got a document nested too deep; write it anew") from error


def _text(path: str | os.PathLike[str], kind: str) -> str:
    path = Path(path)
    check_file(path, folder=False)
    if path.stat().st_size > _MOST:
        raise ValueError(
            f"wanted {kind} of at most {_MOST >> 20} MiB in {str(path)!r}, got more; check that it is the right file"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"wanted {kind} in {path}, got bytes that are no text ({error.reason})") from error
