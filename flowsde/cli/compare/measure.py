"""Measure rows: prompts run together, and every part is kept on disk.

A part is one row, one seed and one batch of prompts. Its file is named by a hash of all that it
depends on, so that a part on disk need not be measured again.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

import flowsde as fs
from flowsde import interrupts, shapes
from flowsde._files import read_arrays, write_arrays
from flowsde._keys import from_seed
from flowsde._schema import array
from flowsde.cli import presets
from flowsde.cli.compare.rows import Row, labels
from flowsde.cli.pictures import pixels
from flowsde.cli.progress import bar as shown
from flowsde.cli.sources import naming_seconds
from flowsde.conds import stacked
from flowsde.runner.records import Program
from flowsde.runner.result import COUNTERS
from flowsde.runner.schedule import least_nfe
from flowsde.shapes import weights
from flowsde.shapes.captions import caption
from flowsde.shapes.data import SIZE, sample_groups
from flowsde.shapes.tasks import TASKS, Challenge

BATCH = 25
"""Prompts searched together, and candidates evaluated at once."""
_TRIES = 1000
"""Captions drawn without a new one, after which no more are looked for."""


def captions(n: int, objects: int = 1, seed: int = 2026) -> list[str]:
    """n random captions; every fifth names a (count, colour, shape) that training never showed.

    Args:
      n: how many.
      objects: least number of objects in each, at most 10.
      seed: of the captions.

    Raises:
      ValueError: there are not so many different ones.
    """
    found: dict[str, None] = {}
    since = 0
    for i in itertools.count():
        if len(found) == n:
            break
        if since == _TRIES:
            raise ValueError(f"--prompts must be at most {len(found)}, got {n}: no more are found")
        rng = np.random.default_rng((seed, i))
        while True:
            groups = sample_groups(rng, held_out=len(found) % 5 == 4)
            if sum(group.count for group in groups) >= objects:
                break
        text = caption(groups)
        since = since + 1 if text in found else 0
        found[text] = None
    return [*found]


@dataclasses.dataclass(frozen=True)
class Study:
    """Prompts, whose numbers their random keys are made of, and seeds that every row is run with.

    Attributes:
      prompts: captions.
      seeds: searches for each.
      networks: the files of the flow's and the scorer's weights, of `weights.chosen`; the packaged
        ones by default.
      task: of which the prompts are captions.
      model: name of the flow.
    """

    prompts: Sequence[str]
    seeds: int
    networks: Mapping[str, Path] = dataclasses.field(default_factory=lambda: weights.chosen("", ()))
    task: Challenge = TASKS["counts"]
    model: str = "shapes"

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of the weights of each network."""
        return [weights.sha256(path) for path in self.networks.values()]

    @cached_property
    def cond(self) -> Any:
        """Conditions, a pytree with leading axis P."""
        return stacked("cond", [self.task.encode(prompt) for prompt in self.prompts])

    @property
    def batches(self) -> list[np.ndarray]:
        """Numbers of the prompts that are searched together."""
        ids = np.arange(len(self.prompts))
        return [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]


class Measured(NamedTuple):
    """Measurements of one row; arrays over prompts and seeds [P, M].

    Attributes:
      images: uint8 [P, M, 32, 32, 3].
      reward: the given one.
      success: whether pictures are what the task asks for, by the held-out checker.
      exact, rss: of their counts, by the held-out checker.
      objects, unclear: clean objects that it sees, and regions that are no clean object.
      nfe, evaluations, backward_passes, verifier_calls: as in `flowsde.Result`.
      seconds: a prompt, without compilation.
      heldout: what rewards that no search sees say, by their names.
    """

    images: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    exact: np.ndarray
    rss: np.ndarray
    objects: np.ndarray
    unclear: np.ndarray
    nfe: np.ndarray
    evaluations: np.ndarray
    backward_passes: np.ndarray
    verifier_calls: np.ndarray
    seconds: float
    heldout: Mapping[str, np.ndarray] = MappingProxyType({})


class Part(NamedTuple):
    """One row, seed and batch of prompts, and the file of its measurements."""

    row: Row
    seed: int
    ids: np.ndarray
    path: Path


def _parts(rows: Sequence[Row], study: Study, folder: Path) -> dict[Row, list[Part]]:
    """Parts of every row, seeds in turn, batches of prompts within each."""

    def part(row: Row, seed: int, ids: np.ndarray) -> Part:
        about = {
            "method": row.method,
            "settings": row.values,
            "seed": seed,
            "prompts": {int(i): study.prompts[i] for i in ids},
            "networks": study.digests,
            **({} if study.task.name == "counts" else {"task": study.task.name}),
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        budget = row.settings.nfe if row.seconds is None else f"{row.seconds:g}s"
        return Part(row, seed, ids, folder / f"{row.method}-{budget}-{digest}.npz")

    def split(row: Row, seed: int, ids: np.ndarray) -> list[Part]:
        """A batch; what is there of its first prompts alone, of a study of fewer, is kept."""
        whole = part(row, seed, ids)
        if not whole.path.exists():
            for k in range(len(ids) - 1, 0, -1):
                first = part(row, seed, ids[:k])
                if first.path.exists():
                    return [first, *split(row, seed, ids[k:])]
        return [whole]

    return {
        row: [
            one
            for seed in range(study.seeds)
            for ids in study.batches
            for one in split(row, seed, ids)
        ]
        for row in rows
    }


def _run(part: Part, study: Study, search: Any, flow: fs.Flow, reward: Any) -> dict[str, Any]:
    """Measurements of a part, by name."""
    began = time.perf_counter()
    with naming_seconds(len(part.ids)):
        images, result = _search_part(part, study, search, flow, reward)
    # A budget's own clock leaves out what was compiled and measured.
    seconds = time.perf_counter() - began if result.timing is None else result.timing.spent
    if not np.isfinite(images).all():
        raise FloatingPointError(f"{part.row.method}'s pictures have numbers that are not finite")
    found = study.task.judge(images, [study.prompts[i] for i in part.ids])
    return {
        "images": pixels(images),
        "reward": np.asarray(result.reward),
        "success": found.success,
        "exact": found.exact,
        "rss": found.rss,
        "objects": found.counts.sum((1, 2)),
        "unclear": found.unclear,
        "nfe": np.asarray(result.nfe),
        "evaluations": np.asarray(result.evaluations),
        "backward_passes": np.asarray(result.backward_passes),
        "verifier_calls": np.asarray(result.verifier_calls),
        "seconds": np.asarray(seconds / len(part.ids)),
    }


def _search_part(
    part: Part, study: Study, search: Any, flow: fs.Flow, reward: Any, nfe: int | None = None
) -> tuple[np.ndarray, fs.Result]:
    """Pictures and result of a part's prompts; `nfe` in place of their budget."""
    budget = part.row.seconds
    if budget is None and nfe is None:
        nfe = part.row.settings.nfe
    result = fs.run(
        from_seed(part.seed),
        flow,
        search,
        reward,
        cond=jax.tree.map(lambda a: a[part.ids], study.cond),
        prompt_ids=part.ids,
        chunk_size=min(BATCH, len(study.prompts)),
        nfe=nfe,
        seconds=None if budget is None else budget * len(part.ids),
        invalid="warn",
    )
    return np.asarray(result.image), result


def _least(search: Any, flow: fs.Flow) -> int:
    """The smallest budget of a search, in evaluations of the flow."""
    own = Program.of(search, flow.evaluations)
    return own.cost * least_nfe(own.search)


def _flow(row: Row, study: Study) -> fs.Flow:
    path = study.networks[shapes.MODELS[study.model]]
    return study.task.flow(shapes.load_flow(path, row.settings.guidance, study.model))


def _families(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that differ in nothing but their budget, in the order of the first of each."""
    families: dict[Any, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    yield from families.values()


def _search(family: list[Row]) -> fs.search.Search:
    """The search of a family, with room for its largest budget."""
    largest = max(family, key=lambda row: row.settings.nfe or 0)
    settings = largest.settings
    if settings.width is not None:
        # Prompts side by side fill the chunks; width changes no answer.
        settings = dataclasses.replace(settings, width=1)
    return presets.build(largest.method, settings)


def measure(
    rows: Sequence[Row], study: Study, folder: Path, progress: bool = True
) -> dict[Row, Measured]:
    """Run all parts that are not in the folder yet, and read them all.

    Args:
      rows: what to compare.
      study: prompts and seeds.
      folder: of the parts; made if need be.
      progress: whether to show a bar, in model evaluations or seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = _parts(rows, study, folder)
    found = {part.path: _found(part) for of_row in parts.values() for part in of_row}
    names = dict(zip(rows, labels(rows), strict=True))
    timed = any(row.seconds for row in rows)
    cost = {part.path: len(part.ids) * ((row.seconds if timed else row.settings.nfe) or 0)
            for row, of_row in parts.items() for part in of_row}  # fmt: skip
    there = sum(n for path, n in cost.items() if found[path] is not None)
    with shown(
        total=sum(cost.values()), initial=there, unit="s" if timed else "NFE", unit_scale=True,
        disable=not progress, smoothing=0.05, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for family in _families(rows):
            missing = [p for row in family for p in parts[row] if found[p.path] is None]
            if not missing:
                continue
            bar.set_description(names[family[0]])
            flow, search = _flow(family[0], study), _search(family)
            reward = study.task.load_reward(family[0].settings.reward, study.networks["scorer"])
            compiled: set[int] = set()
            for part in missing:
                interrupts.check()
                if part.row.seconds is None and len(part.ids) not in compiled:
                    # By the smallest budget, so that no part is timed with it.
                    bar.set_postfix_str("compiling")
                    _search_part(part, study, search, flow, reward, _least(search, flow))
                    compiled.add(len(part.ids))
                    bar.set_postfix_str("")
                values = _run(part, study, search, flow, reward)
                write_arrays(part.path, values)
                found[part.path] = values
                bar.update(cost[part.path])
            # Programs of a family are not needed again.
            jax.clear_caches()
    return {row: _joined([found[p.path] for p in own], study) for row, own in parts.items()}


def measured_already(rows: Sequence[Row], study: Study, folder: Path) -> list[Row]:
    """Rows that are measured completely in the folder."""
    parts = _parts(rows, study, folder)
    return [row for row in rows if all(part.path.exists() for part in parts[row])]


def counted(rows: Sequence[Row], study: Study, folder: Path) -> tuple[int, int]:
    """Parts that are in the folder, and all parts."""
    every = [part.path.exists() for of_row in _parts(rows, study, folder).values()
             for part in of_row]  # fmt: skip
    return sum(every), len(every)


def _found(part: Part) -> dict[str, np.ndarray] | None:
    """Measurements of a part on disk; one that is damaged is measured again."""
    n = len(part.ids)
    readers = {name: array(int, n) for name in COUNTERS}
    readers |= {
        "images": array(np.uint8, n, SIZE, SIZE, 3),
        "reward": array(np.float32, n),
        "success": array(np.bool_, n),
        "exact": array(np.bool_, n),
        "rss": array(np.float64, n),
        "objects": array(int, n),
        "unclear": array(int, n),
        "seconds": array(float),
    }
    try:
        values = dict(read_arrays(part.path))
        if "exact" in values:
            # Parts of earlier versions, all of them of counts, have no more.
            values.setdefault("success", values["exact"])
        return {
            name: read(values.get(name), f"{part.path}: {name}") for name, read in readers.items()
        }
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"flowsde compare: {error}; it is measured again", file=sys.stderr)
        return None


def _joined(found: Sequence[Any], study: Study) -> Measured:
    """Parts of a row."""

    def over_seeds(name: str) -> np.ndarray:
        flat = np.concatenate([values[name] for values in found])
        return np.swapaxes(flat.reshape(study.seeds, len(study.prompts), *flat.shape[1:]), 0, 1)

    seconds = float(np.median([values["seconds"] for values in found]))
    names = [name for name in Measured._fields if name not in ("seconds", "heldout")]
    arrays: dict[str, Any] = {name: over_seeds(name) for name in names}
    return Measured(**arrays, seconds=seconds)
