"""The OpenAPI document and the pages: complete, true, the same as the committed one, offline."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.main import build
from schemas.arrays import Shelf
from schemas.registry import ROUTINES
from schemas.samples import samples
from schemas.settings import Settings
from tests.api.questions import problem

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
WRITES = {"400", "401", "404", "405", "409", "410", "411", "413", "415", "422", "429", "503"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return build(Settings()).openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(p, m, o) for p, item in document["paths"].items() for m, o in item.items()]


def test_the_committed_document_is_up_to_date(document: dict[str, Any]) -> None:
    """Regenerate it with `python -m api > docs/openapi.json`."""
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(document))


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))):
        here: Any = document
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]
        assert here


def test_names_of_operations(document: dict[str, Any]) -> None:
    names = [o["operationId"] for _, _, o in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)
    assert "transport_sinkhorn_vjp" in names


def test_questions_say_everything(document: dict[str, Any]) -> None:
    for routine in ROUTINES.values():
        operation = document["paths"][f"/v1{routine.path}"]["post"]
        assert set(operation["responses"]) >= WRITES | {"200", "202"}
        content = operation["requestBody"]["content"]
        assert content["application/json"]["examples"]["example"]["value"] == routine.example
        assert "Location" in operation["responses"]["202"]["headers"]
        assert operation["responses"]["202"]["links"]["get"]["operationId"] == "job_get"
        assert operation["tags"] == [routine.family]


def test_examples_are_valid(document: dict[str, Any]) -> None:
    facts = {
        "kind": "h5ad", "arrays": {"obsm/spatial": [1, 2], "obsm/tissue": [1, 2]},
        "obs_columns": ["domain"],
    }  # fmt: skip
    shelf = Shelf(datasets=dict.fromkeys(samples(), facts))
    for routine in ROUTINES.values():
        for suffix, model in (("/batch", routine.batch), ("/vjp", routine.vjp)):
            if model is not None:
                body = document["paths"][f"/v1{routine.path}{suffix}"]["post"]["requestBody"]
                example = body["content"]["application/json"]["examples"]["example"]["value"]
                model.model_validate(example, context={"shelf": shelf})


def test_problems_are_problems(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert response == {"$ref": f"#/components/responses/Problem{status}"}, path


def test_axes_are_told(document: dict[str, Any]) -> None:
    clouds = document["components"]["schemas"]["PointClouds"]["properties"]
    assert (clouds["x"]["x-axes"], clouds["y"]["x-axes"]) == ("n d", "m d")


def test_the_document_is_served(http: httpx.Client) -> None:
    response = http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["openapi"].startswith("3.1")


# pages


def test_swagger_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    home = http.get("/")
    assert (home.status_code, home.headers["location"]) == (307, "./docs")
    page = http.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        assert link.startswith("./")
        assert http.get(f"/{link[2:]}").status_code == 200
    assert re.search(r"<script>|<script [^>]*>[^<]", page.text) is None
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "javascript" in http.get("/docs/start.js").headers["content-type"]


def test_every_problem_has_a_page(http: httpx.Client) -> None:
    from api.problems import KINDS

    for code, kind in KINDS.items():
        page = http.get(f"/problems/{code}")
        assert f"{kind.status} {code}" in page.text
    problem(http.get("/problems/%3Cscript%3E"), 404, "not-found")


def test_the_catalogue(http: httpx.Client) -> None:
    lines = http.get("/v1/routines").json()["routines"]
    assert [line["name"] for line in lines] == list(ROUTINES)
    entry = http.get(lines[-1]["about"]).json()
    assert entry["example"] == ROUTINES[lines[-1]["name"]].example
    assert entry["request_schema"]["type"] == "object"
    assert entry["limits"]["memory_bytes"] > 0
    assert "value" in entry["differentiable"]["outputs"]
