"""Prints pip's settings as the environment variables that uv reads: `NAME=value`, each followed by a zero byte.

scripts/setup.sh runs it with the Python whose pip has the settings. Variables that are already set stay unchanged. It uses only the
standard library, since nothing else is installed yet.
"""

import ast
import importlib.util
import os
import subprocess
import sys

# pip's name for a setting: uv's variable, and the separator of several values.
UV_VARIABLE = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}


def read_pip_settings() -> dict[str, str]:
    """Read `pip config list` by setting; `[install]` overrides `[global]`, and the environment overrides both. None without pip."""
    if importlib.util.find_spec("pip") is None:  # as of Debian's python3
        return {}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - fixed words
    ranked: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, _, quoted = line.partition("=")
        section, _, setting = key.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section, -1)
        if rank >= ranked.get(setting, (0, ""))[0]:
            ranked[setting] = (rank, str(ast.literal_eval(quoted)))
    return {setting: value for setting, (_, value) in ranked.items()}


def main() -> None:
    """Translate the settings and print them."""
    translated: dict[str, str] = {}
    for setting, value in read_pip_settings().items():
        if setting in UV_VARIABLE:
            variable, joiner = UV_VARIABLE[setting]
            translated[variable] = joiner.join(value.split())
    if "UV_INDEX" in translated:
        # pip takes the best match of all indexes; by default uv stops at the first index that has the name.
        translated["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for variable, value in translated.items():
        if variable not in os.environ:
            print(f"{variable}={value}", end="\0")


if __name__ == "__main__":
    main()
