"""The environment, read once by each process and passed down as an argument."""

import hashlib
import json
import os
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "BRENIER_"
PLAIN = re.compile(r"[A-Za-z0-9/._-]{1,103}")  # what a socket address can hold, no URL quoting


class Settings(BaseSettings):
    """Everything that an operator may set, as `BRENIER_<NAME>`; unknown names are an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    redis_url: str = Field(
        default="", description="Redis >= 6.2 or Valkey to use; empty starts the embedded store."
    )
    data_dir: Path = Field(
        default=Path(".brenier"),
        description="Where the embedded store keeps its files and its lock.",
    )
    namespace: str = Field(
        default="brenier", pattern=r"^[a-z0-9-]+$", description="Prefix of every key."
    )
    host: str = Field(default="127.0.0.1", description="Address of the gateway.")
    port: int = Field(
        default=8000, ge=0, lt=65536, description="Port of the gateway; 0 picks a free one."
    )
    api_keys: dict[str, str] = Field(
        default={},
        description="Tenant -> SHA-256 of its key, as JSON; none: loopback only, no keys.",
    )
    insecure: bool = Field(
        default=False, description="Listen beyond loopback although no key is set."
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="Worker processes that `brenier up` starts."
    )
    threads: int = Field(default=0, ge=0, description="Threads per worker; 0 is cores / workers.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where to compute."
    )
    lease_s: float = Field(
        default=15, ge=1, description="A worker silent for so long has lost its job."
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="Workers a job may lose before it fails."
    )
    cancel_grace_s: float = Field(
        default=5, gt=0, description="A routine that ignores cancellation for so long is killed."
    )
    watch_every_s: float = Field(
        default=0.2, gt=0, le=10, description="Interval of progress and flags."
    )
    retention_s: int = Field(
        default=86_400, ge=1, description="Seconds that results and arrays are kept."
    )
    tombstone_s: int = Field(
        default=604_800, ge=1, description="Seconds that expired jobs are remembered."
    )
    wait_cap_s: float = Field(default=30, ge=0, le=300, description="Longest `Prefer: wait`.")
    poll_cap_s: float = Field(default=60, ge=0, le=300, description="Longest `?wait=`.")
    json_limit: int = Field(default=8 << 20, ge=1024, description="Largest JSON body, bytes.")
    upload_limit: int = Field(default=256 << 20, ge=1024, description="Largest binary body, bytes.")
    inline_limit: int = Field(
        default=4096, ge=0, description="Arrays up to so many entries travel inline."
    )
    answer_limit: int = Field(default=4 << 20, ge=1024, description="Largest JSON answer, bytes.")
    body_timeout_s: float = Field(
        default=30, gt=0, description="A body silent for so long is given up."
    )
    queue_limit: int = Field(
        default=10_000, ge=1, description="Queued jobs beyond which 503 is answered."
    )
    memory_limit: int = Field(
        default=8 << 30,
        ge=1 << 20,
        description="Largest estimated working memory of one job, bytes.",
    )
    store_memory: int = Field(
        default=4 << 30, ge=1 << 24, description="Memory of the embedded store."
    )

    @field_validator("api_keys")
    @classmethod
    def _hashes(cls, keys: dict[str, str]) -> dict[str, str]:
        for tenant, digest in keys.items():
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"the key of {tenant} must be given as 64 hexadecimal digits")
        return keys

    @model_validator(mode="after")
    def _known_names_only(self) -> "Settings":
        known = {f"{PREFIX}{name}".upper() for name in type(self).model_fields}
        unknown = [n for n in os.environ if n.upper().startswith(PREFIX) and n.upper() not in known]
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return self

    @property
    def store_url(self) -> str:
        """Return the URL that redis-py opens: the operator's, or the embedded store's socket."""
        return self.redis_url or f"unix://{self.socket}?db=0"

    @property
    def socket(self) -> Path:
        """Return the path of the embedded store's unix socket.

        Paths that are too long for a socket, or need quoting in a URL, give way to a short one that
        every process derives alike, in a directory that only this user can enter.
        """
        home = self.data_dir.resolve()
        path = home / "v.sock"
        if PLAIN.fullmatch(str(path)):
            return path
        name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        return Path("/tmp", f"brenier-{os.getuid()}", f"{name}.sock")

    def environment(self) -> dict[str, str]:
        """Write the environment of a child process that is to read these settings."""
        values = self.model_dump(mode="json") | {"data_dir": str(self.data_dir.resolve())}
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(PREFIX)}
        for name, value in values.items():
            kept[f"{PREFIX}{name}".upper()] = value if isinstance(value, str) else json.dumps(value)
        return kept
