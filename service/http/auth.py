"""Authenticate callers by bearer keys with roles. The service knows only the keys' hashes."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.errors import ConfigurationError, NotAllowedError, RoleMissingError
from service.observability.request_context import current_request

logger = logging.getLogger(__name__)

Role = Literal["score", "admin"]
# A fast hash is enough for keys of 32 random bytes, which cannot be guessed.
KEY_BYTES = 32
RELOAD_EVERY_S = 1.0
_ENTRY = re.compile(r"(?P<role>[a-z]+):(?P<digest>[0-9a-f]{64})(:(?P<name>[A-Za-z0-9._-]{1,64}))?")


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a request was sent with: its id (its name, or the start of its hash) and its role."""

    key_id: str
    role: Role


# Every caller, while no keys are set; without keys the service listens on loopback only.
ANYBODY = Caller("anybody", "admin")


def hash_key(key: str) -> str:
    """Return the key's SHA-256 in hex, as the settings hold it."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """Make a new random key."""
    return secrets.token_urlsafe(KEY_BYTES)


class Keyring:
    """The known keys. `admin` may do all that `score` may. With no keys every caller may do everything."""

    def __init__(self, callers_by_hash: dict[str, Caller]) -> None:
        self._callers_by_hash = callers_by_hash
        self._is_stale = False

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """Read entries `role:hash` or `role:hash:name`, separated by commas or line ends; `#` begins a comment.

        Raises ConfigurationError, which names a bad entry by its position and never quotes it.
        """
        callers: dict[str, Caller] = {}
        lines = (line.partition("#")[0] for line in text.splitlines())
        entries = filter(None, (entry.strip() for line in lines for entry in line.split(",")))
        for position, entry in enumerate(entries, 1):
            found = _ENTRY.fullmatch(entry)
            if found is None or found["role"] not in get_args(Role):
                raise ConfigurationError(
                    f"keys: entry {position} must be `score:` or `admin:`, 64 hex digits, and optionally `:` and a name "
                    "(`notegrade key` prints one)"
                )
            key_id = found["name"] or found["digest"][:8]
            callers[found["digest"]] = Caller(key_id, cast("Role", found["role"]))
        return cls(callers)

    @classmethod
    def load(cls, text: str, file: Path | None) -> "Keyring":
        """Read the keys of the text and of the file. Raises ConfigurationError, also for a file without a key."""
        keyring = cls.parse(text)
        if file is None:
            return keyring
        try:
            from_file = cls.parse(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} can't be read: {type(error).__name__}") from error
        if from_file.is_empty:
            # The file may be half written. To serve without keys, the setting is removed.
            raise ConfigurationError(f"{file} holds no key")
        return cls({**keyring._callers_by_hash, **from_file._callers_by_hash})

    @property
    def is_empty(self) -> bool:
        return not self._callers_by_hash

    async def reload(self, text: str, file: Path) -> None:
        """Replace all keys by those of the text and the file. While the file can't be used, the last keys stay."""
        try:
            found = (await asyncio.to_thread(Keyring.load, text, file))._callers_by_hash
        except ConfigurationError as error:
            if not self._is_stale:  # once per outage
                logger.warning(
                    "the file of keys can't be used: the last keys stay", extra={"detail": str(error)}
                )
            self._is_stale = True
            return
        self._is_stale = False
        if self._callers_by_hash != found:
            self._callers_by_hash = found
            ids = sorted(caller.key_id for caller in found.values())
            logger.info("keys changed", extra={"key_ids": ids})

    def check(self, key: str | None, role: Role) -> Caller:
        """Return the key's caller. Raises NotAllowedError for an unknown key, RoleMissingError if it lacks the role."""
        if not self._callers_by_hash:
            return ANYBODY
        if not key:
            raise NotAllowedError("send a key: `Authorization: Bearer <key>`")
        digest = hash_key(key)
        # All are compared, each in constant time, so that timing reveals nothing about the known hashes.
        found = [
            caller for known, caller in self._callers_by_hash.items() if hmac.compare_digest(known, digest)
        ]
        if not found:
            raise NotAllowedError("this key is not known here")
        if role == "admin" and found[0].role != "admin":
            raise RoleMissingError("this needs a key with the role admin")
        return found[0]


_bearer = HTTPBearer(
    auto_error=False,
    description="A key with the role `score` or `admin`; none is needed while no keys are set",
)


def require(keyring: Keyring, role: Role) -> Callable[..., Awaitable[Caller]]:
    """Make a dependency that returns the caller if its key has the role, and records the key's id in the request's event."""

    # A coroutine, because FastAPI would run a plain function in a thread.
    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
        caller = keyring.check(credentials.credentials.strip() if credentials else None, role)
        current_request.get().event["key"] = caller.key_id
        return caller

    return check
