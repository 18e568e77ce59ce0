"""Fields that hold several arrays: fetched as one file, named within the field."""

import io
import json

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from schemas.facts import stored
from tests.api.questions import ask, problem
from tests.api.test_results import JSON, NPY, NPZ, SAFETENSORS, reference
from tests.conftest import Hand

WEIGHT, BIAS = np.arange(6.0).reshape(2, 3), np.array([1.0, 2.0], np.float32)


@pytest.fixture
def address(http: httpx.Client, hand: Hand) -> str:
    """Finish a job with arrays by name; return the address of its result."""
    weight, bias = stored(WEIGHT), stored(BIAS)
    tensors = {"fc.weight": reference(weight), "fc.bias": reference(bias, values=BIAS.tolist())}
    job = ask(http).json()["id"]
    body = json.dumps({"tensors": tensors, "named": [1, 2], "ten": 10}).encode()
    hand.finish(job, body, arrays=[weight, bias])
    return f"/v1/jobs/{job}/result"


def get(http: httpx.Client, path: str, accept: str, **more: str) -> httpx.Response:
    return http.get(path, headers={"Accept": accept, **more})


def test_as_one_file(http: httpx.Client, address: str) -> None:
    response = get(http, f"{address}/tensors", SAFETENSORS)
    arrays = load(response.content)
    assert set(arrays) == {"fc.weight", "fc.bias"}
    assert np.array_equal(arrays["fc.weight"], WEIGHT)
    assert arrays["fc.bias"].dtype == np.float32
    size = int.from_bytes(response.content[:8], "little")
    assert json.loads(response.content[8 : 8 + size])["__metadata__"]["format"] == "pt"
    with np.load(io.BytesIO(get(http, f"{address}/tensors", NPZ).content)) as found:
        assert np.array_equal(found["fc.weight"], WEIGHT)
    assert "digest" in get(http, f"{address}/tensors", JSON).json()["fc.weight"]
    one = get(http, f"{address}/tensors.fc.weight", NPY)
    assert np.array_equal(np.load(io.BytesIO(one.content)), WEIGHT)


def test_each_form_has_a_tag(http: httpx.Client, address: str) -> None:
    tags = {m: get(http, f"{address}/tensors", m).headers["etag"] for m in (JSON, NPZ, SAFETENSORS)}
    assert len(set(tags.values())) == 3
    again = get(http, f"{address}/tensors", NPZ, **{"If-None-Match": tags[NPZ]})
    assert again.status_code == 304


@pytest.mark.parametrize("field", ["named", "ten"])
def test_fields_without_arrays_are_json(http: httpx.Client, address: str, field: str) -> None:
    problem(get(http, f"{address}/{field}", SAFETENSORS), 406, "not-acceptable")
    assert get(http, f"{address}/{field}", "*/*").headers["content-type"] == JSON
