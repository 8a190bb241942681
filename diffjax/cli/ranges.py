"""What the numbers of a training configuration may be."""

from __future__ import annotations

import math

from .errors import UserError

COUNTS = "size channels width blocks heads groups patch T batch log_every checkpoint_every eval_images keep sample_every"
COUNTS += " sample_steps"
POSITIVE = "lr clip fourier_scale sigma_min sigma_max"
NOT_NEGATIVE = "classes factor steps warmup cooldown weight_decay gamma sigma_data seed"
SHARES = {"label_dropout": "to 1", "dropout": "below 1", "ema": "below 1", "b1": "below 1", "b2": "below 1"}


def check(config) -> None:
    """UserError for the first field that is out of its range; what is not a number (NaN) is in none."""
    at = lambda name: getattr(config, name, 1)  # a field that this version lacks is in order
    fail = lambda name, wanted: UserError(f"--{name.replace('_', '-')} {at(name)} is out of range: give {wanted}")
    for name in COUNTS.split():
        if not at(name) >= 1:
            raise fail(name, "1 or more")
    for name in POSITIVE.split():
        if not 0 < at(name) < math.inf:
            raise fail(name, "a number above 0")
    for name in NOT_NEGATIVE.split():
        if not 0 <= at(name) < math.inf:
            raise fail(name, "0 or more")
    if config.seed >= 2**32:
        raise fail("seed", f"0 to {2**32 - 1}")
    for name, wanted in SHARES.items():
        if not (0 <= at(name) < 1 or (at(name) == 1 and wanted == "to 1")):
            raise fail(name, f"a share, 0 {wanted}")
    if not config.multipliers or not min(config.multipliers) > 0:
        raise fail("multipliers", "numbers above 0, one for each level")
