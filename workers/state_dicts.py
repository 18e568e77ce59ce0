"""Read the tensors of a network from uploaded .safetensors files."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load

import schemas.state_dict
from algorithms.errors import IllPosed
from algorithms.state_dict import StateDict
from schemas.facts import DTYPES
from schemas.named import WORDS

KNOWN = frozenset(getattr(torch, name) for name in DTYPES)


def load_state_dict(asked: schemas.state_dict.StateDict, raw: bytes, field: str) -> StateDict:
    """Read all tensors of a file, told apart by whether the question means them.

    Raises:
        IllPosed: when no tensor is meant, or one has entries that no answer can hold.
    """
    try:
        tensors = load(raw)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        text = f"the file cannot be read as tensors: {str(error)[:200]}"
        raise IllPosed(f"{field}.dataset", text) from error
    chosen, rest, widened = dict[str, torch.Tensor](), dict[str, torch.Tensor](), list[str]()
    for name in sorted(tensors):
        tensor = tensors[name]
        real = tensor.is_floating_point()
        if tensor.dtype not in KNOWN and not tensor.is_complex():
            tensor = tensor.to(torch.float32 if real else torch.int64)
            widened.append(name)
        _check(name, tensor, f"{field}.dataset")
        meant = tensor.numel() > 0 and asked.means(name, tensor.ndim, real=real)
        (chosen if meant else rest)[name] = tensor
    if not chosen:
        raise IllPosed(f"{field}.include", f"no tensor of the {len(tensors)} in the file is meant")
    return StateDict(chosen, rest, tuple(widened))


def _check(name: str, tensor: torch.Tensor, field: str) -> None:
    if tensor.is_complex():
        raise IllPosed(field, f"{name} holds complex numbers; leave it out of the file")
    if name in WORDS:
        raise IllPosed(field, f"a tensor cannot be called {name}; rename it")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise IllPosed(field, f"{name} holds NaN or infinity", code="non-finite-number")
