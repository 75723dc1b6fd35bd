"""Plugin of pytest for .ci/run: each case of the kernels on one of the two emulators.

Every second case of a test runs on one architecture and the others on the other if it has one list
of parameters, or three; the cases of two lists run on the first, because pytest 9 gives all direct
parameters of a case one place. A test of a single case runs on the second, and so does one of
kernels that only the second has. Tests marked `interpreted`, which show no other code than those
beside them, run on neither.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

EMULATORS = ("emu80", "emu90")
ONLY_ON = {"test_hopper.py": "emu90"}


def square(item: Any) -> int:
    """Return the sum of the places of the parameters; those of one list count once."""
    places = dict(item.callspec.indices)
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        for name in names[1:]:
            places.pop(name.strip(), None)
    return sum(places.values())


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave the cases of the other emulator out."""
    own = EMULATORS.index(os.environ["SPCL_KERNEL_DRIVER"])
    cases = Counter((item.path, item.originalname) for item in items)
    left_out = {"breadth", "interpreted"}

    def is_here(item: Any) -> bool:
        if item.path.name in ONLY_ON:
            return ONLY_ON[item.path.name] == EMULATORS[own]
        is_alone = cases[item.path, item.originalname] == 1
        return (1 if is_alone else square(item) % 2) == own

    here = [item for item in items if not left_out & set(item.keywords) and is_here(item)]
    kept = {id(item) for item in here}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = here


@pytest.hookimpl(trylast=True)  # gpucheck.plugin comes before Triton is imported
def pytest_configure() -> None:
    """Disassemble what spills alone."""
    from gpucheck import emu_driver
    from resources import resources

    emu_driver.cubin_stats = resources
