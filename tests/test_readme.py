import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
README = PAGES["README.md"]
# What docs/extending.md adds to a copy of the package has a test of its own.
RUN = [name for name in PAGES if name != "docs/extending.md"]
EXAMPLES = {
    f"{name} {number}": code
    for name in RUN
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL))
}
FIRST = "README.md 0"
IMPORTS = "docs/guide.md 0"  # of every other page


def test_readme_is_short():
    assert len(README.splitlines()) <= 180
    assert len([name for name in EXAMPLES if name.startswith("README.md")]) == 3


def run(code, names, block="imports"):
    exec(compile(code, block, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(name, capsys):
    """Alone, after the imports of README's first or of the guide's, and prints something."""
    first = EXAMPLES[FIRST if name.startswith("README") else IMPORTS]
    header = "\n".join(re.findall(r"^(?:import|from) .*$", first, re.MULTILINE))
    run(EXAMPLES[name], run(header, {}), name)
    printed = capsys.readouterr().out.strip()
    assert printed
    if name == FIRST:
        assert f"It prints `{printed}`." in README


def test_examples_use_what_they_define():
    """Names that a block binds at its top and never looks at."""
    for name, code in EXAMPLES.items():
        if name in (FIRST, IMPORTS):
            continue
        bound, read = set(), set()
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
        methods = {"__init__", "__call__"}
        assert bound - read - methods == set(), code


def test_own_models_and_rewards_take_eight_lines():
    """Beside imports, with a line or two that use them."""
    for name in ("from_linen", "from_nnx", "velocity, {", "brightness,", "rewards.host(brightest"):
        (code,) = [e for key, e in EXAMPLES.items() if name in e and key.startswith("docs/guide")]
        lines = [line for line in code.splitlines() if line.strip()]
        assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 8, name


def test_commands_are_understood():
    from flowsde.cli import main as cli

    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    known = "sample|batch|compare|diagnose|tune|score|rewards|train|serve-reward|convert"
    commands = re.findall(f"flowsde ((?:{known}).*)", "\n".join(lines))
    assert len(commands) >= 2
    for command in commands:
        cli._parse(shlex.split(command))


def test_tables_are_those_of_the_result_files(monkeypatch):
    script = ROOT / "benchmarks" / "readme.py"
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    runpy.run_path(str(script), run_name="__main__")


def test_links_to_files_exist():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_names_in_the_tables_exist():
    import flowsde as fs

    found = re.findall(r"^\| [^|]+ \| `(\w+)`", PAGES["docs/mathematics.md"], re.MULTILINE)
    assert found
    for name in found:
        assert hasattr(fs.kernels, name), name
    methods = set(fs.search.METHODS)
    assert set(re.findall(r"^\| `(\w+)` \|", PAGES["docs/searches.md"], re.MULTILINE)) == methods
    (rows,) = re.findall(r"^\| rewards are asked of .*\n(?:\|.*\n)+", README, re.MULTILINE)
    assert methods | {"fs"} == set(re.findall(r"`(\w+)", rows))
