"""Flax linen networks. They know nothing of diffusion: x, a time and perhaps a label in, an array out."""

from .autoencoder import AutoencoderKL, AutoencoderVQ
from .ddpm import DDPMUNet
from .discriminator import PatchDiscriminator
from .dncnn import DnCNN
from .encoder import Encoder
from .ncsnpp import NCSNpp
from .nonequilibrium import MultiScaleNet, RadialNet
from .unet import SuperRes, UNet, init
from .vgg import VGGDistance

__all__ = [
    "AutoencoderKL",
    "AutoencoderVQ",
    "DDPMUNet",
    "DnCNN",
    "Encoder",
    "MultiScaleNet",
    "NCSNpp",
    "PatchDiscriminator",
    "RadialNet",
    "SuperRes",
    "UNet",
    "VGGDistance",
    "init",
]
