"""Which address does what, and who may use it."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from stabn.config import EditorConfig
from stabn.editor.annotate import Annotate
from stabn.editor.auth import Authenticator, User
from stabn.editor.http import ApiError, Handler, error_response, read_json, run_in_threadpool
from stabn.editor.lead import Lead
from stabn.editor.services import Services

STATIC = files("stabn.editor").joinpath("static")


class PageFiles(StaticFiles):
    """The page's scripts and styles; browsers ask each time whether they changed."""

    def file_response(self, full_path, stat_result, scope: Scope, status_code: int = 200) -> Response:  # type: ignore[no-untyped-def]
        """Add the header that says so."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


class Doors:
    """Let people in, and make the routes that know who asks."""

    def __init__(self, config: EditorConfig) -> None:
        self.config, self.authenticator = config, Authenticator(config)

    def guarded(self, handler: Handler, services: Services | None = None, leads_only: bool = False) -> Handler:
        """Return a handler that only those who may use it reach; errors become answers."""

        async def handle(request: Request) -> Response:
            try:
                request.state.user = await self.authenticator.user(request)
                if leads_only and not request.state.user.is_lead:
                    raise ApiError(403, "lead", "only leads may do this")
                if services is not None and services.alone is not None and request.method != "GET":
                    await run_in_threadpool(services.confirm)
                return await handler(request)
            except Exception as error:
                return error_response(request, error)

        return handle

    def page_routes(self, place: str, has_list: bool) -> list[BaseRoute]:
        """Return the routes of the page itself and of who is signed in.

        Args:
            place: what the page shows at this address: `round`, or `rounds`, the list of them.
            has_list: whether this server has such a list.
        """

        def content(user: User) -> dict[str, str | bool]:
            who = {"name": user.name, "role": user.role, "csrf": user.csrf, "auth": self.config.auth}
            return {**who, "place": place, "has_list": has_list}

        async def session(request: Request) -> Response:
            return JSONResponse(content(request.state.user))

        async def sign_in(request: Request) -> Response:
            try:
                body = await read_json(request, name=str, password=str)
                response = JSONResponse({})
                user = await self.authenticator.sign_in(request, body["name"], body["password"], response)
                response.body = JSONResponse(content(user)).body
                response.headers["Content-Length"] = str(len(response.body))
                return response
            except Exception as error:
                return error_response(request, error)

        async def sign_out(request: Request) -> Response:
            response = JSONResponse({})
            self.authenticator.sign_out(response)
            return response

        async def ways(request: Request) -> Response:
            return JSONResponse({"auth": self.config.auth})

        async def index(request: Request) -> Response:
            return FileResponse(str(STATIC.joinpath("index.html")), headers={"Cache-Control": "no-cache"})

        return [
            Route("/", index),
            Route("/api/sign-in", ways),
            Route("/api/sign-in", sign_in, methods=["POST"]),
            Route("/api/sign-out", self.guarded(sign_out), methods=["POST"]),
            Route("/api/session", self.guarded(session)),
            Mount("/static", PageFiles(directory=str(STATIC))),
        ]

    def round_routes(self, services: Services) -> list[BaseRoute]:
        """Return the routes of one round."""
        annotate, lead = Annotate(services), Lead(services)
        video = "/api/videos/{video_id}"

        def route(path: str, handler: Handler, method: str = "GET", leads_only: bool = False) -> Route:
            return Route(path, self.guarded(handler, services, leads_only), methods=[method])

        return [
            route("/api/round", annotate.round),
            route("/api/videos", annotate.videos),
            route("/api/next", annotate.next, "POST"),
            route("/api/next", annotate.peek),
            route(f"{video}/open", annotate.open, "POST"),
            route(f"{video}/lease", annotate.keep, "POST"),
            route(f"{video}/lease", annotate.leave, "DELETE"),
            route(f"{video}/edit", annotate.save, "PUT"),
            route(f"{video}/revisions", annotate.revisions),
            route(f"{video}/what-if", annotate.what_if, "POST"),
            route(f"{video}/spatial", annotate.spatial),
            route("/frames/{round_id}/{video_id}/{index:int}.jpg", annotate.frame),
            route("/frames/{round_id}/{video_id}/{first:int}-{last:int}.mjpeg", annotate.piece),
            route("/api/lead/overview", lead.overview, leads_only=True),
            route("/api/lead/review", lead.next_review, leads_only=True),
            route("/api/lead/settings", lead.settings, "PUT", leads_only=True),
            route("/api/lead/videos/{video_id}", lead.compare, leads_only=True),
            route("/api/lead/videos/{video_id}/review", lead.review, "POST", leads_only=True),
            route("/api/lead/edits.jsonl", lead.export, leads_only=True),
            route("/api/lead/edits.jsonl", lead.import_lines, "POST", leads_only=True),
            route("/api/lead/arrays/{video_id}", lead.import_array, "POST", leads_only=True),
            route("/api/lead/finish", lead.finish, "POST", leads_only=True),
        ]


async def with_slash(request: Request) -> Response:
    """Send a browser from `/rounds/ID` to `/rounds/ID/`, below which the page's own addresses lie."""
    return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/")
