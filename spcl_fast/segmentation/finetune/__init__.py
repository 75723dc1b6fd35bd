"""Stage 2: train the segmenter on a few labelled scans; the package is callable."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Stage(ModuleType):
    def __call__(
        self, config: Any, *, resume: bool = False, log: Callable[..., None] | None = None
    ) -> Any:
        """Fine-tune, see `spcl_fast.segmentation.finetune.loop.finetune`."""
        from spcl_fast.segmentation.finetune.loop import finetune

        return finetune(config, resume=resume, log=log)


sys.modules[__name__].__class__ = _Stage
