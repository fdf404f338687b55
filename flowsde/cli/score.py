"""`flowsde score`: what a reward says of pictures in files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from flowsde._checks import check_path
from flowsde._files import read_json, write_json
from flowsde._text import shown as quoted
from flowsde.cli import progress
from flowsde.cli.described import described
from flowsde.cli.errors import CommandError, OptionError
from flowsde.cli.options import Float, shown
from flowsde.cli.picture_reward import Picture, PictureReward
from flowsde.rewards import RewardError


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Score:
    """Score pictures by a reward.

    Prints a line a picture; --json also keeps them in a file. A reward that reads the prompt takes
    it from --prompt, or from the result.json that sample has written beside a picture.
    """

    image: Annotated[tuple[Path, ...], tyro.conf.Positional, shown("IMAGE...")]
    """Pictures: PNG, JPEG, WebP and what else Pillow reads."""
    reward: Annotated[str, shown("NAME|URL#MODEL|MODULE:FUNCTION")]
    """likelihood or rss, the embedded model's; one with a converted model, such as clip; a judge at
    an OpenAI-compatible URL; or a function of (images, prompts) -> n floats, as for sample.
    `flowsde rewards` lists them."""
    reward_model: Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction] = ()
    """Folder of a converted model, if the reward needs one, as for sample."""
    reward_timeout: Float = None
    """Seconds that a call of MODULE:FUNCTION may take (default: an hour), or of a judge (630)."""
    reward_questions: Annotated[Path | None, shown("FILE.json")] = None
    """What qwen3vl-atoms and qwen3vl-atoms-geometric ask, as for sample."""
    prompt: Annotated[tuple[str, ...], shown("TEXT"), tyro.conf.UseAppendAction] = ()
    """What the pictures show: once for all of them, or once for each in their order."""
    json: Annotated[Path | None, shown("FILE")] = None
    """Write the scores to this file, with the reward's name and version."""

    def run(self) -> int:
        """Score, print, and write.

        Raises:
          ValueError, TypeError, OSError: naming the option that is wrong.
          CommandError: the reward failed.
        """
        if self.json is not None:
            check_path("--json", self.json)
        reward = PictureReward(
            self.reward, self.reward_model, self.reward_timeout, questions=self.reward_questions
        )
        pictures = self._pictures(reward)
        with progress.bar(total=len(pictures), unit="image", leave=False) as shown_bar:
            try:
                scores = reward.scores(pictures, shown_bar.update)
            except RewardError as error:
                raise CommandError(str(error), permanent=True) from error
        found: list[dict[str, Any]] = [
            {"image": str(one.path), "prompt": one.prompt, "reward": float(score)}
            for one, score in zip(pictures, scores, strict=True)
        ]
        if self.json is not None:
            values = {"reward": self.reward, "version": reward.version, "images": found}
            write_json(self.json, values)
        for one, score in zip(pictures, scores, strict=True):
            print(f"{score:10.4f}  {one.path}")
        return 0

    def _pictures(self, reward: PictureReward) -> Sequence[Picture]:
        if len(self.prompt) not in (0, 1, len(self.image)):
            raise OptionError(
                "--prompt",
                f"expected one, or one for each of {len(self.image)} pictures, "
                f"got {len(self.prompt)}",
            )
        prompts = self.prompt * (len(self.image) if len(self.prompt) == 1 else 1)

        def read(i: int, path: Path) -> Picture:
            beside = reward.reads_text and not prompts
            prompt = _prompt_beside(path) if beside else prompts[i] if prompts else None
            return reward.picture("IMAGE", path, prompt)

        return [read(i, path) for i, path in enumerate(self.image)]


def _prompt_beside(path: Path) -> str:
    """What the result.json beside a picture says that it is of."""
    file = path.parent / "result.json"
    prompt = read_json(file).get("prompt") if file.is_file() else None
    if not isinstance(prompt, str):
        raise OptionError(
            "--prompt", f"is missing, and no result.json beside {quoted(path)} has it"
        )
    return prompt
