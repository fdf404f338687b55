"""What pyproject.toml cannot say: the description for an index of packages, made of README.md."""

import re
from pathlib import Path

from setuptools import setup

BESIDE = r"\((?!https?://|#)([^)\s#]+)[^)\s]*\)"


def description(readme: str) -> str:
    """The README where no other file is beside it.

    A picture goes with its caption, the paragraph below it; a link to a file is the file's path.
    """
    text = re.sub(rf"^!\[[^\]]*\]{BESIDE}\n\n(.+\n)+\n", "", readme, flags=re.MULTILINE)
    text = re.sub(rf"\[([^\]]+)\]{BESIDE}", r"\1 (`\2`)", text)
    return f"{text}\nPaths in parentheses are of the source distribution.\n"


if __name__ == "__main__":
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(long_description=description(readme), long_description_content_type="text/markdown")
