"""The script of test_distributed: process P of N, N of which end alike however often they start.

python two_processes.py FOLDER PORT N P [ROUND]

Process 1 is lost after ROUND. Each process has two devices.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from problems import GRID, SDE, batch, flow, reward

import flowsde as fs

SEED = 6
SEARCH = fs.search.rbf(nfe=23, kernel=SDE, grid=GRID, chains=2, width=2, finish="mean")
PROMPTS = 4


def main(folder: Path, port: str, processes: int, process: int, lost_after: int | None) -> None:
    with fs.distributed.job(f"localhost:{port}", processes, process, heartbeat=10):
        assert jax.device_count() == 2 * processes and len(jax.local_devices()) == 2
        mesh = jax.make_mesh((jax.device_count(),), ("prompt",))
        ids, cond = batch(PROMPTS)
        key = jax.random.key(SEED)
        saved, search = folder / "search", SEARCH
        resume = fs.restore_search(saved, search) if saved.exists() else None
        print("from round", 0 if resume is None else len(resume.info.time), flush=True)
        options = {"cond": cond, "prompt_ids": ids, "mesh": mesh}
        for result in fs.iterate(key, flow(), search, reward, resume=resume, **options):
            rounds = len(result.info.time)
            if rounds == lost_after and process == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if rounds % 2 == 1:
                fs.save_search(saved, search, result)
        if lost_after is None:
            whole = fs.run(key, flow(), search, reward, **options)
            for (_, one), (_, other) in zip(
                fs.distributed.own_prompts(whole, ids),
                fs.distributed.own_prompts(result, ids),
                strict=True,
            ):
                np.testing.assert_allclose(one.x, other.x, rtol=1e-5, atol=1e-6)
                np.testing.assert_array_equal(one.info.accepted, other.info.accepted)
            packed = dict(fs.batch(key, flow(), search, reward, batch_size=3, **options))
            for prompt, own in fs.distributed.own_prompts(whole, ids):
                np.testing.assert_allclose(packed[prompt].image, own.image, rtol=1e-5, atol=1e-6)
                assert packed[prompt].nfe == own.nfe
            assert set(packed) == set(ids.tolist()), "every process is given all"
        for prompt, own in fs.distributed.own_prompts(result, ids):
            np.savez(folder / f"{prompt}.{process}.npz", x=own.x, image=own.image,
                     reward=own.reward, nfe=own.nfe, accepted=own.info.accepted)  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    folder, port, processes, process, *lost = sys.argv[1:]
    main(Path(folder), port, int(processes), int(process), int(lost[0]) if lost else None)
