"""The HTTP application: the page, POST /predict and /explain, and what operators need."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hogwear.serving import bodies
from hogwear.serving.access import Access
from hogwear.serving.bodies import BadBody, Upload, read_photos
from hogwear.serving.messages import EXPLAIN, PREDICT, Answer
from hogwear.serving.monitoring import Metrics
from hogwear.serving.openapi import OPENAPI
from hogwear.serving.service import Busy, Service

PAGE = Path(__file__).with_name("page.html")
OPEN_PATHS = ("/", "/health")  # that need no token
RETRY_AFTER = 1  # seconds
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Handler = Callable[[Request], Awaitable[Response]]


class Application:
    """Requests in, answers out. `service` predicts."""

    def __init__(self, service: Service, access: Access) -> None:
        self.service, self.access, self.metrics = service, access, Metrics()
        self.page = PAGE.read_text()
        routes = {
            ("/", "GET"): self.show_page,
            ("/predict", "POST"): self.predict,
            ("/explain", "POST"): self.explain,
            ("/health", "GET"): self.health,
            ("/metrics", "GET"): self.show_metrics,
            ("/openapi.json", "GET"): self.describe,
        }
        self.app = Starlette(
            routes=[
                Route(path, self.guard(handler), methods=[method])
                for (path, method), handler in routes.items()
            ],
            lifespan=self.lifespan,
            exception_handlers={404: not_found, 405: not_allowed},
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.service.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await self.service.stop()

    def guard(self, handler: Handler) -> Handler:
        """The handler, for requests that are allowed; counts them all."""

        async def guarded(request: Request) -> Response:
            started, path = time.monotonic(), request.url.path
            refused = self.access.refuse(request.headers, path not in OPEN_PATHS)
            try:
                response = fail(*refused) if refused else await handler(request)
            except BadBody as error:
                response = fail(error.status, str(error))
                if error.status in (408, 413):
                    response.headers["Connection"] = "close"
            except Busy:
                response = fail(503, "too many photos are waiting; try again")
                response.headers["Retry-After"] = str(RETRY_AFTER)
            response.headers.update(HEADERS)
            self.metrics.count_request(path, response.status_code, time.monotonic() - started)
            return response

        return guarded

    async def show_page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": POLICY.format(nonce)}
        return HTMLResponse(self.page.replace("{{ nonce }}", nonce), headers=policy)

    async def predict(self, request: Request) -> Response:
        """200 with an entry for each photo; 422 if there is only one, and it cannot be read."""
        answers = await self.answer(PREDICT, await read_photos(request))
        entries = [answer.entry for answer in answers]
        for entry in entries:
            self.metrics.count_photo(is_refused=bool(entry["error"]))
        if len(entries) == 1 and entries[0]["error"]:
            problem = {"error": entries[0]["error"], "predictions": entries}
            return JSONResponse(problem, status_code=422)
        return JSONResponse({"predictions": entries})

    async def explain(self, request: Request) -> Response:
        """A PNG of what the network looked at in a photo; 422 if it cannot be read."""
        [answer] = await self.answer(EXPLAIN, await read_photos(request, most=1))
        if answer.picture is None:
            return fail(422, answer.entry["error"])
        return Response(answer.picture, media_type="image/png")

    async def answer(self, job: str, uploads: list[Upload]) -> list[Answer]:
        """The answers for photos, in order. Raises Busy."""
        size = sum(len(upload.content) for upload in uploads)
        self.service.reserve(len(uploads), size)
        try:
            return list(
                await asyncio.gather(
                    *(self.service.answer(job, each.file, each.content) for each in uploads)
                )
            )
        finally:
            self.service.release(len(uploads), size)

    async def health(self, request: Request) -> Response:
        """What is in service; without the token, only that something is."""
        status: dict[str, object] = {"status": "ok"}
        if self.access.is_authorised(request.headers):
            loaded = self.service.loaded
            status |= {
                "checkpoint": loaded.sha256,
                "classes": list(loaded.class_names),
                "limits": {"photos": bodies.MAX_PHOTOS, "bytes": bodies.MAX_BYTES},
            }
        return JSONResponse(status)

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(
            self.metrics.format(self.service.photos, self.service.restarts),
            media_type="text/plain; version=0.0.4",
        )

    async def describe(self, request: Request) -> Response:
        return JSONResponse(OPENAPI)


def fail(status: int, reason: str) -> Response:
    more = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"error": reason}, status_code=status, headers=HEADERS | more)


async def not_found(request: Request, error: Exception) -> Response:
    return fail(404, "there is nothing here; GET /openapi.json lists what there is")


async def not_allowed(request: Request, error: Exception) -> Response:
    response = fail(405, "this path has another method; GET /openapi.json lists what there is")
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)  # Allow
    return response
