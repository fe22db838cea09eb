"""What the kits share: running them without pytest, failures as sentences, options and errors that must be refused so."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import SkipTest

from .. import strangers
from ..gate import FileError

__all__ = ["PluginTests", "SkipTest", "refusal", "run", "want"]


def want(true: bool, wanted: str, got: object, advice: str = "") -> None:
    """Fail with "wanted …, got …; …" unless ``true``."""
    __tracebackhide__ = True
    if not true:
        raise AssertionError(f"wanted {wanted}, got {got}" + (f"; {advice}" if advice else ""))


def refusal(call: Callable[[], Any], what: str, kinds: tuple[type[Exception], ...] = (ValueError,)) -> Exception | None:
    """The error that ``call`` raises, or None; fails where it is of another kind than ``kinds``, or not one sentence."""
    __tracebackhide__ = True
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        call()
    except kinds as error:
        text = str(error).strip()
        want(
            "\n" not in text and len(text.split()) >= 3,
            f"one sentence from the {type(error).__name__} for {what}",
            repr(text),
            "say what was wanted, what came and what to do",
        )
        return error
    except ImportError:  # a missing package is not a fault of the file
        raise
    except Exception as error:
        raise AssertionError(
            f"wanted {names} for {what}, got {type(error).__name__}: {' '.join(str(error).split())}; "
            "look at what came before it is used"
        ) from error
    return None


LONGEST = 20.0
"""Seconds that one use of a plug-in on the small data of the kit may take, on a busy machine too."""


class PluginTests:
    """Checks of a plug-in's class: its name, its docstring, its options.

    Attributes:
        bad_options: options, a mapping each, that ``__init__`` has to refuse with a ValueError. In addition, a word is passed to
            every option whose default is a number or true/false.
        variants: options, a mapping each, with which every check is run once more; beside these, the class's own ``variants``.
    """

    bad_options: ClassVar[Sequence[Mapping[str, Any]]] = ()
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def make(self) -> Any:
        """A new instance to test, with options of your choice."""
        raise NotImplementedError("wanted a method make() that returns a new instance of the class to test, got none")

    def test_name_and_summary(self) -> None:
        """``name`` is one word, and the first line of the docstring says what the class is."""
        cls = type(self.make())
        name = getattr(cls, "name", None)
        want(
            isinstance(name, str) and bool(name) and not any(c.isspace() or c in "=,:" for c in name),
            f"one word as {cls.__name__}.name",
            repr(name),
            "it is what users type",
        )
        summary = (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0]
        want(
            bool(summary),
            f"a docstring of {cls.__name__}",
            "none",
            "its first line is what `regframe plugins` prints",
        )

    def test_options_are_validated(self) -> None:
        """``__init__`` refuses senseless values with a ValueError of one sentence."""
        cls = type(self.make())
        cases: list[Mapping[str, Any]] = [
            {p.name: "no such value"}
            for p in inspect.signature(cls).parameters.values()
            if isinstance(p.default, (bool, int, float)) and p.kind is not inspect.Parameter.POSITIONAL_ONLY
        ]
        for options in [*cases, *self.bad_options]:
            shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
            want(
                refusal(lambda options=options: cls(**options), f"{cls.__name__}({shown})") is not None,  # type: ignore[misc]
                f"{cls.__name__}({shown}) to be refused",
                "an instance",
                "check options in __init__ and raise a ValueError",
            )

    def _used(self, folder: Path) -> None:
        """One use of the plug-in on small data, as in a run; skipped where there are none."""
        raise SkipTest("it has nothing small to be used on")

    def test_leaves_the_process_alone(self, tmp_path: Path) -> None:
        """Being made and used changes nothing that the whole process shares, prints nothing, and takes at most 20 s."""
        printed, began = io.StringIO(), time.perf_counter()
        with strangers.restored() as changed, contextlib.redirect_stdout(printed):
            self._used(tmp_path)
        took = time.perf_counter() - began
        who = type(self.make()).__name__
        want(
            not changed,
            f"{who} to leave the process as it was",
            ", ".join(changed),
            "set it for your own code alone, and put it back",
        )
        said = " ".join(printed.getvalue().split())
        want(
            not said,
            f"nothing on standard output from {who}, which is the command's",
            repr(said[:80]),
            "use warnings, or logging",
        )
        want(took <= LONGEST, f"at most {LONGEST:g} s for one use of {who} on small data", f"{took:.1f} s")

    def test_variants(self) -> None:
        """All other checks pass too with each of the ``variants``, the sets of options that the kit or the class names."""
        cls = type(self.make())
        named = [*type(self).variants, *(v for v in getattr(cls, "variants", ()) if v not in type(self).variants)]
        for options in named:
            shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
            body = {"make": lambda _, options=options: cls(**options), "test_variants": None}
            for check, status, message, _ in run(type("Variant", (type(self),), body)):
                if status == "failed":
                    raise AssertionError(
                        f"wanted every check to pass with {shown} too, got a failure of {check}: {message}"
                    )


def run(
    tests: type[PluginTests], only: Collection[str] = ()
) -> Iterator[tuple[str, Literal["ok", "failed", "skipped"], str, float]]:
    """Run every check of a kit's subclass (or those in ``only``), each on a new instance with a folder of its own.

    Yields name, status, message and seconds as in `Outcome`. Any exception makes a check fail, except ImportError (a missing
    extra), which skips it, and KeyboardInterrupt, which is raised. Warnings and output of the plug-in are not shown.
    """
    for name in _names(tests):
        if only and name.removeprefix("test_") not in only:
            continue
        status: Literal["ok", "failed", "skipped"] = "ok"
        message = ""
        began = time.perf_counter()
        try:
            with _silence():
                check = getattr(tests(), name)
                if "tmp_path" in inspect.signature(check).parameters:
                    with tempfile.TemporaryDirectory(prefix="regframe-check-", ignore_cleanup_errors=True) as folder:
                        check(tmp_path=Path(folder))
                else:
                    check()
        except SkipTest as reason:
            status, message = "skipped", str(reason)
        except ImportError as error:  # a missing extra; the adapter's message says which
            status, message = "skipped", " ".join(str(error).split())
        except AssertionError as error:
            status, message = "failed", " ".join(str(error).split()) or "an assertion failed"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code, whose faults are to be reported
            status, message = "failed", _said(error)
        yield name.removeprefix("test_"), status, message, time.perf_counter() - began


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppresses warnings, logs and output: a plug-in's libraries report damaged files, which are damaged on purpose here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _names(tests: type[PluginTests]) -> list[str]:
    """The checks in the order in which they are written, those of the kit first, without those set to None."""
    names: dict[str, None] = {}
    for cls in reversed(tests.__mro__):
        names.update(dict.fromkeys(name for name in vars(cls) if name.startswith("test_")))
    return [name for name in names if callable(getattr(tests, name))]


def _said(error: BaseException) -> str:
    """An error in words; of one that the gate took for a damaged file, what the plug-in raised, and in which line of it."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cause = error.__cause__
    if not isinstance(error, FileError) or cause is None or isinstance(cause, (ValueError, OSError)):
        return words
    *_, last = traceback.extract_tb(cause.__traceback__) or [None]
    where = f" in {Path(last.filename).name}, line {last.lineno}" if last is not None else ""
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}{where}; to a user it reads: {words}"
