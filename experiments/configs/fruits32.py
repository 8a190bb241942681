"""Fruits-360 (apples, cherries, tomatoes), 32 x 32, class-conditional: the colour prior that ships (zoo "fruits32")."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fruits32",
    data="data/fruits32.npz",  # python -m experiments.fruits
    size=32,
    channels=3,
    flip=True,
    classes=3,
    batch=64,
    lr=1.5e-3,
    ema=0.9995,
    steps=7_000,
    cooldown=2_200,
    eval_images=128,
)
