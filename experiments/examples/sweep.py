"""Sweep a hyper-parameter inside one compiled program: ``python -m experiments.examples.sweep``.

Hyper-parameters are leaves, so DiffPIR's lambda is an axis like any other: 16 values times the images, one compilation, and
new values later cost none.
"""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj


def main(images=4, steps=20, values=16):
    prior = dj.zoo.load("fashion32")
    truth = jnp.asarray(dj.zoo.bundled.images("fashion")[0][:images])
    keys = jax.random.split(jax.random.key(0), images)
    A = dj.operators.Blur(dj.operators.gaussian_kernel(9, 1.5))
    table = dj.timetables.diffpir(prior.schedule, steps)

    def score(lam, key, x):
        key_noise, key_sample = jax.random.split(key)
        measurement = dj.operators.measure(key_noise, A, x, noise_std=0.1)
        method = dj.methods.DiffPIR(prior.denoiser(), measurement, lam=lam)
        restored = dj.sample(key_sample, method, table, x.shape, kernel=dj.kernels.DDIM(prior.schedule, zeta=0.3))
        return dj.metrics.psnr(restored.x, x)

    sweep = jax.jit(jax.vmap(jax.vmap(score, (None, 0, 0)), (0, None, None)))
    lams = np.geomspace(0.03, 30, values, dtype=np.float32)
    table_of_scores = np.asarray(sweep(lams, keys, truth)).mean(1)
    for lam, psnr in zip(lams, table_of_scores):
        print(f"lambda {lam:8.3f}   {psnr:.2f} dB")
    sweep(2 * lams, keys, truth)
    print(f"best: {lams[table_of_scores.argmax()]:.3f}; programs compiled: {sweep._cache_size()}")
    return table_of_scores, sweep._cache_size()


if __name__ == "__main__":
    main()
