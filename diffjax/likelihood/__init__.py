"""Likelihoods and their bounds: of the probability flow, variational (DDPM), nonequilibrium and binomial (Sohl-Dickstein
et al. 2015)."""

from . import binomial, flow, nonequilibrium, variational

__all__ = ["binomial", "flow", "nonequilibrium", "variational"]
