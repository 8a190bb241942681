"""Samplers of studies that run for long: machine code that is not optimised, as the tests have it, would take four times as
long as compiling these once at level 1."""

import contextlib
import functools
from unittest import mock

import jax

LEVEL_1 = {"xla_backend_optimization_level": 1}


def optimised(many):
    """A function of ``parallel.shard`` whose programs are compiled at level 1, once for all arguments of the same kind."""
    programs = {}

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        kind = (structure, *((a.shape, a.dtype) for a in map(jax.typeof, leaves)))
        if kind not in programs:
            programs[kind] = many.lower(*args).compile(compiler_options=LEVEL_1)
        return programs[kind](*args)

    return call


@contextlib.contextmanager
def samplers(study):
    """``study.sampler``, which gives (a function of ``parallel.shard``, ...), gives it optimised."""
    if not hasattr(study, "_optimised"):
        sampler = study.sampler

        @functools.cache
        def quick(*how):
            many, *rest = sampler(*how)
            return optimised(many), *rest

        study._optimised = quick
    with mock.patch.object(study, "sampler", study._optimised):
        yield
