"""What every request passes: its id, its host and its key. Plain ASGI, nothing per chunk."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import uuid
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from headstock.errors import RequestError
from headstock.observe.log import log_request_as
from headstock.observe.metrics import Metrics
from headstock.server.http.answers import error_answer
from headstock.server.http.bodies import IGNORED
from headstock.server.http.inside import CALLER
from headstock.server.http.routes_page import PAGE_PATHS
from headstock.server.http.streaming import Message, Receive, Send
from headstock.server.keys import Caller, KeyRing

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class AllowedHosts:
    """Names that a request's Host header may have.

    On a loopback address only local names are allowed: a page whose name was made to point there
    (DNS rebinding) sends its own.

    Args:
        address: Where the server listens.
        names: More names; elsewhere than on loopback they are the only ones, if there are any.
    """

    def __init__(self, address: str, names: Sequence[str]) -> None:
        more = frozenset(name.lower() for name in names)
        if is_loopback(address):
            self._names: frozenset[str] | None = LOCAL | more | {address.lower()}
        else:
            self._names = more or None

    def refusal(self, scope: MutableMapping[str, Any]) -> RequestError | None:
        """Return why a request may not come by its host's name, or None."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            return RequestError(
                f"The request has {len(hosts)} Host headers.",
                remedy="Send exactly one, as HTTP/1.1 asks.",
                code="invalid_host",
            )
        if not hosts or self._names is None:
            return None
        name = name_of(hosts[0].decode("latin-1"))
        if name in self._names:
            return None
        return RequestError(
            f"The server is not called {name[:64]!r}.",
            remedy="Use localhost, or start the server with --allowed-host.",
            code="host_not_allowed",
        )


def is_loopback(address: str) -> bool:
    """Whether ``address`` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def name_of(host: str) -> str:
    """Return a Host header's name without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_cross_site(scope: MutableMapping[str, Any]) -> bool:
    """Whether a browser says that a page of another host sends this."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    if not origin:
        return headers.get(b"sec-fetch-site", b"") == b"cross-site"
    try:
        return (
            str(urlsplit(str(origin)).netloc).lower() != headers.get(b"host", b"").decode().lower()
        )
    except ValueError:
        return True


Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

OPEN_PATHS = frozenset({
    "/live", "/ready", "/health", "/ping", "/v2/health/live", "/v2/health/ready",
})  # fmt: skip
"""Routes that need no key: probes cannot send one."""
KEYLESS_PATHS = OPEN_PATHS | PAGE_PATHS
"""And the page, which asks for a key itself."""
ADMIN_ONLY_PATHS = frozenset({
    "/flush_cache", "/reset_prefix_cache", "/pause_generation", "/continue_generation",
    "/load_lora_adapter", "/unload_lora_adapter",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    "/update_weights_from_disk", "/update_weight_version", "/start_profile", "/stop_profile",
    "/release_memory_occupation", "/resume_memory_occupation", "/sleep", "/wake_up",
    "/get_weights_by_name",
})  # fmt: skip
"""Routes that change something for everybody."""
ADMIN_PATHS = ADMIN_ONLY_PATHS | {"/abort_request"}
"""Routes of control: a user may end its own requests."""
WATCHED_PATHS = OPEN_PATHS | {"/health_generate", "/metrics"}
"""Routes that machines ask all the time: a line for each would bury the others."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_SANE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_LISTED = 16
log = logging.getLogger("headstock.http")
audit = logging.getLogger("headstock.audit")


class Gate:
    """Lets requests with a key in, and names them.

    Args:
        app: What is behind.
        keys: Who may enter.
        metrics: Where refusals are counted.
        hosts: By which names.
        admin_port: Where the routes of control are; None: with the others.
    """

    def __init__(
        self,
        app: App,
        keys: KeyRing,
        metrics: Metrics,
        hosts: AllowedHosts,
        admin_port: int | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._hosts = hosts
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, in a task of its own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the connection knows to send no body
        if CALLER in scope:  # the server asks itself, and has said all that is said here
            await self._app(scope, receive, send)
            return
        named, authorization = _named_and_key(scope)
        request_id = uuid.uuid4().hex.encode()
        shown = named if _SANE_ID.fullmatch(named) else request_id
        scope["headstock.request_id"] = request_id.decode()
        scope["headstock.shown_id"] = shown.decode()

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", shown)]
                if ignored := scope.get(IGNORED):
                    message["headers"].append((b"x-ignored-fields", _listed(ignored)))
                path = getattr(scope.get("route"), "path", "no route")
                level = logging.DEBUG if path in WATCHED_PATHS else logging.INFO
                log.log(level, "%s %s %d", scope["method"], path, message["status"])
            await send(message)

        log_request_as(shown.decode())
        client = scope.get("client")
        caller = self._keys.caller(authorization, client[0] if client else None)
        refusal = self._refusal(scope, caller)
        answer = tagged
        if scope["path"].rstrip("/") in ADMIN_PATHS:
            answer = _audited(scope, caller, tagged)
        if refusal is not None:
            self._metrics.refused(refusal.code)
            await error_answer(refusal, scope["path"])(scope, receive, answer)
            return
        scope[CALLER] = caller
        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            # The server stops, and the connection with it: there is no client to answer.
            log.info("cut off by the shutdown")

    def _refusal(self, scope: Scope, caller: Caller | None) -> RequestError | None:
        """Return why a request goes no further, or None."""
        path = scope["path"].rstrip("/") or "/"
        if (refusal := self._hosts.refusal(scope)) is not None:
            return refusal
        if caller is None and path not in KEYLESS_PATHS:
            return RequestError(
                "The API key is missing or wrong.",
                remedy="Send Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        if self._admin_port is not None:
            is_admin_port = scope["server"][1] == self._admin_port
            if is_admin_port != (path in ADMIN_PATHS) and path not in WATCHED_PATHS:
                return RequestError(
                    "There is no such route on this port.",
                    remedy="Use the other one.",
                    code="not_found",
                )
        if path in ADMIN_PATHS and is_cross_site(scope):
            return RequestError(
                "A web page of another site may not control the server.",
                remedy="Send the request from a program, without Origin.",
                code="forbidden",
            )
        if path in ADMIN_ONLY_PATHS and caller is not None and not caller.is_admin:
            return not_admin()
        return None


def _named_and_key(scope: Scope) -> tuple[bytes, str]:
    """Return what a request's sender calls it, and how it shows its key; b"", "": not at all."""
    headers = dict(scope["headers"])
    authorization = headers.get(b"authorization", b"").decode("latin-1")
    if not authorization and b"x-api-key" in headers:  # as Anthropic's clients send it
        authorization = "Bearer " + headers[b"x-api-key"].decode("latin-1")
    return headers.get(b"x-request-id", b""), authorization


def not_admin() -> RequestError:
    """Return the error for a caller without the admin role."""
    return RequestError(
        "This needs a key with the admin role.",
        remedy="Ask the operator of the server.",
        code="forbidden",
    )


def _audited(scope: Scope, caller: Caller | None, send: Send) -> Send:
    """Have every action of control written down: who, from where, what, and whether it was done."""
    client = scope.get("client")
    who = "no key" if caller is None else caller.name

    async def audited(message: Message) -> None:
        if message["type"] == "http.response.start":
            audit.info(
                "%s from %s: %s %s %d",
                who, client[0] if client else "?", scope["method"], scope["path"],
                message["status"],
            )  # fmt: skip
        await send(message)

    return audited


def _listed(names: list[str]) -> bytes:
    """Return the first of ``names`` that a header can carry."""
    sane = [name.encode() for name in names if _SANE_NAME.fullmatch(name)]
    return b", ".join(sane[:MAX_LISTED]) or b"?"
