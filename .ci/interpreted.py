"""Plugin of pytest for .ci/run: what is interpreted of the tests of the kernels.

Of the cases marked breadth every sixteenth: all of them take an hour of the interpreter, and
`make test-all` on a GPU, or this stage without the plugin, runs them. Of those that an emulator
runs the first of each test that has no other here: they show that it passes for a person too.
"""

from __future__ import annotations

from typing import Any

import pytest

SHARE = 16


def test_of(item: Any) -> str:
    """Return the name of the test that a case is of."""
    return f"{item.path.name}::{item.originalname}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave the other cases out."""
    broad = [item for item in items if "breadth" in item.keywords]
    others = [item for item in items if "breadth" not in item.keywords]
    own = broad[::SHARE] + [item for item in others if "interpreted" in item.keywords]
    tests, kept = {test_of(item) for item in own}, {id(item) for item in own}
    for item in others:
        if test_of(item) not in tests:
            tests.add(test_of(item))
            kept.add(id(item))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
