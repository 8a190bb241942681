"""Likelihoods and their bounds: variational (DDPM), nonequilibrium and binomial (Sohl-Dickstein et al. 2015)."""

from . import binomial, nonequilibrium, variational

__all__ = ["binomial", "nonequilibrium", "variational"]
