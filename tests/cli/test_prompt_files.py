"""Prompts in files: lines, columns of CSV, lines of JSON; and what is wrong in them."""

import json
from pathlib import Path

import pytest

from flowsde.cli import prompt_files
from flowsde.cli.prompts import collect

PROMPTS = ['a "red" cube, and a ball', "# seven cats", "été"]
TABLE = """\ufeffid,Prompt\r
1,"a ""red"" cube, and a ball"\r
\r
2,# seven cats\r
3,été\r
"""
KINDS = {
    "lines.txt": '\ufeff# mine\r\na "red" cube, and a ball\r\n\r\nété\r\n',
    "table.csv": TABLE,
    "table.tsv": 'prompt\tid\n"a ""red"" cube, and a ball"\t1\n# seven cats\t2\nété\t3\n',
    "objects.jsonl": "".join(json.dumps({"id": 1, "prompt": text}) + "\n\n" for text in PROMPTS),
    "texts.ndjson": "\n".join(json.dumps(text, ensure_ascii=False) for text in PROMPTS),
}


def same(prompt: str) -> str:
    return prompt


@pytest.mark.parametrize("name", KINDS)
def test_prompts_of_each_kind(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name].encode())
    expected = [text for text in PROMPTS if name != "lines.txt" or not text.startswith("#")]
    assert collect((), path, same) == expected


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("a.csv", "a cat\na dog\n", "a.csv: the first line names the columns, .* got a cat"),
        ("a.csv", "", "a.csv: the first line names the columns, .* got none"),
        ("a.csv", "prompt,prompt\na,b\n", "expected one 'prompt' .* got prompt, prompt"),
        ("a.csv", "id,prompt\n1,a cat, and a dog\n", "line 2 has 3 columns, expected 2"),
        ("a.csv", 'prompt\n"a cat\n', "a.csv: line 2: unexpected end of data"),
        ("a.jsonl", '"a cat"\n{"text": "a dog"}\n', "line 2: .* object with 'prompt', got {\"text"),
        ("a.jsonl", '"a cat"\na dog\n', "a.jsonl: line 2 is not JSON, got a dog"),
        ("a.jsonl", '{"prompt": 3}', "line 1: expected a text"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1 has 'prompt' twice in an object"),
        ("a.json", '["a cat"]', "a.json is neither text nor .jsonl, .ndjson, .csv or .tsv"),
        ("a.jsonl", '\n{"prompt": " "}\n', "holds no prompt"),
        ("a.txt", "b\na\nb\nc\na\n", "a.txt:3: 'b' .* first as .*:1; so are .*:5; another --seed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name: str, text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        collect((), path, same)


@pytest.mark.parametrize("head", ["id,prompt,note", "prompt\tseed", '"Prompt",id'])
def test_the_head_of_a_table_is_no_prompt(head: str, tmp_path: Path) -> None:
    path = tmp_path / "part-00"
    path.write_text(f"# mine\n\n{head}\n1,a cat,x\n")
    suffix = ".tsv" if "\t" in head else ".csv"
    with pytest.raises(ValueError, match=rf"line 3 names columns, .* that ends in \{suffix}"):
        collect((), path, same)


@pytest.mark.parametrize(
    "line", ["prompt", "a sign that says stop, prompt, in red", "a cat, a dog"]
)
def test_a_prompt_with_commas_is_one(line: str, tmp_path: Path) -> None:
    path = tmp_path / "part-00"
    path.write_text(f"{line}\na cat\n")
    assert collect((), path, same) == [line, "a cat"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "Key,prompt\n b/1 ,a cat\n\nb/2,\n002,a dog\n", ["b/1", "002"]),
        ("a.tsv", "prompt\tKEY\na cat\t7\na dog\t8\n", ["7", "8"]),
        ("a.jsonl", '{"prompt": "a cat", "key": 7}\n{"key": "x y", "prompt": "a dog"}\n',
         ["7", "x y"]),
    ],
)  # fmt: skip
def test_ids_of_prompts(name: str, text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert prompt_files.ids(tmp_path / name, "key") == expected
    assert [prompt for _, prompt in prompt_files.read(tmp_path / name)] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "a cat\n", "--id-column wants a file with columns, .csv, .*, got .*a.txt"),
        ("a.csv", "id,prompt\n1,a cat\n", "expected one 'key' among them, got id, prompt"),
        ("a.csv", "key,prompt\n1,a cat\n,a dog\n ,a fox\n",
         "a.csv: expected an id 'key' of every prompt, got none in line 3, 4"),
        ("a.csv", "key,prompt\n1,a cat\n2,a dog\n1,a fox\n",
         "a.csv: line 4: id '1' is given twice, first in line 2"),
        ("a.jsonl", '"a cat"\n{"prompt": "a dog", "key": true}\n{"prompt": "a fox"}\n',
         "got none in line 1, 2, 3"),
        ("a.jsonl", '{"prompt": "a cat", "key": "1"}\n{"prompt": "a dog", "key": 1}\n',
         "line 2: id '1' is given twice, first in line 1"),
        ("a.jsonl", '{"prompt": "a cat", "key": "a\\nb"}\n', "line 1: an id must be printable"),
    ],
)  # fmt: skip
def test_ids_that_are_missing_or_not_of_one_prompt(
    name: str, text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        prompt_files.ids(tmp_path / name, "key")
