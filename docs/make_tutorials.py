"""Makes notebooks of the pages in ``docs/tutorials``, and their pictures.

    python docs/make_tutorials.py             # docs/notebooks, cells without outputs where a page has changed
    python docs/make_tutorials.py --run DIR   # run in DIR (what `regframe demo --data DIR` writes), with outputs and pictures
    python docs/make_tutorials.py --run DIR stains wrong   # some

Text of a page becomes text, its commands and its Python become cells. Running needs nbclient and ipykernel.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGES = ("stains", "fluorescence", "xenium", "cells", "atlas", "rounds", "slide", "wrong")
"""The tutorials, in the order in which they are read."""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[[^\]]*\]\([^)]*\)\n", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)]+)\)")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What a terminal is told beside text: colours, and lines to be drawn again."""
SITE = "../tutorials/"
PLAIN = "%config InlineBackend.figure_formats = ['jpeg']\n%config InlineBackend.rc = {'figure.dpi': 72}"
"""Small pictures in a notebook's file."""


def parts(page: str) -> list[tuple[str, str]]:
    """The parts of a page: ``text``, ``console`` or ``python``, and what stands there."""
    text = PICTURE.sub("", (HERE / "tutorials" / f"{page}.md").read_text(encoding="utf-8"))
    found, end = [], 0
    for match in FENCE.finditer(text):
        found += [("text", text[end : match.start()].strip()), (match[1], match[2].strip())]
        end = match.end()
    return [(kind, body) for kind, body in [*found, ("text", text[end:].strip())] if body]


def commands(page: str) -> list[list[str]]:
    """The commands of a page, without ``$ regframe``."""
    lines = [line for kind, body in parts(page) if kind == "console" for line in body.splitlines()]
    return [shlex.split(line)[2:] for line in lines]


def notebook(page: str) -> dict[str, Any]:
    """A notebook of a page, not run, as nbformat 4 wants it."""
    cells: list[dict[str, Any]] = []
    for kind, body in [*parts(page)[:1], ("python", PLAIN), *parts(page)[1:]]:
        source = body
        if kind == "text":
            source = LINK.sub(lambda match: f"]({SITE}{match[1]})", body)
        elif kind == "console":
            source = "\n".join("!" + line.removeprefix("$ ") for line in body.splitlines())
        cell: dict[str, Any] = {
            "cell_type": "markdown" if kind == "text" else "code",
            "id": f"{page}-{len(cells)}",
            "metadata": {},
            "source": source,
        }
        cells.append(cell if kind == "text" else {**cell, "execution_count": None, "outputs": []})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def sources(made: dict[str, Any]) -> list[tuple[str, str]]:
    """Kinds and sources of a notebook's cells, by which two are compared."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]]


def run(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with its outputs, run in ``folder``; paths of this machine are left out of them."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    loaded = nbformat.from_dict(made)
    NotebookClient(loaded, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    text = json.dumps(loaded)
    for place, word in ((folder.resolve(), folder.name), (HERE.parent, "regframe"), (Path.home(), "~")):
        text = text.replace(json.dumps(str(place))[1:-1], word)
    out: dict[str, Any] = json.loads(text)
    for cell in out["cells"]:
        cell["metadata"] = {}  # times of this run
        if "outputs" in cell:
            cell["outputs"] = quiet(cell["outputs"])
    return out


def quiet(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs of a cell with the pieces of one stream as one, without moving bars and objects that say nothing."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream" and found and found[-1].get("name") == output["name"]:
            found[-1] = {**found[-1], "text": "".join(found[-1]["text"]) + "".join(output["text"])}
        elif output["output_type"] != "execute_result":
            found.append(output)
    for output in found:
        if "text" in output:
            output["text"] = still("".join(output["text"]))
    return [output for output in found if output.get("text", "-").strip()]


def still(text: str) -> str:
    """What a command printed, without its moving bars."""
    lines = CONTROL.sub("", text).replace("\r", "").splitlines()
    return "\n".join(line for line in lines if line.strip() and "━" not in line) + "\n"


def draw(page: str, folder: Path) -> bytes:
    """The picture of a page that was run in ``folder``: both sides, and what its last block of Python draws, as a JPEG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.0), layout="constrained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        names: dict[str, Any] = {}
        (body,) = [body for kind, body in parts(page) if kind == "python"]
        lines = body.splitlines()[:-1]
        exec(compile("\n".join(lines), page, "exec"), names)
        fixed, moving, result = names["fixed"], names["moving"], names["result"]
        fixed.plot(axes[0])
        moving.plot(axes[1])
        if page == "xenium":
            fixed.plot(axes[2])
            names["cells"].plot(axes[2], color="#00b7ff", s=6)
        elif page == "atlas":
            result.to_fixed(moving).plot(axes[2])
        else:
            result.overlay(fixed, moving, axes[2])
        if not hasattr(fixed, "grid"):
            axes[0].invert_yaxis(), axes[1].invert_yaxis()
    finally:
        os.chdir(before)
    for each, title in zip(axes, ("fixed", "moving", "aligned"), strict=True):
        each.set(title=title, xlabel="", ylabel="")
        each.tick_params(labelsize=7)
    png = io.BytesIO()
    figure.savefig(png, dpi=84)
    plt.close(figure)
    out = io.BytesIO()
    Image.open(png).convert("RGB").save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()


def main(argv: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", choices=[*PAGES, []], help="some of the pages")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run them in DIR")
    options = parser.parse_args(argv)
    for page in options.pages or PAGES:
        made, path = notebook(page), HERE / "notebooks" / f"{page}.ipynb"
        if options.run is None:
            if path.exists() and sources(json.loads(path.read_text(encoding="utf-8"))) == sources(made):
                continue
        else:
            made = run(made, options.run)
            (HERE / "tutorials" / "images" / f"{page}.jpg").write_bytes(draw(page, options.run))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
