"""Different masks and noise levels in one batch: ``python -m experiments.examples.masks_in_one_batch``.

A measurement is a pytree, so a batch of them, each image with its own mask and its own noise, goes through ``vmap`` as it is.
No image feels the others: alone it comes out the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj


def main(images=4, steps=50):
    prior = dj.zoo.load("fashion32")
    truth = jnp.asarray(dj.zoo.bundled.images("fashion")[0][:images])
    keys = jax.random.split(jax.random.key(0), images)

    rows, columns = np.mgrid[:32, :32]
    half, box = columns < 16, (abs(rows - 16) > 8) | (abs(columns - 16) > 8)
    lines, points = rows % 2 == 0, np.random.default_rng(0).random((32, 32)) < 0.25
    masks = np.stack([half, box, lines, points][:images])[..., None].astype(np.float32)
    noise_std = jnp.array([0.02, 0.1, 0.02, 0.2][:images])

    def measure(key, x, mask, std):
        return dj.operators.measure(key, dj.operators.Mask(mask), x, noise_std=std)

    measured = jax.vmap(measure)(keys, truth, masks, noise_std)
    table = dj.timetables.log_snr(prior.schedule, steps)

    def restore(key, measurement):
        method = dj.methods.DDNMPlus(prior.denoiser(), measurement)
        return dj.sample(key, method, table, prior.shape, kernel=dj.kernels.Marginal(prior.schedule)).x

    together = jax.jit(jax.vmap(restore))(keys, measured)
    alone = jax.jit(restore)(keys[0], jax.tree.map(lambda leaf: leaf[0], measured))
    for mask, std, x, true in zip(masks, noise_std, together, truth):
        print(f"{mask.mean():4.0%} seen, noise {std:.2f}: {dj.metrics.psnr(x, true):.2f} dB")
    apart = float(abs(together[0] - alone).max())
    print(f"image 0 in the batch and alone: {apart:.1e} apart")
    return together, apart


if __name__ == "__main__":
    main()
