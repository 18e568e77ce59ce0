"""The environment: every name known, every value checked."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.settings import Settings


def test_defaults_use_the_embedded_store(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.store_url == f"unix://{settings.socket}?db=0"


def test_an_own_store_replaces_it() -> None:
    assert Settings(redis_url="redis://elsewhere/0").store_url == "redis://elsewhere/0"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRENIER_LEASE_S", "3")
    assert Settings().lease_s == 3


def test_unknown_names_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRENIER_LEASE", "3")
    with pytest.raises(ValidationError, match="BRENIER_LEASE"):
        Settings()


def test_keys_are_given_as_hashes() -> None:
    assert Settings(api_keys={"lab": "0" * 64}).api_keys
    with pytest.raises(ValidationError, match="hexadecimal"):
        Settings(api_keys={"lab": "secret"})
