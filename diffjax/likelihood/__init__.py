"""Likelihoods and their bounds, in bits per dimension."""

from . import variational

__all__ = ["variational"]
