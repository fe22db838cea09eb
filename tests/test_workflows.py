"""The workflows of `docs/workflows`: their commands are ours, their descriptions say what they do, their schemas hold.

What checks a schema or runs a workflow is in the extra ``workflows``; without it those tests are skipped. Nextflow itself is no
Python package: of its modules the structure is checked, and their scripts are run by bash.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import regframe
from regframe.cli import main

ROOT = Path(__file__).resolve().parent.parent
FLOWS = ROOT / "docs" / "workflows"
MODULES = sorted((FLOWS / "nextflow" / "modules" / "regframe").iterdir())
WRAPPERS = sorted((FLOWS / "snakemake" / "bio" / "regframe").iterdir())
TOOLS = sorted((FLOWS / "galaxy").glob("regframe_*.xml"))
PAGE = ROOT / "docs" / "workflows.md"

STUB = """#!/bin/sh
# in place of regframe: writes down what it was asked for, and makes what it would leave
[ "$1" = --version ] && { echo "regframe 0.1.0"; exit; }
printf '%s\\n' "$@" > asked
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
case $out in
  *.*) echo carried > "$out" ;;
  *) mkdir -p "$out/transform.ome.zarr"; echo page > "$out/report.html"; echo page > "$out/summary.html"
     printf '{\\n "verdict": "warn"\\n}' > "$out/metrics.json" ;;
esac
exit $(cat code)
"""


def accepted(arguments: Sequence[str]) -> None:
    """Raise unless regframe takes this command line, whose files need not be there."""
    command: click.Command = main
    context, left = click.Context(main), list(arguments)
    while isinstance(command, click.Group):
        _, found, left = command.resolve_command(context, left)
        assert found is not None, arguments
        command, context = found, click.Context(found, parent=context)
    values, _, _ = command.make_parser(context).parse_args(left)
    for param in command.get_params(context):
        value = values.get(param.name)
        assert not param.required or isinstance(value, (str, tuple)), (param.name, arguments)
        if isinstance(value, str) and isinstance(param.type, (click.Choice, click.IntRange, click.FloatRange)):
            param.type_cast_value(context, value)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a regframe that ends with the number in the file ``code``."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "regframe"
    program.write_text(STUB)
    program.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ours(folder: Path) -> None:
    """A regframe on the PATH of a subprocess that is the one under test."""
    folder.mkdir(exist_ok=True)
    program = folder / "regframe"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from regframe.cli import main; main()" "$@"\n')
    program.chmod(0o755)


def commands() -> list[list[str]]:
    """The command lines of the page."""
    found = re.findall(r"^\$ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in found]


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_the_page_names_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert {line[0] for line in commands()} == {"snakemake", "nextflow", "planemo", "sbatch", "python", "kubectl"}
    for place in re.findall(r"docs/workflows[\w./-]*", text):
        assert (ROOT / place.rstrip("./")).exists(), place
    assert {path.name for path in FLOWS.iterdir()} == {"snakemake", "nextflow", "galaxy", "slurm", "kubernetes"}
    for name in (*(f"REGFRAME_{path.name.upper()}" for path in MODULES), *(path.name for path in TOOLS)):
        assert f"`{name}`" in text


# Nextflow


def part(text: str, name: str) -> str:
    """A part of a process, from its label to the next one."""
    return re.split(r"^    \w+:$", text.split(f"\n    {name}:\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def script(text: str, values: dict[str, str], name: str = "script") -> str:
    """The bash of a process as Nextflow would write it, with ``values`` for what it puts in."""
    body = textwrap.dedent(part(text, name).split('"""')[1])
    filled = re.sub(r"(?<!\\)\$\{([^}]*)\}", lambda found: values[found[1]], body)
    return "set -ue\n" + filled.replace("\\$", "$").replace("\\\\", "\\")


def names(element: Any) -> list[str]:
    """The names of the elements of a channel in a meta.yml."""
    return [next(iter(each)) for each in (element if isinstance(element, list) else [element])]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_a_module_is_as_its_meta_says(module: Path) -> None:
    text, meta = (module / "main.nf").read_text(), yaml.safe_load((module / "meta.yml").read_text())
    name = f"REGFRAME_{module.name.upper()}"
    assert text.startswith(f"process {name} {{\n")
    assert meta["name"] == name.lower()
    assert len(set(meta["keywords"])) >= 3
    assert all(text.count(open_) == text.count(close) for open_, close in ("{}", "()", "[]"))
    inputs = [re.findall(r"(?:val|path)\((\w+)", line) for line in part(text, "input").strip().splitlines()]
    assert inputs == [names(channel) for channel in meta["input"]]
    outputs = re.findall(r"^ *(.+), emit: (\w+)$", part(text, "output"), re.MULTILINE)
    described = {emit: names(channel[0]) for emit, channel in meta["output"].items()}
    assert {emit: re.findall(r"(?:val|path|env)[( ]['\"]?([^'\")]+)", line) for line, emit in outputs} == described
    for element in [e for channel in meta["input"] for e in (channel if isinstance(channel, list) else [channel])]:
        assert {"type", "description"} <= set(next(iter(element.values())))
    test = (module / "tests" / "main.nf.test").read_text()
    assert f'process "{name}"' in test
    assert 'script "../main.nf"' in test
    environment = yaml.safe_load((module / "environment.yml").read_text())
    assert "conda-forge::regframe=0.1.0" in environment["dependencies"]


def test_the_modules_are_read_by_a_parser_of_nextflow() -> None:
    reftrace = pytest.importorskip("reftrace", reason="in the extra workflows")
    read = reftrace.parse_modules(str(FLOWS / "nextflow"))
    assert not read.errors
    found = {process.name: process for module in read.results for process in module.processes}
    assert set(found) == {f"REGFRAME_{path.name.upper()}" for path in MODULES}
    assert not read.unresolved_includes  # of the pipeline
    assert all(process.condas and process.containers and process.labels for process in found.values())


@pytest.mark.parametrize(("code", "accept"), [(0, "0"), (3, "0"), (3, "3"), (2, "3")])
def test_a_module_lets_through_what_it_should(stub: Path, code: int, accept: str) -> None:
    values = {
        "task.cpus": "1",
        "fixed": "fixed/a.tif",
        "moving": "moving/b.tif",
        "prefix": "mouse1",
        "accepted": accept,
    }
    values |= {"pairs": "--landmarks three.csv", "args": "--transform affine", "task.process": "REGISTER"}
    (stub / "code").write_text(str(code))
    text = (FLOWS / "nextflow" / "modules" / "regframe" / "register" / "main.nf").read_text()
    ended = subprocess.run(
        ["bash", "-c", script(text, values) + "\necho $VERDICT"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == (code if code in (2,) or accept == "0" else 0)
    accepted(asked(stub))
    assert asked(stub)[:3] == ["register", "fixed/a.tif", "moving/b.tif"]
    if not ended.returncode:
        assert ended.stdout.strip() == "warn"
        assert yaml.safe_load((stub / "versions.yml").read_text()) == {"REGISTER": {"regframe": "0.1.0"}}


def test_modules_ask_for_what_regframe_takes(stub: Path) -> None:
    common = {"task.cpus": "4", "args": "", "prefix": "mouse1", "task.process": "P"}
    for module, values in (
        (
            "apply",
            {
                "command": "image",
                "result": "run",
                "input": "in.tif",
                "suffix": "ome.tif",
                "to": "fixed",
                "ids": "--labels",
            },
        ),
        (
            "apply",
            {"command": "points", "result": "run", "input": "in.csv", "suffix": "csv", "to": "moving", "ids": ""},
        ),
        ("batch", {"manifest": "jobs.csv", "memory": "--memory 900MiB", "accepted": "0"}),
    ):
        text = (FLOWS / "nextflow" / "modules" / "regframe" / module / "main.nf").read_text()
        subprocess.run(["bash", "-c", script(text, common | values)], check=True)
        accepted(asked(stub))
        assert asked(stub)[0] == module
        subprocess.run(["bash", "-c", script(text, common | values, "stub")], check=True)


def test_containers_of_nextflow_write_as_who_owns_the_work_folder() -> None:
    text = (FLOWS / "nextflow" / "nextflow.config").read_text()
    options = dict(re.findall(r"(docker|podman)\.runOptions = '(.*)'", text))
    page = (ROOT / "docs" / "install.md").read_text()
    for engine, option in (("docker", "--user $(id -u):$(id -g)"), ("podman", "--userns=keep-id:uid=1000,gid=1000")):
        assert options[engine] == f'--entrypoint "" {option}'
        [line] = re.findall(rf"^{engine} run (.*)$", page, re.MULTILINE)
        assert option in line.replace('"', "")


# Snakemake


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda path: path.name)
def test_a_wrapper_is_as_its_meta_says(wrapper: Path) -> None:
    meta = yaml.safe_load((wrapper / "meta.yaml").read_text())
    code = (wrapper / "wrapper.py").read_text()
    ast.parse(code)
    said = {kind: {next(iter(each)) for each in meta[kind]} for kind in ("input", "params")}
    used = {"input": set(re.findall(r"snakemake\.input(?:\.get\(\"|\.)(\w+)(?<!get)", code))}
    used["params"] = set(re.findall(r"snakemake\.params\.get\(\"(\w+)", code))
    assert used == said
    assert yaml.safe_load((wrapper / "environment.yaml").read_text())["dependencies"] == ["regframe =0.1.0"]
    assert f'"master/bio/regframe/{wrapper.name}"' in (wrapper / "test" / "Snakefile").read_text()


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, OMP_NUM_THREADS="1", PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``pairs``: one good pair with cells, one whose sides do not belong together."""
    import numpy as np
    from PIL import Image
    from skimage.data import immunohistochemistry

    folder = tmp_path_factory.mktemp("cohort")
    ours(folder / "bin")
    whole = immunohistochemistry()[:300, :300]
    noise = np.random.default_rng(0).integers(0, 255, whole.shape, dtype=np.uint8)
    for pair, moving in (("good", whole[10:290, 20:]), ("strangers", noise)):
        (folder / "pairs" / pair).mkdir(parents=True)
        Image.fromarray(whole).save(folder / "pairs" / pair / "fixed.png")
        Image.fromarray(moving).save(folder / "pairs" / pair / "moving.png")
    (folder / "pairs" / "good" / "cells.csv").write_text("id,x,y\na,60,100\nb,100,75\n")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="Snakemake is in the extra workflows")
def test_snakemake_runs_a_cohort(cohort: Path) -> None:
    snakefile = FLOWS / "snakemake" / "Snakefile"
    ended = snakemake(cohort, "--snakefile", str(snakefile))
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = (cohort / "verdicts.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["good", "pass"], ["strangers", "fail"]]
    carried = (cohort / "aligned" / "good" / "cells.csv").read_text().splitlines()
    assert carried[0] == "id,x,y,match_probability,position_sd,in_canvas"
    x, y = map(float, carried[1].split(",")[1:3])
    assert (x, y) == pytest.approx((80.0, 110.0), abs=0.3)
    again = snakemake(cohort, "--snakefile", str(snakefile))
    assert "Nothing to be done" in again.stderr + again.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="Snakemake is in the extra workflows")
def test_the_wrappers_run_by_their_own_tests(cohort: Path) -> None:
    (cohort / "prefix").mkdir()
    (cohort / "prefix" / "master").symlink_to(FLOWS / "snakemake")
    for name, targets in (
        ("register", ["pairs/good/run"]),
        ("apply", ["pairs/good/cells_in_fixed.csv", "pairs/good/warped.ome.tif"]),
    ):
        snakefile = FLOWS / "snakemake" / "bio" / "regframe" / name / "test" / "Snakefile"
        prefix = (cohort / "prefix").as_uri() + "/"
        ended = snakemake(cohort, "--snakefile", str(snakefile), "--wrapper-prefix", prefix, *targets)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert all((cohort / target).exists() for target in targets)
    # a verdict of fail ends the job, unless it is accepted
    snakefile = FLOWS / "snakemake" / "bio" / "regframe" / "register" / "test" / "Snakefile"
    ended = snakemake(cohort, "--snakefile", str(snakefile), "--wrapper-prefix", prefix, "pairs/strangers/run")
    assert ended.returncode != 0
    assert "confidence under 1 %" in (cohort / "logs" / "register" / "pairs" / "strangers.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="Snakemake is in the extra workflows")
def test_the_page_runs_snakemake_as_it_says(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "bin").symlink_to(cohort / "bin")
    good = cohort / "pairs" / "good"
    shutil.copytree(
        good, tmp_path / "cohort" / "pairs" / "a", ignore=shutil.ignore_patterns("run*", "cells_*", "warped*")
    )
    [line] = [line for line in commands() if line[0] == "snakemake"]
    ended = snakemake(tmp_path, *line[1:])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "cohort" / "verdicts.csv").read_text().splitlines()[1].startswith("a,pass")
    [body] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "Snakefile").write_text(body)
    (tmp_path / "pair").mkdir()
    for name, as_named in (("fixed.png", "he.ome.tif"), ("moving.png", "ihc.ome.tif"), ("cells.csv", "cells.csv")):
        picture = (good / name).read_bytes() if name.endswith("csv") else None
        if picture is None:
            from PIL import Image

            Image.open(good / name).save(tmp_path / "pair" / as_named)
        else:
            (tmp_path / "pair" / as_named).write_bytes(picture)
    ended = snakemake(tmp_path, "pair/cells_in_fixed.csv")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len((tmp_path / "pair" / "cells_in_fixed.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_modules_really_register_and_carry(cohort: Path, tmp_path: Path) -> None:
    good = cohort / "pairs" / "good"
    register, apply = (
        (FLOWS / "nextflow" / "modules" / "regframe" / n / "main.nf").read_text() for n in ("register", "apply")
    )
    common = {"task.cpus": "1", "args": "", "task.process": "P"}
    values = {
        "fixed": str(good / "fixed.png"),
        "moving": str(good / "moving.png"),
        "prefix": "run",
        "pairs": "",
        "accepted": "0",
    }
    environment = dict(os.environ, PATH=f"{cohort / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def ran(text: str) -> str:
        command = ["bash", "-c", text + "\necho ${VERDICT:-}"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert ran(script(register, common | values)).splitlines()[-1] == "pass"
    values = {
        "command": "points",
        "result": "run",
        "input": str(good / "cells.csv"),
        "suffix": "csv",
        "to": "fixed",
        "ids": "",
    }
    ran(script(apply, common | values | {"prefix": "carried"}))
    assert len((tmp_path / "carried.csv").read_text().splitlines()) == 3
    assert yaml.safe_load((tmp_path / "versions.yml").read_text()) == {"P": {"regframe": regframe.__version__}}


# Galaxy


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_a_galaxy_tool_uses_what_it_declares(tool: Path) -> None:
    root = ET.parse(tool).getroot()
    command = root.findtext("command")
    assert command is not None
    named = [
        param.get("name") or (param.get("argument") or "").lstrip("-")
        for param in root.iter("param")
        if param.get("type")
    ]
    outputs = [data.get("name") for data in root.findall("outputs/data")]
    groups = [group.get("name") for group in root.iter("conditional")]
    used = set(re.findall(r"(?<!\\)\$(?:\{)?([a-z_]\w*)", command))
    assert used == {*outputs, *groups, *(set(named) - {"kind", "input"})}
    assert {p.get("value") for p in root.findall("tests/test/param")} <= {
        "fixed.png",
        "moving.png",
        "three.csv",
        "affine",
        "run.zip",
    }


def test_galaxy_tools_follow_the_published_schema() -> None:
    etree = pytest.importorskip("lxml.etree", reason="in the extra workflows")
    macros = pytest.importorskip("galaxy.util.xml_macros", reason="galaxy-tool-util is in the extra workflows")
    import galaxy.tool_util

    schema = etree.XMLSchema(etree.parse(str(Path(galaxy.tool_util.__file__).parent / "xsd" / "galaxy.xsd")))
    for tool in TOOLS:
        schema.assertValid(macros.load(str(tool)))


def test_galaxy_commands_are_ours(stub: Path) -> None:
    pytest.importorskip("lxml.etree", reason="in the extra workflows")
    macros = pytest.importorskip("galaxy.util.xml_macros", reason="galaxy-tool-util is in the extra workflows")
    template = pytest.importorskip("Cheetah.Template", reason="galaxy-tool-util is in the extra workflows").Template

    class Data(str):
        """A data set of Galaxy: a path whose own name says nothing."""

        def __new__(cls, ext: str) -> Data:
            path = stub / f"dataset_{ext}.dat"
            path.write_text("data")
            new = super().__new__(cls, path)
            new.ext = ext
            return new

    class What(str):
        """What a select or a conditional gives to a template."""

    def ended(tool: Path, values: dict[str, Any]) -> int:
        text = macros.load(str(tool)).getroot().findtext("command").strip()
        folder = stub / "job"
        folder.mkdir()
        (folder / "code").write_text((stub / "code").read_text())
        line = str(template(text, searchList=[values])).replace("\n", " ")  # as Galaxy does it
        ran = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, check=False)
        accepted((folder / "asked").read_text().splitlines())
        folder.rename(stub / f"job {len(list(stub.glob('job*')))}")
        return ran.returncode

    register, apply = FLOWS / "galaxy" / "regframe_register.xml", FLOWS / "galaxy" / "regframe_apply.xml"
    values = {"fixed": Data("ome.tiff"), "moving": Data("png"), "transform": "lddmm", "seed": 0, "landmarks": None}
    values |= {"fixed_mpp": "", "moving_mpp": "0.5", "cells": False}
    values |= {name: str(stub / name) for name in ("report", "metrics", "result")}
    (stub / "bin" / "zip").write_text("#!/bin/sh\ntouch ../run.zip\n")
    (stub / "bin" / "unzip").write_text("#!/bin/sh\nmkdir run\n")
    for name in ("zip", "unzip"):
        (stub / "bin" / name).chmod(0o755)
    for code in (0, 3, 2):
        (stub / "code").write_text(str(code))
        assert ended(register, values | ({"landmarks": Data("csv"), "cells": True} if code else {})) == code
        assert (stub / "report").exists() == (code != 2)  # of a map that is not trusted too
        (stub / "report").unlink(missing_ok=True)
    (stub / "code").write_text("0")
    for kind, ext in (("image", "tiff"), ("labels", "png"), ("points", "csv"), ("shapes", "geojson")):
        what = What()
        what.kind, what.input = kind, Data(ext)  # type: ignore[attr-defined]
        places = {name: str(stub / f"{name}.out") for name in ("image", "points", "shapes")}
        assert ended(apply, {"result": Data("zip"), "what": what, "to": "moving", **places}) == 0
    assert all((stub / f"{name}.out").read_text() == "carried\n" for name in ("image", "points", "shapes"))


@pytest.mark.slow
def test_planemo_finds_no_fault() -> None:
    pytest.importorskip("planemo", reason="planemo is no part of an extra: it pins much")
    [line] = [line for line in commands() if line[0] == "planemo"]
    command = [sys.executable, "-c", "from planemo.cli import planemo; planemo()", *line[1:], "--fail_level", "warn"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# clusters


def documents(name: str) -> Any:
    return yaml.safe_load((FLOWS / "kubernetes" / name).read_text())


def test_kubernetes_runs_our_commands() -> None:
    cluster, job, volume = documents("cluster.yaml"), documents("job.yaml"), documents("volume.yaml")
    pods = [cluster["spec"]["worker"]["spec"], cluster["spec"]["scheduler"]["spec"], job["spec"]["template"]["spec"]]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    assert {
        v["persistentVolumeClaim"]["claimName"] for p in pods for v in p.get("volumes", []) if "emptyDir" not in v
    } == {volume["metadata"]["name"]}
    batch = containers[-1]
    assert batch["command"] == ["regframe"]  # the entry point of the image says so, but a DaskCluster has others
    accepted(batch["args"])
    assert f"tcp://{cluster['metadata']['name']}-scheduler:8786" in batch["args"]
    for pod in pods:  # what is mounted is there
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert all(mount["name"] in volumes for c in pod["containers"] for mount in c.get("volumeMounts", []))
    users = {container["securityContext"]["runAsUser"] for container in containers}
    assert {pod["securityContext"]["fsGroup"] for pod in pods if pod.get("volumes")} == users
    assert all(f"--uid {user}" in (ROOT / "Containerfile").read_text() for user in users)
    service = cluster["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]


def test_kubernetes_takes_dask_by_its_own_options() -> None:
    worker = pytest.importorskip("distributed.cli.dask_worker", reason="Dask is in the extra batch")
    scheduler = pytest.importorskip("distributed.cli.dask_scheduler", reason="Dask is in the extra batch")
    spec = documents("cluster.yaml")["spec"]
    for program, container in ((worker, spec["worker"]), (scheduler, spec["scheduler"])):
        name, *arguments = container["spec"]["containers"][0]["args"]
        assert name in program.__name__
        program.main.make_context(name, arguments)


def test_kubernetes_files_follow_the_published_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="in the extra workflows").validate
    jsonschema = pytest.importorskip("jsonschema", reason="in the extra workflows")
    for document in (documents("job.yaml"), documents("volume.yaml")):
        validate(document, "1.30", strict=True)
    cluster = documents("cluster.yaml")
    meta = {"apiVersion": "v1", "metadata": {"name": "x"}}
    for side in ("worker", "scheduler"):
        validate({**meta, "kind": "Pod", "spec": cluster["spec"][side]["spec"]}, "1.30", strict=True)
    validate({**meta, "kind": "Service", "spec": cluster["spec"]["scheduler"]["service"]}, "1.30", strict=True)
    spec = importlib.util.find_spec("dask_kubernetes")
    if spec is None or spec.origin is None:
        pytest.skip("dask-kubernetes, which has the schema of DaskCluster, is in the extra workflows")
    [crd] = Path(spec.origin).parent.rglob("crds/daskcluster.yaml")
    schema = yaml.safe_load(crd.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(cluster, schema)
    assert set(cluster["spec"]) <= set(schema["properties"]["spec"]["properties"])


def test_slurm_on_one_node(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "32768")
    command = ["bash", str(FLOWS / "slurm" / "one_node.sbatch"), "jobs.csv", "out"]
    (stub / "code").write_text("3")
    assert subprocess.run(command, check=False).returncode == 3
    accepted(asked(stub))
    assert asked(stub)[1:] == ["jobs.csv", "-o", "out", "--workers", "4", "--threads", "1", "--memory", "7372MiB"]
    (stub / "bin" / "regframe").write_text(
        "#!/bin/bash\ntrap 'echo ended > said; exit 143' TERM\ntouch began\nsleep 60 & wait\n"
    )
    running = subprocess.Popen(command)
    until = time.monotonic() + 30
    while not (stub / "began").exists() and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)  # two minutes before the job's end
    assert running.wait(30) == 143
    assert (stub / "said").read_text() == "ended\n"  # it was waited for


def test_slurm_on_many_nodes() -> None:
    spec = importlib.util.spec_from_file_location("many_nodes", FLOWS / "slurm" / "many_nodes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = module.parsed(["jobs.csv", "-o", "out", "--queue", "normal"])
    assert module.resources(options)["processes"] == options.cores
    slurm = pytest.importorskip("dask_jobqueue.slurm", reason="in the extra workflows")
    text = slurm.SLURMJob(scheduler="tcp://127.0.0.1:8786", name="worker", **module.resources(options)).job_script()
    assert {"#SBATCH -p normal", "#SBATCH --cpus-per-task=8", "#SBATCH -t 04:00:00"} <= set(text.splitlines())
    assert "--nworkers 8" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


# squidpy


@pytest.mark.filterwarnings("default")  # those of its dependencies are not ours
def test_the_recipe_for_squidpy_reaches_across_sections() -> None:
    pytest.importorskip("squidpy", reason="squidpy is no part of an extra")
    import anndata
    import numpy as np

    [body] = re.findall(
        r"<!-- squidpy -->\n```py\n(.*?)^```$", (ROOT / "docs" / "scverse.md").read_text("utf-8"), re.M | re.S
    )
    xy = np.random.default_rng(0).random((200, 2)) * 300
    reference, query = (
        anndata.AnnData(np.ones((200, 2), np.float32), obsm={"spatial": xy + by}) for by in (0.0, 500.0)
    )
    query.obsm["spatial_aligned"] = xy + 1.0
    query.obs["match_probability"] = np.repeat([0.9, 0.1], 100)
    names: dict[str, Any] = {"reference": reference, "query": query}
    exec(compile(body, "scverse.md", "exec"), names)
    assert names["across"].shape == (100, 300)
    own = names["across"][:, :200].tocsr()
    assert all(own[k, k] for k in range(100))  # a cell's own place on the other section is its neighbour
