"""Starts the processes of jobs: forked, on Linux, from one process that has loaded everything and run nothing.

A job has a process of its own, so that it can be limited, killed and lost alone. To load torch, the adapters and the report
takes a fresh process some seconds, longer than a small registration. The fork server loads them once for each worker; a job's
process is forked from it and starts at once, in the state of a process that has only imported. The server ends with the process
that asked for it, or when it has had nothing to do for a while. Where processes cannot be forked safely (anywhere but on Linux),
or the fork server cannot be started, a job's process is started afresh.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

IDLE = 30.0
"""Seconds without a job after which a fork server ends: it holds some 250 MiB."""
STARTING = 60.0
"""Seconds that a fork server may need until it is ready, ten times what a busy machine takes; then it is done without."""
_MESSAGE = 1 << 20
"""Largest request in bytes: a command line, a folder and the environment's few changes."""

LOADED = (
    "click", "jinja2", "numpy", "PIL.Image", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "pyexpat", "rich.progress",
    "scipy.fft", "scipy.ndimage", "scipy.optimize", "scipy.spatial", "tifffile", "torch", "xml.etree.ElementTree", "yaml", "zarr",
    "regframe.cli.job", "regframe.registration", "regframe.solvers.images", "regframe.solvers.mixed.solver",
    "regframe.solvers.points.align", "regframe.solvers.points.solver", "regframe.solvers.section", "regframe.starts",
    "regframe.fit.pyramid",
    "regframe.io.outputs", "regframe.io.store",
    "regframe.report.results", "regframe.slides.warp",
    "regframe_cells", "regframe_image", "regframe_metrics", "regframe_points", "regframe_vendor",
)  # fmt: skip
"""Modules that are loaded once, before any job: libraries, regframe's own, and the plug-ins that ship with it. Plug-ins of others
are loaded by each job."""


class Running(Protocol):
    """A job's process, as `subprocess.Popen` shows it."""

    pid: int
    returncode: int | None
    stdin: IO[bytes] | None

    def poll(self) -> int | None:
        """The exit code once it ended, negative for a signal; else None."""
        ...

    def kill(self) -> None:
        """End it by force."""
        ...

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        ...


class Forked:
    """A process forked by a fork server; told of its end by a pipe."""

    def __init__(self, pid: int, stdin: IO[bytes], ended: int) -> None:
        self.pid, self.stdin, self.returncode = pid, stdin, None
        self._ended = ended
        self._handle = os.pidfd_open(pid)

    pid: int
    stdin: IO[bytes] | None
    returncode: int | None

    def poll(self) -> int | None:
        """The exit code once it ended, negative for a signal; else None."""
        return self._look(0)

    def kill(self) -> None:
        """End it by force."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        while (code := self._look(None)) is None:
            pass
        return code

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
            said = os.read(self._ended, 32)
            if not said:  # the fork server was killed: so is what it forked, whose end nobody is told of
                self.kill()
                select.select([self._handle], [], [])
            self.returncode = int(said) if said else -int(signal.SIGKILL)
            os.close(self._ended)
            os.close(self._handle)
        return self.returncode


class _Server:
    """A fork server with one environment, seen from the process that asks it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment, self.owner = dict(environment), os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*_PYTHON, _SERVE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches the supervisor only
            )
        self._socket = ours
        ours.settimeout(STARTING)
        try:
            if not ours.recv(16):
                raise ConnectionError("the fork server did not start")
        except OSError:
            self.close()
            raise

    def start(self, command: Sequence[str], log: int) -> Forked:
        """Fork a process that runs ``regframe COMMAND``; raises OSError where the server is gone."""
        inlet, stdin = os.pipe()
        ended, tell = os.pipe()
        try:
            request = json.dumps({"command": list(command), "folder": str(Path.cwd())}).encode()
            socket.send_fds(self._socket, [request], [inlet, log, tell])
            said = self._socket.recv(32)
            if not said:
                raise ConnectionError("the fork server is gone")
            return Forked(int(said), os.fdopen(stdin, "wb"), ended)
        except BaseException:
            os.close(stdin)
            os.close(ended)
            raise
        finally:
            os.close(inlet)
            os.close(tell)

    def close(self) -> None:
        """End the server; what it forked goes on."""
        self._socket.close()
        self._process.terminate()
        self._process.wait()


_PYTHON = (sys.executable, "-P", "-c")
"""-P: modules in the current folder are not imported."""
_RUN = "from regframe.cli import main; main()"
_SERVE = f"from regframe.batch.forkserver import serve\nif serve(): {_RUN}"
_lock = threading.Lock()
_server: _Server | None = None


def start(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Running:
    """Start a process that runs ``regframe COMMAND``, with a pipe as its stdin; all that it says goes to ``log``.

    Args:
        command: arguments after ``regframe``.
        log: open file that takes its stdout and stderr.
        environment: its environment; a fork server serves one, so that another one costs a new server.
    """
    global _server
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with _lock:
            for _ in range(2):  # a server that was idle may end while it is asked
                try:
                    if _server is None or (_server.environment, _server.owner) != (environment, os.getpid()):
                        close()
                        _server = _Server(environment)
                    return _server.start(command, log.fileno())
                except (OSError, ValueError):
                    close()
    return subprocess.Popen(
        [*_PYTHON, _RUN, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=dict(environment),
        start_new_session=True,
    )


@atexit.register
def close() -> None:
    """End the fork server of this process; the jobs that it started go on."""
    global _server
    if _server is not None and _server.owner == os.getpid():
        _server.close()
    _server = None


# ------------------------------------------------------------------------------------------------ inside the fork server


def serve() -> bool:
    """The fork server: loads, then forks a process for each request; True in that one, with its command in `sys.argv`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in LOADED:
        with contextlib.suppress(ImportError):  # the job will say so
            importlib.import_module(name)
    control.send(b"ready")
    command = _forked(control)
    if command is not None:
        sys.argv = ["regframe", *command]
    return command is not None


def _forked(control: socket.socket) -> list[str] | None:
    """Fork for each request; returns its command in the new process, and None in the server once nobody asks any more."""
    wake, woken = os.pipe()  # a child that ends wakes the loop
    os.set_blocking(woken, False)
    previous = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    asked = True
    while asked or children:
        sources: list[int | socket.socket] = [wake, control] if asked else [wake]
        ready = select.select(sources, [], [], None if children else IDLE)[0]
        if not ready and not children:
            break
        if wake in ready:
            os.read(wake, 4096)
            _reap(children)
        if control in ready:
            message, handles, _, _ = socket.recv_fds(control, _MESSAGE, 3)
            if not message:
                asked = False  # the supervisor is gone: its jobs end by themselves, as their stdin ends
                continue
            inlet, log, tell = handles
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(previous)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for handle in (wake, woken, tell, *children.values()):
                    os.close(handle)
                control.close()
                return _settle(json.loads(message), inlet, log)
            children[pid] = tell
            os.close(inlet)
            os.close(log)
            control.send(str(pid).encode())
    return None


def _reap(children: dict[int, int]) -> None:
    """Tell the supervisor of each child that ended."""
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            tell = children.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(tell, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(tell)


def _settle(request: dict[str, object], inlet: int, log: int) -> list[str]:
    """Make a forked process the job's: its session, folder, streams and name; returns its command."""
    command = [str(part) for part in request["command"]]  # type: ignore[attr-defined]
    os.setsid()
    os.chdir(str(request["folder"]))
    for handle, stream in ((inlet, 0), (log, 1), (log, 2)):
        os.dup2(handle, stream)
    os.close(inlet)
    os.close(log)
    importlib.invalidate_caches()
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(" ".join(["regframe", *command]))
    return command
