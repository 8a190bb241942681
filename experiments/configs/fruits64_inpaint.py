"""Inpainting in the latents of fruits64_kl: the network sees the picture with a hole, encoded, and the mask."""

from dataclasses import replace

from .fruits64 import config as fruits

config = replace(fruits, name="fruits64_inpaint", network="concat", condition="inpaint", condition_channels=4, classes=0,
                 steps=1_000, cooldown=400)  # fmt: skip
