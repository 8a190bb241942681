"""Public checkpoints to our networks and parameters, and back; one file per family. Strict: nothing is guessed silently."""

from . import adm, ddpm, dncnn, files, first_stage, first_stage_loss, score_sde

__all__ = ["adm", "ddpm", "dncnn", "files", "first_stage", "first_stage_loss", "score_sde"]
