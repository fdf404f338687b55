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


@pytest.mark.slow
def test_examples_run(capsys):
    """In order, in one namespace."""
    names = {}
    for code in EXAMPLES:
        exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.strip().splitlines()) >= 4


def test_own_models_and_rewards_take_eight_lines():
    for name in ("from_linen", "from_nnx", "from_callable", "brightness)", "rewards.host("):
        (code,) = [example for example in EXAMPLES if f"{name}" in example]
        assert len([line for line in code.splitlines() if line.strip()]) <= 8, name


def test_commands_are_understood():
    from flowsde import cli

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
