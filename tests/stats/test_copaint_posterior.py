"""CoPaint on priors whose posterior is known: what its optimisation does for the hidden pixels, and what it does not."""
