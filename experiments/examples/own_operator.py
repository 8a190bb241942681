"""Bring your own measurement, a function and nothing else: ``python -m experiments.examples.own_operator``.

A scanner smears every row over three pixels and reads every other one, with noise. diffjax knows no such thing; its adjoint is
found by transposition and its proximal map by conjugate gradients, so that methods of three kinds restore it as it is.
"""

import jax
import jax.numpy as jnp

import diffjax as dj


def scanner(x):
    """(32, 32, 1) -> (16, 32, 1)"""
    return ((x + jnp.roll(x, 1, axis=1) + jnp.roll(x, 2, axis=1)) / 3)[::2]


def main(images=8, steps=50):
    prior = dj.zoo.load("fashion32")
    truth = jnp.asarray(dj.zoo.bundled.images("fashion")[0][:images])
    keys = jax.random.split(jax.random.key(0), images)

    A = dj.operators.from_function(scanner, prior.shape)
    measured = jax.vmap(lambda key, x: dj.operators.measure(key, A, x, noise_std=0.05))(keys, truth)
    denoise, kernel = prior.denoiser(), dj.kernels.DDIM(prior.schedule, eta=1.0)
    table = dj.timetables.log_snr(prior.schedule, steps)

    def dps(m):
        return dj.methods.DPS(denoise, m, scale=0.5)

    def mmps(m):
        return dj.methods.MMPS(denoise, m, iterations=5)

    def diffpir(m):
        return dj.methods.DiffPIR(denoise, dj.replace(m, A=dj.operators.cg_prox(A, 10)))

    scores = {}
    for build in (dps, mmps, diffpir):
        restore = lambda key, m, build=build: dj.sample(key, build(m), table, prior.shape, kernel=kernel).x
        x = jax.jit(jax.vmap(restore))(keys, measured)
        scores[build.__name__] = float(jax.vmap(dj.metrics.psnr)(x, truth).mean())
        print(f"{build.__name__:8s} {scores[build.__name__]:.2f} dB")
    return scores


if __name__ == "__main__":
    main()
