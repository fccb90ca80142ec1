"""`/docs`: Swagger UI over `/openapi.json`, from files installed with the service, so that it works offline."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>intentgraph</title>
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="docs"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#docs", validatorUrl: null})</script>
</body>
</html>
"""
_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def docs_routes() -> list[Route]:
    """The page and the two files it loads."""
    return [Route("/docs", _page), *(Route(f"/docs/{name}", _file) for name in _FILES)]


async def _page(_request: Request) -> Response:
    return HTMLResponse(_PAGE)


async def _file(request: Request) -> Response:
    name = request.url.path.rsplit("/", 1)[-1]
    content = files("swagger_ui").joinpath("static", name).read_bytes()
    return Response(content, media_type=_FILES[name], headers={"Cache-Control": "max-age=86400"})
