"""Plugin of pytest for .ci/run: of the cases marked breadth every sixteenth is interpreted.

All of them take an hour of the interpreter; `make test-all` on a GPU, or this stage without the
plugin, runs them.
"""

from __future__ import annotations

from typing import Any

import pytest

SHARE = 16


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave the other cases out."""
    broad = [item for item in items if "breadth" in item.keywords]
    left_out = {id(item) for place, item in enumerate(broad) if place % SHARE}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]
