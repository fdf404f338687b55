"""`flowsde tune`: the options, and the files that it writes.

preset.json
    For ``--preset FILE`` of sample, batch, compare and diagnose; `flowsde.cli.preset_files`.
report.md, race.png
    One page that says what to use and how sure that is, and the picture of the race.
tune.json
    ``prompts``, ``seed``, ``settings``, ``version``, of what it is; ``preset``; ``sure``;
    ``to_best_of_n``, the outcome of what is recommended less that of Best-of-N on what was held out
    with the ends of a paired 95 % interval, ``to_runner_up``, that of the winner of the race less
    the runner-up's, and ``heldout``, the first by the held-out checker;
    ``finalists``; ``race``, a list of rungs; ``left_out``; ``prices``, with --seconds what they
    buy of each setting, as `flowsde.tuning.prices.Price`; ``devices``, that it was measured on;
    ``cost`` (nfe, evaluations, verifier_calls, seconds).
.flowsde/race.json
    What was measured so far, from which the command resumes; removed at the end.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from flowsde import _own, _text, interrupts
from flowsde._checks import check_count, check_float
from flowsde._files import replacing, write_json
from flowsde._keys import from_seed
from flowsde._schema import fields, items, mapping, text, whole
from flowsde._version import __version__
from flowsde.cli import progress, results
from flowsde.cli.described import described
from flowsde.cli.errors import OptionError
from flowsde.cli.failures import one_line
from flowsde.cli.finished import is_complete
from flowsde.cli.kinds import QUIET, Flag, Float, Int, number, shown
from flowsde.cli.options import Converted, Moving, Sample, Trajectory, Tuning, Weights, word
from flowsde.cli.pictures import try_to_draw
from flowsde.cli.settings import EMBEDDED, MOST_IN_SECONDS, PRESETS, SEARCHES
from flowsde.cli.sources import check_seconds, naming_seconds, source_of
from flowsde.cli.sources.base import Source
from flowsde.runner.deadline import TooFewSeconds
from flowsde.runner.packed.batch import as_list
from flowsde.search import Search
from flowsde.shapes.verdict import is_right
from flowsde.tuning import report
from flowsde.tuning.carry_out import Plan, beforehand, carry_out
from flowsde.tuning.ledger import Ledger
from flowsde.tuning.measure import Subject, probe
from flowsde.tuning.prices import Timed
from flowsde.tuning.progress import Progress
from flowsde.tuning.settings import Setting
from flowsde.tuning.space import declared
from flowsde.tuning.split import Split, split
from flowsde.tuning.tune import identity
from flowsde.tuning.tuned import Tuned

FILES = ("tune.json", "preset.json", "report.md", "race.png")
_MARK, _RACE = "tune.json", "race.json"
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}{postfix}]"
_MOST_SEEDS, _CHUNK, _NFE = 1000, 64, 100
_NOT_TUNED = ("reward", "guidance", "gradient_temperature", "width")
"""Settings that a preset leaves to the model and to the user."""
_READ = fields(
    prompts=items(text), method=text, seed=whole(0, 2**32 - 1), settings=mapping, version=text
)


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Tune:
    """Find the search that is best for your model, reward, prompts and budget.

    Settings (method, kernel, interpolant, grid, steps, chains, accept, value, temperature) race
    each other on one half of the prompts, or of the seeds if there are fewer than 8 prompts; what a
    diagnosis says cannot help is left out. The best are compared with a tuned Best-of-N on the
    other half, and what is not surely better is not recommended. Writes preset.json, for --preset,
    and report.md, which says how sure it is. The same command again resumes.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, shown("PROMPT...")]
    """What the pictures should show, as for sample; 8 prompts or more say something of others."""
    prompts_file: Annotated[Path | None, shown("FILE")] = None
    """More prompts, one a line, # for comments; of .csv, .tsv and .jsonl the column "prompt"."""
    nfe: Int = None
    """Budget of each search in model evaluations (default: 100)."""
    seconds: Float = None
    """Budget of each search in seconds instead, as sample runs it: what the model and the reward
    take is timed first, for each setting, and turned into model evaluations, 2000 at most."""
    methods: Annotated[tuple[str, ...], shown("METHOD...")] = tuple(SEARCHES)
    """Searches that race beside Best-of-N (default: all): {searches}."""
    seeds: Int = None
    """Searches of each prompt in a half (default: as many as make 24)."""
    no_diagnosis: Flag = False
    """Race all settings, without a diagnosis first, which leaves out what cannot help."""
    reward: Annotated[str | None, shown("REWARD")] = None
    """Reward to search by, as for sample (embedded model: likelihood by default)."""
    target_reward: Float = None
    """Compare how often a search reaches this reward, where it stops, instead of mean rewards."""
    task: Annotated[str, word("task")] = "counts"
    """Embedded model: what a picture must also be, as for sample (default: counts, just the objects
    of the prompt)."""
    seed: Annotated[int, number(int, "an integer"), QUIET] = 0
    """Random seed (default: 0)."""
    weights: Weights = ()
    """Embedded model: weights that flowsde train wrote, as for sample (default: the packaged
    ones)."""
    out: Annotated[Path, shown("DIR")] = Path("flowsde-tune")
    """Folder of the results (default: flowsde-tune)."""
    overwrite: Flag = False
    """Discard the results in the folder and begin anew."""
    converted: Annotated[Converted, tyro.conf.OmitArgPrefixes] = Converted()

    def run(self) -> None:
        """Tune, write the files, and print what to use.

        Raises:
          ValueError, TypeError: naming an option, before any work.
          CommandError, Interrupted: the work failed, or a signal came.
        """
        if self.nfe is not None:
            check_count("--nfe", self.nfe)
        if self.seconds is not None:
            check_seconds(self.seconds, tuple(SEARCHES))
        if self.nfe is not None and self.seconds is not None:
            raise ValueError(
                f"--nfe and --seconds are both given, {self.nfe} and {self.seconds:g}, expected one"
            )
        if self.seeds is not None:
            check_count("--seeds", self.seeds, most=_MOST_SEEDS)
        if self.target_reward is not None:
            check_float("--target-reward", self.target_reward)
        for name in self.methods:
            if name not in SEARCHES:
                known = ", ".join(SEARCHES)
                got = _text.shown(name)
                raise OptionError("--methods", f"expected some of {known}, got '{got}'")
        if not self.methods:
            raise ValueError("--methods is empty, expected at least one")
        # A budget that is too small for Best-of-N is said here, before any work.
        offer = source_of(_sample(self, declared(())[0], self._most))
        if not offer.has_reward:
            raise OptionError("--reward", "a search is tuned to one, expected another than none")
        try:
            halves = split(len(offer.prompts), self.seeds)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        about = self._about(offer, halves)
        results.make(self.out)
        with _own.locked(self.out) as hidden:
            if is_complete(
                self.out, hidden, about, self.overwrite,
                what="tuning", files=FILES, parts=_RACE, mark=_MARK, read=_READ,
            ):  # fmt: skip
                print(f"flowsde tune: {_path(self.out)} is already complete", flush=True)
            else:
                with one_line("failed"):
                    self._work(offer, halves, about, hidden)
                _own.release(self.out)
        print(f"report  {_path(self.out / 'report.md')}", flush=True)

    @property
    def _budget(self) -> dict[str, Any]:
        """Of each search, by what it is counted in."""
        return {"nfe": self._most} if self.seconds is None else {"seconds": self.seconds}

    @property
    def _most(self) -> int:
        """Model evaluations of a search; of seconds, those that they may buy."""
        return (self.nfe or _NFE) if self.seconds is None else MOST_IN_SECONDS

    def _about(self, offer: Source, halves: Split) -> dict[str, Any]:
        """What identifies the tuning, as in tune.json."""
        settings = {
            **self._budget,
            "methods": sorted(set(self.methods)),
            "seeds": halves.seeds,
            "reward": offer.settings.reward,
            "target_reward": self.target_reward,
            "no_diagnosis": self.no_diagnosis,
        }
        return {
            "prompts": offer.prompts,
            "method": "tune",
            "seed": self.seed,
            "settings": settings | offer.named,
            "version": __version__,
        }

    def _preset(self, tuned: Tuned) -> dict[str, Any]:
        """What preset.json says: all settings that `flowsde sample` had of the one recommended."""
        command = _sample(self, tuned.setting, tuned.search.nfe)
        settings = dataclasses.asdict(source_of(command).settings)
        own = {k: v for k, v in settings.items() if v is not None and k not in _NOT_TUNED}
        return tuned.preset() | {"settings": own}

    def _timed(self, chunk_size: int | None) -> Timed | None:
        """The budget in seconds, of searches as `flowsde sample` runs them."""
        if self.seconds is None:
            return None
        search_of = partial(_search, self, nfe=MOST_IN_SECONDS, alone=True)
        return Timed(self.seconds, search_of, chunk_size)

    def _work(self, offer: Source, halves: Split, about: dict[str, Any], hidden: Path) -> None:
        write_json(hidden / _MARK, about)
        loaded = offer.load(offer.prompts)
        cond, _ = as_list([one.cond for one in loaded.tasks], np.arange(len(offer.prompts)))
        told = [one.reward_cond for one in loaded.tasks]
        embedded = str(self.converted.model or EMBEDDED[0]) in EMBEDDED
        subject = Subject(
            key=from_seed(self.seed),
            flow=loaded.flow,
            reward=loaded.reward,
            cond=cond,
            reward_cond=None if told[0] is None else told,
            prompts=len(offer.prompts),
            chunk_size=loaded.chunk_size or _CHUNK,
            target_reward=self.target_reward,
            heldout=partial(_heldout, offer) if embedded else None,
        )
        plan = Plan(
            subject=subject,
            split=halves,
            nfe=self._most if self.seconds is None else None,
            methods=self.methods,
            settings=None,
            search_of=partial(_search, self),
            diagnose=not self.no_diagnosis,
            timed=self._timed(loaded.chunk_size),
            as_searched=cache(partial(_as_searched, self)),
        )
        known = {"prompts": offer.prompts, **about["settings"], **identity(subject)}
        ledger = Ledger(hidden / _RACE, known, probe(subject))
        print(beforehand(plan), flush=True)
        unit = "NFE" if self.seconds is None else "s"
        with progress.bar(
            unit=f" {unit}", unit_scale=True, dynamic_ncols=True, bar_format=_BAR
        ) as bar:
            with naming_seconds(), _unbegun(hidden):
                tuned = carry_out(plan, ledger, partial(_show, bar))
        interrupts.check()
        _write(self.out, about, tuned, self._preset(tuned))
        print(f"\n{report.verdict(tuned)}\n", flush=True)
        print(f"preset  {_path(self.out / 'preset.json')}", flush=True)


def _path(path: Path) -> str:
    return _text.shown(path, 4096)


def _sample(command: Tune, setting: Setting, nfe: int, alone: bool = False) -> Sample:
    """The command that searches with a setting, `alone` or for many prompts side by side."""
    given = dict(setting.options) | {"nfe": nfe}
    if command.converted.model is not None and given.get("grid") == "uniform":
        # A converted model may have times of its own.
        del given["grid"]
    if PRESETS["recommended"][setting.method].width is not None and not alone:
        # Prompts side by side fill the batches; width changes no answer.
        given["width"] = 1
    if PRESETS["recommended"][setting.method].restart_at:
        # A setting without restarts has none.
        given.setdefault("restart_at", 0.0)
    groups: dict[str, Any] = {}
    for name, kind in (("trajectory", Trajectory), ("moves", Moving), ("search", Tuning)):
        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        groups[name] = kind(**{n: given.pop(n) for n in names if n in given})
    shared = ("prompt", "prompts_file", "task", "seed", "weights", "converted")
    own = {name: getattr(command, name) for name in shared}
    own["reward"] = () if command.reward is None else (command.reward,)
    return Sample(method=setting.method, **own, **given, **groups)


def _search(command: Tune, setting: Setting, nfe: int, alone: bool = False) -> Search:
    """The search that `flowsde sample` makes of a setting."""
    return source_of(_sample(command, setting, nfe, alone)).search


def _as_searched(command: Tune, setting: Setting) -> Setting:
    """A setting with the times that its search has: a converted model may have its own."""
    if command.converted.model is None:
        return setting
    try:
        grid = source_of(_sample(command, setting, command._most)).settings.grid
    except ValueError:
        return setting  # Too small a budget: it is left out, and said why.
    return Setting.of(setting.method, **dict(setting.options) | {"grid": grid})


@contextmanager
def _unbegun(hidden: Path) -> Iterator[None]:
    """If the seconds are too few for a race, the folder is nobody's: more may be given next."""
    try:
        yield
    except TooFewSeconds:
        for name in (_RACE, _MARK):
            _own.discard(hidden / name)
        raise


def _heldout(offer: Source, images: np.ndarray, prompts: Sequence[int]) -> list[float]:
    """Whether pictures are right, by the checker that no search sees."""
    said = [offer.heldout(offer.prompts[i], one) for i, one in zip(prompts, images, strict=True)]
    return [float(is_right(one["heldout"])) for one in said]


def _show(bar: tqdm, now: Progress) -> None:
    """Show how far the race is; after a signal it stops here, with all that is done kept."""
    bar.total = now.most or None
    bar.set_description(_text.shown(now.what, 40), refresh=False)
    left = "" if math.isnan(now.left) else f"about {tqdm.format_interval(now.left)} left"
    bar.set_postfix_str(left, refresh=False)
    bar.update(now.done - bar.n)
    bar.refresh()
    interrupts.check()


def _write(folder: Path, about: dict[str, Any], tuned: Tuned, preset: dict[str, Any]) -> None:
    """All files, tune.json last: with it, the tuning is complete."""
    write_json(folder / "preset.json", preset)
    try_to_draw("flowsde tune", folder / "race.png", tuned.figure)
    page = tuned.report() + "\n![The race](race.png)\n" * (folder / "race.png").exists()
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    finalists = [dataclasses.asdict(one) for one in tuned.finalists.values()]
    values = {
        **about,
        "preset": preset,
        "sure": tuned.sure,
        "to_best_of_n": tuned.to_best_of_n,
        "to_runner_up": tuned.to_runner_up,
        "heldout": tuned.heldout_gap,
        "finalists": [{**one, "outcomes": one["outcomes"].tolist()} for one in finalists],
        "race": [
            {"searches": rung.units, "table": [one._asdict() for one in rung.table]}
            for rung in tuned.race.rungs
        ],
        "left_out": tuned.left_out,
        "prices": {name: one._asdict() for name, one in tuned.prices.items()},
        "devices": tuned.devices,
        "cost": tuned.cost,
    }
    write_json(folder / FILES[0], values)
