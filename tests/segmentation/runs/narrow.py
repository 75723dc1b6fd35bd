"""What makes a training narrow where no test is about its width."""

from unittest.mock import patch

from spcl_fast.segmentation.finetune.semi.adversarial import Adversarial


def narrow_discriminator():
    """Return a context, or a decorator, in which the adversarial term judges with 8 channels."""
    _, *others = Adversarial.__init__.__defaults__
    return patch.object(Adversarial.__init__, "__defaults__", (8, *others))
