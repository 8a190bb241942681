"""Flax linen networks. They know nothing of diffusion: x, a time and perhaps a label or another condition in, an array out."""

from .autoencoder import AutoencoderKL, AutoencoderVQ
from .conditioners import ClassEmbedder, Conditioned, SpatialRescaler, TextTransformer, TokenEncoder
from .ddpm import DDPMUNet
from .discriminator import PatchDiscriminator
from .dncnn import DnCNN
from .encoder import Encoder
from .latent_unet import ConditionUNet, LatentUNet
from .local import LocalUNet
from .ncsnpp import NCSNpp
from .nonequilibrium import MultiScaleNet, RadialNet
from .sr3 import SR3UNet
from .unet import SuperRes, UNet, init
from .vgg import VGGDistance

__all__ = [
    "AutoencoderKL",
    "AutoencoderVQ",
    "ClassEmbedder",
    "ConditionUNet",
    "Conditioned",
    "DDPMUNet",
    "DnCNN",
    "Encoder",
    "LatentUNet",
    "LocalUNet",
    "MultiScaleNet",
    "NCSNpp",
    "PatchDiscriminator",
    "RadialNet",
    "SR3UNet",
    "SpatialRescaler",
    "SuperRes",
    "TextTransformer",
    "TokenEncoder",
    "UNet",
    "VGGDistance",
    "init",
]
