"""Access control of the page: a layer around the application that checks each request first.

Only GET and HEAD, no bodies; on loopback no foreign Host (DNS rebinding: a name of another site that resolves to
127.0.0.1); the password, if one is set; no requests from other sites' pages; and strict security headers.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIVEZ = "/livez"  # only says that the process answers; needs no password, as health checks have none
WRONG_PASSWORD_S = 0.5
MAX_ADDRESS = 8 << 10  # bytes of path and query; a name is at most 1 KiB, 3 KiB once percent-encoded
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware.

    Args:
        password: "" = no password. A browser sends it as HTTP Basic (any user name), a program also as Bearer.
        hosts: names that are accepted in the Host header, without port; None = any.
    """

    def __init__(self, app: ASGIApp, *, password: str, hosts: Collection[str] | None) -> None:
        self._app = app
        self._digest = _digest(password.encode()) if password else None
        self._hosts = None if hosts is None else {host.casefold() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = await self._refusal(scope, Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    async def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        if scope["method"] not in ("GET", "HEAD"):
            return _refuse(405, "only GET and HEAD are allowed", {"Allow": "GET, HEAD"})
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_ADDRESS:
            return _refuse(414, f"an address is at most {MAX_ADDRESS} bytes long")
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return _refuse(413, "a request must not have a body")
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return _refuse(421, "this page is not served under this name; see --watch-allowed-hosts")
        if scope["path"] == LIVEZ:
            return None
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return _refuse(403, "requests from other sites' pages are not allowed")
        if self._digest is not None and not hmac.compare_digest(self._digest, _digest(_given(headers))):
            if "authorization" in headers:
                await asyncio.sleep(WRONG_PASSWORD_S)  # slows down guessing
            return _refuse(401, "password required", {"WWW-Authenticate": 'Basic realm="tidecast", charset="UTF-8"'})
        return None


def _refuse(code: int, text: str, headers: dict[str, str] | None = None) -> PlainTextResponse:
    return PlainTextResponse(f"{text}\n", code, headers)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _host(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").casefold()
    except ValueError:
        return ""


def _given(headers: Headers) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
