"""Converters from PyTorch checkpoints to Flax parameters.

Installed as ``flowsde_converters``, so that no generic name is claimed in site-packages.
"""
