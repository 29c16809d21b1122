"""The web application: a handful of fixed paths, each for this machine's own browser alone."""

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from fastwm.errors import FastwmError
from fastwm.extras import needs
from fastwm.view.data import Run

with needs("view", "fastwm view"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send

FILES = {"/": ("index.html", "text/html"), "/view.js": ("view.js", "text/javascript"),
         "/view.css": ("view.css", "text/css")}  # fmt: skip
LARGEST = 1 << 14  # bytes of a request
SEEDS = 2**31
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class OwnBrowserOnly:
    """Refuse requests that another site could have made the browser send: a foreign Host or Origin."""

    def __init__(self, app: ASGIApp, port: int):
        self.app = app
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        origins = [value for name, value in headers if name == "origin"]
        if len(hosts) != 1 or hosts[0] not in self.hosts or any(origin != f"http://{hosts[0]}" for origin in origins):
            await Response("this page is for the browser of its own machine", 403, HEADERS)(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        FastwmError: for anything else, or a large one.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise FastwmError("expected application/json")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST:
            raise FastwmError("the request is too large")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise FastwmError("expected a JSON object")
    return body


def whole(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    if type(value) is not int or not 0 <= value < SEEDS:
        raise FastwmError(f"{key} must be an integer from 0, got {str(value)[:40]}")
    return value


def real(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise FastwmError(f"{key} must be a number, got {str(value)[:40]}")
    return float(value)


def step_dream(run: Run, body: dict[str, Any]) -> Any:
    action = body.get("action")
    if action is not None:
        if not isinstance(action, list):
            raise FastwmError("action must be a list of numbers, or null for the agent's own")
        action = [real(value, "action") for value in action]
    return run.step_dream(whole(body, "dream"), action, real(body.get("temperature", 1.0), "temperature"))


CALLS: dict[str, Callable[[Run, dict[str, Any]], Any]] = {
    "run": lambda run, body: run.summary(),
    "metrics": lambda run, body: run.metrics(),
    "starts": lambda run, body: run.starts(whole(body, "seed")),
    "dream": lambda run, body: run.start_dream(whole(body, "seed"), whole(body, "at")),
    "step": step_dream,
    "episode": lambda run, body: run.episode(whole(body, "seed")),
    "window": lambda run, body: run.window(whole(body, "seed")),
}
"""The calls that the page may make, by `POST /api/<name>`."""


def make_app(run: Run, port: int) -> Any:
    """The application that serves one run at `127.0.0.1:port`."""

    def serving(file: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        content = resources.files("fastwm.view").joinpath("static", file).read_bytes()

        async def serve(request: Request) -> Response:
            return Response(content, media_type=kind, headers=HEADERS)

        return serve

    def answering(call: Callable[[Run, dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                body = await body_of(request)
                return JSONResponse(await run_in_threadpool(call, run, body), headers=HEADERS)
            except FastwmError as error:
                return JSONResponse({"error": str(error)}, 400, HEADERS)

        return answer

    routes = [Route(path, serving(*file), methods=["GET"]) for path, file in FILES.items()]
    routes += [Route(f"/api/{name}", answering(call), methods=["POST"]) for name, call in CALLS.items()]
    return OwnBrowserOnly(Starlette(routes=routes), port)
