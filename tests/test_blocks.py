"""Every fenced block of README and docs is run as it is printed, or says here why it cannot be.

A page's commands and Python run from its top to its end, in one folder with the files of ``regframe demo --data``. What is
not run there stands in `ELSEWHERE` (with the test that runs it) or `NOT_RUN` (with the reason); a new block in neither is run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from regframe.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ["README", *sorted(str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md"))]
SHELL = ("console", "sh", "bash")
PYTHON = ("python", "py")
SHOWN = ("csv", "toml", "text", "json")
"""Languages of what is looked at, not run."""
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\|[^|\n]*\|[^|\n]*\| `(regframe [^`]+)` \|$", re.MULTILINE)

ELSEWHERE = {
    "README regframe demo --data": "tests/test_first_minutes.py::test_what_is_written_is_what_the_documents_name",
    "README regframe view": "tests/view/test_browser_real.py",
    "doors class": "tests/plugins/test_plugins.py::test_the_code_of_the_guide_runs",
    "doors import zipfile": "tests/plugins/test_plugins.py::test_the_code_of_the_guide_runs",
    "plugins import": "tests/plugins/test_plugins.py::test_the_code_of_the_guide_runs",
    "plugins from": "tests/plugins/test_plugins.py::test_the_code_of_the_guide_runs",
    "plugins regframe.register(fixed, moving, metric": "tests/plugins/test_plugins.py::test_the_code_of_the_guide_runs",
    "scverse import anndata\nimport squidpy": "tests/test_workflows.py::test_the_recipe_for_squidpy_reaches_across_sections",
    "scverse import spatialdata": "tests/test_docs.py::test_the_page_on_spatialdata_runs",
    "stalign import": "tests/test_docs.py::test_the_rest_of_the_page_for_users_of_stalign_runs",
    "stalign xenium =": "tests/test_docs.py::test_the_page_for_users_of_stalign_runs",
    "stalign picture =": "tests/test_docs.py::test_the_rest_of_the_page_for_users_of_stalign_runs",
    "stalign from scipy": "tests/test_docs.py::test_the_rest_of_the_page_for_users_of_stalign_runs",
    "stalign low =": "tests/test_docs.py::test_the_page_for_users_of_stalign_runs",
    "tutorials/": "tests/test_tutorials.py::test_a_tutorial_runs_as_printed",
    "view regframe view": "tests/view/test_browser_real.py",
    "workflows snakemake": "tests/test_workflows.py::test_the_page_runs_snakemake_as_it_says",
    "workflows rule register": "tests/test_workflows.py::test_the_page_runs_snakemake_as_it_says",
    "workflows planemo lint": "tests/test_workflows.py::test_planemo_finds_no_fault",
    "workflows nextflow": "tests/test_workflows.py::test_modules_really_register_and_carry",
    "workflows sbatch": "tests/test_workflows.py::test_slurm_on_one_node",
    "workflows python docs/workflows/slurm": "tests/test_workflows.py::test_slurm_on_many_nodes",
    "workflows kubectl": "tests/test_workflows.py::test_kubernetes_runs_our_commands",
}
"""Page and beginning of a block or command, and the test that runs it, where it needs more than the files of the demo."""

NOT_RUN = {
    "README make demo": "it installs and compiles; tests/test_first_minutes.py runs `regframe demo` and what it proposes",
    "README make test": "it is what runs this test",
    "README .": "it activates an environment in a shell of the reader's",
    "README cd": "the tests are in that folder",
    "batch pip install": "it installs",
    "batch dask": "a scheduler and workers stay up on several machines; tests/batch starts them on one",
    "batch regframe batch jobs.csv -o out --scheduler": "needs that scheduler",
    "batch import subprocess": "needs a cluster; tests/test_workflows.py checks what the clusters are asked for",
    "gallery regframe": "needs the pictures of other programs' examples; docs/make_gallery.py runs it, and fills in the figures",
    "gallery awk": "of the same pictures",
    "gallery result =": "of the same pictures",
    "gpu": "needs a GPU",
    "install podman": "needs an engine and the image; .ci/check_image runs the demo in it",
    "install docker": "needs an engine and the image; .ci/check_image runs the demo in it",
    "install eval": "a line of the shell's settings; tests/promises/test_doors.py asks for completions",
    "install _REGFRAME": "a line of the shell's settings; tests/promises/test_doors.py asks for completions",
    "install make": "it builds; `.ci/wheel` and `.ci/check_wheel` in .github/workflows",
    "install nox": "it installs; the job `ends` in .github/workflows/ci.yml runs it",
    "interchange antsApplyTransforms": "another program; tests/formats reads the files by its rules",
    "interchange transformix": "another program; tests/formats reads the files by its rules",
    "interchange class Plain": "a plug-in's code, the same as in tests/formats/test_interchange.py::test_a_format_of_a_stranger",
    "napari": "needs napari and a screen; plugins/napari-regframe/tests runs it",
    "plugins pip install": "it installs; tests/testing installs such a package into an environment of its own",
    "plugins regframe plugins --check": "needs that package installed; tests/testing checks it",
    "plugins cd my-stain": "needs that package installed; tests/testing runs its tests",
    "plugins regframe register fixed.png moving.png -o run --metric mine --metric-set power=1": "needs the page's code installed",
    "plugins python -m build": "it publishes",
    "plugins twine": "it publishes",
    "shared regframe doctor FOLDER": "a form: FOLDER is the reader's",
    "slides regframe info s3": "needs a bucket; tests/remote serves one",
    "slides regframe register https": "needs a web server; tests/remote serves one",
    "slides regframe apply image run s3": "needs a bucket; tests/remote serves one",
    "slides regframe register FIXED": "a form: what stands in capitals is the reader's",
    "slides regframe refine exact --scheduler": "needs a scheduler that stays up",
    "stack regframe stack sections/ -o stack --scheduler": "needs a scheduler that stays up",
    "stalign regframe": "a form: what stands in capitals is the reader's",
    "vendors regframe info outs": "needs a folder of Visium HD; tests/plugins/test_vendor_folders.py makes one",
    "vendors regframe register he_full": "needs a folder of Visium HD",
    "vendors regframe apply points RUN": "needs a folder of Visium HD",
    "vendors import regframe_vendor": "needs a folder of Visium HD; tests/plugins/test_vendor_folders.py runs `offset`",
    "view pip install": "it installs",
    "view ssh": "needs another machine",
}
"""Page and beginning of a block or command, and why no test runs it as it is printed."""

RUN = [["register", "fixed.png", "moving.png", "-o", "run"]]
BEFORE: dict[str, list[list[str]]] = dict.fromkeys(("format", "interchange", "view"), RUN)
"""Commands whose output a page takes as there."""

MADE = """
import torch
import regframe as rf
from fake_result import fake_result
"""
GIVEN = {
    "interchange": MADE
    + """
import pathlib
grid = rf.Grid((60, 90), 1.0, unit="µm")
for name in ("he_to_dapi", "dapi_to_atlas", "codex_to_dapi"):
    fake_result(grid, grid).save(f"{name}.ome.zarr")
    pathlib.Path(name).mkdir()
    pathlib.Path(f"{name}.ome.zarr").rename(f"{name}/transform.ome.zarr")
rf.write_map(rf.load("run"), "map.npz")
""",
    "plugins": """
import pathlib
pathlib.Path("mine.py").write_text('''import regframe


class Mine(regframe.Metric):
    def __init__(self, power: float = 2.0) -> None:
        self.power = power

    def __call__(self, warped, fixed, weight):
        weight = weight / weight.sum()
        one, other = (x.mean(dim=0) - (x.mean(dim=0) * weight).sum() for x in (warped, fixed))
        both = (one * other * weight).sum()
        alone = (one.square() * weight).sum() * (other.square() * weight).sum()
        return 1 - (both.square() / alone.clamp_min(1e-12)) ** (self.power / 2)
''')
""",
    "scverse": MADE
    + """
grid = rf.Grid((500, 500), 1.0, unit="µm")
fake_result(grid, grid).save("run.ome.zarr")
""",
    "slides": "import concurrent.futures\npool = concurrent.futures.ThreadPoolExecutor(1)\n",
}
"""Python for what a page takes as given."""


@dataclass(frozen=True)
class Step:
    """A command, or a block of Python, of a page."""

    page: str
    language: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.page} {self.text}"

    def found(self, table: dict[str, str]) -> list[str]:
        """Beginnings in a table that are of this step."""
        return [begin for begin in table if self.key == begin or self.key.startswith(begin)]


def text_of(page: str) -> str:
    return (ROOT / "README.md" if page == "README" else DOCS / f"{page}.md").read_text(encoding="utf-8")


def commands(body: str, language: str) -> Iterator[str]:
    """The commands of a block: of a console those behind a dollar."""
    for line in body.replace("\\\n", " ").splitlines():
        if language == "console" and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ")
        quoted = re.sub(r"\s+#.*$", "", command).strip()
        if quoted and not quoted.startswith("#"):
            yield re.sub(r"\s+", " ", quoted)


def steps(page: str) -> list[Step]:
    """What a page shows to be run, in its order; of README the rows of its table of jobs at the end."""
    found = []
    for language, body in FENCE.findall(text_of(page)):
        if language in SHELL:
            found += [Step(page, "sh", command) for command in commands(body, language)]
        elif language in PYTHON:
            found.append(Step(page, "python", body))
    if page == "README":
        found += [Step(page, "sh", command) for command in ROW.findall(text_of(page))]
    return found


EVERY = [step for page in PAGES for step in steps(page)]


def runs(step: Step) -> bool:
    return not step.found(ELSEWHERE) and not step.found(NOT_RUN)


def test_every_block_says_its_language() -> None:
    """A block without one, or of a language that is only shown, holds nothing to run."""
    known = {*SHELL, *PYTHON, *SHOWN}
    for page in PAGES:
        for language, body in FENCE.findall(text_of(page)):
            assert language in known, f"{page}: a block of the language {language!r}, of {sorted(known)}:\n{body}"
            if language in SHOWN and language != "text":
                continue
            if language == "text":
                assert not re.search(r"^(\$ |regframe [a-z]|pip |python )", body, re.MULTILINE), (
                    f"{page}: run this:\n{body}"
                )


def test_reasons_and_tests_are_of_blocks_that_are_there() -> None:
    used = {begin for step in EVERY for table in (ELSEWHERE, NOT_RUN) for begin in step.found(table)}
    assert set(ELSEWHERE) | set(NOT_RUN) == used
    for name in ELSEWHERE.values():
        path, _, test = name.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), name


def test_the_table_of_jobs_is_read() -> None:
    rows = ROW.findall(text_of("README"))
    body = text_of("README").partition("## What do you have?")[2].partition("\n## ")[0]
    assert len(rows) == len(re.findall(r"^\| ", body, re.MULTILINE)) - 1  # its heading
    outputs = [command.partition(" -o ")[2].split()[0] for command in rows if " -o " in command]
    assert len(set(outputs)) == len(outputs)  # one after another, in one folder


def accepted(arguments: Sequence[str]) -> None:
    """Raise unless regframe takes this command line, whose files need not be there."""
    command: click.Command = main
    context, left = click.Context(main), list(arguments)
    while isinstance(command, click.Group):
        while left and left[0].startswith("-"):  # an option of regframe itself, with its value
            left = left[2:]
        _, found, left = command.resolve_command(context, left)
        assert found is not None, arguments
        command, context = found, click.Context(found, parent=context)
    values, _, _ = command.make_parser(context).parse_args(left)
    for param in command.get_params(context):
        assert not param.required or values.get(param.name), (param.name, arguments)


@pytest.mark.parametrize("step", [s for s in EVERY if s.language == "sh"], ids=lambda step: step.key)
def test_a_command_is_one_of_ours(step: Step) -> None:
    """Whether it is run or not: its options are there."""
    for part in re.split(r"\s*(?:&&|\|)\s*", step.text):
        words = shlex.split(part)
        if words[0] == "regframe" and len(words) > 1:
            accepted(words[1:])


@pytest.mark.parametrize(
    "step", [s for s in EVERY if s.language == "python" and not s.text.startswith("rule ")], ids=lambda s: s.page
)
def test_python_is_python(step: Step) -> None:
    compile(step.text, step.page, "exec")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "demo-data"
    done = CliRunner().invoke(main, ["demo", "--data", str(folder)])
    assert done.exit_code == 0, done.output
    assert "left out" not in done.output
    return folder


RUNNING = [page for page in PAGES if any(runs(step) for step in EVERY if step.page == page)]


DRIVER = """
import json, sys
import click.testing
from regframe.cli import main

page, given, before, steps = json.load(open(sys.argv[1], encoding="utf-8"))


def run(text, words):
    done = click.testing.CliRunner().invoke(main, words)
    assert done.exit_code == 0, f"{text}: {done.exit_code}\\n{done.output}"


if __name__ == "__main__":  # not in the processes that a page starts
    names = {"__name__": "__main__"}
    for words in before:
        run("before", words)
    exec(given, names)
    for text, words in steps:
        print(text, file=sys.stderr, flush=True)
        if words is None:
            exec(compile(text, f"{page}.md", "exec"), names)
        else:
            run(text, words)
"""
"""Runs the steps of one page in a process of its own, Python in one namespace, as a reader's session would."""


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING)
def test_a_page_runs_as_printed(page: str, data: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(data, place)
    found = [step for step in steps(page) if runs(step)]
    words = [None if step.language == "python" else shlex.split(step.text) for step in found]
    assert all(each is None or each[0] == "regframe" for each in words), "of other programs say where they are run"
    listed = [(step.text, each and each[1:]) for step, each in zip(found, words, strict=True)]
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    (tmp_path / "steps.json").write_text(json.dumps([page, GIVEN.get(page, ""), BEFORE.get(page, []), listed]))
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", tmp_path / "steps.json"],
        cwd=place, env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
