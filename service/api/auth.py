"""Bearer keys with roles, of which only hashes are known here."""

import hashlib
import hmac
import secrets
from typing import Literal, get_args

from service.errors import ConfigurationError, NotAllowedError, RoleMissingError

Role = Literal["score", "admin"]
# Keys are 32 random bytes: a fast hash is enough, nobody can search that space.
KEY_BYTES = 32


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hex: what is written into the settings."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh random key."""
    return secrets.token_urlsafe(KEY_BYTES)


class Keyring:
    """The known keys. `admin` may do all that `score` may. With no keys everybody may do everything."""

    def __init__(self, roles_by_hash: dict[str, Role]) -> None:
        self._roles_by_hash = roles_by_hash

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """From `role:hash,role:hash`. Raises ConfigurationError naming the entry by its position, never its text."""
        roles: dict[str, Role] = {}
        for position, entry in enumerate(filter(None, map(str.strip, text.split(","))), 1):
            role, _, digest = entry.partition(":")
            if role not in get_args(Role) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise ConfigurationError(
                    f"NOTEGRADE_KEYS: entry {position} must be `score:` or `admin:` and 64 hex digits "
                    "(`notegrade key` prints one)"
                )
            roles[digest] = role  # type: ignore[assignment]  # checked against get_args above
        return cls(roles)

    @property
    def is_empty(self) -> bool:
        return not self._roles_by_hash

    def check(self, authorization: str | None, role: Role) -> None:
        """Raise NotAllowedError without a known key, RoleMissingError when the key lacks the role."""
        if self.is_empty:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise NotAllowedError("send a key: `Authorization: Bearer <key>`")
        held = self._role_of(hash_key(key.strip()))
        if held is None:
            raise NotAllowedError("this key is not known here")
        if role == "admin" and held != "admin":
            raise RoleMissingError("this needs a key with the role admin")

    def _role_of(self, digest: str) -> Role | None:
        # All are compared, each in constant time, so that timing tells nothing about the known hashes.
        found = [role for known, role in self._roles_by_hash.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None
