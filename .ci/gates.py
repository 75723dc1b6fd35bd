"""Compile the kernels within the limits of tests/kernels: python .ci/gates.py CASES RESULTS.json.

CASES is all, or common for one size of every kernel on each architecture that is emulated.
"""

from __future__ import annotations

import sys
from typing import Any

from gpucheck import aot
from resources import resources

from tests.kernels import compiled

COMMON_SIZES = ("D=128", "D=512", "merge_parts", "row_weights", "interval")


def common() -> list[dict[str, Any]]:
    """Return the cases of one size."""
    emulated = [case for case in compiled.cases() if case["targets"][0] in ("sm_80", "sm_90")]
    return [case for case in emulated if any(size in case["name"] for size in COMMON_SIZES)]


if __name__ == "__main__":
    aot.cubin_stats = resources
    factory = {"all": "tests.kernels.compiled:cases", "common": "__main__:common"}[sys.argv[1]]
    sys.exit(aot.main([factory, "--json", sys.argv[2]]))
