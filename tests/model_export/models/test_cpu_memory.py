import os

from tests.page_faults import page_faults


def test_freed_memory_is_kept_also_of_blocks_that_glibc_would_map() -> None:
    keep = "from model_export.models.cpu_memory import keep_freed_memory; keep_freed_memory()"
    faults = [page_faults(dict(os.environ), first, mib=(12, 6, 40)) for first in ("", keep)]
    assert faults[0] > 20 * faults[1], faults
