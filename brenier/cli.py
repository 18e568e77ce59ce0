"""The `brenier` command. Exit codes: 0 done, 1 a problem told in a line or two, 2 wrong usage."""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from brenier.calls import Call, document
from brenier.client import Client
from brenier.demo import demonstrate
from brenier.errors import BrenierError
from brenier.wire import as_json
from schemas.registry import ROUTINES
from schemas.settings import PREFIX, Settings

DEFAULT_URL = "http://127.0.0.1:8000"


class Told(click.ClickException):
    """What went wrong, in a line or two; exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print it without a prefix that says nothing."""
        click.echo(f"brenier: {self.format_message()}", err=True)


def telling(run: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what is expected to go wrong into a line or two."""

    @wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except (BrenierError, OSError) as error:
            raise Told(str(error)) from None
        except ValidationError as error:
            raise Told("; ".join(e["msg"] for e in error.errors()[:3])) from None

    return wrapped


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`brenier routines` lists what can be asked.",
)
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the service listens.")
@click.option("--key", help="API key, or @FILE to read it from a file.")
@click.version_option(package_name="brenier")
@click.pass_context
def main(context: click.Context, url: str, key: str | None) -> None:
    """Optimal transport over HTTP: run the service, or ask it."""
    if key and key.startswith("@"):
        try:
            key = Path(key[1:]).read_text().strip()
        except OSError as error:
            raise click.BadParameter(str(error), param_hint="--key") from None
    if urlsplit(url).scheme not in ("http", "https"):
        raise click.BadParameter(f"{url} is not an http address", param_hint="--url")
    context.obj = Client(url, key)
    context.call_on_close(context.obj.close)


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def up(options: tuple[str, ...]) -> None:
    """Run the store, the workers and the gateway (see `brenier up --help`)."""
    os.execv(sys.executable, [sys.executable, "-m", "workers.up", *options])


@main.command()
@click.argument("slices", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", default=8000, show_default=True, help="Port; another one when it is taken.")
@click.option("--once", is_flag=True, help="Stop after the alignment.")
@click.option("--label-key", help="Column of `obs` with labels, for scores.")
@click.option("--landmark-key", help="Key in `obsm` of shared positions, for scores.")
@telling
def demo(
    slices: tuple[Path, ...],
    port: int,
    once: bool,
    label_key: str | None,
    landmark_key: str | None,
) -> None:
    """Start everything, align two tissue slices (.h5ad) and show what came out."""
    if len(slices) not in (0, 2):
        raise click.UsageError(f"an alignment takes two slices, not {len(slices)}")
    keys = {"label_key": label_key, "landmark_key": landmark_key}
    chosen = {name: key for name, key in keys.items() if key}
    sys.exit(demonstrate(slices, port=port, once=once, keys=chosen))


@main.command()
@click.argument("name", metavar="FAMILY.ROUTINE")
@click.argument("question", type=click.File())
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the answer.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the answer.")
@click.option("--h5ad", type=click.Path(dir_okay=False, path_type=Path), help="Annotated data.")
@click.pass_obj
@telling
def run(
    client: Client,
    name: str,
    question: TextIO,
    out: Path | None,
    png: Path | None,
    h5ad: Path | None,
) -> None:
    """Ask a QUESTION, a JSON file or - for stdin; paths to data files in it are uploaded."""
    job = _routine(client, name).submit(**_fields(question))
    answer = job.result(progress=sys.stderr.isatty())
    text = as_json(answer.to_dict())
    if out is None:
        click.echo(text)
    else:
        out.write_bytes(text)
    if png is not None:
        png.write_bytes(job.picture("png"))
    if h5ad is not None:
        h5ad.write_bytes(job.h5ad())


@main.command()
@click.argument("name", metavar="[FAMILY.ROUTINE]", required=False)
@click.option("--example", is_flag=True, help="Print a question that works, as JSON.")
@click.pass_obj
def routines(client: Client, name: str | None, example: bool) -> None:
    """List what can be asked; with a name, what it takes and gives."""
    if name is None:
        width = max(map(len, ROUTINES))
        for known, summary in client.routines().items():
            click.echo(f"{known:{width}}  {summary}")
        return
    routine = _routine(client, name).routine
    click.echo(json.dumps(routine.example, indent=2) if example else document(routine))


@main.command()
@click.option("--limit", default=20, show_default=True, help="How many, newest first.")
@click.option("--status", help="Only jobs in this state.")
@click.pass_obj
@telling
def jobs(client: Client, limit: int, status: str | None) -> None:
    """List your jobs."""
    table = Table("id", "routine", "kind", "status", "created", box=None, pad_edge=False)
    for _, job in zip(range(limit), client.jobs(status=status), strict=False):
        record = job.record
        table.add_row(*(str(record[name]) for name in ("id", "routine", "kind")), job.status,
            str(record["created_at"]))  # fmt: skip
    Console(soft_wrap=True).print(table)


@main.command()
@telling
def config() -> None:
    """Print the effective settings, secrets masked, as environment variables."""
    settings = Settings()
    for name, info in Settings.model_fields.items():
        click.echo(f"# {info.description}")
        click.echo(f"{PREFIX}{name.upper()}={masked(name, getattr(settings, name))}")


def masked(name: str, value: Any) -> str:
    """Write a setting without what nobody should read over a shoulder."""
    if name == "api_keys":
        return json.dumps(dict.fromkeys(value, "***"))
    if name == "redis_url" and urlsplit(value).password:
        return str(value).replace(f":{urlsplit(value).password}@", ":***@")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _routine(client: Client, name: str) -> Call:
    try:
        return client.routine(name)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0]), param_hint="FAMILY.ROUTINE") from None


def _fields(file: TextIO) -> dict[str, Any]:
    try:
        fields = json.load(file)
    except ValueError as error:
        raise click.BadParameter(
            f"{file.name} is not JSON: {error}", param_hint="QUESTION"
        ) from None
    if not isinstance(fields, dict):
        raise click.BadParameter("a question is a JSON object", param_hint="QUESTION")
    return fields
