"""Flax linen networks. They know nothing of diffusion: x, a time and perhaps a label in, an array out."""

from .ddpm import DDPMUNet
from .dncnn import DnCNN
from .encoder import Encoder
from .ncsnpp import NCSNpp
from .nonequilibrium import MultiScaleNet, RadialNet
from .unet import SuperRes, UNet, init

__all__ = ["DDPMUNet", "DnCNN", "Encoder", "MultiScaleNet", "NCSNpp", "RadialNet", "SuperRes", "UNet", "init"]
