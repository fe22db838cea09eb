"""Lets only the user's own browser in: a one-time token, then a cookie; this machine's names and this page alone.

A page of another site that the user has open may send requests to any port of this machine; a name of another site may be
pointed at this machine (DNS rebinding). Both are refused before a request reaches the application: the first by the cookie, which
is never sent from another site, and by the header ``Origin``; the second by the header ``Host``.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 8 << 20
"""Largest body of a request, in bytes: landmarks of some 50 000 pairs. More is refused before it is read."""
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine under which the page may be asked for, with any port: an SSH port-forward brings its own."""
_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""Hash of the one style sheet that OpenSeadragon 6.1.1 puts into the page."""
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src 'self'; style-src 'self' {_STYLE}; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""Sent with every answer: nothing is loaded from elsewhere, and no other page may embed or read this one."""

_OPENING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>regframe</title>'
    '<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Open the page</a></p></html>'
)


class Gate:
    """An ASGI application that passes on what comes from the user's own page.

    Args:
        app: what is guarded.
        token: the word in the first address; it opens once. A random one where None.
    """

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self._app = app
        self.token = token or secrets.token_urlsafe(24)
        self.end: Callable[[], None] = lambda: None
        self._spent = False
        self._key = secrets.token_urlsafe(32)
        self.cookie = f"regframe-{secrets.token_hex(4)}"  # cookies do not know ports: each server has a name of its own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, let in, or pass on one request."""
        if scope["type"] != "http":  # web sockets are not used
            return
        answer = self._refusal(scope)
        if answer is None:
            await self._app(scope, _Bounded(receive), _with_headers(send))
        else:
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return _refused(403, f"wanted a request to one of {', '.join(NAMES)}, got another host name")
        for name, value in headers:
            if name == "origin" and value.lower() != f"http://{hosts[0].lower()}":
                return _refused(403, "wanted a request from this page, got one from another site")
            if name == "sec-fetch-site" and value.lower() not in ("same-origin", "none") and not _first(scope):
                return _refused(403, "wanted a request from this page, got one from another site")
            if name == "content-length" and (not value.isdecimal() or int(value) > MOST_BYTES):
                return _refused(413, f"wanted at most {MOST_BYTES >> 20} MiB, got more")
        if self._known(value for name, value in headers if name == "cookie"):
            return None
        return self._opened(scope)

    def _known(self, cookies: Any) -> bool:
        for text in cookies:
            try:
                found = SimpleCookie(text).get(self.cookie)
            except CookieError:
                continue
            if found is not None and hmac.compare_digest(found.value.encode(), self._key.encode()):
                return True
        return False

    def _opened(self, scope: Scope) -> Response:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        right = hmac.compare_digest(given.encode(), self.token.encode())
        if scope["path"] == "/" and scope["method"] == "GET" and right and not self._spent:
            self._spent = True
            answer = HTMLResponse(
                _OPENING
            )  # not a redirect: from a link on another site it would come without the cookie
            answer.set_cookie(self.cookie, self._key, httponly=True, samesite="strict", path="/")
            return answer
        why = "the address was used before: its word opens once" if right else "the address lacks its word"
        return _refused(403, f"{why}; stop `regframe view` and start it again, which loses nothing")


def _first(scope: Scope) -> bool:
    """Whether a request may be the first one, by the address with its word, which may stand as a link on any page."""
    return bool(scope["path"] == "/" and scope["method"] == "GET" and scope["query_string"].startswith(b"token="))


class _Bounded:
    """Receives a body of at most `MOST_BYTES`, whatever length was announced; a longer one ends as if the browser had left."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._left = receive, MOST_BYTES

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                return {"type": "http.disconnect"}
        return message


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sending


def _refused(status: int, words: str) -> Response:
    return PlainTextResponse(words + "\n", status_code=status)
