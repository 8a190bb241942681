"""As fruits64_kl, with a codebook."""

from dataclasses import replace

from .fruits64_kl import config as kl

config = replace(kl, name="fruits64_vq", kind="vq", codes=512)
