"""Reads the settings that a deployment gives to the service."""

import os
from collections.abc import Mapping

import pytest

from service.http.server import LAST_ANSWERS_S
from service.settings import PREFIX, Settings

# docs/deploy.md has the measurement: an idle service takes 5 s longer than the drain.
ENGINE_CLOSES_S = 15.0


def load_settings(given: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as the service would with these variables, all of which must be settings or OpenTelemetry's."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        is_setting = name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() in Settings.model_fields
        assert is_setting or name.startswith("OTEL_"), name
        monkeypatch.setenv(name, value)
    return Settings()


def seconds_to_stop(settings: Settings) -> float:
    """Return the longest time from the signal to stop until the end of the process."""
    return settings.drain_delay_s + settings.drain_timeout_s + LAST_ANSWERS_S + ENGINE_CLOSES_S
