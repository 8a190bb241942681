"""What recorded runs of the official codes need and the library does not do, each with the reason."""

import diffjax as dj


def clipped_mean(denoise, mean_type):
    """The denoiser whose ancestral step an official run with ``clip_denoised`` takes.

    guided-diffusion clamps the x0 it reports, but a network that predicts the previous mean has its raw output taken as
    the mean. Here a corrected x0 always reaches the move.
    """
    return denoise if mean_type == "PREVIOUS_X" else dj.denoisers.clipped(denoise)
