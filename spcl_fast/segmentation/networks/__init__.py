"""Networks of arXiv:2107.13741: the U-Net and the heads that project its features."""

from spcl_fast.segmentation.networks.projector import DenseProjectionHead, ProjectionHead
from spcl_fast.segmentation.networks.unet import UNet, UNetDecoder, UNetEncoder

__all__ = ["DenseProjectionHead", "ProjectionHead", "UNet", "UNetDecoder", "UNetEncoder"]
