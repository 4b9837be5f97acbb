"""The editor's web server: of one round, or of all rounds of a storage."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from stabn.config import EditorConfig
from stabn.editor.auth import User
from stabn.editor.finish import describe
from stabn.editor.http import ApiError, SecurityHeaders, error_response, run_in_threadpool
from stabn.editor.rounds import Rounds
from stabn.editor.routes import Doors, with_slash
from stabn.editor.services import Services
from stabn.errors import StabnError

# Each of a network's many small steps asks for Python's lock again; at the usual 5 ms it would wait that long each time
# while others are being served.
SWITCH_SECONDS = 0.0005


class EditorError(StabnError):
    """The server cannot start."""


def create_app(services: Services, config: EditorConfig) -> Starlette:
    """Return the application that serves one round, at its address in the list of rounds too."""
    doors, own = Doors(config), services.board.round.round_id

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(services.run())
        yield
        task.cancel()
        services.close()

    async def elsewhere(request: Request) -> Response:
        message = f"the link names round {request.path_params['round_id']!r:.80}; this editor has round {own} open"
        return error_response(request, ApiError(404, "no_round", message))

    page, items = doors.page_routes("round", has_list=False), doors.round_routes(services)
    routes = [
        *page,
        *items,
        Route("/rounds/{round_id}", with_slash),
        Mount(f"/rounds/{own}", routes=[*page, *items]),
        Mount("/rounds/{round_id}", routes=[*page, Route("/{path:path}", elsewhere)]),
    ]
    return _application(doors, routes, lambda: services.is_ready, lifespan)


def create_rounds_app(rounds: Rounds, config: EditorConfig) -> Starlette:
    """Return the application that serves all rounds of a storage."""
    doors = Doors(config)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(rounds.run())
        yield
        task.cancel()
        await rounds.close()

    async def listed(request: Request) -> Response:
        user: User = request.state.user
        if request.query_params.get("look") == "1":  # who comes from a round finds there what they did
            await run_in_threadpool(rounds.refresh_opened)
        return JSONResponse(rounds.shown(user.name))

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await doors.authenticator.user(request)
            make = lambda services: Router(doors.round_routes(services))  # noqa: E731
            router = await rounds.enter(scope["path_params"]["round_id"], make)
        except Exception as error:
            await error_response(request, error)(scope, receive, send)
        else:
            await router(scope, receive, send)

    routes = [
        *doors.page_routes("rounds", has_list=True),
        Route("/api/rounds", doors.guarded(listed)),
        Route("/rounds/{round_id}", with_slash),
        Mount("/rounds/{round_id}", routes=[*doors.page_routes("round", has_list=True), Mount("/", app=enter)]),
    ]
    return _application(doors, routes, lambda: rounds.is_ready, lifespan)


def _application(
    doors: Doors,
    routes: list[BaseRoute],
    is_ready: Callable[[], bool],
    lifespan: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]],
) -> Starlette:
    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(request: Request) -> Response:
        return PlainTextResponse("ok") if is_ready() else PlainTextResponse("no storage", 503)

    middleware = [
        Middleware(SecurityHeaders, https=doors.authenticator.https),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5),
    ]
    probes = [Route("/healthz", healthy), Route("/readyz", ready)]
    return Starlette(routes=[*probes, *routes], middleware=middleware, lifespan=lifespan)


def serve(round_uri: str, storage_uri: str, config: EditorConfig) -> None:
    """Serve a round, or else all rounds of a storage, until interrupted; prints the address to open.

    Raises:
        EditorError: the port is taken, or neither a round nor a storage was named.
        StabnError: the round, the storage, the accounts or the settings cannot be used.
    """
    import uvicorn

    if not round_uri and not storage_uri:
        raise EditorError("name the storage whose rounds are corrected (--storage), or one round (--round)")
    sys.setswitchinterval(SWITCH_SECONDS)
    if round_uri:
        services = Services(round_uri, config)
        app, what = create_app(services, config), f"round {services.board.round.round_id}, "
        what += f"{len(services.board.videos)} videos"
    else:
        rounds = Rounds(storage_uri, config)
        app, what = create_rounds_app(rounds, config), f"{len(rounds)} rounds of {rounds.storage.uri}"
    listening = _listen(config)
    address = config.public_url or f"http://{config.host}:{listening.getsockname()[1]}"
    print(f"editor: {what}: {address}", flush=True)
    print(f"editor: finishing a round starts: {describe(config)}", flush=True)
    # proxy_headers would let anybody claim an address; auth.py believes configured proxies only.
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(settings).run(sockets=[listening])


def _listen(config: EditorConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer with a body waits for 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(512)
    except OSError as error:
        listening.close()
        raise EditorError(f"editor.port = {config.port} on {config.host}: {error.strerror}; choose another") from None
    return listening
