"""What users are told to run is what they have."""

import pytest

from hf_tfenc.command import training_command
from hf_tfenc.training.arguments import Arguments, launch_command


@pytest.mark.parametrize(
    "called, command",
    [("train.py", "accelerate launch train.py"), ("/usr/local/bin/hf-tfenc", "hf-tfenc train")],
)
def test_the_command_is_the_one_that_was_called(monkeypatch, called, command):
    monkeypatch.setattr("sys.argv", [called, "--max_steps", "3"])
    assert training_command() == command
    said = launch_command(Arguments(output_dir="out puts/mine"), overwrite=True)
    assert said == f"{command} --config 'out puts/mine/train_config.yaml' --overwrite_output_dir"
