"""Fruits-360 (apples, cherries, tomatoes), 64 x 64, class-conditional: ready for an accelerator; nothing of it ships."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fruits64",
    data="data/fruits64.npz",  # python -m experiments.fruits
    size=64,
    channels=3,
    flip=True,
    classes=3,
    width=64,
    multipliers=(1, 2, 2),
    attention=(4,),
    heads=4,
    groups=16,
    dropout=0.1,
    bfloat16=True,
    batch=256,
    lr=6e-4,
    ema=0.9995,
    steps=60_000,
    cooldown=20_000,
    eval_images=128,
)
