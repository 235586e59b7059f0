"""Uploads while a run goes on: one at a time, the newest state, and never a reason to stop."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hf_tfenc.cli import app
from hf_tfenc.publish.hub import Uploads
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.signals import Interrupted


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("hf_tfenc.publish.hub.SECONDS_BETWEEN", 0.0)


@pytest.fixture
def args(tmp_path):
    """Of a run whose folder holds a model."""
    folder = tmp_path / "out"
    (folder / "checkpoint-000001").mkdir(parents=True)
    (folder / "checkpoint-000001" / "optimizer.safetensors").write_text("moments")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")

    def args(**options):
        return Arguments(
            **{
                "output_dir": str(folder),
                "push_to_hub": True,
                "hub_model_id": "ada/mine",
                "train_file": ["a"],
                **options,
            }
        )

    return args


def wait_for(uploads, condition):
    end = time.monotonic() + 60
    while not condition():
        uploads.poll()
        time.sleep(0.01)
        assert time.monotonic() < end


def upload(uploads, message):
    uploads.offer(message)
    wait_for(uploads, lambda: uploads.process is None)


def remains(args):
    return [path for path in Path(args.output_dir).iterdir() if path.name.startswith(".")]


def test_one_upload_at_a_time_and_of_several_changes_the_last(hub, args, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_tfenc")
    hub.open.clear()
    with Uploads(args()) as uploads:
        for step in (1, 2, 3):
            uploads.offer(f"Step {step}")
            wait_for(uploads, lambda: any(request.startswith("PUT") for request in hub.requests))
            (tmp_path / "out" / "new").write_text(f"weights after step {step}")
            (tmp_path / "out" / "new").replace(tmp_path / "out" / "model.safetensors")
        hub.open.set()
        wait_for(uploads, lambda: uploads.process is None)
        repository = hub.repositories["ada/mine"]
        assert repository.commits == ["Step 1", "Step 3"] and repository.private
        assert repository.files["model.safetensors"] == b"weights after step 2"  # as it was when it was offered
        assert uploads.finish() == f"Uploaded to {hub.endpoint}/ada/mine, private."
    assert repository.commits[2:] == ["Upload model"]
    assert repository.files["model.safetensors"] == b"weights after step 3"
    assert repository.files.keys() == {".gitattributes", "config.json", "model.safetensors"}
    assert not remains(args())
    said = [f"Uploaded to {hub.endpoint}/ada/mine, private.", f"Uploading {args().output_dir} to ada/mine."]
    assert caplog.messages == said


def test_uploads_are_some_time_apart_but_the_last_one(hub, args, monkeypatch):
    monkeypatch.setattr("hf_tfenc.publish.hub.SECONDS_BETWEEN", 1000.0)
    with Uploads(args()) as uploads:
        for step in (1, 2):
            upload(uploads, f"Step {step}")
        assert uploads.waiting is not None and hub.repositories["ada/mine"].commits == ["Step 1"]
        (Path(args().output_dir) / "config.json").write_text('{"new": 1}')
        uploads.finish()
    assert hub.repositories["ada/mine"].commits == ["Step 1", "Upload model"] and not remains(args())


def test_checkpoints_go_up_where_they_are_asked_for(hub, args):
    with Uploads(args(hub_strategy="all_checkpoints", hub_private_repo=False)) as uploads:
        assert uploads.finish() == f"Uploaded to {hub.endpoint}/ada/mine, public."
    assert hub.repositories["ada/mine"].files["checkpoint-000001/optimizer.safetensors"] == b"moments"


@pytest.mark.parametrize("options", [{"hub_strategy": "end"}, {"push_to_hub": False}])
def test_nothing_goes_up_before_it_is_asked_for(hub, args, options):
    with Uploads(args(**options)) as uploads:
        uploads.offer("Step 1")
        assert uploads.process is None and uploads.waiting is None
    assert hub.requests == []


def test_a_failure_is_said_once_and_the_next_change_tries_again(hub, args, caplog):
    hub.fail("preupload", 403)
    with Uploads(args()) as uploads:
        for step in (1, 2):
            upload(uploads, f"Step {step}")
        (said,) = caplog.messages
        assert said.startswith("The upload to ada/mine failed, and training goes on: the Hub does not let you write")
        said = uploads.finish()
        assert said.startswith("The upload to ada/mine failed: the Hub does not let you write there (403)")
        assert said.endswith(f"hf-tfenc push {args().output_dir} --hub_model_id ada/mine")
        hub.faults.clear()
        upload(uploads, "Step 3")
    assert hub.repositories["ada/mine"].commits == ["Step 3"] and not remains(args())


def test_what_cannot_even_begin_stops_nothing(hub, args, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    with Uploads(args()) as uploads:
        monkeypatch.setattr("hf_tfenc.publish.hub.subprocess.Popen", refuse)
        uploads.offer("Step 1")
        assert "Cannot allocate memory" in uploads.finish()
        assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
        monkeypatch.setattr("hf_tfenc.publish.hub.take_snapshot", refuse)
        uploads.offer("Step 2")
        assert "Cannot allocate memory" in uploads.finish()
    assert not remains(args())


@pytest.mark.parametrize("how", ["close", "killed"])
def test_an_upload_ends_with_its_run(hub, args, how):
    hub.open.clear()
    with Uploads(args()) as uploads:
        uploads.offer("Step 1")
        wait_for(uploads, lambda: any(request.startswith("PUT") for request in hub.requests))
        process = uploads.process
        if how == "killed":
            process.stdin.close()  # as the kernel does when a process dies
            assert process.wait(30) == 1
    assert process.poll() is not None and not remains(args())
    hub.open.set()
    assert hub.repositories["ada/mine"].commits == []


def test_a_signal_ends_the_wait_for_the_last_upload(hub, args):
    """As a run that is told to stop does: by an exception from wherever it is."""

    def stop(*_):
        raise Interrupted("stopped")

    def send():
        while not any(request.startswith("PUT") for request in hub.requests):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    hub.open.clear()
    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        with pytest.raises(Interrupted), Uploads(args(hub_strategy="end")) as uploads:
            uploads.finish()
    finally:
        signal.signal(signal.SIGUSR1, before)
        hub.open.set()
    assert uploads.process is None and not remains(args())


# --- hf-tfenc push ---------------------------------------------------------------------------------------------------


def push(*argv):
    return CliRunner().invoke(app, ["push", *map(str, argv)])


def test_push_uploads_a_folder(hub, args):
    folder = args().output_dir
    result = push(folder, "--hub_model_id", "ada/mine")
    assert result.exit_code == 0 and result.stdout == f"Uploaded to {hub.endpoint}/ada/mine, private.\n"
    assert hub.repositories["ada/mine"].private and not remains(args())
    push(folder, "--hub_model_id", "ada/other", "--public", "--include_checkpoints")
    assert not hub.repositories["ada/other"].private
    assert "checkpoint-000001/optimizer.safetensors" in hub.repositories["ada/other"].files


def test_mistakes_of_a_push_are_one_sentence(hub, args, tmp_path):
    folder = args().output_dir
    hub.fail("preupload", 409)
    for options, said in [
        ((tmp_path, "--hub_model_id", "ada/mine"), f"{tmp_path} holds no model (no config.json)"),
        ((folder, "--hub_model_id", "mine"), "--hub_model_id is 'mine'; it is of the form user/name"),
        ((folder, "--hub_model_id", "https://hub/ada/mine"), "it is of the form user/name"),
        ((folder, "--hub_model_id", "ada/mine"), f"{folder} was not uploaded to ada/mine: something else is changing"),
    ]:
        result = push(*options)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and said in result.stderr, result.stderr


def test_the_written_options_hold_no_token(args, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert "hub_token" not in yaml.safe_load(args().to_yaml()) and "hf_secret" not in args().to_yaml()
