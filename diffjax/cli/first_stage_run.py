"""One training run of phase one of latent diffusion, in one folder: an autoencoder against a discriminator."""

from __future__ import annotations

import dataclasses
import json
import warnings

import jax
import numpy as np

from .. import metrics, zoo
from ..nets import PatchDiscriminator
from ..training import data, state, step
from ..training import first_stage as losses
from ..zoo import first_stage, prior
from . import samples
from .config import FirstStageConfig
from .loop import QUICK, Loop

AE, DISC = first_stage.PLAYERS
PICTURES = 32  # held-out images in a picture of reconstructions
WORSE = {"psnr": 1.0, "lpips": 1.2}  # a loss of more dB, and a growth by more, since the discriminator's start is said aloud


class WorseWarning(UserWarning):
    """The reconstruction got worse after the discriminator's start."""


def build(config: FirstStageConfig):
    """-> (autoencoder network, discriminator) of a configuration. Raises ValueError."""
    return first_stage.build(dataclasses.asdict(config)), PatchDiscriminator(config.disc_width, config.disc_layers)


class FirstStageRun(Loop):
    """One training run. Building it raises ValueError, in one line, for all that can be known before the first step."""

    loss_name = f"{AE}.rec"

    def __init__(self, config: FirstStageConfig):
        self.config = c = config
        for name in "batch log_every eval_images checkpoint_every sample_every keep latent_channels codes".split():
            if getattr(c, name) < 1:
                raise ValueError(f"{name} {getattr(c, name)} is too small: use at least 1")
        if c.batch % jax.device_count():
            raise ValueError(f"batch {c.batch} is not divisible by {jax.device_count()} devices: use a multiple")
        self.net, disc = build(c)
        if c.size % self.net.f:
            near = max(self.net.f, round(c.size / self.net.f) * self.net.f)
            raise ValueError(f"size {c.size} is no multiple of f={self.net.f}: use size {near}, or fewer multipliers")
        self.lpips = zoo.lpips_weights() if c.channels in (1, 3) else None
        if self.lpips is None and c.perceptual:
            raise ValueError(f"perceptual {c.perceptual} needs images of 1 or 3 channels, not {c.channels}: use perceptual 0")
        weights = losses.Weights(c.perceptual, c.kl_weight, c.codebook_weight, c.disc_weight, start=c.disc_start,
                                 disc_loss=c.disc_loss)  # fmt: skip
        if c.vgg and not c.perceptual:
            raise ValueError("--vgg is of the perceptual term, and --perceptual is 0: leave one out")
        distance = self.distance() if c.perceptual else None
        players = losses.players(self.net, disc, weights, perceptual=distance, beta=c.beta)
        self.rate = state.warmup_stable_decay(c.lr, c.steps, c.warmup, c.cooldown)
        optimizer = dict.fromkeys(players, state.adam(self.rate, b1=c.b1, b2=c.b2, clip=c.clip or np.inf))
        self.images = data.load(c.data, size=c.size, channels=c.channels, fit=c.fit)
        hosts = jax.process_index(), jax.process_count()
        self.chief = hosts[0] == 0
        self.stream = data.Stream({"x": self.images.train}, c.batch, c.seed, c.flip, *hosts)
        self.whole, self.sharded = step.shardings()

        key_init, key_steps = jax.random.split(jax.random.key(c.seed))
        self.step = step.train_step(players, optimizer, ema={AE: c.ema, DISC: None}, key=key_steps)

        def start(key):
            keys = jax.random.split(key)
            x = np.zeros((1, c.size, c.size, c.channels), np.float32)
            params = {AE: self.net.init(keys[0], x), DISC: {"params": disc.init(keys[1], x)["params"]}}
            return state.init_state(params, optimizer, {AE: True, DISC: False})

        begin = jax.jit(start, out_shardings=self.whole, compiler_options=QUICK)
        self.start = lambda: begin(key_init)
        self.shapes = jax.eval_shape(begin, key_init)
        self.judge = jax.jit(self._judge)
        self.notes = self.images.notes
        if c.perceptual and not c.vgg:
            why = "VGG16, which the official code takes, does not ship; --vgg reads its files"
            self.notes = (*self.notes, f"the perceptual term is LPIPS on AlexNet: {why}")
        with self.claimed():
            pass

    def sign(self):
        """The network of an autoencoder is traced whenever it is read: only that the folder is one of a run is written."""
        (self.folder / prior.SIGNATURE).write_text("phase one\n")

    def distance(self):
        """The perceptual term. Raises ValueError for files of VGG16 that do not fit."""
        if not self.config.vgg:
            return lambda x, y: jax.vmap(metrics.lpips, (0, 0, None))(x, y, self.lpips)
        if self.config.size < 16:
            raise ValueError(f"size {self.config.size} is too small for LPIPS on VGG16, which takes 16: leave out --vgg")
        distance = zoo.perceptual(*(file.strip() for file in self.config.vgg.split(",") if file.strip()))
        one = jax.ShapeDtypeStruct((1, self.config.size, self.config.size, self.config.channels), np.float32)
        jax.eval_shape(distance, one, one)
        return distance

    # --- how good it is -------------------------------------------------------------------------------------------

    def _judge(self, params, x):
        """One batch of images in [-1, 1] -> reconstructions, and of each its numbers and features."""
        if hasattr(self.net, "codes"):
            h, _ = self.net.apply(params, x, method="moments")
            found = self.net.apply(params, h, method="quantise")
            z, indices = found.z, found.indices
        else:
            z, indices = self.net.apply(params, x, method="moments")[0], None
        x_r = self.net.apply(params, z, method="decode")
        told = {"psnr": jax.vmap(metrics.psnr)(x_r.clip(-1, 1), x)}
        if self.lpips is not None:
            told["lpips"] = jax.vmap(metrics.lpips, (0, 0, None))(x_r, x, self.lpips)
            told["of_x"] = jax.vmap(metrics.alexnet_features, (0, None))(x, self.lpips)
            told["of_x_r"] = jax.vmap(metrics.alexnet_features, (0, None))(x_r.clip(-1, 1), self.lpips)
        return x_r, told, indices

    def over(self, params, x, batch=32):
        """``_judge`` of many images (uint8), as numpy."""
        found = []
        batch = min(batch, len(x))
        for start in range(0, len(x), batch):
            rows = np.arange(start, start + batch) % len(x)
            found.append(jax.tree.map(np.asarray, self.judge(params, data.scale(x[rows]))))
        return jax.tree.map(lambda *a: np.concatenate(a)[: len(x)], *found)

    def evaluate(self, now, done):
        """Of the averaged weights on held-out images: PSNR (dB), lpips, the distance of the reconstructions as a set (Frechet
        and kernel, in AlexNet's features), and the share of the codebook in use. The distance says which checkpoint is
        best."""
        params, c = now.players[AE].ema, self.config
        chosen = np.random.default_rng(0).permutation(len(self.images.test))[: c.eval_images]
        _, told, indices = self.over(params, self.images.test[chosen])
        terms = {name: float(np.mean(told[name])) for name in ("psnr", "lpips") if name in told}
        if "of_x" in told and len(chosen) > 1:
            terms["frechet"] = metrics.frechet_distance(told["of_x_r"], told["of_x"])
            terms["kernel"] = metrics.kernel_distance(told["of_x_r"], told["of_x"])
        if indices is not None:
            count = np.bincount(indices.reshape(-1), minlength=c.codes) / indices.size
            terms["codes_used"] = float(np.mean(count > 0))
            terms["perplexity"] = float(np.exp(-np.sum(count[count > 0] * np.log(count[count > 0]))))
        terms = {name: round(value, 5) for name, value in terms.items()}
        self.compare(terms, done)
        return terms.get("frechet", -terms["psnr"]), terms

    def compare(self, terms, done):
        """Warn if this is much worse than just before the discriminator's start."""
        before = self.before_start()
        if done <= self.config.disc_start or not before:
            return
        worse = []
        if before["psnr"] - terms["psnr"] > WORSE["psnr"]:
            worse.append(f"PSNR {before['psnr']:.2f} -> {terms['psnr']:.2f} dB")
        if "lpips" in terms and terms["lpips"] > WORSE["lpips"] * before["lpips"]:
            worse.append(f"lpips {before['lpips']:.4f} -> {terms['lpips']:.4f}")
        if worse and self.chief:
            text = (f"the reconstruction got worse since the discriminator started at step {self.config.disc_start}: "
                    f"{', '.join(worse)}; if it stays so, use a smaller --disc-weight or a later --disc-start")  # fmt: skip
            warnings.warn(text, WorseWarning, stacklevel=2)

    def before_start(self) -> dict | None:
        """The last held-out record of the log before the discriminator moved anything, or None."""
        file, found = self.folder / "log.jsonl", None
        for line in file.read_text().splitlines() if file.is_file() else ():
            record = json.loads(line)
            if record["kind"] == "held_out" and record["step"] <= self.config.disc_start:
                found = record
        return found

    def picture(self, now, file):
        """Held-out originals, each with its reconstruction to the right."""
        x = self.images.test[np.linspace(0, len(self.images.test) - 1, PICTURES).astype(int)]
        x_r, _, _ = self.over(now.players[AE].ema, x)
        if self.chief:
            pairs = np.stack([data.scale(x), x_r], 1).reshape(8, 8, *x.shape[1:])
            samples.save(file, pairs, zoom=2)
