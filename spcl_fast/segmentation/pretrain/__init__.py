"""Stage 1: pre-train on meta-labels and on views of slices; the package is callable."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class _Stage(ModuleType):
    def __call__(
        self, config: Any, *, resume: bool = False, log: Callable[..., None] | None = None
    ) -> Path:
        """Pre-train, see `spcl_fast.segmentation.pretrain.loop.pretrain`."""
        from spcl_fast.segmentation.pretrain.loop import pretrain

        return pretrain(config, resume=resume, log=log)


sys.modules[__name__].__class__ = _Stage
