"""`check_search` names what a search does not keep; those of the package keep it by other tests."""

import dataclasses

import jax.numpy as jnp
import pytest

import flowsde as fs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(fs.search.BestOfN):
    """Has its whole budget whatever a prompt's is, and says that its answer is worth more."""

    def init(self, key, shape, target_reward, nfe):
        return super().init(key, shape, target_reward, jnp.int32(self.nfe))

    def best(self, state):
        found = super().best(state)
        return found._replace(reward=found.reward + 1.0)


@pytest.mark.slow
def test_what_does_not_hold_is_named():
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(4)
    right = fs.search.bon(nfe=24, kernel=kernel, grid=grid)
    fields = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    checked = fs.check_search(Wrong(**fields))
    assert set(checked.failed) == {
        "the answer is worth its reward",
        "a prompt of a smaller budget is a smaller search",
    }
    assert "FAILS  the answer is worth its reward: reward is [" in str(checked)
    assert "holds  chunks change nothing" in str(checked)


def test_one_prompt_has_no_others():
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(4)
    with pytest.raises(ValueError, match="prompts must be"):
        fs.check_search(fs.search.bon(nfe=24, kernel=kernel, grid=grid), prompts=1)
