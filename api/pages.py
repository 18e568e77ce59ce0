"""Pages for people: Swagger UI from local files, and what each kind of problem means.

No inline script, so that a strict Content-Security-Policy holds; no address outside this service,
so that the page works with the network cut.
"""

import importlib.util
from html import escape
from pathlib import Path

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from api.gateway import Gateway
from api.problems import KINDS, Refusal

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; font-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HTML = "text/html; charset=utf-8"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="{root}/docs/assets/favicon.png">
{head}
</head>
<body>
{body}
</body>
</html>
"""
SWAGGER_HEAD = '<link rel="stylesheet" href="./docs/assets/swagger-ui.css">'
SWAGGER_BODY = """<div id="swagger-ui"></div>
<script src="./docs/assets/swagger-ui-bundle.js"></script>
<script src="./docs/start.js"></script>"""
START = """window.ui = SwaggerUIBundle({
  url: "./openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
});
"""


def assets() -> Path:
    """Find the folder with Swagger UI inside the package fastapi-offline."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("fastapi-offline is not installed: pip install 'brenier[gateway]'")
    return Path(spec.submodule_search_locations[0], "static")


def router(gate: Gateway) -> APIRouter:
    """Offer the pages."""
    found = APIRouter(include_in_schema=False, default_response_class=Response)
    headers = {"Content-Security-Policy": POLICY}

    @found.get("/")
    async def home() -> Response:
        return RedirectResponse("./docs", 307)

    @found.get("/docs")
    async def docs() -> Response:
        page = PAGE.format(title="Brenier", root=".", head=SWAGGER_HEAD, body=SWAGGER_BODY)
        return Response(page, headers=headers, media_type=HTML)

    @found.get("/docs/start.js")
    async def start() -> Response:
        return Response(START, media_type="text/javascript")

    @found.get("/problems/{code}")
    async def problem(code: str) -> Response:
        kind = KINDS.get(code)
        if kind is None:
            raise Refusal("not-found", f"no kind of problem is called {code[:100]}")
        title = f"{kind.status} {escape(code)}: {escape(kind.title)}"
        body = f"<h1>{title}</h1>\n<p>{escape(kind.about)}</p>"
        page = PAGE.format(title=title, root="..", head="", body=body)
        return Response(page, headers=headers, media_type=HTML)

    return found
