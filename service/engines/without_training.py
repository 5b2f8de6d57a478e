"""Importing this leaves out, in this process, what the trainer installs and vLLM and transformers import where they find it.

Serving uses none of it, and it is a third of vLLM's import. Only for a process that does nothing but serve or score.
See docs/decisions/0018-start.md.
"""

import sys

for _name in ("datasets", "pandas", "pyarrow", "ray", "scipy", "sklearn"):
    # To Python, what stands for None is not installed: https://docs.python.org/3/reference/import.html#the-module-cache
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
