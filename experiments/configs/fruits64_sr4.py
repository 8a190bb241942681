"""Super-resolution 16 -> 64 in the latents of fruits64_kl: the network sees the small picture beside its input."""

from dataclasses import replace

from .fruits64 import config as fruits

config = replace(fruits, name="fruits64_sr4", network="concat", condition="sr4", condition_channels=3, classes=0,
                 steps=1_000, cooldown=400)  # fmt: skip
