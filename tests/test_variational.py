"""The variational bound: which kernels and tables it takes. Its numbers are compared in ``golden/test_ddpm.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.likelihood import variational

SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(40))
X_0 = jnp.asarray(np.arange(12).reshape(2, 2, 3) / 127.5 - 0.5, jnp.float32)
DENOISE = dj.denoisers.from_x0(lambda x, i: 0.5 * x, None, SCHEDULE)
TABLE = dj.timetables.respaced(SCHEDULE, 4)


def test_the_denoisers_schedule_is_enough():
    bound = lambda kernel: variational.bound(jax.random.key(0), DENOISE, kernel, TABLE, X_0).total
    np.testing.assert_array_equal(*jax.jit(lambda: (bound(dj.kernels.DDPM()), bound(dj.kernels.DDPM(SCHEDULE))))())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: variational.bound(None, DENOISE, dj.kernels.DDIM(SCHEDULE), TABLE, X_0), "DDIM says no log-variance, .*DDPM"),
        (lambda: variational.bound(None, DENOISE, dj.kernels.Heun(), TABLE, X_0), "Heun says no log-variance"),
        (lambda: variational.rows(dj.kernels.Marginal(SCHEDULE), TABLE), "Marginal says no log-variance"),
        (lambda: variational.rows(dj.kernels.DDPM(), TABLE), r"DDPM has no schedule: pass kernels.DDPM\(schedule\)"),
        (lambda: variational.row_at(dj.kernels.DDPM(dj.schedules.VP()), 1), "whole times, but VP is a formula"),
        (lambda: variational.bound(None, DENOISE, dj.kernels.DDPM(), TABLE[:2], X_0), "a plain descent to 0"),
    ],
)
def test_errors_name_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
