"""What both kits share: failures as sentences, options that must be refused, errors that must be sentences."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from unittest import SkipTest

__all__ = ["PluginTests", "SkipTest", "refusal", "want"]


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


class PluginTests:
    """Checks of a plug-in's class: its name, its docstring, its options.

    Attributes:
        bad_options: options, a mapping each, that ``__init__`` has to refuse with a ValueError. In addition, a word is passed to
            every option whose default is a number or true/false.
    """

    bad_options: ClassVar[Sequence[Mapping[str, Any]]] = ()

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
