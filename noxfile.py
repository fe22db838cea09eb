"""The ends of what is promised: ``nox -s oldest`` and ``nox -s newest``, each on every Python that is there.

The package is compiled once for each. ``nox -s oldest-3.11 -- tests/io`` passes what follows ``--`` to pytest.
"""

import subprocess
import sys

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
TESTED = ["tables"]
"""Extras whose packages the quick tests read and write with."""

QUICK = [
    "tests/io",
    "tests/maps",
    "tests/test_data.py",
    "tests/test_result.py",
    "tests/test_register.py",
    "tests/cli/test_cli.py",
]
BUILD = ["setuptools>=80", "wheel", "pybind11>=2.13", "ninja"]
nox.options.sessions = ["oldest", "newest"]


def tested(session: nox.Session, *pins: str, torch: str) -> None:
    """Install the package with ``pins`` and run the quick tests, or what was asked for, without the linters' tools."""
    session.install(*BUILD, torch, *pins)
    session.install("--no-build-isolation", f".[{','.join(TESTED)}]", *pins)
    session.install("pytest>=8", "pytest-benchmark>=5", "hypothesis>=6.100")
    session.run("regframe", "doctor")
    session.run(
        "pytest", "-q", "-W", "default", "-m", "not slow", *(session.posargs or QUICK), env={"OMP_NUM_THREADS": "1"}
    )


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The lower bound of every requirement, on the oldest Python."""
    done = subprocess.run([sys.executable, ".ci/oldest.py", *TESTED], capture_output=True, text=True, check=True)
    tested(session, *done.stdout.split(), torch="torch==2.10.0")


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest of every requirement, on each Python."""
    tested(session, torch="torch")
