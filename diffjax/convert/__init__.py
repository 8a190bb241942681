"""Public checkpoints to our networks and parameters, and back; one file per family. Strict: nothing is guessed silently."""

from . import adm, ddpm, diffusers_unet, dncnn, files, latent, score_sde

__all__ = ["adm", "ddpm", "diffusers_unet", "dncnn", "files", "latent", "score_sde"]
