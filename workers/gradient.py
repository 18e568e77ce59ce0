"""Gradients: cotangents of a routine's outputs pulled back to its inputs."""

from typing import Any

import torch

from algorithms.errors import IllPosed
from schemas.registry import ROUTINES
from schemas.routine import Routine, Vjp
from workers.answer import Stopwatch, as_json, provenance
from workers.bind import Binder, Encoder, call
from workers.desk import Desk, Outcome
from workers.place import choose
from workers.port import Claim
from workers.pulse import Pulse


def vjp(desk: Desk, claim: Claim, pulse: Pulse) -> Outcome:
    """Run a routine forward, then pull the cotangents back to the inputs asked for."""
    routine, encoder, watch = (
        ROUTINES[claim.routine],
        Encoder(desk.settings.inline_limit),
        Stopwatch(),
    )
    if routine.vjp is None:
        raise IllPosed("cotangents", f"{routine.name} has no differentiable outputs")
    materials = desk.fetch(claim.request)
    asked: Vjp[Any] = routine.vjp.model_validate(claim.request, context={"shelf": materials.shelf})
    place = choose(desk.settings, asked.request.precision)
    binder = desk.binder(materials, place)
    arguments = binder.arguments(asked.request)
    leaves = [_leaf(arguments, path).requires_grad_() for path in asked.wrt]
    load_ms = watch.lap()
    pulse.limit(asked.request.timeout_s)
    found = call(routine, arguments, seed=asked.request.seed, place=place, watch=pulse)
    gradients = _pull(_seeds(routine, found, asked, binder), leaves)
    timings = (claim.queue_ms, load_ms, watch.lap(), 0.0)
    body: dict[str, Any] = {
        "gradients": {
            path: encoder.array(gradient, f"gradients.{path}")
            for path, gradient in zip(asked.wrt, gradients, strict=True)
        },
        "status": found.stop.status,
        "residual": encoder.value(float(found.stop.residual), "residual"),
        "warnings": [encoder.value(c, "cautions") for c in found.cautions],
        "provenance": provenance(routine, place, asked.request.seed, timings),
    }
    arrays = tuple(encoder.arrays.values())
    return Outcome("succeeded", as_json(body), arrays, warnings=body["warnings"])


def _seeds(
    routine: Routine, found: Any, asked: Vjp[Any], binder: Binder
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name, reference in asked.cotangents.items():
        if name not in routine.outputs:
            known = ", ".join(routine.outputs)
            reason = f"no such differentiable output; there are {known}"
            raise IllPosed(f"cotangents.{name}", reason, code="validation")
        output, seed = getattr(found, name), binder.tensor(reference)
        if output is None:
            reason = "this question does not ask for it; see its options"
            raise IllPosed(f"cotangents.{name}", reason, code="validation")
        if output.shape != seed.shape:
            reason = f"expected shape {list(output.shape)}, received {list(seed.shape)}"
            raise IllPosed(f"cotangents.{name}", reason, code="shape-mismatch")
        pairs.append((output, seed))
    return pairs


def _pull(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], leaves: list[torch.Tensor]
) -> list[torch.Tensor]:
    pairs = [(output, seed) for output, seed in pairs if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in leaves]
    outputs, seeds = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True))


def _leaf(arguments: dict[str, Any], path: str) -> torch.Tensor:
    first, *rest = path.split(".")
    value = arguments[first]
    for name in rest:
        value = getattr(value, name)
    return value
