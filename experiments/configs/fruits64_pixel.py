"""What fruits64 is compared with: the same data in pixels, the same training time."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="fruits64_pixel",
    data="data/fruits64.npz",  # python -m experiments.fruits
    size=64,
    channels=3,
    flip=True,
    classes=3,
    width=32,
    multipliers=(1, 2, 3),
    blocks=1,
    attention=(4,),
    heads=2,
    groups=8,
    patch=2,
    batch=32,
    lr=1.5e-3,
    ema=0.995,
    steps=1_400,
    cooldown=500,
    eval_images=128,
)
