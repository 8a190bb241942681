"""Flax linen networks. They know nothing of diffusion: x, a time and perhaps a label in, an array out."""

from .ddpm import DDPMUNet
from .encoder import Encoder
from .unet import SuperRes, UNet, init

__all__ = ["DDPMUNet", "Encoder", "SuperRes", "UNet", "init"]
