"""Words of the command line: what is wrong is one short line, and no option is unknown to it."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from refusing import refused

from flowsde.cli import COMMANDS, parse, score
from flowsde.cli import main as cli

WRONG = {
    "sampel": "flowsde: COMMAND must be one of sample, batch, compare, diagnose, tune, score, "
    "rewards, train, serve-reward, convert, got 'sampel'; did you mean sample?",
    "sample x --metod rbf": "flowsde sample: unknown option --metod; did you mean --method?",
    "sample x --chain_seed=3": "flowsde sample: unknown option --chain-seed; "
    "did you mean --chain-seeds?",
    "sample x --foo bar": "flowsde sample: unknown option --foo",
    "sample x --cfg_scale 3": "flowsde sample: unknown option --cfg-scale; "
    "did you mean --guidance?",
    "sample x --lora a.safetensors": "flowsde sample: unknown option --lora; adapters are merged "
    "as a model is converted: flowsde convert --lora",
    "batch circles": "flowsde batch: unexpected argument 'circles'; "
    "prompts come from --prompts-file",
    "batch": "flowsde batch: --prompts-file FILE and --out DIR are missing",
    "batch --out x": "flowsde batch: --prompts-file FILE is missing",
    "compare rbf": "flowsde compare: unexpected argument 'rbf'; prompts come from --prompts-file",
    "convert": "flowsde convert: SOURCE is missing",
    "tune x --reward rss --reward=likelihood": "flowsde tune: --reward is given 2 times: "
    "tune takes one",
    "train shapes --stepz 4": "flowsde train: unknown option --stepz; did you mean --steps?",
}


@pytest.mark.parametrize(("words", "line"), WRONG.items(), ids=WRONG)
def test_wrong_words(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words.split()) == line + "\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_it_knows_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As tyro's help lists them; it has its own view of the same classes."""
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    listed = re.findall(r"^[│| ] (--[a-z][a-z-]+)", said, re.MULTILINE)
    known = {one.name for one in parse._options(cli._kind(name)) if one.name.startswith("--")}
    assert "--help" in said and set(listed) - {"--help"} == known
    assert len(known) >= 3 or name == "rewards"


EARLY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
from flowsde.cli.main import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_while_numpy_is_imported() -> None:
    args = [sys.executable, "-c", EARLY, "sample", "one red circle", "--out", os.devnull + "/x"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "flowsde sample: interrupted; resume with: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", ["1", "3"])
def test_a_terminal_may_be_of_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one column a correct command was refused; of three the help took memory without end."""
    monkeypatch.setenv("COLUMNS", columns)
    command = parse.parse(["score", "a.png", "--reward", "rss"], lambda _: score.Score)
    assert command.reward == "rss"
    with parse._wide_enough():
        assert shutil.get_terminal_size().columns == 40
    assert os.environ["COLUMNS"] == columns
