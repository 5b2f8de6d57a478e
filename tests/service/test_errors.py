"""Every error of the tree has a stable type, a status, and its line in the drawing of the module."""

import re

import pytest

import service.errors as errors
from service.errors import NotegradeError


def all_errors() -> list[type[NotegradeError]]:
    found, todo = [], [NotegradeError]
    while todo:
        error = todo.pop()
        found.append(error)
        todo += error.__subclasses__()
    return found


# Callers depend on these types: they never change. A new error adds its line here.
TYPES_AND_STATUS = {
    "NotegradeError": ("internal", 500),
    "NotServedError": ("not-found", 404),
    "MethodNotAllowedError": ("method-not-allowed", 405),
    "InvalidRequestError": ("invalid-request", 422),
    "RequestTooLargeError": ("request-too-large", 413),
    "HeadTooLargeError": ("head-too-large", 431),
    "HeadTimeoutError": ("head-timeout", 408),
    "BodyTimeoutError": ("body-timeout", 408),
    "MalformedHttpError": ("malformed-http", 400),
    "NotAllowedError": ("not-authenticated", 401),
    "RoleMissingError": ("role-missing", 403),
    "RateLimitedError": ("rate-limited", 429),
    "TooManyConnectionsError": ("too-many-connections", 503),
    "OverloadedError": ("overloaded", 503),
    "VectorsMissingError": ("vectors-missing", 503),
    "NotReadyError": ("not-ready", 503),
    "DeadlineExceededError": ("deadline-exceeded", 504),
    "EngineError": ("engine", 500),
    "EngineRequestError": ("engine-request", 500),
    "EngineLostError": ("engine-lost", 503),
    "RemoteStoreError": ("store-unavailable", 503),
    "CacheUnavailableError": ("cache-unavailable", 503),
    "ExplanationStoreError": ("explanation-store-unavailable", 503),
    "ModeConflictError": ("mode-conflict", 412),
    "ModeUnconditionalError": ("mode-unconditional", 428),
    "ModeRefusedError": ("mode-refused", 409),
    "ExplanationsOffError": ("explanations-off", 409),
    "ExplanationDroppedError": ("explanation-dropped", 503),
    "ExplanationNotFoundError": ("explanation-not-found", 404),
    "ShadowOffError": ("shadow-off", 404),
    "VectorsOffError": ("vectors-off", 404),
    "ShadowError": ("shadow", 500),
    "EncoderError": ("encoder", 500),
    "CheckpointError": ("checkpoint", 500),
    "ManifestError": ("manifest", 500),
    "LabelTokenError": ("label-token", 500),
    "ProbeMismatchError": ("probe-mismatch", 503),
    "CommandError": ("command", 500),
    "ConfigurationError": ("configuration", 500),
}


def test_types_and_statuses_are_stable() -> None:
    found = {e.__name__: (e.type, e.status) for e in all_errors() if e.__module__ == "service.errors"}
    assert found == {
        name: (errors.PROBLEM_PREFIX + kind, status) for name, (kind, status) in TYPES_AND_STATUS.items()
    }


@pytest.mark.parametrize("name", TYPES_AND_STATUS)
def test_the_drawing_shows_every_error(name: str) -> None:
    assert re.search(rf"\b{name}\b", str(errors.__doc__))
