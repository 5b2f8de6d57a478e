"""Every setting, read once from the environment (NOTEGRADE_*) and passed down; see docs/settings.md."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contract.validation import bad_fields
from service.engines.vllm.options import VllmOptions
from service.errors import ConfigurationError
from service.explaining.limits import ExplanationLimits
from service.http.schemas import RequestLimits
from service.http.server import ServerOptions
from service.scoring.prompter import ReadingMode
from service.shadowing.shadow import ShadowOptions
from service.vectors.encoding import EncodingOptions

PREFIX = "NOTEGRADE_"
# The commands read these, in a shell that may start a service as well.
FOR_COMMANDS = ("NOTEGRADE_URL", "NOTEGRADE_KEY")


class ServingOptions(BaseModel):
    """The settings of what is served, where, and to whom. They come first in docs/settings.md."""

    checkpoint: str = Field(
        "checkpoints/default",
        description="Checkpoint to serve: a folder, or the id of a hub repository (`owner/name`)",
    )
    engine: Literal["vllm", "fake"] = Field(
        "vllm",
        description="`fake` needs no vLLM and makes grades up, to test what is around the service. A trained checkpoint is never ready on it, since its probes fail",
    )
    host: str | None = Field(
        None,
        description="Address to listen on; unset: 127.0.0.1 without keys, 0.0.0.0 with keys. Without keys only loopback is allowed",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    keys: SecretStr = Field(
        SecretStr(""),
        description="Keys of callers: `role:sha256-of-the-key` or `role:sha256-of-the-key:name`, separated by commas, role `score` or `admin` (`notegrade key` makes one). Empty: no key is needed",
    )
    keys_file: Path | None = Field(
        None,
        description="File with more keys, one a line, read again every second, so that keys are rotated without a restart",
    )
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for operators: `/admin/`, `/metrics` and `/console` are then served on that port only; unset: on `NOTEGRADE_PORT`",
    )
    admin_host: str | None = Field(
        None, description="Address to listen on with the admin port; unset: that of `NOTEGRADE_HOST`"
    )
    rate_limit: str | None = Field(
        None,
        description="Most pairs that one key may ask this replica for: `600/second`, `20000/minute`; unset: no limit",
    )


class VectorOptions(EncodingOptions):
    """The settings of note vectors, for checkpoints that have an encoder."""

    reading: ReadingMode = Field(
        "auto",
        description="How notes are read: `text`, `vectors`, or `auto`, which reads the vectors of notes that have some and the text of the others. With `vectors`, notes without vectors are shed until they are encoded. A checkpoint without an encoder always reads text",
    )
    vector_ttl_s: float = Field(
        604_800.0, gt=0, description="How long a note's vectors are kept, in seconds after they were made"
    )
    vector_memory_mib: int = Field(
        256, ge=1, description="Memory for note vectors without Redis, in MiB; 4.6 KB a note at width 576"
    )


class Settings(
    BaseSettings,
    VllmOptions,
    VectorOptions,
    ShadowOptions,
    ExplanationLimits,
    RequestLimits,
    ServerOptions,
    ServingOptions,
):
    """All settings, frozen. Each group is handed as it is to the part that declares it.

    A description is the text of the setting's row in docs/settings.md.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    redis_url: SecretStr | None = Field(
        None,
        description="Redis for the pair cache, note vectors and explanation mode (`redis://`, `rediss://`, `unix://`); unset: the memory of this process",
    )
    redis_cluster: bool = Field(
        False,
        description="Whether the URL is that of a Redis Cluster: one of its nodes, or a name that resolves to all of them; without `/db`",
    )
    redis_timeout_ms: int = Field(50, ge=1, le=10_000, description="Longest wait for one Redis call")
    redis_max_connections: int = Field(
        64, ge=1, le=10_000, description="Most connections to Redis; in a cluster, to each node"
    )
    cache_ttl_s: int = Field(86_400, ge=1, description="How long a cached reading is kept")
    local_cache_pairs: int = Field(
        100_000, ge=1, description="Most pairs in the local cache (about 0.5 KB each)"
    )
    breaker_failures: int = Field(5, ge=1, description="Redis failures in a row that open the breaker")
    breaker_open_s: float = Field(
        5.0, gt=0, description="How long the breaker stays open before Redis is tried again"
    )

    max_backlog_tokens: int = Field(
        200_000,
        ge=1_000,
        description="Most prompt tokens that may wait before a pair, its own included; pairs over it are shed",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity of log events that are written"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="One JSON object a line, or plain text; `auto`: text on a terminal, JSON elsewhere",
    )
    tracing: bool = Field(
        False,
        description="Trace requests with OpenTelemetry (extra `tracing`), which is configured by its own `OTEL_` variables",
    )
    log_texts: bool = Field(
        False,
        description="Write queries and notes into the log. They are private: only for debugging on test data",
    )


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` that are not None replace them.

    Raises ConfigurationError, in one line, for invalid values and for a NOTEGRADE_ variable that is no setting:
    a misspelt one would otherwise have no effect.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX)
        and name.removeprefix(PREFIX).lower() not in Settings.model_fields
        and name not in FOR_COMMANDS
    )
    if unknown:
        raise ConfigurationError(f"no such setting: {', '.join(unknown)} (docs/settings.md lists them all)")
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        parts = [f"{PREFIX}{bad.field.upper()}: {bad.message}" for bad in bad_fields(error, "")]
        raise ConfigurationError("; ".join(parts)) from error
