"""Flax linen networks. They know nothing of diffusion: x, a time and perhaps a label in, an array out."""

from .unet import UNet, init

__all__ = ["UNet", "init"]
