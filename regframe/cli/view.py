"""``regframe view``: a pair on a page of this machine, to be looked at, corrected and aligned again."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    bad_input,
    load_result,
    moved_options,
    open_side,
    overwrite_option,
    path_type,
    place_type,
    recorded_run,
    result_type,
    side_options,
    stated,
    verbose_option,
)

if TYPE_CHECKING:
    from ..remote.address import Remote
    from ..view.session import Setting


@click.command(short_help="Look at a pair in the browser, correct its map, align it again.")
@click.argument("places", type=place_type, nargs=-1, metavar="OUT | FIXED MOVING")
@click.option(
    "-o", "--output", type=path_type, metavar="NEW", help="Folder that Save writes; a name beside OUT otherwise."
)
@click.option("--browser/--no-browser", default=True, help="Open the page; without it the address alone is printed.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1; a free one otherwise.")
@click.option(
    "--draw-fixed",
    type=path_type,
    metavar="FILE",
    multiple=True,
    help="Points or GeoJSON of the fixed side, drawn on top.",
)
@click.option(
    "--draw-moving",
    type=path_type,
    metavar="FILE",
    multiple=True,
    help="The same of the moving side, moved by the map.",
)
@click.option("--replay", type=path_type, metavar="STEPS", help="Repeat the steps of a file and write -o NEW; no page.")
@moved_options
@side_options("fixed")
@side_options("moving")
@overwrite_option
@verbose_option
def view(places: tuple[Path | Remote, ...], **options: Any) -> None:
    """Show a finished run OUT, or a pair FIXED MOVING that has no map yet, on a page of this machine.

    The page is at 127.0.0.1 and opens once, for the browser that has its whole address; from another machine reach it with
    ssh -L PORT:127.0.0.1:PORT. Ctrl-C ends it; landmarks are kept beside the folder that Save writes.
    """
    setting = _setting(places, options)
    try:
        from ..view import server, session
    except ImportError as error:
        raise BadInput(f"wanted the extra 'view' for the page, got {error}; pip install 'regframe[view]'") from error
    if options["replay"] is not None:
        with bad_input():
            session.Session(setting).replay(options["replay"])
        click.echo(f"wrote {setting.output}")
        return
    from ..fit.threads import on_threads

    with on_threads(1), bad_input():  # every tile is made on a thread of its own
        drawn = {side: options[f"draw_{side}"] for side in ("fixed", "moving")}
        gate, shown = server.application(setting, drawn=drawn, warm=True)
        running = server.Running(gate, options["port"])
        running.start()
        click.echo(running.address)
        click.echo("Ctrl-C ends it; landmarks are kept as you work", err=True)
        if shown.said:
            click.echo(shown.said, err=True)
        if options["browser"]:
            webbrowser.open(running.address)
        try:
            running.wait()
        except KeyboardInterrupt:
            click.echo("ended; nothing is lost", err=True)
        finally:
            shown.close()
            running.stop()


def _setting(places: tuple[Path | Remote, ...], options: dict[str, Any]) -> Setting:
    if len(places) == 1 and isinstance(places[0], Path) and places[0].is_file():
        raise BadInput(
            f"wanted a folder OUT of a run, or two files FIXED MOVING, got {str(places[0])!r} alone; name both sides"
        )
    if len(places) == 1 and isinstance(places[0], Path):
        return _of_run(places[0], options)
    if len(places) != 2:
        raise BadInput(f"wanted a folder OUT of a run, or two files FIXED MOVING, got {len(places)} paths")
    return _of_pair((places[0], places[1]), options)


def _of_run(folder: Path, options: dict[str, Any]) -> Setting:
    """A finished run; its inputs are those that it recorded."""
    result_type.convert(folder, None, None)
    from ..io import outputs
    from ..remote.address import locate
    from ..view import steps
    from ..view.session import Setting
    from ..view.source import Source

    result = load_result(folder)
    with bad_input():
        run = recorded_run(folder, options["fixed"], options["moving"])
        output = options["output"] or folder.with_name(folder.name + "-corrected")
        outputs.check_folder(
            output, options["overwrite"], [folder, *(run[side]["path"] for side in ("fixed", "moving"))]
        )
    sources, words = [], ["--config", str(folder / outputs.CONFIG)]
    for side in ("fixed", "moving"):
        how = run[side]
        sources.append(Source(locate(how["path"]), how.get("adapter"), how.get("options") or {}))
        words += steps.option_words(side, how.get("adapter"), how.get("options") or {})
    kept = {side: run[side] for side in ("fixed", "moving")}
    return Setting(
        sources[0], sources[1], output, result, folder, kept, options["overwrite"], result.config, tuple(words)
    )


def _of_pair(places: tuple[Path | Remote, Path | Remote], options: dict[str, Any]) -> Setting:
    """Two files without a map."""
    from ..config import Config
    from ..io import outputs
    from ..view import steps
    from ..view.session import Setting
    from ..view.source import Source

    named = {"fixed": places[0], "moving": places[1]}
    output = options["output"] or Path(f"{_stem(places[1])}-on-{_stem(places[0])}")
    with bad_input():
        outputs.check_folder(output, options["overwrite"], places)
    sources, words, run = [], [], {}
    for side, path in named.items():
        _, reader, chosen = open_side(path, options[f"{side}_adapter"], stated(side, options))
        sources.append(Source(path, reader.name, chosen))
        words += steps.option_words(side, options[f"{side}_adapter"], chosen)
        run[side] = {"path": path.resolve(), "adapter": reader.name, "options": chosen}
    return Setting(sources[0], sources[1], output, None, None, run, options["overwrite"], Config(), tuple(words))


def _stem(path: Path | Remote) -> str:
    return path.name.partition(".")[0] or "side"
