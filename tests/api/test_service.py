"""Round trips through the real queue and a real worker."""

import io
from typing import Any

import httpx
import numpy as np
import pytest

from schemas.registry import ROUTINES
from tests.api.questions import EXAMPLE, PATH, ask

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("routine", ROUTINES.values(), ids=list(ROUTINES))
def test_every_example_is_answered(service: httpx.Client, routine: Any) -> None:
    response = ask(service, routine.example, f"/v1{routine.path}", Prefer="wait=30")
    assert response.headers["preference-applied"] == "wait=30"
    if response.status_code == 202:  # the machine is slow or busy: the job goes on
        job = response.headers["location"]
        service.get(job, params={"wait": 30})
        response = service.get(f"{job}/result")
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(routine.result.model_fields) == set(answer)
    assert answer["certificate"]


def test_every_representation(service: httpx.Client) -> None:
    response = ask(service, Prefer="wait=30")
    result, plan = response.headers["content-location"], response.json()["plan"]
    npy = service.get(f"{result}/plan", headers={"Accept": "application/x-npy"}).content
    assert np.load(io.BytesIO(npy)).tolist() == plan["values"]
    assert np.load(io.BytesIO(service.get(plan["href"]).content)).tolist() == plan["values"]
    png = service.get(result, headers={"Accept": "image/png"})
    assert (png.status_code, png.content[:4]) == (200, b"\x89PNG")
    svg = service.get(result, headers={"Accept": "image/svg+xml"})
    assert (svg.status_code, b"<svg" in svg.content) == (200, True)


def test_an_alignment_comes_back_as_a_data_file(service: httpx.Client) -> None:
    routine = ROUTINES["spatial.align"]
    response = ask(service, routine.example, f"/v1{routine.path}", Prefer="wait=30")
    result = response.headers["content-location"]
    h5ad = service.get(result, headers={"Accept": "application/x-hdf5"})
    assert (h5ad.status_code, h5ad.content[:4]) == (200, b"\x89HDF")


def test_a_batch(service: httpx.Client) -> None:
    body = {"problems": [EXAMPLE, {}, {**EXAMPLE, "epsilon": 1.0}]}
    first, second, third = ask(service, body, f"{PATH}/batch", Prefer="wait=30").json()["items"]
    assert first["result"]["status"] == third["result"]["status"] == "converged"
    assert second["error"]["errors"][0]["pointer"].startswith("#/problems/1")


def test_gradients(service: httpx.Client) -> None:
    body = {"request": EXAMPLE, "cotangents": {"value": 1.0}, "wrt": ["geometry.x"]}
    response = ask(service, body, f"{PATH}/vjp", Prefer="wait=30")
    gradient = response.json()["gradients"]["geometry.x"]
    assert gradient["shape"] == [3, 2]
    result = response.headers["content-location"]
    npy = service.get(f"{result}/gradients.geometry.x").content
    assert np.load(io.BytesIO(npy)).tolist() == gradient["values"]


def test_events_of_a_real_job(service: httpx.Client) -> None:
    cost = np.random.default_rng(0).random((100, 100)).tolist()
    body = {
        "geometry": {"kind": "cost", "C": cost}, "epsilon": 1e-4, "tol": 1e-12,
        "max_iter": 10_000_000, "timeout_s": 1.0,
    }  # fmt: skip
    job = ask(service, body).json()["id"]
    with service.stream("GET", f"/v1/jobs/{job}/events") as response:
        text = "".join(response.iter_text())
    assert text.count("event: done") == 1
    assert text.count("event: progress") >= 1
    assert service.get(f"/v1/jobs/{job}/result").json()["status"] == "interrupted"
