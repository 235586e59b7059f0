"""What of a folder is for others, and that it is that of one moment."""

import json
import os

import pytest
import yaml

from hf_tfenc.publish.snapshot import LARGE, public_adapter, public_files, public_options, snapshot
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.checkpointing import seal, unfinished_path, verify

PUBLIC = {
    "config.json", "model.safetensors", "modeling_tfenc.py", "tokenizer.json", "README.md", "loss.png", "log.jsonl",
    "metrics.json", "train_config.yaml", "modules.json", "1_Pooling/config.json", ".eval_results/ada--letters.yaml",
    "model.onnx", "LICENSE",
}  # fmt: skip
CHECKPOINT = {
    f"checkpoint-000100/{name}"
    for name in ("model.safetensors", "optimizer.safetensors", "rng_rank0.safetensors", "trainer_state.json")
}
AT_HOME = {
    ".lock", ".saving-abc/model.safetensors", ".metrics.json.saving", ".checkpoint-000200.saving/config.json",
    "checkpoint-000100.set-aside/model.safetensors", "eval-held_out/predictions.jsonl", "predictions.jsonl",
    "README.new.md", "pytorch_model.bin", "weights.pt", "state.pkl", "__pycache__/modeling_tfenc.cpython-311.pyc",
    "tensorboard/events.out.tfevents.1.host", "run_id.txt", ".git/config", ".eval_results/.hidden",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in PUBLIC | CHECKPOINT | AT_HOME:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith((".json", ".yaml")) else name)
    return tmp_path / "out"


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_training_state_and_what_is_of_no_use_to_others_stays_at_home(folder):
    assert {path.as_posix() for path in public_files(folder)} == PUBLIC
    assert {path.as_posix() for path in public_files(folder, include_checkpoints=True)} == PUBLIC | CHECKPOINT


def test_checkpoints_lose_the_folders_of_this_machine_and_stay_whole(tmp_path):
    checkpoint = tmp_path / "out" / "checkpoint-000100"
    beside = unfinished_path(checkpoint)
    (beside / "adapter").mkdir(parents=True)
    options = {
        "train_file": ["/home/ada/secret/letters.txt"],
        "model_name_or_path": "/home/ada/secret/base",
        "seed": 7,
    }
    (beside / "trainer_state.json").write_text(json.dumps({"run": {"options": options}, "step": 100}))
    adapter = {"base_model_name_or_path": "/home/ada/secret/base"}
    (beside / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    seal(checkpoint)
    with snapshot(tmp_path / "out", "ada/mine", include_checkpoints=True) as taken:
        verify(taken / checkpoint.name)
        assert not any("secret" in path.read_text() for path in taken.rglob("*.json"))
        state = json.loads((taken / checkpoint.name / "trainer_state.json").read_text())
        assert state == {
            "run": {"options": options | {"train_file": ["letters.txt"], "model_name_or_path": "base"}},
            "step": 100,
        }
    verify(checkpoint)


def test_a_checkpoint_by_itself_is_a_model_and_no_more(folder):
    assert [path.name for path in public_files(folder / "checkpoint-000100")] == ["model.safetensors"]


def test_it_is_of_one_moment_and_leaves_nothing_behind(folder):
    (folder / "model.onnx").write_bytes(bytes(LARGE))
    before = content(folder)
    with snapshot(folder, "ada/mine") as taken:
        (folder / "new.safetensors").write_text("new weights")
        os.replace(folder / "new.safetensors", folder / "model.safetensors")  # as a run does
        with (folder / "log.jsonl").open("a") as log:
            log.write("a line more")
        (folder / "loss.png").write_text("another picture")
        assert content(taken) == PUBLIC
        assert (taken / "model.safetensors").read_text() == "model.safetensors"
        assert (taken / "log.jsonl").read_text() == "log.jsonl" and (taken / "loss.png").read_text() == "loss.png"
        assert (taken / "model.onnx").samefile(folder / "model.onnx")  # which takes no room
    assert content(folder) == before and (folder / "model.safetensors").read_text() == "new weights"


def test_a_link_goes_as_what_it_leads_to(folder):
    (folder.parent / "blob").write_bytes(bytes(LARGE))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blob")
    with snapshot(folder, "ada/mine") as taken:
        assert (taken / "model.safetensors").read_bytes() == bytes(LARGE)
        assert not (taken / "model.safetensors").is_symlink()


@pytest.mark.parametrize("why", ["no links", "read-only"])
def test_where_nothing_can_be_linked_it_is_copied(folder, monkeypatch, why):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    (folder / "model.onnx").write_bytes(bytes(LARGE))
    if why == "read-only":
        monkeypatch.setattr("os.access", lambda *_: False)
    with snapshot(folder, "ada/mine") as taken:
        assert content(taken) == PUBLIC and (taken.parent == folder) == (why == "no links")


def test_a_failure_leaves_nothing_behind(folder):
    (folder / "train_config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"train_config\.yaml is no YAML"), snapshot(folder, "ada/mine"):
        pass
    assert not [path for path in folder.iterdir() if path.name.startswith(".saving-") and path.name != ".saving-abc"]


@pytest.mark.parametrize(
    ("base", "public"), [("/home/ada/secret/letters", "letters"), ("ada/letters",) * 2, (None, None)]
)
def test_adapters_name_their_model_without_its_folder(base, public):
    config = {"r": 4, "base_model_name_or_path": base}
    assert json.loads(public_adapter(json.dumps(config))) == {"r": 4, "base_model_name_or_path": public}


def test_options_lose_the_folders_of_this_machine_and_still_run(tmp_path):
    (tmp_path / "letters").mkdir()
    options = {"train_file": ["/home/ada/secret project/letters.txt", "data/*.jsonl"], "output_dir": "/home/ada/out"}
    args = Arguments(**options, model_name_or_path=str(tmp_path / "letters"), tokenizer_name="ada/tokens", seed=7)
    public = yaml.safe_load(public_options(args.to_yaml()))
    assert public["train_file"] == ["letters.txt", "*.jsonl"] and public["output_dir"] == "out"
    assert public["model_name_or_path"] == "letters" and public["tokenizer_name"] == "ada/tokens"
    assert public["dataset_name"] is None and Arguments(**public).seed == 7
    assert "home" not in json.dumps(public)
