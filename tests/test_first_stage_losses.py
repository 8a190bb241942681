"""Losses of first stages, the patch discriminator's norms, the perceptual distance to train with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import autoencoder, metrics, nets, zoo
from diffjax.nets.autoencoder import gaussian
from diffjax.nets.discriminator import BatchNorm, standardise
from diffjax.training import first_stage as losses

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_the_adaptive_weight_is_clamped_and_constant():
    weight = losses.adaptive_weight
    assert weight(jnp.ones(4), jnp.zeros(4), 0.5) == pytest.approx(5000.0)  # 2 / 1e-4 is above the clamp
    np.testing.assert_allclose(weight(jnp.full((2, 2), 3.0), jnp.array([0.0, 2.0]), 0.5), 0.5 * 6 / 2.0001, rtol=1e-6)
    assert weight(jnp.zeros(3), jnp.ones(3), 0.5) == 0
    assert not jax.grad(lambda a: weight(a, jnp.ones(3), 0.5))(jnp.ones(3)).any()


def test_running_statistics_after_one_pass():
    """0.9 of the old and 0.1 of the batch's, its variance with n - 1; training normalises by the batch."""
    net, x = BatchNorm(), 2 * normal(3, 4, 5, 2) + 1
    old = {"mean": jnp.array([0.5, -1.0]), "var": jnp.array([2.0, 3.0])}
    params = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    y, new = net.apply({**params, "stats": old}, x, True, mutable=["stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(new["stats"]["mean"], 0.9 * old["mean"] + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["stats"]["var"], 0.9 * old["var"] + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(y.reshape(-1, 2), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    y = net.apply({**params, "stats": new["stats"]}, x, False)
    stats = {name: np.asarray(a, np.float64) for name, a in new["stats"].items()}
    np.testing.assert_allclose(y.reshape(-1, 2), (flat - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), rtol=1e-4, atol=1e-5)


def test_actnorm_is_standardised_by_a_first_batch():
    net = nets.PatchDiscriminator(width=4, layers=1, norm="act")
    x = normal(4, 16, 16, 3)
    params = standardise(net, jax.jit(net.init)(jax.random.key(0), x), x)
    _, kept = net.apply(params, x, train=True, capture_intermediates=lambda module, _: module.name == "norm_1")
    (h,) = kept["intermediates"]["norm_1"]["__call__"]
    flat = np.asarray(h).reshape(-1, h.shape[-1])
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-4), np.testing.assert_allclose(flat.std(0, ddof=1), 1, rtol=1e-3)


def test_nothing_adversarial_is_computed_before_the_start():
    """A discriminator that gives NaN leaves loss and gradients as they are until the start, and spoils them from there on."""
    net = nets.AutoencoderKL(channels=1, latent_channels=2, width=4, multipliers=(1, 2), blocks=1, groups=2)
    params = jax.jit(net.init)(jax.random.key(2), jnp.zeros((8, 8, 1)))
    disc = nets.PatchDiscriminator(width=2, layers=1)
    x = jnp.clip(normal(2, 8, 8, 1), -1, 1)
    judge = {"params": jax.tree.map(lambda a: a * jnp.nan, jax.jit(disc.init)(jax.random.key(0), x)["params"])}
    play = losses.players(net, disc, losses.Weights(start=3, kl=0.1))
    everyone = {"autoencoder": params, "discriminator": judge}

    def of(step):
        def own(params):
            return play["autoencoder"](everyone | {"autoencoder": params}, jax.random.key(1), {"x": x}, step)

        (loss, terms), grads = jax.value_and_grad(own, has_aux=True)(params)
        return loss, terms, grads, *play["discriminator"](everyone, jax.random.key(1), {"x": x}, step)

    of = jax.jit(of)
    loss, terms, grads, judged, _ = of(2)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert judged == 0 and terms["d_weight"] == 0

    @jax.jit
    def reconstructed(params, x):
        mean, logvar = gaussian(net.apply(params, x, method="encode"))
        return mean, logvar, net.apply(params, autoencoder.draw(jax.random.key(1), mean, logvar), method="decode")

    mean, logvar, rec = reconstructed(params, x)
    expected = float(jnp.abs(x - rec).sum() / 2 + 0.1 * jax.vmap(autoencoder.kl)(mean, logvar).mean())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    loss, _, _, judged, _ = of(3)  # the step that is the start takes part
    assert np.isnan(loss) and np.isnan(judged)


def test_without_vgg_weights_the_distance_is_alexnets_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="LPIPS on VGG16 needs weights that do not ship"):
        distance = zoo.perceptual()
    x, y = (jnp.clip(normal(2, 64, 64, 1), -1, 1) for _ in range(2))
    alone = jax.jit(metrics.lpips)(x[1], y[1], zoo.lpips_weights())
    np.testing.assert_allclose(jax.jit(lambda distance, x, y: distance(x, y))(distance, x, y)[1], alone, rtol=1e-4)
    assert sum(a.size for a in jax.tree.leaves(distance)) > 1e6  # leaves, not part of the program
    (tmp_path / "vgg.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged, truncated or not a checkpoint"):
        zoo.perceptual(tmp_path / "vgg.safetensors")
