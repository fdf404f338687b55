"""Rewards of converted models, by what `--reward` calls them; one of your own is one more line.

clip               cosine of image and prompt, by a converted CLIP
pick               PickScore, by its own
hpsv2, hpsv2.1     HPSv2 of that version, by its own
imagereward        ImageReward, by its own BLIP
vqascore           VQAScore, by CLIP-FlanT5
vqascore-odds      its log-odds, which do not tie where the model is sure
instructblip       VQAScore, by InstructBLIP
instructblip-odds  its log-odds
owlv2              how wrong the counts are of what OWLv2 finds, by its own
owlv2-smooth       the same with a gradient: boxes counted by how sure they are
qwen3vl            how sure Qwen3-VL is that the picture shows the prompt, P(Yes)
qwen3vl-share      the same against No, P(Yes) / (P(Yes) + P(No))
qwen3vl-odds       its log-odds
qwen3vl-atoms      the mean of P of the right answers to several questions, --reward-questions
qwen3vl-atoms-geometric  their geometric mean
qwen3vl-counts     how wrong the counts are that it expects, by its own
aesthetic          LAION's score, by a converted CLIP and head
consistency        of videos: how alike neighbouring frames are, by a converted CLIP
none               no reward
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.cli.sources.base import RewardSource
from flowsde.models.blip.scored import ScoredByBLIP
from flowsde.models.clip.model import HPSV2, HPSV2_1
from flowsde.models.clip.rewards import clip_score, hps_score, pick_score
from flowsde.models.clip.scored import Aesthetic, Cosine
from flowsde.models.clip_flant5.scored import ScoredByCLIPFlanT5
from flowsde.models.instructblip.scored import ScoredByInstructBLIP
from flowsde.models.owlv2.scored import Counted, SmoothlyCounted
from flowsde.models.qwen3_vl.scored import AskedByQwen3VL, CountedByQwen3VL, JudgedByQwen3VL
from flowsde.models.video_rewards import Consistent
from flowsde.rewards.base import Reward, device


def _nothing(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros(images.shape[0], jnp.float32)


class NoReward:
    """Every picture is worth as much."""

    reads_text, on_device = False, True

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        return device(_nothing, name="none"), [None] * len(prompts)


class Known(NamedTuple):
    """A reward that has a name.

    Attributes:
      make: of a `RewardSource`, called with the folders of --reward-model.
      says: what it is, in words.
      folders: what each of them is, in words.
      families: of the models in them.
      counts: whether it counts what a text says: --reward-counts, or else the prompt.
      asks: whether it asks what --reward-questions says.
      videos: whether it is of whole videos, and of no picture.
    """

    make: Callable[..., RewardSource]
    says: str
    folders: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    counts: bool = False
    asks: bool = False
    videos: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether it looks at the prompt; the class that is made says so."""
        return bool(self._made.reads_text)

    @property
    def on_device(self) -> bool:
        """Whether it has a gradient."""
        return bool(self._made.on_device)

    @property
    def _made(self) -> Any:
        return getattr(self.make, "func", self.make)


_CLIP = (("a converted CLIP",), ("clip",))
_CLIP_FLANT5 = (("a converted CLIP-FlanT5",), ("clip_flant5",))
_INSTRUCTBLIP = (("a converted InstructBLIP",), ("instructblip",))
_OWLV2: dict[str, Any] = {
    "folders": ("a converted OWLv2",), "families": ("owlv2",), "counts": True,
}  # fmt: skip
_QWEN3_VL = (("a converted Qwen3-VL",), ("qwen3_vl",))
KNOWN = {
    "none": Known(NoReward, "every picture is worth as much"),
    "clip": Known(partial(Cosine, score=clip_score), "cosine of image and prompt", *_CLIP),
    "pick": Known(partial(Cosine, score=pick_score), "PickScore, by its own CLIP", *_CLIP),
    "hpsv2": Known(
        partial(Cosine, score=partial(hps_score, version="2.0"), family=HPSV2),
        "HPSv2 (v2.0), by its own CLIP",
        folders=("a converted HPSv2 v2.0",),
        families=(HPSV2.name,),
    ),
    "hpsv2.1": Known(
        partial(Cosine, score=partial(hps_score, version="2.1"), family=HPSV2_1),
        "HPSv2.1, by its own CLIP",
        folders=("a converted HPSv2 v2.1",),
        families=(HPSV2_1.name,),
    ),
    "imagereward": Known(
        ScoredByBLIP,
        "ImageReward, by its own BLIP",
        folders=("a converted ImageReward",),
        families=("imagereward",),
    ),
    "vqascore": Known(ScoredByCLIPFlanT5, "VQAScore, by CLIP-FlanT5", *_CLIP_FLANT5),
    "vqascore-odds": Known(
        partial(ScoredByCLIPFlanT5, odds=True), "log-odds of VQAScore", *_CLIP_FLANT5
    ),
    "instructblip": Known(ScoredByInstructBLIP, "VQAScore, by InstructBLIP", *_INSTRUCTBLIP),
    "instructblip-odds": Known(
        partial(ScoredByInstructBLIP, odds=True), "log-odds of InstructBLIP's", *_INSTRUCTBLIP
    ),
    "owlv2": Known(Counted, "squared error of OWLv2's counts, negative", **_OWLV2),
    "owlv2-smooth": Known(SmoothlyCounted, "the same, of boxes by how sure they are", **_OWLV2),
    "qwen3vl": Known(JudgedByQwen3VL, "P(Yes) by Qwen3-VL, asked about the prompt", *_QWEN3_VL),
    "qwen3vl-share": Known(
        partial(JudgedByQwen3VL, formula="share"), "P(Yes) / (P(Yes) + P(No))", *_QWEN3_VL
    ),
    "qwen3vl-odds": Known(
        partial(JudgedByQwen3VL, formula="log_odds"), "log-odds of Yes against No", *_QWEN3_VL
    ),
    "qwen3vl-atoms": Known(
        AskedByQwen3VL, "mean of P of the answers to your questions", *_QWEN3_VL, asks=True
    ),
    "qwen3vl-atoms-geometric": Known(
        partial(AskedByQwen3VL, combine="geometric"), "their geometric mean", *_QWEN3_VL, asks=True
    ),
    "qwen3vl-counts": Known(
        CountedByQwen3VL,
        "squared error of the counts it expects, negative",
        *_QWEN3_VL,
        counts=True,
    ),
    "aesthetic": Known(
        Aesthetic,
        "LAION's aesthetic score",
        folders=("a converted CLIP", "the head"),
        families=("clip", "aesthetic"),
    ),
    "consistency": Known(
        Consistent, "cosine of a video's neighbouring frames, by a CLIP", *_CLIP, videos=True
    ),
}
