import pytest
from pydantic import SecretStr, ValidationError

from service.errors import ConfigurationError
from service.settings import Settings, load_settings


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEGRADE_MAX_NOTES", "12")
    assert load_settings().max_notes == 12


def test_the_command_line_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEGRADE_PORT", "1234")
    assert load_settings(port=4321).port == 4321
    assert load_settings(port=None).port == 1234


def test_a_misspelt_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEGRADE_MAX_NOTE", "12")
    with pytest.raises(ConfigurationError, match="no such setting: NOTEGRADE_MAX_NOTE"):
        load_settings()


def test_all_bad_values_are_listed_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEGRADE_MAX_NOTES", "none")
    monkeypatch.setenv("NOTEGRADE_ENGINE_DTYPE", "int3")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "NOTEGRADE_MAX_NOTES: " in str(caught.value)
    assert "NOTEGRADE_ENGINE_DTYPE: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen_and_hide_secrets() -> None:
    settings = Settings(redis_url=SecretStr("redis://:hunter2@cache:6379/0"), keys=SecretStr("score:abc"))
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert "hunter2" not in repr(settings)
    assert "abc" not in repr(settings)
