"""The upload: private, without training state, and no reason to lose a finished run."""

from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from hf_tfenc.publish import hub
from hf_tfenc.publish.hub import push_folder


class Api:
    """Stands in for huggingface_hub.HfApi."""

    def __init__(self, error_at=None, error=None):
        self.calls, self.error_at, self.error = [], error_at, error

    def __call__(self):
        return self

    def create_repo(self, repo_id, **options):
        self.record("create_repo", repo_id=repo_id, **options)
        return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

    def upload_folder(self, **options):
        self.record("upload_folder", **options)

    def record(self, name, **options):
        if name == self.error_at:
            raise self.error
        self.calls.append((name, options))


def test_a_folder_goes_up_as_a_private_repository(tmp_path, monkeypatch):
    api = Api()
    monkeypatch.setattr(hub, "HfApi", api)
    assert push_folder(tmp_path, "mine") == "Uploaded to me/mine."
    (create, created), (upload, uploaded) = api.calls
    assert (create, upload) == ("create_repo", "upload_folder")
    assert created["private"] is True and created["exist_ok"] is True
    assert uploaded["repo_id"] == "me/mine" and uploaded["folder_path"] == tmp_path


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("model.safetensors", True),
        ("config.json", True),
        ("modeling_tfenc.py", True),
        ("README.md", True),
        ("loss.png", True),
        ("checkpoint-000100/model.safetensors", False),
        ("checkpoint-000100/rng_rank0.safetensors", False),
        (".saving-abc/model.safetensors", False),
        (".metrics.json.saving", False),
    ],
)
def test_training_state_stays_at_home(path, goes):
    assert any(fnmatch(path, pattern) for pattern in hub.IGNORED) != goes


@pytest.mark.parametrize("error_at", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no route\n\nto host  "), "no route to host"),
        (ConnectionError(), "ConnectionError"),
        (RuntimeError("401"), "401"),
    ],
)
def test_a_failure_is_one_sentence(tmp_path, monkeypatch, error_at, error, reason):
    (tmp_path / "model.safetensors").write_text("weights")
    monkeypatch.setattr(hub, "HfApi", Api(error_at, error))
    said = push_folder(tmp_path, "me/mine")
    assert said.startswith(f"The upload to me/mine failed ({reason}). The model is whole in {tmp_path};")
    assert f"hf upload me/mine {tmp_path} --exclude 'checkpoint-*'" in said and "\n" not in said
    assert (tmp_path / "model.safetensors").read_text() == "weights"
