"""The peers' side of ``python -m experiments.benchmark peers``: runs in their environment, without JAX.

A work is as in `benchmark_ours`, with peer (torch, diffusers, azula, deepinv) and how (eager, channels_last, compile,
checkpointed). The weights are ours, in the folder given as argument, in azula's copy of the official guided-diffusion UNet.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.repaint import RePaintSampler
from azula.plugins.adm import AblatedDenoiser
from azula.plugins.adm._src import unet as official
from azula.sample import DDIMSampler

FOLDER = pathlib.Path(sys.argv[1])
SHARED = dict(model_channels=32, use_scale_shift_norm=True, resblock_updown=False)


def weights(name):
    return {key: torch.from_numpy(a) for key, a in np.load(FOLDER / f"{name}.npz").items()}


def adm():
    how = dict(in_channels=3, out_channels=3, num_res_blocks=1, attention_resolutions={4}, channel_mult=(1, 2, 3))
    net = official.UNetModel(image_size=32, num_head_channels=32, **how, **SHARED)
    net.load_state_dict(weights("adm"))
    return net


class Fashion(torch.nn.Module):
    """The bundled prior: pixels of 2 x 2 blocks as channels around an official UNet whose norms have 8 groups."""

    def __init__(self):
        super().__init__()
        usual = official.normalization
        official.normalization = lambda channels: torch.nn.GroupNorm(8, channels)
        how = dict(in_channels=4, out_channels=4, num_res_blocks=2, attention_resolutions=set(), channel_mult=(1, 2))
        self.inner = official.UNetModel(image_size=16, num_heads=1, num_classes=11, **how, **SHARED)
        official.normalization = usual
        self.inner.load_state_dict(weights("fashion"))

    def forward(self, x, t):
        null = torch.full((x.shape[0],), 10)
        return F.pixel_shuffle(self.inner(F.pixel_unshuffle(x, 2), t, y=null), 2)


class Counted(torch.nn.Module):
    """The network, and how often it was called."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x, t, *args, **kwargs):
        self.calls += 1
        return self.net(x, t.expand(x.shape[0]))


@functools.cache
def network(name, how):
    net = {"adm": adm, "fashion": Fashion}[name]().eval()
    for p in net.parameters():
        p.requires_grad_(False)
    if how == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    return torch.compile(net) if how == "compile" else net


def differences():
    """Largest difference of each network's outputs from ours, as a share of the largest value."""
    found = {}
    for name in ("adm", "fashion"):
        check = np.load(FOLDER / f"{name}_check.npz")
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(check["x"], -1, 1)))
            y = np.moveaxis(network(name, "eager")(x, torch.from_numpy(check["t"])).numpy(), 1, -1)
        found[name] = float(np.abs(y - check["y"]).max() / np.abs(check["y"]).max())
    return found


# --- works ----------------------------------------------------------------------------------------------------------


def call(work, net, x):
    t = torch.full((x.shape[0],), 500.0)
    if work["kind"] == "forward":
        return torch.inference_mode()(lambda: net(x, t))

    def gradient():
        start = x.detach().requires_grad_()
        y = net(start, t)
        return y.detach(), torch.autograd.grad(y, start, x.flip(0))[0]

    return gradient


def diffusers_ddim(name, calls, clip=True):
    from diffusers import DDIMScheduler

    if name == "adm":
        scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=clip)
    else:
        scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=clip)
    scheduler.set_timesteps(calls)
    return scheduler


def by_weights(work, net, x):
    """The gradient of a DDIM walk by the weights and the start, plain or with `torch.utils.checkpoint` for each row."""
    from torch.utils.checkpoint import checkpoint

    scheduler = diffusers_ddim(work["net"], work["calls"])
    leaves = [p.requires_grad_() for p in net.parameters()]

    def step(z, t):
        return scheduler.step(net(z, t), t, z).prev_sample

    def gradient():
        z = start = x.detach().requires_grad_()
        for t in scheduler.timesteps:
            z = checkpoint(step, z, t, use_reentrant=False) if work["how"] == "checkpointed" else step(z, t)
        return torch.autograd.grad(z.sum(), [start, *leaves])

    return gradient


def of_diffusers(work, net, x):
    if work["kind"] == "ddim":
        scheduler = diffusers_ddim(work["net"], work["calls"])

        @torch.inference_mode()
        def walk():
            z = x
            for t in scheduler.timesteps:
                z = scheduler.step(net(z, t), t, z).prev_sample
            return z

        return walk
    from diffusers import RePaintScheduler

    scheduler = RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(work["calls"] // 4, jump_length=5, jump_n_sample=5)
    scheduler.eta = 1.0  # the pipeline sets it so
    known = torch.rand_like(x) * 2 - 1

    @torch.inference_mode()
    def paint():
        z, last = x, scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, t), t, z, known, half(x)).prev_sample if t < last else scheduler.undo_step(z, last)
            last = t
        return z

    return paint


def half(x):
    mask = torch.ones(1, 1, *x.shape[2:])
    mask[..., x.shape[3] // 2 :] = 0
    return mask


def blur_kernel(size=13, std=1.5):
    r = torch.arange(size) - size // 2
    k = torch.exp(-(r**2) / (2 * std**2))
    return torch.outer(k, k) / k.sum() ** 2


def of_azula(work, net, x):
    denoise = AblatedDenoiser(net, clip_mean=True).eval()
    kind, steps = work["kind"], work["calls"]
    if kind == "ddim":
        sampler = DDIMSampler(denoise, steps=steps, silent=True)
        return lambda: sampler(x)
    if work["task"] == "inpainting":
        A = lambda v: v * half(x)
    else:
        k = torch.zeros(x.shape[2:])
        k[:13, :13] = blur_kernel()
        spectrum = torch.fft.rfft2(torch.roll(k, (-6, -6), (0, 1)))
        A = lambda v: torch.fft.irfft2(torch.fft.rfft2(v) * spectrum, s=x.shape[2:])
    y = A(torch.rand_like(x) * 2 - 1) + 0.1 * torch.randn_like(x)
    if kind == "dps":
        sampler = DPSSampler(denoise, y=y, A=A, zeta=0.5, steps=steps, silent=True)
    elif kind == "diffpir":
        solve = dict(solver="cg", iterations=1 if work["task"] == "inpainting" else 3)
        sampler = DDIMSampler(DiffPIRDenoiser(denoise, y=y, A=A, var_y=0.01, **solve), eta=0.3, steps=steps, silent=True)
    elif kind == "repaint":
        mask = half(x).expand_as(x).bool()
        sampler = RePaintSampler(denoise, y=y, mask=mask, iterations=5, eta=1.0, steps=steps // 5, silent=True)
    return lambda: sampler(x)


def of_deepinv(work, net, x):
    import deepinv
    from deepinv.models.wrapper import ScoreModelWrapper
    from deepinv.sampling.diffusion_sde import VariancePreservingDiffusion
    from deepinv.sampling.sde_solver import DDIMSolver

    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    units = dict(variance_preserving=True, takes_integer_time=True, n_timesteps=1000)
    denoise = ScoreModelWrapper(
        net, "epsilon", clip_output=True, sigma_t=((1 - abar) / abar).sqrt(), scale_t=abar.sqrt(), **units
    )
    kind, steps = work["kind"], work["calls"]
    if kind == "ddim":
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        sde = VariancePreservingDiffusion(denoiser=denoise, alpha=0.0, solver=DDIMSolver(timesteps=times))
        return torch.no_grad()(lambda: sde.sample(tuple(x.shape), seed=1))
    noise, size = deepinv.physics.GaussianNoise(0.05), tuple(x.shape[1:])
    if work["task"] == "inpainting":
        physics = deepinv.physics.Inpainting(img_size=size, mask=half(x)[0].expand(size).clone(), noise_model=noise)
    else:
        physics = deepinv.physics.BlurFFT(img_size=size, filter=blur_kernel()[None, None], noise_model=noise)
    y = physics(torch.rand_like(x))
    if kind == "dps":
        solver = deepinv.sampling.DPS(denoise, num_steps=steps + 1)
        return lambda: solver(y, physics, seed=1)
    if kind == "diffpir":
        fidelity = deepinv.optim.data_fidelity.L2()
        how = dict(sigma=0.05, max_iter=steps, zeta=0.3, lambda_=7.0)
        solver = deepinv.sampling.DiffPIR(model=denoise, data_fidelity=fidelity, **how)
    elif kind == "ddrm":
        solver = deepinv.sampling.DDRM(denoiser=denoise, sigmas=np.linspace(1, 0.01, steps))
    return lambda: solver(y, physics)


def build(work):
    """(function without arguments that does the work, its network calls)."""
    torch.manual_seed(0)
    how = work.get("how", "eager")
    net = Counted(network(work["net"], how))
    x = torch.randn(work["batch"], 3 if work["net"] == "adm" else 1, work["side"], work["side"])
    if how == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if work["kind"] in ("forward", "gradient"):
        return call(work, net, x), 1
    if work["kind"] == "weights":
        net = Counted({"adm": adm, "fashion": Fashion}[work["net"]]().eval())
        return by_weights(work, net, x), work["calls"]
    run = {"diffusers": of_diffusers, "azula": of_azula, "deepinv": of_deepinv}[work["peer"]](work, net, x)
    run()  # how many calls a peer makes of so many steps is its own affair: they are counted
    return run, net.calls


def finite(result):
    parts = result if isinstance(result, tuple) else (result,)
    return all(bool(torch.isfinite(a).all()) for a in parts)


if __name__ == "__main__":
    from .benchmark_clock import serve

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    serve(build, finite, differences)
