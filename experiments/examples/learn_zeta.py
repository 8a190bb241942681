"""Learn a sampler's settings by gradient through it: ``python -m experiments.examples.learn_zeta``.

DiffPIR's zeta (noise put back per step) and lambda (weight of the prior) are leaves and the sampler is a function: Adam lowers
the squared error of whole restorations, with the memory of one row (``remat="row"``). Validate what you learn on other images.
"""

import jax
import jax.numpy as jnp
import optax

import diffjax as dj


def main(images=4, steps=15, updates=20):
    prior = dj.zoo.load("fashion32")
    truth = jnp.asarray(dj.zoo.bundled.images("fashion")[0][:images])
    keys = jax.random.split(jax.random.key(0), images)
    A = dj.operators.Blur(dj.operators.gaussian_kernel(9, 1.5))
    table = dj.timetables.diffpir(prior.schedule, steps)

    def error(settings, key, x):
        key_noise, key_sample = jax.random.split(key)
        measurement = dj.operators.measure(key_noise, A, x, noise_std=0.1)
        method = dj.methods.DiffPIR(prior.denoiser(), measurement, lam=jnp.exp(settings["log_lam"]))
        kernel = dj.kernels.DDIM(prior.schedule, zeta=jax.nn.sigmoid(settings["zeta"]))
        return ((dj.sample(key_sample, method, table, x.shape, kernel=kernel, remat="row").x - x) ** 2).mean()

    loss = lambda settings: jax.vmap(error, (None, 0, 0))(settings, keys, truth).mean()
    optimizer = optax.adam(0.2)

    @jax.jit
    def update(settings, state):
        value, gradient = jax.value_and_grad(loss)(settings)
        step, state = optimizer.update(gradient, state)
        return optax.apply_updates(settings, step), state, value

    settings = {"zeta": jnp.float32(0.0), "log_lam": jnp.float32(0.0)}  # zeta 0.5, lambda 1
    state, losses = optimizer.init(settings), []
    for _ in range(updates):
        settings, state, value = update(settings, state)
        losses.append(float(value))
    zeta, lam = jax.nn.sigmoid(settings["zeta"]), jnp.exp(settings["log_lam"])
    print(f"mean squared error {losses[0]:.4f} -> {losses[-1]:.4f}: zeta {zeta:.2f}, lambda {lam:.2f}")
    return losses


if __name__ == "__main__":
    main()
