"""Every way to install says what pyproject.toml says; forms and workflows are what they are read as; completion completes."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from regframe.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ELSEWHERE = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
"""Names on conda-forge of packages that PyPI calls otherwise."""


def promised() -> set[str]:
    names = (re.fullmatch(r"([\w-]+)>=([\w.]+)", text) for text in PROJECT["dependencies"])
    return {f"{ELSEWHERE.get(m[1], m[1])} >={m[2]}" for m in names if m is not None}


def recipe() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_recipe_wants_what_the_package_wants() -> None:
    found = recipe()
    assert set(found["requirements"]["run"]) == {"python", *promised()}
    assert len(promised()) == len(PROJECT["dependencies"])
    assert list(found) == [
        "schema_version",
        "context",
        "package",
        "source",
        "build",
        "requirements",
        "tests",
        "about",
        "extra",
    ]
    assert found["context"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    assert found["about"]["license"] == PROJECT["license"]
    assert found["about"]["license_file"] == PROJECT["license-files"]
    assert all((ROOT / name).is_file() for name in found["about"]["license_file"])
    points = {f"{name} = {place}" for name, place in PROJECT["scripts"].items()}
    assert set(found["build"]["python"]["entry_points"]) == points
    host = " ".join(found["requirements"]["host"])
    assert all(name in host for name in ("pip", "setuptools >=80", "pybind11 >=2.13", "pytorch >=2.10", "numpy >=2"))


@pytest.mark.parametrize("system", ["linux-64", "linux-aarch64", "osx-arm64", "win-64"])
def test_the_recipe_is_rendered_by_the_tool_that_builds_it(system: str) -> None:
    rattler = pytest.importorskip("rattler_build", reason="needs py-rattler-build, of the extra release")
    given = {"python": ["3.11.* *_cpython", "3.14.* *_cp314"], "c_stdlib": ["sysroot"], "cxx_compiler": ["gxx"]}
    config = rattler.RenderConfig(platform=rattler.PlatformConfig(target_platform=system, build_platform="linux-64"))
    made = rattler.Stage0Recipe.from_file(ROOT / "recipe" / "recipe.yaml").render(rattler.VariantConfig(given), config)
    assert [variant.recipe.build.string[:5] for variant in made] == ["py311", "py314"]
    for variant in made:
        needs = variant.recipe.requirements
        assert {str(entry) for entry in needs.run} == {"python", *promised()}
        assert f"gxx_{system}" in map(str, needs.build)
        assert ("pytorch" in map(str, needs.build)) == (system != "linux-64")


def test_the_environment_of_conda_wants_what_the_package_wants() -> None:
    found = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = {entry for entry in found["dependencies"] if isinstance(entry, str)}
    assert promised() <= plain
    assert {"python >=3.11,<3.15", "cxx-compiler", "ninja", "pybind11 >=2.13", "setuptools >=80"} <= plain


def test_the_image_builds_what_the_package_wants_and_keeps_no_compiler() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    build, final = (part.partition("\n")[2] for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert all(f'"{one}"' in build or f" {one} " in build for one in wanted if not one.startswith("torch"))
    assert ".ci/wheel" in build
    assert not re.search(r"g\+\+|gcc|cxx|build-essential", final)
    [extras] = re.findall(r"regframe\[([\w,]+)\] @ file://", final)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "\nUSER regframe\n" in final
    assert final.endswith('\nENTRYPOINT ["regframe"]\nCMD ["--help"]\n')
    done = subprocess.run(["bash", "-n", ROOT / ".ci" / "check_image"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_citation_is_of_this_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["version"] == PROJECT["version"]
    assert found["license"] == PROJECT["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(reference["title"].rstrip(".") in readme for reference in found["references"])


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_form_asks_for_what_is_needed(form: Path) -> None:
    found = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(found)
    ids = [field["id"] for field in found["body"]]
    assert len(ids) == len(set(ids))
    for field in found["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]
    text = form.read_text(encoding="utf-8")
    assert "regframe doctor --json" in text
    assert "regframe shrink-case" in text


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    assert found["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job or job["runs-on"] for job in found["jobs"].values())
    targets = re.findall(r"run: make ([\w-]+)", text)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    sessions = re.findall(r"nox -s ([\w. -]+)", text)
    known = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert all(f"def {name.partition('-')[0]}(" in known for line in sessions for name in line.split())


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_shells_complete_commands_and_options(shell: type[ShellComplete]) -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert f"_REGFRAME_COMPLETE={shell.name}_source regframe" in page
    completion = shell(main, {}, "regframe", "_REGFRAME_COMPLETE")
    assert {item.value for item in completion.get_completions([], "re")} >= {"register", "report", "refine"}
    assert {item.value for item in completion.get_completions(["register"], "--fixed-")} >= {
        "--fixed-mpp",
        "--fixed-channel",
    }
