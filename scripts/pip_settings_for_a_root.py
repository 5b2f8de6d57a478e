"""Writes pip's settings as a pip.conf for an image or a chroot, and prints the files of this machine that they name.

    pip_settings_for_a_root.py FILE

It prints `ca.crt=FILE`, certificates that the pip.conf expects at /etc/ssl/certs/ca-certificates.crt, and `wheels=FOLDER`, pip's
find-links, which the pip.conf omits.
"""

import sys
from pathlib import Path

from pip_settings_for_uv import read_pip_settings


def main() -> None:
    """Write the file that the command line names."""
    settings = read_pip_settings()
    if certificates := settings.pop("cert", None):
        print(f"ca.crt={certificates}")
        settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"
    wheels = [folder for folder in settings.pop("find-links", "").split() if Path(folder).is_dir()]
    if wheels:
        print(f"wheels={wheels[0]}")
    settings.pop("constraint", None)
    lines = [f"{name} = {value}".replace("\n", "\n    ") for name, value in settings.items()]
    Path(sys.argv[1]).write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
