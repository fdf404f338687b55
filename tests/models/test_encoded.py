"""What prompts of published models are encoded to before a search."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowsde.models.common.guided import encoded


@pytest.mark.parametrize("negative", [None, "none"])
def test_thousands_of_texts_are_never_on_the_device_together(negative):
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return {"length": jnp.asarray([[len(text)] for text in texts])}

    conds, null = encoded(encode, ["x" * i for i in range(100)], negative)
    assert [int(cond["length"][0]) for cond in conds] == list(range(100))
    assert int(null["length"][0]) == (99 if negative is None else 4)
    assert all(isinstance(cond["length"], np.ndarray) for cond in [*conds, null])
    assert sum(sizes) == 100 + (negative is not None) and max(sizes) <= 32
