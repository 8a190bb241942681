"""Fruits-360 (apples, cherries, tomatoes), 64 x 64, class-conditional, in the latents of fruits64_kl: 16 x 16 x 3."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fruits64",
    data="data/fruits64.npz",  # python -m experiments.fruits
    autoencoder="runs/fruits64_kl",
    size=16,
    channels=3,
    flip=True,
    classes=3,
    width=36,
    multipliers=(1, 2),
    blocks=1,
    attention=(2,),
    heads=2,
    groups=9,
    patch=1,
    batch=64,
    lr=1.5e-3,
    ema=0.995,
    steps=1_400,
    cooldown=500,
    eval_images=128,
)
