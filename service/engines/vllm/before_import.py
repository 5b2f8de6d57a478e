"""Imported before vLLM by a process that does nothing but serve or score. See docs/decisions/0018-start.md."""

import logging
import sys

# What the trainer installs, and vLLM and transformers import where they find it: serving uses none of it, and it takes seconds.
for _name in ("datasets", "pandas", "pyarrow", "ray", "scipy", "sklearn"):
    # mypy knows no None there. To Python, what stands for None is not installed: https://docs.python.org/3/reference/import.html#the-module-cache
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]

# As vllm_logging.json has it, which vLLM reads when it is imported already: until then it tells of a Triton that no CPU has.
logging.getLogger("vllm").setLevel(logging.ERROR)
