"""Likelihoods and their bounds, in bits per dimension."""

from . import flow, variational

__all__ = ["flow", "variational"]
