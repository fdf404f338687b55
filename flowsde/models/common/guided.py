"""What models that take a size, a negative prompt and a guidance scale share in the command."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from flowsde._checks import check_non_negative
from flowsde.classifier_free import classifier_free_guidance
from flowsde.flow import Flow
from flowsde.models.common.size import height_and_width

Sides = tuple[int | None, int | None]
_AT_ONCE = 32


def sides(size: str | None, check: Callable[[int | None, int | None], Any]) -> Sides:
    """Height and width of --size, None without; `check` raises ValueError for wrong ones."""
    found: Sides = (None, None) if size is None else height_and_width(size)
    try:
        check(*found)
    except ValueError as error:
        # The names of the arguments are those of the option.
        raise ValueError(f"--size: {error}") from None
    return found


def guidance_of(
    given: float | None, usual: float, negative_prompt: str | None
) -> tuple[float, str | None]:
    """The scale of --guidance, and the prompt to lead away from: None where nothing is guided."""
    scale = usual if given is None else given
    check_non_negative("--guidance", scale)
    if scale == 1.0 and negative_prompt is not None:
        raise ValueError(
            f"--negative-prompt has no effect with --guidance 1, got {negative_prompt!r}"
        )
    return scale, None if scale == 1.0 else negative_prompt or ""


def encoded(
    encode: Callable[[list[str]], Any], prompts: Sequence[str], negative: str | None
) -> tuple[list[Any], Any]:
    """What each prompt becomes, and the negative one; `encode` has a leading axis of texts.

    NumPy: those of thousands of prompts leave no room for a model on the device. Some are encoded
    at once, under a bar if there are many.
    """
    texts = [*prompts, *([] if negative is None else [negative])]
    conds: list[Any] = []
    with tqdm(total=len(texts), unit="text", leave=False, disable=len(texts) <= _AT_ONCE) as bar:
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            every = jax.device_get(encode(some))
            conds += [jax.tree.map(lambda a, i=i: a[i], every) for i in range(len(some))]
            bar.update(len(some))
    return conds[: len(prompts)], conds[-1]


def guided(flow: Flow, scale: float, negative: str | None, null: Any) -> Flow:
    """The flow, by classifier-free guidance unless there is no negative prompt."""
    return flow if negative is None else classifier_free_guidance(flow, scale, null)
