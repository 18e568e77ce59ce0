"""Networks as files: sent, pruned and fetched again under their own names."""

import math

import httpx
import pytest
import torch
from safetensors.torch import load, save

import schemas.state_dict
from algorithms.errors import IllPosed
from tests.conftest import Hand
from workers.desk import Desk
from workers.perform import perform
from workers.state_dicts import load_state_dict

SAFETENSORS = "application/vnd.safetensors"
NETWORK = {
    "fc1.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(0)),
    "fc1.bias": torch.arange(8.0),
    "conv.weight": torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1)).half(),
    "seen": torch.tensor(7),
    "mask": torch.ones(2, 2, dtype=torch.bool),
}


def read(network, **keys):
    asked = schemas.state_dict.StateDict(dataset="sha256:" + "0" * 64, **keys)
    return load_state_dict(asked, save(network), "state")


def test_tensors_that_are_meant_and_the_rest():
    found = read(NETWORK)
    assert list(found.chosen) == ["conv.weight", "fc1.weight"]
    assert list(found.rest) == ["fc1.bias", "mask", "seen"]
    assert found.widened == ()
    for name, tensor in (found.chosen | found.rest).items():
        assert torch.equal(tensor, NETWORK[name])
        assert tensor.dtype == NETWORK[name].dtype
    some = read(NETWORK, include=["fc1.*", "seen"], exclude=["*.weight"], min_axes=0)
    assert list(some.chosen) == ["fc1.bias"]


def test_element_types_without_a_name_here_become_wider():
    found = read({"w": torch.ones(2, 2, dtype=torch.bfloat16), "n": torch.ones(3).char()})
    assert found.chosen["w"].dtype == torch.float32
    assert found.rest["n"].dtype == torch.int64
    assert found.widened == ("n", "w")


@pytest.mark.parametrize(
    ("network", "field", "text"),
    [
        ({"w": torch.tensor([[1.0, math.inf]])}, "state.dataset", "w holds NaN"),
        ({"w": torch.ones(2, 2), "b": torch.tensor([math.nan])}, "state.dataset", "b holds NaN"),
        ({"w": torch.ones(2, 2), "z": torch.ones(2) * 1j}, "state.dataset", "complex"),
        ({"digest": torch.ones(2, 2)}, "state.dataset", "cannot be called"),
        ({"b": torch.ones(2)}, "state.include", "no tensor of the 1"),
        ({"w": torch.ones(0, 2)}, "state.include", "no tensor"),
    ],
)
def test_networks_without_an_answer(network, field, text):
    with pytest.raises(IllPosed, match=text) as caught:
        read(network)
    assert caught.value.field == field


def test_a_file_that_is_none():
    asked = schemas.state_dict.StateDict(dataset="sha256:" + "0" * 64)
    with pytest.raises(IllPosed, match="cannot be read"):
        load_state_dict(asked, b"not tensors", "state")


def test_a_network_goes_round(http: httpx.Client, hand: Hand) -> None:
    raw, octets = save(NETWORK), {"Content-Type": "application/octet-stream"}
    facts = http.post("/v1/datasets", content=raw, headers=octets).json()
    assert facts["dtypes"]["conv.weight"] == "F16"
    question = {"state": {"dataset": facts["digest"]}, "scope": "n_m", "group": 6, "k": 3}
    job = http.post("/v1/topk/prune", json=question).json()["id"]
    perform(Desk(hand.settings, hand.link, "here"), job)
    answer = http.get(f"/v1/jobs/{job}/result").json()
    assert answer["status"] == "converged"
    assert answer["unchanged"] == ["fc1.bias", "mask", "seen"]
    got = http.get(f"/v1/jobs/{job}/result/hard", headers={"Accept": SAFETENSORS})
    assert got.headers["content-type"] == SAFETENSORS
    pruned = load(got.content)
    assert set(pruned) == set(NETWORK)
    for name, tensor in pruned.items():
        assert (tensor.shape, tensor.dtype) == (NETWORK[name].shape, NETWORK[name].dtype)
    kept = pruned["conv.weight"].reshape(-1, 6) != 0
    assert (kept.sum(1) == 3).all()
    assert torch.equal(pruned["conv.weight"][pruned["conv.weight"] != 0],
                       NETWORK["conv.weight"][pruned["conv.weight"] != 0])  # fmt: skip
    picture = http.post("/v1/topk/prune", json=question, headers={"Prefer": "wait=0"})
    assert picture.status_code == 200  # the same question has the same job
