"""What the commands share: errors as one sentence, exit codes, common options, progress on stderr."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..gate.boundary import chatter
from ..gate.limits import parse_size, set_most_bytes
from ..gate.meant import meant
from ..gate.screen import printable
from ..strangers import fault_of, returned
from . import folders, interrupts, streams

if TYPE_CHECKING:
    from ..contracts import Adapter
    from ..data import Grid, Image, PointSet, Pyramid
    from ..group.together import Together
    from ..remote.address import Remote
    from ..result import Result

EXIT_FAIL = 3
"""Done, everything written, but the verdict is worse than what was required: ``fail``, where nothing else is asked for."""

_VERBOSE = "regframe.verbose"
_F = TypeVar("_F", bound=Callable[..., Any])


class BadInput(click.ClickException):
    """Something the user gave cannot be used: one sentence on stderr, exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn what a wrong file, value or path raises (ValueError, OSError), or a reader that is an extra, into `BadInput`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadInput(sentence(fault_of(error) or error)) from error
    except ImportError as error:
        if not str(error).startswith("wanted the package "):
            raise
        raise BadInput(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The message of an exception on one line; for pydantic's errors with the name of the setting."""
    if hasattr(error, "errors") and type(error).__name__ == "ValidationError":
        return "; ".join(_setting_problem(item) for item in error.errors())
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return printable(f"wanted an existing file or folder, got {str(error.filename)!r}, which does not exist")
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    text = str(error.args[1]) if isinstance(error, OSError) and len(error.args) > 1 else str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def _setting_problem(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_settings(item["loc"][:-1])
        return f"there is no setting {key!r}; known are {', '.join(known)}{meant(item['loc'][-1], known)}"
    wanted = str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"wanted for the setting {key!r} {wanted}, got {item['input']!r}"


def _known_settings(path: Sequence[Any]) -> list[str]:
    from ..config import Config, Section

    section: type[Section] = Config
    for part in path:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    return list(section.model_fields)


class Main(click.Group):
    """The group of all commands; an unforeseen exception becomes one line and exit code 1 (with ``-v`` a traceback)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it opens is noted, so that nothing is made of an input that is replaced meanwhile."""
        from ..io.inputs import watched

        if isinstance(sys.stdout, io.TextIOWrapper):  # a path is printed byte by byte as it is, whatever it holds
            sys.stdout.reconfigure(errors="surrogateescape")
        with warnings.catch_warnings(), watched(), chatter() as said:
            warnings.showwarning = _Shown(said)
            ctx.call_on_close(lambda: _show_chatter(ctx, said))
            try:
                found = super().invoke(ctx)
                sys.stdout.flush()
                return found
            except (click.exceptions.Exit, click.Abort, BrokenPipeError):  # BrokenPipeError: output piped into `head`
                raise
            except click.ClickException as error:
                _show_traceback(ctx, error.__cause__)
                raise
            except KeyboardInterrupt as stop:
                interrupts.say("interrupted; nothing was written")
                ctx.exit(interrupts.code_of(stop))
            except OSError as error:
                from ..io.replacing import FULL

                if error.errno not in FULL:
                    return self._defect(ctx, error)
                _show_traceback(ctx, error)
                click.echo(f"Error: {sentence(error)}; make room, and run the same again", err=True)
                ctx.exit(2)
            except MemoryError as error:
                _show_traceback(ctx, error)
                click.echo("Error: not enough memory; take a coarser level with --level", err=True)
                ctx.exit(1)
            except SystemExit as error:  # click ends a command by exceptions of its own
                _show_traceback(ctx, error)
                where = _raised_in(error)
                click.echo(
                    f"Error: {where} ended the program (sys.exit({error.code!r})); leave it out, or report it", err=True
                )
                ctx.exit(1)
            except Exception as error:  # noqa: BLE001 - the last line: users get a sentence, not a stack
                self._defect(ctx, error)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; signals that ask it to end are handled (`regframe.cli.interrupts`)."""
        with interrupts.handled():
            return super().main(*args, **options)

    def _defect(self, ctx: click.Context, error: Exception) -> None:
        _show_traceback(ctx, error)
        fault = fault_of(error)
        if fault is not None:
            click.echo(f"Error: {sentence(fault)}", err=True)
            ctx.exit(2)
        hint = "" if ctx.meta.get(_VERBOSE) else "; run again with -v for the traceback"
        click.echo(f"Defect: {type(error).__name__}: {sentence(error)}{hint}, and please report it", err=True)
        ctx.exit(1)


def _show_traceback(ctx: click.Context, error: BaseException | None) -> None:
    if error is not None and ctx.meta.get(_VERBOSE):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _show_chatter(ctx: click.Context, said: Sequence[str]) -> None:
    """With ``-v``, what libraries logged."""
    if ctx.meta.get(_VERBOSE):
        for line in said:
            click.echo(printable(line), err=True)


def _raised_in(error: BaseException) -> str:
    """The module that an exception comes from, in words: that of a plug-in rather than of what it called."""
    trace, modules = error.__traceback__, []
    while trace is not None:
        modules.append(str(trace.tb_frame.f_globals.get("__name__", "?")))
        trace = trace.tb_next
    return f"the module {modules[-1] if modules else '?'}"


_OF_LIBRARIES = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    RuntimeWarning,
    ImportWarning,
    ResourceWarning,
)
"""Warnings that are for who writes programs: ours are none of these."""


class _Shown:
    """Prints a warning on stderr, each text once: a file that is opened twice says what it says once.

    Args:
        said: gets those of libraries, which are not printed.
    """

    def __init__(self, said: list[str]) -> None:
        self._texts: set[str] = set()
        self._said = said

    def __call__(self, message: Warning | str, category: Any = UserWarning, *_: Any, **__: Any) -> None:
        """Print one warning."""
        of_library = not type(message).__module__.startswith(("builtins", "regframe"))
        if of_library or (isinstance(category, type) and issubclass(category, _OF_LIBRARIES)):
            self._said.append(f"{getattr(category, '__name__', category)}: {message}")
            return
        if str(message) not in self._texts:
            self._texts.add(str(message))
            click.echo(printable(f"Warning: {message}"), err=True)


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_VERBOSE] = True


def _keep_apart(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    """With ``--json``, keep standard output for the one object that `emit_json` prints."""
    if value:
        ctx.with_resource(streams.apart())
    return value


def _set_most_bytes(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        with bad_input():
            parse_size(value)
            set_most_bytes(value)


max_bytes_option = click.Option(
    ["--max-bytes"],
    metavar="SIZE",
    expose_value=False,
    callback=_set_most_bytes,
    help="Most bytes that one file may unpack to, such as 8G (REGFRAME_MAX_BYTES); 4G where not stated.",
)
verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_verbose,
    help="Show the traceback of an error.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_keep_apart,
    help="One JSON object on stdout, everything else on stderr.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
path_type = click.Path(path_type=Path)


class _PlaceType(click.Path):
    """A path, or the address of a store that is not on this disk."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `pathlib.Path` or a `regframe.Remote`."""
        from ..remote.address import locate

        with bad_input():
            return locate(value)


class _InputType(_PlaceType):
    """A path or an address that is read: a path where nothing is, is refused before the command loads what it needs."""

    def __init__(self, wanted: str = "an existing file or folder") -> None:
        super().__init__(path_type=Path)
        self.wanted = wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `pathlib.Path` of something, or a `regframe.Remote`; `BadInput` for a path of nothing."""
        place = super().convert(value, param, ctx)
        if isinstance(place, Path) and place != streams.STREAM and "://" not in str(place):
            with bad_input():
                self.find(place)
                if not place.exists():
                    raise FileNotFoundError(f"wanted {self.wanted}, got {str(place)!r}, which does not exist")
        return place

    def find(self, path: Path) -> None:
        """Nothing more is looked for."""


class _FileType(click.Path):
    """A path on this disk that is read, refused before the command loads what it needs where nothing is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `pathlib.Path` of something; `BadInput` for a path of nothing."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.exists():
            raise BadInput(printable(f"wanted an existing file or folder, got {str(value)!r}, which does not exist"))
        return path


class _ResultType(_InputType):
    """The folder of a saved result on this disk."""

    def __init__(self) -> None:
        super().__init__("a folder that `regframe register` wrote")

    def find(self, path: Path) -> None:
        """Give a folder its name whose writer died between two renames; ValueError for a folder of several results."""
        if not path.exists():
            from ..io.claims import heal

            heal(path)
        folders.check_single(path)


class _NumberType(click.types.FloatParamType):
    """A number with a decimal point; one with a comma is refused with the number that is meant."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A float."""
        try:
            return float(value)
        except ValueError:
            likely = str(value).replace(",", ".", 1)
            point = f"; write {likely} with a point" if re.fullmatch(r"[-+]?\d+,\d+", str(value)) else ""
            self.fail(f"wanted a number such as 0.5, got {value!r}{point}", param, ctx)


number_type = _NumberType()
place_type = _PlaceType(path_type=Path)
input_type = _InputType()
file_type = _FileType(path_type=Path)
result_type = _ResultType()


def on_disk(path: Path | Remote, what: str) -> Path:
    """The path; `BadInput` for an address, where a command reads or writes ``what`` on this disk alone."""
    if not isinstance(path, Path):
        raise BadInput(f"wanted {what} on this disk, got {str(path)!r}; copy it")
    return path


def emit_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    from ..io.outputs import to_json

    with streams.own():
        click.echo(to_json(value, indent=2))


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Numbers with an exponent, of which YAML 1.1 takes those without a dot or a sign for words."""


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """``k=v`` options as a dict, values read as YAML, and ``1e-3`` as a number too; `BadInput` for anything else."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"wanted {option} KEY=VALUE, got {pair!r}")
        try:
            number = _EXPONENT.fullmatch(text.strip())
            values[key.strip()] = float(text) if number else yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError as error:
            raise BadInput(f"wanted a YAML value in {option} {pair}, got {text!r}") from error
    return values


def options(*group: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """A decorator that adds several arguments and options; help lists them in this order."""

    def decorate(command: _F) -> _F:
        for option in reversed(group):
            command = option(command)
        return command

    return decorate


result_argument = click.argument("result_folder", type=result_type, metavar="OUT")


def folder_option(metavar: str = "OUT", help: str = "Folder to write.") -> Callable[[_F], _F]:
    """The option ``-o``, the folder that a command writes, passed as ``out``."""
    return click.option("-o", "--output", "out", type=path_type, required=True, metavar=metavar, help=help)


def level_option(help: str) -> Callable[[_F], _F]:
    """The option ``--level``, 0 the finest."""
    return click.option("--level", type=click.IntRange(min=0), metavar="N", help=help)


def workers_option(help: str) -> Callable[[_F], _F]:
    """The option ``--workers``, at least one."""
    return click.option("--workers", type=click.IntRange(min=1), metavar="N", help=help)


def device_option(help: str) -> Callable[[_F], _F]:
    """The option ``--device``, checked by `regframe.devices.check`."""
    return click.option("--device", metavar="cpu|cuda|cuda:N|auto", help=help)


def input_options(adapter: str, pairs: str) -> Callable[[_F], _F]:
    """The options ``--adapter`` and ``--adapter-set`` for a command's input, with the given help texts."""
    return options(
        click.option("--adapter", metavar="NAME", help=adapter),
        click.option("--adapter-set", metavar="K=V", multiple=True, help=pairs),
    )


save_warped_option = click.option("--save-warped", is_flag=True, help="Also write the moving data on the fixed canvas.")
moved_options = options(
    *(
        click.option(f"--{side}", type=path_type, metavar="FILE", help=f"The {side} file, where it lies elsewhere now.")
        for side in ("fixed", "moving")
    )
)


def side_options(side: str) -> Callable[[_F], _F]:
    """The options that state how one side is opened."""
    return options(
        click.option(f"--{side}-adapter", metavar="NAME", help=f"Adapter of the {side} side; sniffed otherwise."),
        click.option(f"--{side}-set", metavar="K=V", multiple=True, help=f"Option of the {side} adapter."),
        click.option(f"--{side}-mpp", type=number_type, metavar="UM", help=f"Pixel size of the {side} image in µm."),
        click.option(f"--{side}-channel", metavar="C", help=f"Channel of the {side} image, by name or number."),
        click.option(f"--{side}-nodata", metavar="V", help=f"Value of no data in the {side} image, a number or nan."),
        click.option(
            f"--{side}-mask", type=path_type, metavar="FILE", help=f"Image of the {side} canvas; 0: does not count."
        ),
    )


def stated(side: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for an adapter out of the `side_options` of one side."""
    pairs, mpp, channel = (options[f"{side}_{key}"] for key in ("set", "mpp", "channel"))
    out = adapter_options(pairs, f"--{side}-set", mpp, channel)
    nodata, mask = options[f"{side}_nodata"], options[f"{side}_mask"]
    if nodata is not None:
        try:
            out["nodata"] = nodata if nodata.lower() == "nan" else float(nodata)
        except ValueError:
            raise BadInput(f"wanted a number or nan for --{side}-nodata, got {nodata!r}") from None
    if mask is not None:
        out["mask"] = str(mask.resolve())
    return out


def adapter_options(
    pairs: Sequence[str], option: str, mpp: float | None = None, channel: str | None = None
) -> dict[str, Any]:
    """Keyword arguments for an adapter, from ``--*-set`` and from the options for pixel size and channel."""
    options = parse_pairs(pairs, option)
    if mpp is not None:
        options |= {"spacing": mpp, "unit": "µm"}
    if channel is not None:
        options["channels"] = int(channel) if channel.isdecimal() else channel
    return options


def open_side(
    path: Path | Remote, adapter: str | None, options: Mapping[str, Any], level: int | None = None
) -> tuple[Image | PointSet, Adapter, dict[str, Any]]:
    """Open a file; returns its data, the adapter that read it and the adapter's options; `BadInput` where it cannot be read.

    ``level`` is passed to adapters that have such an option, and ignored for others.
    """
    import regframe

    from .. import plugins
    from ..io import inputs

    with bad_input():
        inputs.note(path)
        reader = regframe.find_adapter(path, adapter, **options)
        if level is not None and "level" not in options:
            known = {entry.name: entry.options for entry in plugins.adapters()}
            if "level" in known.get(reader.name, ()):
                options = {**options, "level": level}
                reader = regframe.adapter(reader.name, **options)
        try:
            data = reader.open(path)
            return returned(data, (regframe.Image, regframe.PointSet), reader, "open"), reader, dict(options)
        except ImportError as error:  # a format whose reader is an extra
            raise BadInput(sentence(error)) from error


def say_notes(reader: Adapter, path: Path | Remote, side: str) -> None:
    """Say on stderr what an adapter took of a source that holds several things."""
    with bad_input():
        for note in reader.notes(path):
            click.echo(printable(f"{side}: {note}"), err=True)


def open_levels(path: Path | Remote, adapter: str | None, options: Mapping[str, Any]) -> tuple[Pyramid | None, Adapter]:
    """Every resolution of an image, lazy (None where the file is no image), and the adapter.

    `BadInput` where it cannot be read.
    """
    import regframe

    from ..io import inputs

    with bad_input():
        inputs.note(path)
        reader = regframe.find_adapter(path, adapter, **options)
        try:
            return reader.pyramid(path), reader
        except ImportError as error:  # a format whose reader is an extra
            raise BadInput(sentence(error)) from error


def finest_grid(path: Path | Remote, adapter: str | None, options: Mapping[str, Any]) -> Grid | None:
    """The grid of an image's own pixels, whatever level of it is registered; None where that is not known.

    `BadInput` where the file cannot be read.
    """
    whole = {name: value for name, value in options.items() if name not in ("level", "mask", "nodata", "channels")}
    pyramid, _ = open_levels(path, adapter, whole)
    return None if pyramid is None else pyramid.levels[0].grid


def load_result(path: Path) -> Result:
    """A saved result; `BadInput` where there is none."""
    import regframe

    from ..io.inputs import steady

    result_type.convert(path, None, None)
    with bad_input():
        return steady(path, regframe.load)


def recorded_run(folder: Path, fixed: Path | None, moving: Path | None) -> dict[str, Any]:
    """What a finished run recorded of its inputs: ``path``, ``adapter`` and ``options`` by side, and more.

    ``fixed`` and ``moving`` are the current paths of these files, if they were moved. Raises ValueError where ``folder`` is
    not the folder of a run or names no input, FileNotFoundError where an input is missing.
    """
    from .. import gate
    from ..io import outputs
    from ..remote.address import locate

    if not outputs.is_output(folder):
        raise ValueError(
            f"wanted a folder that `regframe register` wrote, got {folder}; name the files of a map that was saved alone with "
            "--fixed and --moving where the command takes them"
        )
    config = folder / outputs.CONFIG
    written = gate.read_yaml(config) or {} if config.is_file() else {}
    run: dict[str, Any] = written.get("run") or {}
    for side, given in (("fixed", fixed), ("moving", moving)):
        how = run.setdefault(side, {})
        if given is not None:
            how["path"] = str(given.resolve())
        if not how.get("path"):
            raise ValueError(f"wanted the {side} file, which {folder} does not record; pass --{side} FILE")
        if not locate(how["path"]).exists():
            raise FileNotFoundError(
                f"wanted the {side} file at {how['path']}, which does not exist; pass --{side} FILE"
            )
    return run


def open_recorded(run: Mapping[str, Any]) -> tuple[Image | PointSet, Image | PointSet]:
    """The fixed and the moving data of a `recorded_run`, opened in the same way as for that run."""
    from ..remote.address import locate

    fixed, moving = (
        open_side(locate(run[side]["path"]), run[side].get("adapter"), run[side].get("options") or {})[0]
        for side in ("fixed", "moving")
    )
    return fixed, moving


require_option = click.option(
    "--require",
    type=click.Choice(("warn", "pass")),
    default="warn",
    show_default=True,
    help="Verdict from which the exit code is 0; with pass, a map that is not confirmed ends with 3 too.",
)


def say_placed(found: Together, out: Path, kept: bool) -> None:
    """Say what a group or a mosaic came to, which of its images want a look, and where it lies."""
    click.echo(repr(found))
    for reason in found.reasons:
        click.echo(f"  {reason}")
    for image in found.metrics["images"]:
        if image["verdict"] != "pass":
            click.echo(f"  {image['name']}: {image['verdict']}: {image['reasons'][0]}")
    click.echo(
        f"{out} was finished before and is as it was" if kept else f"wrote {out} (report: {out / 'report.html'})"
    )


def finish(metrics: Mapping[str, Any], ctx: click.Context, require: str = "warn") -> None:
    """Leave with the exit code of the verdict: `EXIT_FAIL` where it is worse than ``require``."""
    from ..verdict import meets

    if "verdict" in metrics and not meets(metrics["verdict"], require):
        ctx.exit(EXIT_FAIL)
