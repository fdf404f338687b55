"""From what a conversion wrote back to safetensors, with the keys and dtypes that it came from.

The bits of every tensor are those of the source, unless the conversion was to another dtype. What a
table ignores, buffers and copies of tied weights, is not written again.
"""

import hashlib
from pathlib import Path

import jax
import numpy as np

from flowsde._files import write_json
from flowsde._replace import replacing_out
from flowsde.models import registry
from flowsde.models.common.layers import Numerics
from flowsde.models.converted.arrays import raw
from flowsde.models.converted.opened import open_model
from flowsde.models.converted.store import (
    CONFIG,
    INDEX,
    PIPELINE,
    check_files,
    is_pipeline,
    read_config,
)
from flowsde_converters.convert import TOKENIZER, check_space
from flowsde_converters.copies import copy_file, copy_tree
from flowsde_converters.detect import family_named
from flowsde_converters.safetensors_file import SafetensorsWriter
from flowsde_converters.stream import Advance
from flowsde_converters.tables import Row, Table, sharing, undone


class Back:
    """A converted model on the way back.

    Args:
      folder: of a single model.

    Raises:
      FileNotFoundError, ValueError: it is not what a conversion wrote.
    """

    def __init__(self, folder: Path):
        self._opened = open_model(folder, registry.families())
        self.about, self._params = self._opened.about, self._opened.parameters()
        # Which compares shapes.
        self._opened.model(Numerics())
        try:
            self._table: Table = family_named(self._opened.family.name).table(
                self._opened.config, self.about["layout"]
            )
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG}: layout: {error}") from None

    @property
    def nbytes(self) -> int:
        """Of all parameters."""
        return sum(one.nbytes for one in self._params.values())

    @property
    def described(self) -> str:
        """What it is, in words."""
        return f"{self.about['family']}, {len(self._params)} parameters, {self.about['dtype']}"

    @property
    def file_name(self) -> str:
        """What the library that the keys are of calls the file."""
        return "diffusion_pytorch_model" if self.about["layout"] == "diffusers" else "model"

    def write(self, path: Path, advance: Advance) -> None:
        """All tensors into one new file."""
        shapes, groups = {}, sharing(self._table.rows)
        for rows in groups:
            like = [np.broadcast_to(np.int8(0), self._params[row.target].shape) for row in rows]
            for key, tensor in undone(rows, like):
                shapes[key] = jax.ShapeDtypeStruct(tensor.shape, self._dtype(rows[0], key))
        with SafetensorsWriter(path, shapes) as writer:
            for rows in groups:
                arrays = [self._read(row.target) for row in rows]
                for key, tensor in undone(rows, arrays):
                    writer.write(key, tensor.astype(self._dtype(rows[0], key), copy=False))
                advance(sum(array.nbytes for array in arrays))

    def _read(self, path: str) -> np.ndarray:
        """A parameter; ValueError if it is not what was written."""
        array = self._params[path].read()
        if hashlib.sha256(raw(array)).hexdigest() != self.about["params"][path]["sha256"]:
            raise self._opened.changed([path])
        return array

    def _dtype(self, row: Row, key: str) -> np.dtype:
        # The parameter's, unless it was widened to hold tensors of several.
        name = self.about["source"]["dtypes"].get(key)
        return self._params[row.target].dtype if name is None else np.dtype(name)


def prepare_back(source: Path) -> dict[str, Back]:
    """The models of a converted folder by name of the sub-folder, or "" for a single one.

    Raises:
      FileNotFoundError, ValueError: it is not what a conversion wrote.
    """
    if not is_pipeline(source):
        return {"": Back(source)}
    about = read_config(source, PIPELINE)
    check_files(source, about)
    return {name: Back(source / name) for name in about["models"]}


def run_back(
    source: Path,
    models: dict[str, Back],
    out: Path,
    overwrite: bool = False,
    advance: Advance = lambda _: None,
) -> None:
    """Write safetensors.

    Args:
      source: the converted folder.
      models: of `prepare_back`.
      out: a new file, if its name ends so, or a folder as the libraries have them: with config.json
        beside the weights, and for a pipeline all that was copied.
      overwrite: whether a file may be replaced.
      advance: told of bytes written.

    Raises:
      ValueError: `out` is there, or is a file and the source a pipeline.
      OSError: the disk.
    """
    alone = out.suffix == ".safetensors"
    if alone and "" not in models:
        raise ValueError(f"{source} is a pipeline, expected a folder for OUT, got {out}")

    def check(place: Path) -> None:
        if place.exists() and not (overwrite and place.is_file()):
            expected = "another one" + (" or --overwrite" if place.is_file() else "")
            raise ValueError(f"OUT {out} exists, expected {expected}")
        check_space(place, sum(one.nbytes for one in models.values()))

    with replacing_out(out, check) as new:
        if alone:
            models[""].write(new, advance)
        else:
            _write_folder(source, models, new, advance)


def _write_folder(source: Path, models: dict[str, Back], folder: Path, advance: Advance) -> None:
    folder.mkdir()
    if "" not in models:
        for name in read_config(source, PIPELINE)["copied"]:
            copy_tree(source / name, source, folder / name)
        copy_file(source / INDEX, source, folder / INDEX)
    elif (source / TOKENIZER).is_dir():
        copy_tree(source / TOKENIZER, source, folder)
    for name, one in models.items():
        (folder / name).mkdir(exist_ok=True)
        one.write(folder / name / f"{one.file_name}.safetensors", advance)
        if one.about["source"]["config"] is not None:
            write_json(folder / name / CONFIG, one.about["source"]["config"])
