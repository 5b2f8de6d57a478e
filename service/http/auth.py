"""Bearer keys with roles, of which only hashes are known here."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from service.errors import ConfigurationError, NotAllowedError, RoleMissingError

logger = logging.getLogger(__name__)

Role = Literal["score", "admin"]
# Keys are 32 random bytes: a fast hash is enough, nobody can search that space.
KEY_BYTES = 32
RELOAD_EVERY_S = 1.0
_ENTRY = re.compile(r"(?P<role>[a-z]+):(?P<digest>[0-9a-f]{64})(:(?P<name>[A-Za-z0-9._-]{1,64}))?")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the key's id (its name, or the start of its hash) and its role."""

    key_id: str
    role: Role


# While no keys are set, which only loopback is served with.
ANYBODY = Caller("anybody", "admin")


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hex: what is written into the settings."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh random key."""
    return secrets.token_urlsafe(KEY_BYTES)


class Keyring:
    """The known keys. `admin` may do all that `score` may. With no keys everybody may do everything."""

    def __init__(self, callers_by_hash: dict[str, Caller]) -> None:
        self._callers_by_hash = callers_by_hash

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """From entries `role:hash` or `role:hash:name`, between commas or on lines of their own; `#` begins a comment.

        Raises ConfigurationError naming the entry by its position, never its text.
        """
        callers: dict[str, Caller] = {}
        lines = (line.partition("#")[0] for line in text.splitlines())
        entries = filter(None, (entry.strip() for line in lines for entry in line.split(",")))
        for position, entry in enumerate(entries, 1):
            found = _ENTRY.fullmatch(entry)
            if found is None or found["role"] not in get_args(Role):
                raise ConfigurationError(
                    f"keys: entry {position} must be `score:` or `admin:`, 64 hex digits, and maybe `:` and a name "
                    "(`notegrade key` prints one)"
                )
            key_id = found["name"] or found["digest"][:8]
            callers[found["digest"]] = Caller(key_id, cast("Role", found["role"]))
        return cls(callers)

    @classmethod
    def load(cls, text: str, file: Path | None) -> "Keyring":
        """The keys of the text and of the file. Raises ConfigurationError; a file without a key is one, too."""
        keyring = cls.parse(text)
        if file is not None:
            try:
                more = cls.parse(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{file} can't be read: {type(error).__name__}") from error
            if more.is_empty:
                # It may be half written. To serve without keys, the setting is taken out.
                raise ConfigurationError(f"{file} holds no key")
            keyring.add(more)
        return keyring

    @property
    def is_empty(self) -> bool:
        return not self._callers_by_hash

    def add(self, other: "Keyring") -> None:
        """Know the other's keys as well."""
        self._callers_by_hash = {**self._callers_by_hash, **other._callers_by_hash}

    def replace(self, other: "Keyring") -> None:
        """Know the other's keys and no others."""
        if self._callers_by_hash != other._callers_by_hash:
            self._callers_by_hash = other._callers_by_hash
            ids = sorted(caller.key_id for caller in other._callers_by_hash.values())
            logger.info("keys changed", extra={"key_ids": ids})

    def check(self, authorization: str | None, role: Role) -> Caller:
        """Who calls. Raises NotAllowedError without a known key, RoleMissingError when the key lacks the role."""
        if self.is_empty:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise NotAllowedError("send a key: `Authorization: Bearer <key>`")
        caller = self._caller_of(hash_key(key.strip()))
        if caller is None:
            raise NotAllowedError("this key is not known here")
        if role == "admin" and caller.role != "admin":
            raise RoleMissingError("this needs a key with the role admin")
        return caller

    def _caller_of(self, digest: str) -> Caller | None:
        # All are compared, each in constant time, so that timing tells nothing about the known hashes.
        found = [
            caller for known, caller in self._callers_by_hash.items() if hmac.compare_digest(known, digest)
        ]
        return found[0] if found else None


async def reload_keys(keyring: Keyring, text: str, file: Path) -> None:
    """Keep the keyring as the file has it, until cancelled. While the file can't be used, the last keys stay."""
    complained = False
    while True:
        await asyncio.sleep(RELOAD_EVERY_S)
        try:
            keyring.replace(await asyncio.to_thread(Keyring.load, text, file))
            complained = False
        except ConfigurationError as error:
            if not complained:
                logger.warning(
                    "the file of keys can't be used: the last keys stay", extra={"detail": str(error)}
                )
            complained = True
