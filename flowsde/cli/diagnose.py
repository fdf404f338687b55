"""`flowsde diagnose`: the options, and the files that it writes.

diagnose.json
    ``prompts``, ``method``, ``seed``, ``preset``, ``settings`` and ``version``, of what it is;
    ``rows``, one for each time, with the estimates of `flowsde.diagnosis.record.Record` for the
    step from it and their ends, ``_low`` and ``_high``; ``words``; ``nfe``, ``evaluations``,
    ``verifier_calls``; ``seconds`` {total, evaluation, reward}, the latter of one candidate; and
    ``reward_share``.
diagnose.png, diagnose.html
    The picture; a self-contained page with picture, words and table.
.flowsde/diagnosed/
    What was measured of each prompt so far, from which the command resumes; removed at the end.
"""

import dataclasses
import html
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from flowsde import _own, _text, interrupts
from flowsde._checks import check_count
from flowsde._files import read_arrays, replacing, write_arrays, write_json
from flowsde._keys import from_seed
from flowsde._schema import array, fields, items, mapping, text
from flowsde._version import __version__
from flowsde.cli import presets, progress, results
from flowsde.cli.described import described
from flowsde.cli.errors import OptionError
from flowsde.cli.failures import one_line
from flowsde.cli.finished import is_complete
from flowsde.cli.options import (
    Converted,
    Flag,
    Int,
    Moving,
    Preset,
    Sample,
    Trajectory,
    Weights,
    number,
    shown,
    word,
)
from flowsde.cli.pictures import try_to_draw
from flowsde.cli.settings import MOVING, as_values, flag
from flowsde.cli.sources import source_of
from flowsde.cli.sources.base import LoadedSource, Source
from flowsde.diagnosis.diagnose import measured, plan_of, stand_in
from flowsde.diagnosis.result import Diagnosis
from flowsde.diagnosis.trajectories import Measured, Plan
from flowsde.runner.arguments import prepare

FILES = ("diagnose.json", "diagnose.png", "diagnose.html")
_PARTS, _MARK = "diagnosed", "diagnosed.json"
_MOST = 100_000
_READ = fields({"rows": items(mapping)}, prompts=items(text), **{
    name: read for name, read in results.ABOUT.items() if name != "prompt"
})  # fmt: skip
_SETTINGS = (
    *("interpolant", "kernel", *MOVING, "diffusion", "diffusion_scale"),
    *("grid", "steps", "reward", "guidance"),
)
"""Those of a search that say how its particles move and are judged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Diagnose:
    """Measure at which times the reward is worth asking, before any search.

    Follows trajectories of PROMPT as `flowsde sample` moves its particles with the same options,
    and some siblings that branch off them. Says how well the reward of the posterior mean ranks
    particles at each time, how much it rises by itself, what a choice among siblings can still
    change, what a reward costs, and which setting that suggests. Several quoted prompts are
    averaged over. The same command again resumes, prompt by prompt.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, shown("PROMPT...")]
    """What the pictures should show, as for sample."""
    prompts_file: Annotated[Path | None, shown("FILE")] = None
    """More prompts, one a line, # for comments; of .csv, .tsv and .jsonl the column "prompt"."""
    method: Annotated[str, word("method")] = "rbf"
    """Method whose particles are looked at: how they move is its default in the preset (default:
    rbf). With bon, which draws no siblings by itself, any kernel can be given."""
    preset: Preset = "recommended"
    """Defaults of all other settings, as for sample (default: recommended)."""
    interpolant: Annotated[str | None, word("interpolant")] = None
    """Interpolant to sample in (default: the method's)."""
    kernel: Annotated[str | None, word("kernel")] = None
    """How a particle moves from one time to the next (default: the method's)."""
    reward: Annotated[str | None, shown("REWARD")] = None
    """Reward to look at, as for sample: "likelihood" (the default) or "rss", with --model FOLDER
    one of `flowsde rewards`; or MODULE:FUNCTION."""
    trajectories: Annotated[int, number(int, "an integer")] = 256
    """Number of trajectories of each prompt, 8 at least."""
    families: Int = None
    """Trajectories of each prompt from which siblings branch off at every step; they take most of
    the evaluations. 0 for none (default: 64, or all)."""
    siblings: Annotated[int, number(int, "an integer")] = 2
    """Children of one state, the trajectory's own included (default: 2)."""
    seed: Annotated[int, number(int, "an integer")] = 0
    """Random seed."""
    weights: Weights = ()
    """Weights that flowsde train wrote, as for sample."""
    out: Annotated[Path, shown("DIR")] = Path("flowsde-diagnose")
    """Folder of the results, flowsde-diagnose by default."""
    overwrite: Flag = False
    """Discard the results in the folder and begin anew."""
    converted: Annotated[Converted, tyro.conf.OmitArgPrefixes] = Converted()
    trajectory: Annotated[Trajectory, tyro.conf.OmitArgPrefixes] = Trajectory()
    moves: Annotated[Moving, tyro.conf.OmitArgPrefixes] = Moving()

    def run(self) -> None:
        """Measure, write the files, and print table and words.

        Raises:
          ValueError, TypeError: naming an option, before any work.
          CommandError, Interrupted: the work failed, or a signal came.
        """
        shared = {field.name for field in dataclasses.fields(Sample)} - {"out", "overwrite"}
        own = {f.name for f in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in shared & own}
        given["reward"] = () if self.reward is None else (self.reward,)
        offer = source_of(Sample(**given))
        if not offer.has_reward:
            raise OptionError("--reward", "a diagnosis looks at one, expected another than none")
        plan = self._plan(offer)
        about = self._about(offer, plan)
        results.make(self.out)
        with _own.locked(self.out) as hidden:
            if is_complete(
                self.out, hidden, about, self.overwrite,
                what="diagnosis", files=FILES, parts=_PARTS, mark=_MARK, read=_READ,
            ):  # fmt: skip
                print(f"flowsde diagnose: {_path(self.out)} is already complete", flush=True)
                return
            with one_line("failed"):
                self._work(offer, plan, about, hidden)
            _own.release(self.out)
        print(f"page    {_path(self.out / FILES[2])}", flush=True)

    def _plan(self, offer: Source) -> Plan:
        """What to draw; how particles move is what the method's search says."""
        for name in ("gradient_temperature", "noise_tilt"):
            if getattr(self.trajectory, name):
                raise OptionError(flag(name), "particles are looked at without guidance")
        check_count("--trajectories", self.trajectories, least=8, most=_MOST)
        check_count("--siblings", self.siblings, least=2, most=_MOST)
        if self.families is not None:
            check_count("--families", self.families, least=0, most=self.trajectories)
        if self.families == 1:
            raise ValueError("--families must be at least 2, or 0 for none, got 1")
        # Finishing wraps a search.
        search: Any = getattr(offer.search, "inner", offer.search)
        if getattr(search, "solver", None) is not None:
            raise OptionError("--kernel", "must move a particle that has no step before")
        return plan_of(
            search.kernel, search.grid, self.trajectories, self.families, self.siblings, "mean"
        )

    def _about(self, offer: Source, plan: Plan) -> dict[str, Any]:
        """What identifies the diagnosis, as in diagnose.json."""
        settings = {k: v for k, v in as_values(offer.settings).items() if k in _SETTINGS}
        settings |= {"trajectories": plan.n, "families": plan.families, "siblings": plan.siblings}
        return {
            "prompts": offer.prompts,
            "method": self.method,
            "seed": self.seed,
            "preset": self.preset,
            "settings": settings | offer.named,
            "version": __version__,
        }

    def _work(self, offer: Source, plan: Plan, about: dict[str, Any], hidden: Path) -> None:
        begun = time.perf_counter()
        write_json(hidden / _MARK, about)
        (hidden / _PARTS).mkdir(exist_ok=True)
        settings = presets.describe(self.method, _moving(offer), offer.named)
        print(_text.shown(settings, 2000), flush=True)
        found = _measure(offer, plan, self.seed, hidden / _PARTS)
        interrupts.check()
        diagnosis = Diagnosis.of(plan, found)
        _write(self.out, about, diagnosis, time.perf_counter() - begun)
        print(diagnosis, flush=True)


def _moving(offer: Source) -> Any:
    """Settings without those that say how a search spends its budget."""
    every = {f.name: None for f in dataclasses.fields(offer.settings)}
    return dataclasses.replace(offer.settings, **{k: None for k in every if k not in _SETTINGS})


def _path(path: Path) -> str:
    return _text.shown(path, 4096)


def _measure(offer: Source, plan: Plan, seed: int, parts: Path) -> list[Measured]:
    """What is measured of each prompt; what the folder has is not measured again."""
    found = [_read(parts / f"{i}.npz", plan) for i in range(len(offer.prompts))]
    missing = [i for i, one in enumerate(found) if one is None]
    each = plan.candidates * offer.evaluations
    if len(missing) < len(found):
        print(f"resume  {len(found) - len(missing)} of {len(found)} prompts are measured")
    loaded = offer.load([offer.prompts[i] for i in missing]) if missing else None
    with progress.bar(total=each * len(found), initial=each * (len(found) - len(missing)),
                      unit="NFE", bar_format=_BAR) as bar:  # fmt: skip
        for place, i in enumerate(missing):
            assert loaded is not None
            start = bar.n

            def tell(nfe: int, start: int = start) -> None:
                bar.update(start + nfe - bar.n)
                interrupts.check()

            one = _measured(loaded, place, plan, seed, tell)
            write_arrays(parts / f"{i}.npz", {k: np.asarray(v) for k, v in one._asdict().items()})
            found[i] = one
    return [one for one in found if one is not None]


_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} NFE, "
    "{rate_fmt}, {elapsed}<{remaining}{postfix}"
)


def _measured(loaded: LoadedSource, place: int, plan: Plan, seed: int, tell: Any) -> Measured:
    """Of one prompt, which is diagnosed as if it were alone."""
    task, flow = loaded.tasks[place], loaded.flow
    search, size = stand_in(flow, plan, loaded.chunk_size)
    job = prepare(
        from_seed(seed), flow, search, loaded.reward, cond=task.cond,
        reward_cond=task.reward_cond, chunk_size=size,
    )  # fmt: skip
    return measured(job, 0, plan, tell)


def _read(path: Path, plan: Plan) -> Measured | None:
    """What was measured of a prompt; None if there is no such file, or it is damaged."""
    try:
        arrays = read_arrays(path)
        steps, siblings = len(plan.times) - 1, plan.siblings if plan.families else 0
        family = array(np.float32, plan.families, steps, siblings)
        readers = {
            "rewards": array(np.float32, plan.n, steps + 1),
            **dict.fromkeys(("sibling_rewards", "sibling_finals"), family),
            **dict.fromkeys(("nfe", "evaluations", "verifier_calls"), array(int)),
            "seconds": array(np.float64, 2),
        }
        own: dict[str, Any] = {k: read(arrays.get(k), k) for k, read in readers.items()}
    except (FileNotFoundError, ValueError):
        return None
    own |= {name: int(own[name]) for name in ("nfe", "evaluations", "verifier_calls")}
    return Measured(**own)


def _write(folder: Path, about: dict[str, Any], d: Diagnosis, seconds: float) -> None:
    """All files, the JSON last: with it, the diagnosis is complete."""
    try_to_draw("flowsde diagnose", folder / FILES[1], partial(Diagnosis.figure, d))
    title = html.escape(_text.shown(" / ".join(about["prompts"]), 300))
    with replacing(folder / FILES[2]) as temporary:
        temporary.write_text(_PAGE.format(title=title, body=d._repr_html_()), encoding="utf-8")
    values = {
        **about,
        "rows": d.table(),
        "words": d.advice(),
        **{name: getattr(d, name) for name in ("nfe", "evaluations", "verifier_calls")},
        "seconds": {"total": round(seconds, 3), "evaluation": d.model_seconds,
                    "reward": d.reward_seconds},
        "reward_share": d.reward_share,
    }  # fmt: skip
    write_json(folder / FILES[0], values)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto }}
table {{ border-collapse: collapse; font-size: 13px }}
td, th {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd }}
</style></head><body>
<h1>When is the reward worth asking?</h1>
<p>{title}</p>
{body}
</body></html>
"""
