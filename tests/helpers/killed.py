"""A search in a process of its own that saves every round, for `test_resume` to kill."""

import time

import jax
import numpy as np
from problems import GRID, SDE, VP, flow, host_reward, problems, reward

import flowsde as fs

ODE = fs.kernels.ode_euler(VP)
OPTIONS = {"nfe": 48, "grid": GRID, "finish_steps": 6}
SEARCHES = {
    "rbf": fs.search.rbf(kernel=SDE, chains=2, width=2, **OPTIONS),
    "svdd": fs.search.svdd(kernel=SDE, temperature=0.3, finish="heun", **OPTIONS),
    "smc": fs.search.smc(kernel=SDE, **OPTIONS),
    "sop": fs.search.sop(kernel=ODE, start=1, forward=1, backward=2, **OPTIONS),
    "evolution": fs.search.evolution(nfe=48, kernel=ODE, grid=GRID, parents=2),
    "bon": fs.search.bon(nfe=48, kernel=ODE, grid=GRID, width=2),
}


def rounds(method, resume=None):
    """The search's results; of three prompts, Best-of-N with a reward outside JAX."""
    judge = fs.rewards.host(host_reward) if method == "bon" else reward
    return fs.iterate(
        jax.random.key(12), flow(), SEARCHES[method], judge, cond=problems(3), prompt_ids=[5, 3, 8],
        chunk_size=4, resume=resume,
    )  # fmt: skip


def leaves(result):
    """Arrays by name, the seconds left out."""
    result = result._replace(info=result.info._replace(seconds=None))
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )
        for path, leaf in jax.tree.leaves_with_path(result)
    }  # fmt: skip


def main(method, folder):
    """Run a method to its end, from where it was; what is left are `started` and `done.npz`."""
    # A process that starts again finds its programs compiled.
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    search = SEARCHES[method]
    folder.mkdir(exist_ok=True)
    try:
        saved = fs.restore_search(folder / "search", search)
    except FileNotFoundError:
        saved = None
    begun = 0 if saved is None else len(saved.info.time)
    with (folder / "started").open("a") as file:
        file.write(f"{begun}\n")
    for result in rounds(method, saved):
        fs.save_search(folder / "search", search, result)
        # Long enough for a kill to come in the middle.
        time.sleep(0.05)
    np.savez(folder / "done.npz", **leaves(result))
