"""Workers that collect the same tests, each beginning with another part of them.

What one has made of a file's asserts is then found by the others, instead of made by all at once.
"""

from pathlib import Path

import pytest


class Folder(pytest.Dir):
    """A folder whose first entry is another one for each worker."""

    part = 0.0

    def collect(self):
        found = list(super().collect())
        first = int(self.part * len(found))
        return found[first:] + found[:first]


class Turned:
    """Turns `folder` by the worker's share; the order of the tests stays."""

    def __init__(self, folder: Path, worker: dict) -> None:
        self.folder = folder
        self.part = int(worker["workerid"].removeprefix("gw")) / worker["workercount"]

    def pytest_collect_directory(self, path, parent):
        if path == self.folder:
            made = Folder.from_parent(parent, path=path)
            made.part = self.part
            return made

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: item.path.parts)
