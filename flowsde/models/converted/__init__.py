"""Converted models on disk, and how they are read."""
