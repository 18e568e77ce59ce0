"""A line on the terminal that shows how far a job has come."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Show(Protocol):
    """What is told each new record of a job."""

    def __call__(self, record: dict[str, Any]) -> None:
        """Show the record."""
        ...


@contextmanager
def bar(title: str) -> Generator[Show]:
    """Show a spinner, iteration and residual on stderr while the body runs."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, told="")

        def show(record: dict[str, Any]) -> None:
            seen = record.get("progress") or {}
            fraction = seen.get("fraction")
            progress.update(
                task,
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
                told=describe(record),
            )

        yield show


def describe(record: dict[str, Any]) -> str:
    """Say in a few words where a job stands."""
    seen = record.get("progress")
    if record["status"] != "running" or not seen:
        return str(record["status"])
    residual = seen.get("residual")
    return f"iteration {seen['iteration']}" + (
        "" if residual is None else f", residual {residual:.2e}"
    )
