"""Public checkpoints to our networks and parameters, and back; one file per family. Strict: nothing is guessed silently."""

from . import adm, ddpm, diffusers_unet, dncnn, files, first_stage, first_stage_loss, latent, score_sde, sr3

__all__ = ["adm", "ddpm", "diffusers_unet", "dncnn", "files", "first_stage", "first_stage_loss", "latent", "score_sde", "sr3"]
