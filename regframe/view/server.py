"""Answers the page: its files, tiles, landmarks, and what happens meanwhile; on this machine alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..io.outputs import to_json
from . import pairfiles, pairs
from .display import png
from .drawn import Drawing
from .gate import Gate
from .layers import Layer
from .pairs import Pair, Stale
from .session import Session, Setting

FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "talk.js": "text/javascript; charset=utf-8",
    "pictures.js": "text/javascript; charset=utf-8",
    "marks.js": "text/javascript; charset=utf-8",
    "controls.js": "text/javascript; charset=utf-8",
    "region.js": "text/javascript; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
    "openseadragon.LICENSE.txt": "text/plain; charset=utf-8",
}
"""The page's files, by name, each with its type: nothing else is ever read from the disk for a request."""
_STYLE = 4000
"""Characters of the colours and contrasts in a tile's address."""
_WARM = 3.0
"""Seconds after the page was first asked for until the process that aligns is started."""
_BEAT = 10.0
"""Seconds after which a silent stream of events sends a sign of life."""
Endpoint = Callable[[Request], Awaitable[Response]]


class Events:
    """Sends what happens to every open window."""

    def __init__(self) -> None:
        self._open: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[str | None]]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def tell(self, word: str, value: Any) -> None:
        """Send one event; from any thread."""
        self._put(f"event: {word}\ndata: {to_json(value)}\n\n")

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._put(None)

    def _put(self, text: str | None) -> None:
        with self._lock:
            windows = list(self._open)
        for loop, queue in windows:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, text)

    async def stream(self) -> AsyncIterator[str]:
        """The events of one window."""
        window = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        with self._lock:
            self._open.add(window)
        try:
            yield ": hello\n\n"
            while not self._closed:
                try:
                    text = await asyncio.wait_for(window[1].get(), _BEAT)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            with self._lock:
                self._open.discard(window)


class Page:
    """The application behind the gate.

    Args:
        session: what is shown.
        events: how windows hear of changes.
        drawings: what is drawn over the pictures.
        warm: whether to start the process that aligns before it is asked to.
    """

    def __init__(
        self, session: Session, events: Events, drawings: tuple[Drawing, ...] = (), warm: bool = False
    ) -> None:
        self._warm = warm
        self.session, self.events = session, events
        own = [
            Drawing.of_points(side.name, name, side.points)  # type: ignore[arg-type]
            for name, side in (("fixed", session.fixed), ("moving", session.moving))
            if side.points is not None
        ]
        self.drawings = (*own, *drawings)
        self._files = {
            name: resources.files(__package__).joinpath("static", name).read_bytes() for name in FILES
        }  # fmt: skip

    def routes(self) -> list[Route]:
        """Every address that is answered."""
        get, post = ["GET"], ["POST"]
        key, number = "{key:str}", "{level:int}/{column:int}/{row:int}"
        return [
            Route("/", self.index, methods=get),
            Route("/static/{name:str}", self.static, methods=get),
            Route("/api/state", _told(self.state), methods=get),
            Route(f"/tiles/{{side:str}}/{key}/{number}", _told(self.tile), methods=get),
            Route(f"/layers/{key}/{{name:str}}", _told(self.layer), methods=get),
            Route(f"/layers/{key}/{{name:str}}/legend", _told(self.legend), methods=get),
            Route(f"/lines/{key}/{{name:str}}", _told(self.lines), methods=get),
            Route(f"/drawn/{key}/{{index:int}}", _told(self.drawn), methods=get),
            Route("/api/values", _told(self.values), methods=get),
            Route("/api/landmarks", _told(self.landmarks), methods=get),
            Route("/api/landmarks", _told(self.put_landmarks), methods=["PUT"]),
            Route("/api/landmarks/{way:str}", _told(self.step), methods=post),
            Route("/api/predict", _told(self.predict), methods=post),
            Route("/api/import", _told(self.import_), methods=post),
            Route("/api/export/{name:str}", _told(self.export), methods=get),
            Route("/api/place", _told(self.place), methods=post),
            Route("/api/follow", _told(self.follow), methods=post),
            Route("/api/correct", _told(self.correct), methods=post),
            Route("/api/align", _told(self.align), methods=post),
            Route("/api/stop", _told(self.stop), methods=post),
            Route("/api/decide", _told(self.decide), methods=post),
            Route("/api/save", _told(self.save), methods=post),
            Route("/api/events", self.listen, methods=get),
        ]

    # ---- the page's files -------------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The page."""
        return self._file("index.html")

    async def static(self, request: Request) -> Response:
        """One of the page's own files."""
        name = request.path_params["name"]
        return self._file(name) if name in FILES else _problem("there is no such file", 404)

    def _file(self, name: str) -> Response:
        return Response(self._files[name], headers={"content-type": FILES[name], "cache-control": "no-cache"})

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def state(self, request: Request, body: Any) -> Any:
        """All that the page needs to begin."""
        session = self.session
        if self._warm:  # after the first picture, which has the machine for itself
            self._warm = False
            timer = threading.Timer(_WARM, session.worker.warm)
            timer.daemon = True
            timer.start()
        sides = {}
        for name, side in (("fixed", session.fixed), ("moving", session.moving)):
            look = session.looks[name]
            sides[name] = {
                "name": side.name,
                "unit": side.grid.unit,
                "pixels": look is not None,
                "kind": None if look is None else look.kind,
                "channels": [] if look is None else [
                    {"name": n, "color": c.color, "low": c.low, "high": c.high, "least": a, "most": b, "on": i < 4}
                    for i, (n, c, (a, b)) in enumerate(zip(look.names, look.channels, look.limits, strict=False))
                ],
            }  # fmt: skip
        return {
            "canvas": session.canvas.told(),
            "cores": os.cpu_count() or 1,
            "planes": [] if session.planes is None else session.planes.told(),
            "sides": sides,
            "maps": session.maps(),
            "landmarks": session.landmarks(),
            "drawings": [
                {"name": d.name, "side": d.side, "count": len(d.coords), "offsets": d.offsets, "left_out": d.left_out}
                for d in self.drawings
            ],
            "exports": pairfiles.offered(flat=session.planes is None),
            "output": str(session.setting.output),
            "said": session.said,
        }  # fmt: skip

    def tile(self, request: Request, body: Any) -> Response:
        """One tile."""
        at = request.path_params
        style = request.query_params.get("style", "")
        if at["side"] not in ("fixed", "moving") or len(style) > _STYLE:
            raise ValueError("wanted a tile of the fixed or the moving side, got another one")
        plane = request.query_params.get("plane", "")
        data = self.session.tile(at["side"], at["key"], at["level"], at["column"], at["row"], style, plane)
        return _kept(data, "image/png")

    def layer(self, request: Request, body: Any) -> Response:
        """A layer of colours over the whole canvas."""
        made = self._layer(request)
        return _kept(png(made.colours[..., :3], made.colours[..., 3]), "image/png")

    def legend(self, request: Request, body: Any) -> Any:
        """What its colours mean."""
        made = self._layer(request)
        return {"low": made.low, "high": made.high, "unit": made.unit, "ramp": made.ramp}

    def _layer(self, request: Request) -> Layer:
        fields = self.session.map_of(request.path_params["key"]).fields
        return fields.layer(request.path_params["name"], self.session.slice_of(request.query_params.get("plane", "")))

    def lines(self, request: Request, body: Any) -> Any:
        """The deformed grid, or arrows: lines of positions on the canvas, in its pixels, x before y."""
        fields = self.session.map_of(request.path_params["key"]).fields
        name, plane = request.path_params["name"], request.query_params.get("plane", "")
        if name not in ("grid", "arrows"):
            raise ValueError("wanted the lines of the grid or the arrows, got others")
        cut, planes, canvas = self.session.slice_of(plane), self.session.planes, self.session.canvas.grids[0]
        if planes is not None:
            canvas = planes.canvases[planes.read(plane)[0]].grids[0]
        found = fields.arrows(cut) if name == "arrows" else fields.lines() if cut is None else fields.cuts(cut)
        (oy, ox), (sy, sx) = canvas.origin, canvas.spacing
        return [[[round((x - ox) / sx + 0.5, 2), round((y - oy) / sy + 0.5, 2)] for y, x in line] for line in found]

    def drawn(self, request: Request, body: Any) -> Response:
        """Positions of a drawing under a map."""
        index = request.path_params["index"]
        if not 0 <= index < len(self.drawings):
            raise ValueError("wanted one of the drawings, got none")
        shown = self.session.map_of(request.path_params["key"])
        data = self.drawings[index].positions(shown.result.transform.points, self.session.canvas.grids[0])
        return _kept(data, "application/octet-stream")

    def values(self, request: Request, body: Any) -> Any:
        """What lies under the pointer."""
        query = request.query_params
        at = _flat([_number(query.get("y")), _number(query.get("x"))])
        return self.session.values(query.get("key", ""), at, query.get("plane", ""))

    # ---- landmarks --------------------------------------------------------------------------------------------------

    def landmarks(self, request: Request, body: Any) -> Any:
        """The list, judged under a map."""
        return self.session.landmarks(request.query_params.get("key", ""))

    def put_landmarks(self, request: Request, body: Any) -> Any:
        """A changed list."""
        given = _mapping(body)
        found = given.get("pairs")
        if not isinstance(found, list) or not isinstance(given.get("revision"), int):
            raise ValueError("wanted a list of pairs and the revision it was made from, got something else")
        ndim = self.session.fixed.grid.ndim
        self.session.pairs.put([Pair.of(pair, ndim) for pair in found], given["revision"])
        self.session.changed()
        return self._followed(given)

    def step(self, request: Request, body: Any) -> Any:
        """Undo or redo."""
        ways = {"undo": -1, "redo": 1}
        way = request.path_params["way"]
        if way not in ways:
            raise ValueError("wanted undo or redo, got another word")
        self.session.pairs.step(ways[way])
        self.session.changed()
        return self._followed(_mapping(body))

    def _followed(self, given: Mapping[str, Any]) -> Any:
        """The list after a change, judged under a map; with ``follow`` the map goes along: then also ``maps``, or the ``problem``
        for which it cannot."""
        session = self.session
        more: dict[str, Any] = {}
        if given.get("follow") is True and pairs.used(session.pairs.now):
            try:
                session.follow()
                more = {"maps": session.maps()}
            except ValueError as error:
                more = {"problem": " ".join(str(error).split())}
        return session.landmarks(str(given.get("key", ""))) | more

    def predict(self, request: Request, body: Any) -> Any:
        """The partner of a position."""
        given = _mapping(body)
        at = _place(given.get("at"), self.session.fixed.grid.ndim)
        return {"at": self.session.predicted(str(given.get("key")), _side(given.get("side")), at)}

    def import_(self, request: Request, body: Any) -> Any:
        """Pairs out of what a file holds, or a file for each side: text, or ``{"base64": …}`` of bytes."""
        given, session = _mapping(body), self.session
        sides = session.grids()
        both, one, other = (_content(given.get(name)) for name in ("both", "fixed", "moving"))
        if isinstance(both, bytes):
            raise ValueError(
                "wanted a file .npy, .roi or .zip for each side, got one alone; choose both together, the fixed side's first"
            )
        if both is not None:
            found = pairfiles.read(both, sides)
        elif one is not None and other is not None:
            session.check_flat("a file of landmarks of each side")
            fixed = pairfiles.read_side(one, sides.fixed)
            found = pairfiles.together(fixed, pairfiles.read_side(other, sides.moving))
        else:
            raise ValueError("wanted the text of a file of landmarks, got none")
        session.pairs.put(session.pairs.added(found))
        session.changed()
        return session.landmarks(str(given.get("key", "")))

    def export(self, request: Request, body: Any) -> Response:
        """The landmarks in the file of a program."""
        name = request.path_params["name"]
        if name not in pairfiles.WRITERS:
            raise ValueError(f"wanted one of {', '.join(pairfiles.WRITERS)}, got another name")
        if name not in pairfiles.OF_VOLUMES:
            self.session.check_flat("landmarks in that program's file")
        file, write = pairfiles.WRITERS[name]
        text = write(self.session.pairs.now, self.session.grids())
        kind = "application/octet-stream" if isinstance(text, bytes) else "text/plain; charset=utf-8"
        return Response(text, headers={"content-type": kind,
                                       "content-disposition": f'attachment; filename="{file}"'})  # fmt: skip

    # ---- the map ----------------------------------------------------------------------------------------------------

    def place(self, request: Request, body: Any) -> Any:
        """Move the moving side by hand."""
        given = _mapping(body)
        shift = _flat(given.get("shift", [0, 0]))
        turn, scale = _number(given.get("turn", 0)), _number(given.get("scale", 1))
        self.session.place(turn, bool(given.get("mirror", False)), scale, shift, str(given.get("to", "")))
        return self.session.maps()

    def follow(self, request: Request, body: Any) -> Any:
        """Correct the map by the landmarks."""
        self.session.follow()
        return self.session.maps()

    def correct(self, request: Request, body: Any) -> Any:
        """Correct the map inside a region."""
        rings = _mapping(body).get("region")
        if not isinstance(rings, list) or not all(isinstance(ring, list) for ring in rings):
            raise ValueError("wanted outlines of a region, got something else")
        self.session.correct([[_flat(vertex) for vertex in ring] for ring in rings])
        return self.session.maps()

    def align(self, request: Request, body: Any) -> Any:
        """Align anew."""
        self.session.align(str(_mapping(body).get("begin")))
        return self.session.maps()

    def stop(self, request: Request, body: Any) -> Any:
        """Stop aligning."""
        self.session.worker.stop()
        return self.session.maps()

    def decide(self, request: Request, body: Any) -> Any:
        """Take the new map, or leave it."""
        self.session.decide(bool(_mapping(body).get("take")))
        return self.session.maps()

    def save(self, request: Request, body: Any) -> Any:
        """Write the folder."""
        return self.session.save()

    async def listen(self, request: Request) -> Response:
        """What happens, as it happens."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self.events.stream(), media_type="text/event-stream", headers=headers)


def application(
    setting: Setting,
    token: str | None = None,
    drawn: Mapping[str, Sequence[Path]] | None = None,
    warm: bool = False,
) -> tuple[Gate, Session]:
    """The guarded application and its session.

    Args:
        setting: what is shown.
        token: the word in the first address; a random one where None.
        drawn: files of points and GeoJSON by side, drawn on top.
        warm: whether to start the process that aligns once the page is up.

    Raises what opening the files raises.
    """
    events = Events()
    session = Session(setting, events.tell)
    given = drawn or {}
    fixed = [Drawing.of_file(path, "fixed", session.grids().fixed) for path in given.get("fixed", ())]
    moving = [Drawing.of_file(path, "moving", session.grids().moving) for path in given.get("moving", ())]
    page = Page(session, events, (*fixed, *moving), warm)
    gate = Gate(Starlette(routes=page.routes()), token)
    gate.end = events.close
    return gate, session


class Running:
    """The server on a thread of its own, so that the main thread hears Ctrl-C.

    Args:
        gate: what is served.
        port: of 127.0.0.1; 0 takes a free one. Raises OSError where it is taken.
    """

    def __init__(self, gate: Gate, port: int = 0) -> None:
        import uvicorn

        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}/?token={gate.token}"
        config = uvicorn.Config(
            gate, log_level="critical", access_log=False, lifespan="off", ws="none", server_header=False, date_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._gate, self._server = gate, uvicorn.Server(config)
        self._ended = threading.Event()  # a thread whose join Ctrl-C cuts short counts as ended, which it is not
        self._thread = threading.Thread(target=self._serve, name="regframe-view", daemon=True)

    def _serve(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._ended.set()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def wait(self) -> None:
        """Return when the server has ended; Ctrl-C comes out of here as KeyboardInterrupt."""
        while not self._ended.wait(0.2):
            pass

    def stop(self) -> None:
        """End it, and every stream of events."""
        self._gate.end()
        self._server.should_exit = True
        if self._ended.wait(0.4):  # else it closes the socket itself, and would stumble over one that is gone
            self._socket.close()


def _told(answer: Callable[[Request, Any], Any]) -> Endpoint:
    """An endpoint out of a plain function, which runs on a thread; a ValueError, OSError or ImportError is told in one
    sentence."""

    async def endpoint(request: Request) -> Response:
        body: Any = None
        if request.method in ("POST", "PUT"):
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return _problem("wanted JSON, got another type", 415)
            text = await request.body()
            try:
                body = json.loads(text) if text else {}
            except (ValueError, RecursionError):
                return _problem("wanted JSON, got something else", 400)
        try:
            found = await run_in_threadpool(answer, request, body)
        except Stale as error:
            return _problem(str(error), 409)
        except (ValueError, OSError, ImportError) as error:
            return _problem(" ".join(str(error).split()) or type(error).__name__, 400)
        return found if isinstance(found, Response) else Response(
            to_json(found), headers={"content-type": "application/json", "cache-control": "no-store"}
        )  # fmt: skip

    return endpoint


def _problem(words: str, status: int) -> Response:
    return JSONResponse({"problem": words}, status_code=status)


def _kept(data: bytes, kind: str) -> Response:
    """An answer that the browser may keep: its address names a map that never changes."""
    return Response(data, headers={"content-type": kind, "cache-control": "private, max-age=86400"})


def _mapping(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError("wanted named values, got something else")
    return body


def _content(value: Any) -> str | bytes | None:
    """What a file holds, as the page sends it; None where it sends nothing."""
    if isinstance(value, Mapping):
        try:
            return base64.b64decode(str(value.get("base64", "")), validate=True)
        except ValueError as error:
            raise ValueError("wanted the bytes of a file as base64, got something else") from error
    return value if isinstance(value, str) else None


_PLAIN = re.compile(r"[-+0-9.eE]{1,30}")


def _number(value: Any) -> float:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError("wanted a number, got something else")


def _place(value: Any, ndim: int = 2) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != ndim:
        raise ValueError(f"wanted a position {'y, x' if ndim == 2 else 'z, y, x'}, got something else")
    found = tuple(_number(v) for v in value)
    if not all(abs(v) < 1e15 for v in found):
        raise ValueError("wanted a position near the pictures, got one far away")
    return found


def _flat(value: Any) -> tuple[float, float]:
    y, x = _place(value)
    return y, x


def _side(value: Any) -> str:
    if value not in ("fixed", "moving"):
        raise ValueError("wanted the fixed or the moving side, got another one")
    return str(value)
