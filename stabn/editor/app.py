"""The editor's web server: routes, who may use them, and the page itself."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from stabn.config import EditorConfig
from stabn.editor.annotate import Annotate
from stabn.editor.auth import Authenticator, User
from stabn.editor.http import ApiError, Handler, SecurityHeaders, error_response, read_json, run_in_threadpool
from stabn.editor.lead import Lead
from stabn.editor.services import Services
from stabn.errors import StabnError

# Each of a network's many small steps asks for Python's lock again; at the usual 5 ms it would wait that long each time
# while others are being served.
SWITCH_SECONDS = 0.0005
STATIC = files("stabn.editor").joinpath("static")


class EditorError(StabnError):
    """The server cannot start."""


class PageFiles(StaticFiles):
    """The page's scripts and styles; browsers ask each time whether they changed."""

    def file_response(self, full_path, stat_result, scope: Scope, status_code: int = 200) -> Response:  # type: ignore[no-untyped-def]
        """Add the header that says so."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(services: Services, config: EditorConfig) -> Starlette:
    """Return the application that serves a round."""
    authenticator = Authenticator(config)
    annotate, lead = Annotate(services), Lead(services)

    def guarded(handler: Handler, leads_only: bool = False) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                request.state.user = await authenticator.user(request)
                if leads_only and not request.state.user.is_lead:
                    raise ApiError(403, "lead", "only leads may do this")
                if services.alone is not None and request.method != "GET":
                    await run_in_threadpool(services.confirm)
                return await handler(request)
            except Exception as error:
                return error_response(request, error)

        return handle

    def route(path: str, handler: Handler, method: str = "GET", leads_only: bool = False) -> Route:
        return Route(path, guarded(handler, leads_only), methods=[method])

    async def session(request: Request) -> Response:
        return JSONResponse(_session(request.state.user, config))

    async def sign_in(request: Request) -> Response:
        try:
            body = await read_json(request, name=str, password=str)
            response = JSONResponse({})
            user = await authenticator.sign_in(request, body["name"], body["password"], response)
            response.body = JSONResponse(_session(user, config)).body
            response.headers["Content-Length"] = str(len(response.body))
            return response
        except Exception as error:
            return error_response(request, error)

    async def sign_out(request: Request) -> Response:
        response = JSONResponse({})
        authenticator.sign_out(response)
        return response

    async def ways(request: Request) -> Response:
        return JSONResponse({"auth": config.auth})

    async def index(request: Request) -> Response:
        return FileResponse(str(STATIC.joinpath("index.html")), headers={"Cache-Control": "no-cache"})

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(request: Request) -> Response:
        return PlainTextResponse("ok") if services.is_ready else PlainTextResponse("no storage", 503)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(services.run())
        yield
        task.cancel()
        services.close()

    video = "/api/videos/{video_id}"
    routes = [
        Route("/", index),
        Route("/healthz", healthy),
        Route("/readyz", ready),
        Route("/api/sign-in", ways),
        Route("/api/sign-in", sign_in, methods=["POST"]),
        route("/api/sign-out", sign_out, "POST"),
        route("/api/session", session),
        route("/api/round", annotate.round),
        route("/api/videos", annotate.videos),
        route("/api/next", annotate.next, "POST"),
        route("/api/next", annotate.peek),
        route(f"{video}/open", annotate.open, "POST"),
        route(f"{video}/lease", annotate.keep, "POST"),
        route(f"{video}/lease", annotate.leave, "DELETE"),
        route(f"{video}/edit", annotate.save, "PUT"),
        route(f"{video}/what-if", annotate.what_if, "POST"),
        route(f"{video}/spatial", annotate.spatial),
        route("/frames/{round_id}/{video_id}/{index:int}.jpg", annotate.frame),
        route("/frames/{round_id}/{video_id}/{first:int}-{last:int}.mjpeg", annotate.piece),
        route("/api/lead/overview", lead.overview, leads_only=True),
        route("/api/lead/settings", lead.settings, "PUT", leads_only=True),
        route("/api/lead/videos/{video_id}", lead.compare, leads_only=True),
        route("/api/lead/videos/{video_id}/review", lead.review, "POST", leads_only=True),
        route("/api/lead/edits.jsonl", lead.export, leads_only=True),
        route("/api/lead/edits.jsonl", lead.import_lines, "POST", leads_only=True),
        route("/api/lead/arrays/{video_id}", lead.import_array, "POST", leads_only=True),
        route("/api/lead/finish", lead.finish, "POST", leads_only=True),
        Mount("/static", PageFiles(directory=str(STATIC))),
    ]
    middleware = [
        Middleware(SecurityHeaders, https=authenticator.https),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5),
    ]
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


def _session(user: User, config: EditorConfig) -> dict[str, str]:
    return {"name": user.name, "role": user.role, "csrf": user.csrf, "auth": config.auth}


def serve(round_uri: str, config: EditorConfig) -> None:
    """Serve a round until interrupted; prints the address to open.

    Raises:
        EditorError: the port is taken.
        StabnError: the round, the accounts or the settings cannot be used.
    """
    import uvicorn

    sys.setswitchinterval(SWITCH_SECONDS)
    services = Services(round_uri, config)
    app = create_app(services, config)
    listening = _listen(config)
    address = config.public_url or f"http://{config.host}:{listening.getsockname()[1]}"
    print(f"editor: round {services.board.round.round_id}, {len(services.board.videos)} videos: {address}", flush=True)
    print(f"editor: finishing the round starts: {services.finish.describe()}", flush=True)
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
