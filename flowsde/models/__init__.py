"""Flax (NNX) ports of published models: one file an architecture."""
