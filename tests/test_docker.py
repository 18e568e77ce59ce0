"""What can be said of the images without a Docker engine: what they install, run and expose."""

import json
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
IMAGES = {name: ROOT / "docker" / f"{name}.Dockerfile" for name in ("gateway", "worker")}
NOT_IN_THE_GATEWAY = {"torch", "scipy", "anndata", "matplotlib", "pot", "jaxtyping", "numba"}


def instructions(image: str, name: str) -> list[str]:
    text = IMAGES[image].read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{name} ") for line in text.splitlines() if line.startswith(name)]


def installed_with(extra: str) -> set[str]:
    """Follow an extra of ours through everything that it brings in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"][extra]]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = Requirement(waiting.pop())
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        for line in metadata.requires(wanted.name) or []:
            needed = Requirement(line)
            extras = ["", *wanted.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(line)
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def test_the_gateway_installs_no_torch() -> None:
    assert any('".[gateway]"' in line for line in instructions("gateway", "RUN"))
    gateway = installed_with("gateway")
    assert {"fastapi", "uvicorn", "celery", "redis", "numpy"} <= gateway
    assert not gateway & NOT_IN_THE_GATEWAY
    assert "torch" in installed_with("worker")


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_without_privileges_and_tell_their_health(image: str) -> None:
    assert instructions(image, "USER") == ["10001"]
    [health] = instructions(image, "HEALTHCHECK")
    assert "CMD [" in health
    assert len(instructions(image, "FROM")) == 2  # compilers and caches stay behind


def test_images_get_the_program_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {p.rstrip("*") for p in packages["packages"]["find"]["include"]} <= allowed
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= allowed


def test_the_worker_consumes_as_the_supervisor_has_it() -> None:
    from workers.up import _worker_command

    [command] = (json.loads(line) for line in instructions("worker", "CMD"))
    ours = _worker_command("worker", "queue")[3:]
    assert command[1:] == [word for word in ours if word not in ("-Q", "queue")]


def test_the_gateway_is_open_on_loopback_only(services: dict[str, Any]) -> None:
    gateway = services["gateway"]
    assert gateway["ports"] == ["${PUBLISH:-127.0.0.1}:${PORT:-8000}:8000"]
    assert gateway["environment"]["PUBLISH"] == "${PUBLISH:-127.0.0.1}"
    [entry] = (json.loads(line) for line in instructions("gateway", "ENTRYPOINT"))
    for address, insecure in (("127.0.0.1", "true"), ("0.0.0.0", ""), ("", "")):
        ran = subprocess.run(
            [*entry, "sh", "-c", "echo $BRENIER_INSECURE"],
            env={"PUBLISH": address, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == insecure
    assert "ports" not in services["store"]


def test_the_store_forgets_nothing_and_refuses_when_full(services: dict[str, Any]) -> None:
    store = services["store"]
    assert store["image"].startswith("valkey/valkey:")
    assert "--appendonly yes" in store["command"]
    assert "--maxmemory-policy noeviction" in store["command"]
    assert store["volumes"] == ["store:/data"]


def test_workers_can_be_multiplied_and_have_time_to_finish(services: dict[str, Any]) -> None:
    worker = services["worker"]
    assert not {"container_name", "hostname", "ports"} & set(worker)
    assert worker["stop_grace_period"] == "60s"
    assert worker["depends_on"] == {"store": {"condition": "service_healthy"}}


def test_gpus_are_asked_for_in_a_profile_of_their_own(services: dict[str, Any]) -> None:
    worker = services["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    [device] = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "--workers-only" in worker["command"]


def test_variables_are_settings(services: dict[str, Any]) -> None:
    from schemas.settings import Settings

    known = {f"BRENIER_{name}".upper() for name in Settings.model_fields}
    text = COMPOSE.read_text() + "".join(path.read_text() for path in IMAGES.values())
    assert set(re.findall(r"BRENIER_[A-Z_]+[A-Z]", text)) <= known
    for name in ("gateway", "worker", "worker-gpu"):
        service = services[name]
        assert service["environment"]["BRENIER_REDIS_URL"] == "redis://store:6379/0"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not here")
@pytest.mark.parametrize("options", [[], ["--profile", "gpu"]])
def test_compose_accepts_it(options: list[str]) -> None:
    ran = subprocess.run(
        ["docker-compose", "-f", str(COMPOSE), *options, "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
