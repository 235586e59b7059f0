"""Runs that are uploaded as they go on, to a Hub on this machine; and what others load from there."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub
from launching import Run
from transformers import AutoModelForMaskedLM, AutoTokenizer

FILES = {
    ".gitattributes", "1_Pooling/config.json", "README.md", "config.json", "configuration_tfenc.py", "log.jsonl", "loss.png",
    "metrics.json", "model.safetensors", "modeling_tfenc.py", "modules.json", "tokenizer.json",
    "tokenizer_config.json", "train_config.yaml",
}  # fmt: skip
TEXT = "the old fox [MASK] the river."


def point_at(environment):
    """In the process of a run, before it begins."""
    from hf_tfenc.publish import hub

    os.environ.update(environment)
    hub.SECONDS_BETWEEN = 0.0


@pytest.fixture(scope="module")
def server():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def start(server, tmp_path_factory, texts):
    """Begins a run that is uploaded."""
    folder = tmp_path_factory.mktemp("secret project")
    (folder / "letters.txt").write_text("\n".join(texts))

    def start(name, processes=1, **options):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        options = {
            "output_dir": str(folder / name), "train_file": str(folder / "letters.txt"), "sample_by": "line",
            "config_overrides": json.dumps(sizes), "vocab_size": 300, "max_seq_length": 32, "max_steps": 30,
            "eval_steps": 10, "learning_rate": 0.01, "cpu_threads": 1, "push_to_hub": True,
            "hub_model_id": f"ada/{name}", "license": "mit",
        } | options  # fmt: skip
        environment = server.environment | {"HF_TOKEN": TOKEN}
        return Run(options, folder / f"{name}.log", processes, before=functools.partial(point_at, environment))

    start.folder = folder
    return start


@pytest.fixture(scope="module")
def published(server, start):
    """A run that has ended, and all that it said."""
    return start.folder / "whole", start("whole").finish()


def test_a_run_is_there_as_it_goes_on_and_at_its_end(server, published):
    folder, said = published
    repository = server.repositories["ada/whole"]
    assert said.splitlines()[-1] == f"Uploaded to {server.endpoint}/ada/whole, private."
    assert said.count("Uploaded to") == 2  # once as it went on
    assert repository.private and repository.files.keys() == FILES
    assert repository.commits[0] == "Step 0" and repository.commits[-1] == "Upload model"
    assert repository.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_nothing_there_tells_of_this_machine_and_nothing_here_of_the_token(server, start, published):
    for path, content in server.repositories["ada/whole"].files.items():
        assert b"secret project" not in content and os.fsencode(Path.home().name + "/") not in content, path
        assert TOKEN.encode() not in content, path
    for path in [*published[0].rglob("*"), start.folder / "whole.log"]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


ALONE = """
import json, re, sys
sys.modules["hf_tfenc"] = None  # so that importing it fails
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

torch.set_num_threads(1)
text, where = sys.argv[1:]
model = AutoModel.from_pretrained(where, trust_remote_code=True)
inputs = AutoTokenizer.from_pretrained(where, trust_remote_code=True)(text, return_tensors="pt")
print(json.dumps(model(**inputs).last_hidden_state.tolist()))
print(json.dumps(AutoModelForMaskedLM.from_pretrained(where, trust_remote_code=True)(**inputs).logits.tolist()))
for snippet in re.findall("```python\\n(.*?)```", open(hf_hub_download(where, "README.md")).read(), re.DOTALL):
    if "import hf_tfenc" not in snippet and "sentence_transformers" not in snippet:
        exec(snippet, {})
        print("ran", file=sys.stderr)
"""


def test_others_load_it_where_the_package_is_not_installed(server, published, tmp_path):
    environment = os.environ | server.environment | {"HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-c", ALONE, TEXT, "ada/whole"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vectors, logits = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines()[:2])
    model = AutoModelForMaskedLM.from_pretrained(published[0])
    inputs = AutoTokenizer.from_pretrained(published[0])(TEXT, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(vectors, model.base_model(**inputs).last_hidden_state, atol=1e-6, rtol=1e-6)
    assert done.stderr.count("ran\n") == 2


def test_an_upload_that_fails_leaves_training_as_it_is_and_the_same_command_completes_it(server, start, published):
    server.fail("/ada/broken", 403)
    said = start("broken", hub_model_id="ada/broken").finish()
    assert said.splitlines()[-1].startswith("The upload to ada/broken failed: the Hub does not let you write there")
    assert said.count("and training goes on") == 1 and "Traceback" not in said
    folder = start.folder / "broken"
    assert (folder / "model.safetensors").read_bytes() == (published[0] / "model.safetensors").read_bytes()
    server.faults.clear()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
    said = start("broken", processes=2).finish()  # it is finished, and measured and uploaded once more
    assert "README.md has been edited and stays as it is" in said and (folder / "README.new.md").exists()
    assert said.splitlines()[-1] == f"Uploaded to {server.endpoint}/ada/broken, private."
    repository = server.repositories["ada/broken"]
    assert repository.commits == ["Upload model"] and repository.files.keys() == FILES
    assert b"My own words" in repository.files["README.md"]


def test_an_upload_that_hangs_holds_up_nothing(server, start):
    server.open.clear()
    try:
        run = start("hangs", max_steps=100_000)
        end = time.monotonic() + 60
        while not any("PUT" in request for request in server.requests[-1:]):
            time.sleep(0.01)
            assert time.monotonic() < end, run.output
        steps = len(re.findall("held-out", run.output))
        while len(re.findall("held-out", run.output)) < steps + 3:
            time.sleep(0.01)
            assert time.monotonic() < end, run.output
        run.send(signal.SIGTERM)
        assert run.wait() == [75], run.output
    finally:
        server.open.set()
    assert not [path for path in (start.folder / "hangs").iterdir() if path.name.startswith(".")]
