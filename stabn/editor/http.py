"""What every request meets: limits, errors as JSON, and the headers that keep the page to itself."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stabn.attention.rounds import RoundError
from stabn.data.edit_table import EditError
from stabn.errors import RetryableError, StabnError
from stabn.text import parse_json

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 256 << 10
MAX_IMPORT_BYTES = 64 << 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

__all__ = ["ApiError", "Response", "SecurityHeaders", "error_response", "read_body", "read_json", "run_in_threadpool"]


class ApiError(StabnError):
    """A request that cannot be served: status, a word for the page to act on, and one line for the person."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.details = status, code, details


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body.

    Raises:
        ApiError: it is larger than the limit.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ApiError(413, "too_large", f"the request is larger than {limit >> 10} KiB; send less at once")
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, **fields: type | tuple[type, ...]) -> dict[str, Any]:
    """Return the fields of a request's JSON object; each must be there and of its type, and no other.

    Raises:
        ApiError: something else was sent; names the field.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "not_json", "send the request as application/json")
    try:
        content = parse_json(await read_body(request, MAX_JSON_BYTES))
    except ValueError as error:
        raise ApiError(400, "not_json", f"the request is not JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise ApiError(400, "bad_request", "the request is not a JSON object")
    for name, kind in fields.items():
        value = content.get(name)
        wrong = isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))
        if name not in content or wrong or not isinstance(value, kind):
            raise ApiError(400, "bad_request", f"{name} = {value!r:.100}: missing or of another type than expected")
    if unknown := sorted(set(content) - set(fields)):
        raise ApiError(400, "bad_request", f"{unknown[0]!r:.100}: no such field; reload the page")
    return content


def error_response(request: Request, error: Exception) -> Response:
    """Turn an error into one line that a person may see; what storage says goes to the log."""
    headers: dict[str, str] = {}
    if isinstance(error, ApiError):
        status, code, message, details = error.status, error.code, str(error), error.details
        if "retry_after" in details:
            headers["Retry-After"] = str(details["retry_after"])
    elif isinstance(error, EditError | RoundError):
        status, code, message, details = 400, "bad_edit", str(error), {}
    elif isinstance(error, RetryableError):
        log.warning("%s %s: %s", request.method, request.url.path, error)
        status, code, message, details = 503, "storage", "the object storage does not answer; trying again helps", {}
    elif isinstance(error, StabnError):
        log.error("%s %s: %s", request.method, request.url.path, error)
        status, code, message, details = 500, "server", "the server cannot do this; its log says why", {}
    else:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        status, code, message, details = 500, "server", "something failed in the server; its log says what", {}
    return JSONResponse({"error": message, "code": code, **details}, status, headers)


class SecurityHeaders:
    """Add the headers that keep the page from loading, sending or being framed by anything foreign."""

    def __init__(self, app: ASGIApp, https: bool) -> None:
        self.app = app
        self.headers = dict(SECURITY_HEADERS)
        if https:
            self.headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


Handler = Callable[[Request], Awaitable[Response]]
