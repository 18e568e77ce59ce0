"""Write one page for each routine from the registry: `python docs/routines.py`."""

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from schemas.arrays import ArrayRef, Dims, Request, Result, markers  # noqa: E402 - path first
from schemas.registry import ROUTINES  # noqa: E402 - path first
from schemas.routine import Routine  # noqa: E402 - path first

SHARED = "Every request may also carry `seed`, `precision` and `timeout_s`; every answer carries"
SHARED += " `status`, `iterations`, `residual`, `warnings` and `provenance`."


def main() -> None:
    """Write every page."""
    folder = ROOT / "docs" / "routines"
    folder.mkdir(exist_ok=True)
    for routine in ROUTINES.values():
        (folder / f"{routine.name}.md").write_text(page(routine))


def page(routine: Routine) -> str:
    """Compose the page of one routine."""
    return "\n".join(
        [
            f"# {routine.name}\n",
            f"{inspect.getdoc(routine.request)}\n",
            f"`POST /v1{routine.path}`, version {routine.version}. {SHARED}\n",
            "## Method\n",
            "```text",
            docstring(routine),
            "```\n",
            "## Question\n",
            *table(routine.request, Request),
            "\n## Answer\n",
            f"{inspect.getdoc(routine.result)}\n",
            *table(routine.result, Result),
            f"\n{extras(routine)}\n",
            "## Example\n",
            "```json",
            json.dumps(routine.example, indent=2),
            "```",
            "",
        ]
    )


def docstring(routine: Routine) -> str:
    """Read the docstring of the function, without importing what it imports."""
    family, name = routine.name.split(".")
    tree = ast.parse((ROOT / "algorithms" / family / f"{name}.py").read_text())
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return ast.get_docstring(functions[0]) or ""


def table(model: type[BaseModel], base: type[BaseModel] | None, prefix: str = "") -> list[str]:
    """List the fields of a model, nested models below their field."""
    rows = [] if prefix else ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        if base is not None and name in base.model_fields:
            continue
        text = (info.description or "").replace("|", "\\|").replace("\n", " ")
        default = "" if info.is_required() or nested(info.annotation) else f"`{info.default!r}`"
        rows.append(f"| `{prefix}{name}` | {kind(info)} | {default} | {text} |")
        for inner in nested(info.annotation):
            rows += table(inner, None, f"{prefix}{name}.")
    return rows


def kind(info: Any) -> str:
    """Name the type of a field with its axes and bounds."""
    axes = [m.axes for m in markers(info.metadata, info.annotation, Dims)]
    if axes:
        return f"array ({axes[0].replace(' ', ', ')})"
    bounds = [
        f"{sign} {getattr(m, key)}"
        for m in info.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(m, key, None) is not None
    ]
    names = getattr(info.annotation, "__name__", None) or str(info.annotation)
    if get_args(info.annotation):
        names = str(info.annotation)
    for noise in ("typing.", "schemas.", "NoneType"):
        names = names.replace(noise, "null" if noise == "NoneType" else "")
    return " ".join([names.replace("|", "\\|"), ", ".join(bounds)]).strip()


def nested(annotation: Any) -> list[type[BaseModel]]:
    """Find the models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is ArrayRef else [annotation]
    return [model for inner in get_args(annotation) for model in nested(inner)]


def extras(routine: Routine) -> str:
    """Say what else can be had: gradients, pictures, data files."""
    words = ["`Accept` negotiates JSON, safetensors, npz; `/result/{field}` also npy."]
    if routine.result.renders:
        words.append(f"The answer can be drawn or written as {', '.join(routine.result.renders)}.")
    if routine.outputs:
        words.append(
            f"Gradients (`POST /v1{routine.path}/vjp`): cotangents of "
            f"{', '.join(f'`{o}`' for o in routine.outputs)}, pulled back to "
            f"{', '.join(f'`{i}`' for i in routine.inputs)}."
        )
    return " ".join(words)


if __name__ == "__main__":
    main()
