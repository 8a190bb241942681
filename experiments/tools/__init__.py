"""What the studies share: records and their provenance, kept cells, views, tables in pages, the oracle's problems."""
