"""Phase one of orchard64: as fruits64_kl, on pictures of one to three small fruits."""

from dataclasses import replace

from .fruits64_kl import config as fruits

config = replace(fruits, name="orchard64_kl", data="data/orchard64.npz", eval_images=128)  # python -m experiments.orchard
