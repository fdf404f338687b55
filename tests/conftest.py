"""The whole suite runs under strict dtype promotion and with rank promotion an error."""

import matplotlib

matplotlib.use("Agg")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
