"""The demonstration: start the service, align two tissue slices through it, show what came out."""

import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from brenier.client import Client
from brenier.errors import BrenierError
from brenier.results import Record, Result
from brenier.simulate import simulate_sections
from brenier.uploads import Dataset
from schemas.spatial.align import AlignResult

REAL = Path("../shared/data/spatial")
READY_S = 180.0
STOP_S = 60.0
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # end the demonstration as Ctrl-C does


def demonstrate(slices: Sequence[Path], *, port: int, once: bool, keys: Mapping[str, str]) -> int:
    """Run the demonstration; return the exit code.

    Args:
        slices: two .h5ad files; none takes what is at hand, or simulates.
        port: port of the service; another one when it is taken.
        once: stop after the alignment.
        keys: where the user's slices have labels and landmarks, for scores.
    """
    console = Console(soft_wrap=True)
    source, target, words = choose(slices, keys)
    console.print(f"Aligning {words}.")
    with _handling(ENDINGS, _interrupt), Service(port).running(console) as url:
        with Client(url) as client:
            _align(client, source, target, console)
        console.print(f"Swagger UI is at {url}/docs")
        if not once:
            _stay(console)
    console.print("Everything is stopped.")
    return 0


def choose(slices: Sequence[Path], keys: Mapping[str, str]) -> tuple[Dataset, Dataset, str]:
    """Choose two slices: the user's, else real ones that are at hand, else simulated ones."""
    if slices:
        source, target = slices
        words = f"{source.name} to {target.name}"
        return Dataset(source, **keys), Dataset(target, **keys), words
    found = [REAL / f"her2_{name}.h5ad" for name in ("B1", "B2")]
    if all(path.exists() for path in found):
        truth = {"label_key": "cluster", "landmark_key": "warped_pixel"}
        words = "two real sections of one breast tumour (her2_B1 to her2_B2)"
        return Dataset(found[0], **truth), Dataset(found[1], **truth), words
    first, second = simulate_sections(seed=0)
    truth = {"label_key": "domain", "landmark_key": "tissue"}
    words = "two simulated sections (no real data at hand)"
    return Dataset(first, **truth), Dataset(second, **truth), words


@dataclass
class Service:
    """The service as a child process, in a data directory of its own that does not stay."""

    port: int
    url: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, console: Console) -> Generator[str]:
        """Start it, wait until it answers, and stop it in order whatever happens."""
        with tempfile.TemporaryDirectory(prefix="brenier-demo-") as folder:
            process = subprocess.Popen(
                self._command(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,  # Ctrl-C reaches this process alone
                preexec_fn=_end_with_parent,
            )
            reader = threading.Thread(target=self._listen, args=(process, console), daemon=True)
            reader.start()
            try:
                self._await(process)
                yield self.url
            finally:
                _stop(process)
                reader.join(STOP_S)

    def _command(self, folder: str) -> list[str]:
        port = self.port if is_free(self.port) else 0
        places = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", folder]
        return [sys.executable, "-m", "workers.up", *places]

    def _listen(self, process: subprocess.Popen[str], console: Console) -> None:
        for line in process.stdout or ():
            text = line.rstrip()
            if not text:
                continue
            console.print(f"  {text}", style="dim", markup=False, highlight=False)
            _, found, url = text.partition("ready at ")
            if found:
                self.url = url.strip()
                self.ready.set()

    def _await(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + READY_S
        while not self.ready.wait(0.1):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BrenierError("the service did not start; its last words are above")


def _align(client: Client, source: Dataset, target: Dataset, console: Console) -> None:
    began = time.monotonic()
    job = client.spatial.align.submit(source=source, target=target)
    answer = job.result(progress=True)
    console.print(table_of(answer, time.monotonic() - began))
    for warning in answer.warnings:
        console.print(f"note: {warning.message}; {warning.hint}", markup=False)
    for name, raw in (("demo.png", job.picture("png")), ("demo.h5ad", job.h5ad())):
        Path(name).write_bytes(raw)
    console.print("Wrote demo.png (the picture) and demo.h5ad (slices with the answer in them).")


def table_of(answer: Result, seconds: float) -> Table:
    """Write what the alignment came to, and the numbers by which to trust it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("status", answer.status, f"after {answer.iterations} iterations")
    table.add_row("value", f"{answer.value:.6g}", "objective: expression and geometry")
    turned = "mirrored and turned" if answer.reflected else "turned"
    table.add_row("rotation", f"{answer.rotation_degrees:.2f}", f"degrees; {turned}")
    for part in ("scores", "certificate"):
        for name, value, meaning in numbers_in(answer[part], AlignResult.model_fields[part]):
            table.add_row(name, f"{value:.6g}", meaning)
    compute_s = answer.provenance.timings.compute_ms / 1000
    table.add_row("time", f"{seconds:.1f} s", f"{compute_s:.1f} s of it computing")
    return table


def numbers_in(part: Record, model: FieldInfo) -> Iterator[tuple[str, float, str]]:
    """Walk the numbers of a part of an answer, each with its meaning from the schema."""
    fields: dict[str, FieldInfo] = getattr(model.annotation, "model_fields", {})
    for name in part:
        counted_nothing = isinstance(part[name], int) and part[name] == 0
        if part[name] is not None and not counted_nothing:
            yield name.replace("_", " "), part[name], (fields[name].description or "").split(";")[0]


def is_free(port: int) -> bool:
    """Tell whether the port of this machine can be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _end_with_parent() -> None:
    """Have Linux stop the service in order if this process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop(process: subprocess.Popen[str]) -> None:
    """End the service in order; an impatient second Ctrl-C is passed on."""
    deadline = time.monotonic() + STOP_S
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def _handling(signals: Sequence[signal.Signals], handler: Callable[..., None]) -> Generator[None]:
    before = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stay(console: Console) -> None:
    """Wait to be asked to stop; nothing that is being printed is interrupted by it."""
    asked = threading.Event()
    with _handling((*ENDINGS, signal.SIGINT), lambda *_: asked.set()):
        console.print("Everything stays up until Ctrl-C.")
        asked.wait()
