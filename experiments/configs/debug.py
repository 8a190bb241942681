"""A network that trains in seconds and learns nothing worth looking at: to try the machinery."""

from diffjax.cli.config import TrainConfig

config = TrainConfig(
    name="debug",
    data="/usr/share/datasets/fashion-mnist",
    classes=10,
    width=8,
    multipliers=(1,),
    blocks=1,
    groups=4,
    patch=4,
    steps=60,
    batch=16,
    warmup=10,
    cooldown=20,
    log_every=10,
    eval_images=32,
    checkpoint_every=10,
    sample_every=30,
    sample_steps=5,
)
