"""One page each: what people do with diffjax in their own code. Copy, change, run."""
