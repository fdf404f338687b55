"""Inference-time scaling of flow models in JAX; ``import flowsde as fs``.

==========================================  ====================================================
`fs.interpolants`, `fs.match_time`          paths between data and noise
`fs.velocity_to_x0`, `fs.x0_to_score`, …    conversions among velocity, score, x0 and x1
`fs.reparameterise`                         a model on another interpolant, without retraining
`fs.diffusion`, `fs.kernels`, `fs.grids`    how a sampler moves: noise, one step, all times
`fs.Flow`, `fs.load`                        a model, and a converted one
`fs.classifier_free_guidance`               its guided twin; `fs.guide` is the former name
`fs.sample`, `fs.check_convention`          samples without a search; is the model read rightly?
`fs.posterior_samples`                      data that a noisy particle may come from
`fs.search`, `fs.rewards`                   searches, and rewards outside JAX
`fs.run`, `fs.iterate`, `fs.batch`          one search, one round at a time, many prompts
`fs.diagnose`                               when is a reward worth asking?
`fs.tune`                                   which search for a model, a reward and a budget?
`fs.check_search`                           does a search of one's own keep what all of them keep?
`fs.Result`                                 what these return
`fs.tournament`                             the best of several by comparing pairs
`fs.save_search`, `fs.restore_search`       searches that go on later
`fs.ShardingRules`, `fs.distributed`        several devices, several processes
`fs.analytic`, `fs.shapes`                  flows with known answers, and a small trained one
==========================================  ====================================================

Everything else is private, the other modules that `help` lists among them. Names are imported when
they are first used (PEP 562), so that the command answers ``--help`` and wrong options without
waiting for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowsde._version import __version__

if TYPE_CHECKING:
    from flowsde import analytic, diffusion, grids, interpolants, kernels, rewards, search, shapes
    from flowsde.classifier_free import classifier_free_guidance, guide
    from flowsde.convention import check_convention
    from flowsde.diagnosis.diagnose import diagnose
    from flowsde.flow import Flow
    from flowsde.interpolants import match_time
    from flowsde.invariants import check_search
    from flowsde.models.load import load
    from flowsde.pairwise import tournament
    from flowsde.posterior_samples import posterior_samples
    from flowsde.predictions import (
        reparameterise,
        score_to_velocity,
        score_to_x0,
        score_to_x1,
        velocity_to_score,
        velocity_to_x0,
        velocity_to_x1,
        x0_to_score,
        x0_to_velocity,
        x0_to_x1,
        x1_to_score,
        x1_to_velocity,
        x1_to_x0,
    )
    from flowsde.runner import distributed
    from flowsde.runner.packed.batch import batch
    from flowsde.runner.result import Result
    from flowsde.runner.run import iterate, run
    from flowsde.runner.saved import restore_search, save_search
    from flowsde.sampling import sample
    from flowsde.sharding import ShardingRules
    from flowsde.tuning.tune import tune

_MODULES = {
    name: name
    for name in (
        *("analytic", "diffusion", "grids", "interpolants", "kernels", "rewards", "search"),
        "shapes",
    )
} | {"distributed": "runner.distributed"}
_NAMES = {
    "classifier_free": ("classifier_free_guidance", "guide"),
    "convention": ("check_convention",),
    "diagnosis.diagnose": ("diagnose",),
    "flow": ("Flow",),
    "sampling": ("sample",),
    "posterior_samples": ("posterior_samples",),
    "interpolants": ("match_time",),
    "predictions": (
        "reparameterise",
        *(f"{a}_to_{b}" for a in ("score", "velocity", "x0", "x1")
          for b in ("score", "velocity", "x0", "x1") if a != b),
    ),
    "invariants": ("check_search",),
    "models.load": ("load",),
    "pairwise": ("tournament",),
    "runner.packed.batch": ("batch",),
    "runner.result": ("Result",),
    "runner.run": ("iterate", "run"),
    "runner.saved": ("restore_search", "save_search"),
    "sharding": ("ShardingRules",),
    "tuning.tune": ("tune",),
}  # fmt: skip
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "Flow",
    "Result",
    "ShardingRules",
    "__version__",
    "analytic",
    "batch",
    "check_convention",
    "check_search",
    "classifier_free_guidance",
    "diagnose",
    "diffusion",
    "distributed",
    "grids",
    "guide",
    "interpolants",
    "iterate",
    "kernels",
    "load",
    "match_time",
    "posterior_samples",
    "reparameterise",
    "restore_search",
    "rewards",
    "run",
    "sample",
    "save_search",
    "score_to_velocity",
    "score_to_x0",
    "score_to_x1",
    "search",
    "shapes",
    "tournament",
    "tune",
    "velocity_to_score",
    "velocity_to_x0",
    "velocity_to_x1",
    "x0_to_score",
    "x0_to_velocity",
    "x0_to_x1",
    "x1_to_score",
    "x1_to_velocity",
    "x1_to_x0",
]


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"flowsde.{_MODULES[name]}")
        if name in _HOMES:
            value = getattr(import_module(f"flowsde.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'flowsde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
