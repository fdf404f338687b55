import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


HEADER = "\n".join(re.findall(r"^(?:import|from) .*$", EXAMPLES[0], re.MULTILINE))


def run(code, names, block="imports"):
    exec(compile(code, f"README.md, block {block}", "exec"), names)
    return names


@pytest.mark.slow
def test_examples_run_in_order(capsys):
    """As a reader would, in one session; each says something."""
    names, printed = {}, []
    for number, code in enumerate(EXAMPLES):
        run(code, names, number)
        printed.append(capsys.readouterr().out.strip())
        assert printed[-1], code
    assert "for 60 evaluations of 60" in printed[0] and "for 60 evaluations of 60`" in README


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_runs_alone(number, capsys):
    """After the imports of the first."""
    run(EXAMPLES[number], run(HEADER, {}), number)
    assert capsys.readouterr().out.strip()


def test_examples_use_what_they_define():
    """Names that a block binds at its top and never looks at."""
    for code in EXAMPLES:
        if code == EXAMPLES[0]:
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
    for name in ("from_linen", "from_nnx", "velocity, {", "brightness,", "rewards.host(judge"):
        (code,) = [example for example in EXAMPLES if name in example]
        lines = [line for line in code.splitlines() if line.strip()]
        assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 8, name


def test_commands_are_understood():
    from flowsde.cli import main as cli

    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = re.findall(r"flowsde ((?:sample|batch|compare|train|convert).*)", "\n".join(lines))
    assert len(commands) >= 2
    for command in commands:
        cli._parse(shlex.split(command))


def test_tables_are_those_of_the_result_files():
    script = ROOT / "benchmarks" / "readme.py"
    found = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_links_to_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_names_in_the_tables_exist():
    import flowsde as fs

    for name in re.findall(r"^\| [^|]+ \| `(\w+)`", README, re.MULTILINE):
        assert hasattr(fs.search, name) or hasattr(fs.kernels, name), name
