"""Runs the tutorials, text notebooks in docs/tutorials/, and keeps their outputs up to date.

    python tests/helpers/tutorials.py [NAME ...]

What a cell prints stands in the block of text below it, what it draws in NAME_1.png, NAME_2.png
and so on, which the page shows.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
sys.path.insert(0, str(FOLDER.parent))
from notebooks import CELL  # noqa: E402


class Cell(NamedTuple):
    code: str
    said: str  # what the page says that it prints


def read(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text()


def cells(text: str) -> list[Cell]:
    return [Cell(found["code"], found["said"] or "") for found in CELL.finditer(text)]


def run(text: str, name: str):
    """Names that the cells of a page define, what each prints, and the figures they draw."""
    import matplotlib.pyplot as plt

    names, printed = {"__name__": name}, []
    for number, cell in enumerate(cells(text)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(cell.code, f"{name}, cell {number}", "exec"), names)
        printed.append("".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines()))
    figures = [plt.figure(number) for number in plt.get_fignums()]
    return names, printed, figures


def with_outputs(text: str, printed: list[str]) -> str:
    """The page, with what its cells print below them."""
    following = iter(printed)

    def cell(found: re.Match) -> str:
        said = next(following)
        block = f"\n```text\n{said}```\n" if said else ""
        return f"```{{code-cell}} ipython3\n{found['code']}```\n{block}"

    return CELL.sub(cell, text)


def save(figure, path: Path) -> None:
    """As a small PNG: 128 colours are enough for plots."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=80, bbox_inches="tight")
    Image.open(memory).convert("RGB").quantize(128).save(path, optimize=True)


def main(chosen: list[str]) -> None:
    import jax
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    jax.config.update("jax_num_cpu_devices", 4)  # as in tests: one page wants several
    for name in chosen or NAMES:
        text = read(name)
        _, printed, figures = run(text, name)
        (FOLDER / f"{name}.md").write_text(with_outputs(text, printed))
        for number, figure in enumerate(figures, 1):
            save(figure, FOLDER / f"{name}_{number}.png")
        plt.close("all")


if __name__ == "__main__":
    main(sys.argv[1:])
