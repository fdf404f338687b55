"""Every published file is recognised from its header alone, as `flowsde convert --check` does."""

import full_size
import pytest
from quick import slow

from flowsde.cli.main import main


@pytest.mark.parametrize(
    "file", [slow(file, id=f"{file.name}-{file.layout}") for file in full_size.FILES]
)
def test_the_command_names_the_model(file, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    row = full_size.checked(file, path)
    main(["convert", str(path), "--check"])
    said = capsys.readouterr().out
    assert said.startswith(f"found   {file.family}, {file.layout} keys: ")
    assert "all keys and shapes fit" in said
    # Sparse: as long as the published file, with nothing in it but the header.
    assert path.stat().st_size == row["bytes"] > 2 * row["parameters"]
    assert 512 * path.stat().st_blocks < 2**20


def test_what_is_converted_is_not_converted_again(tmp_path, monkeypatch):
    done, json_file = [], tmp_path / "found.json"

    def measured(file, args):
        done.append((file.name, file.layout))
        row = {"name": file.name, "layout": file.layout}
        return row | ({"seconds": 1.0} if file.layout == "diffusers" else {})

    monkeypatch.setattr(full_size, "measured", measured)
    full_size.main(full_size.Args(json=json_file))
    every, first = [(f.name, f.layout) for f in full_size.FILES], json_file.read_text()
    assert done == every
    full_size.main(full_size.Args(json=json_file))
    assert done[len(every) :] == [at for at in every if at[1] != "diffusers"]
    assert json_file.read_text() == first
