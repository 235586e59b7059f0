"""One upload, by the real client to a Hub on this machine: whole or not at all, and each failure a sentence."""

import re

import pytest
from hub_server import READ_TOKEN, TOKEN
from huggingface_hub import HfApi, constants

from hf_tfenc.publish.upload import UploadError, upload


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    for name in ("first", "second", "third"):
        (folder / f"{name}.safetensors").write_bytes(name.encode() * 1000)
    return folder


def refused(folder, **options):
    with pytest.raises(UploadError) as failed:
        upload(folder, "ada/mine", **{"private": True, "message": "Upload", **options})
    said = str(failed.value)
    assert "\n" not in said and not re.search("hf_[a-zA-Z]{4}", said) and not said.endswith(".")
    return said


def puts(hub):
    return [request for request in hub.requests if request.startswith("PUT")]


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_goes_up_in_one_commit(hub, folder, private):
    said = upload(folder, "ada/mine", private, "Upload model")
    assert said == f"Uploaded to {hub.endpoint}/ada/mine, {'private' if private else 'public'}."
    repository = hub.repositories["ada/mine"]
    assert repository.private == private and repository.commits == ["Upload model"]
    local = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: content for path, content in repository.files.items() if path != ".gitattributes"} == local


def test_a_second_upload_sends_what_has_changed(hub, folder):
    upload(folder, "ada/mine", True, "first")
    upload(folder, "ada/mine", True, "again")
    assert hub.repositories["ada/mine"].commits == ["first"] and len(puts(hub)) == 3
    (folder / "second.safetensors").write_bytes(b"changed")
    upload(folder, "ada/mine", True, "second")
    assert hub.repositories["ada/mine"].commits == ["first", "second"] and len(puts(hub)) == 4
    assert hub.repositories["ada/mine"].files["second.safetensors"] == b"changed"


@pytest.mark.parametrize("status", [None, 500, 503])
def test_an_upload_that_was_cut_is_completed_by_the_next(hub, folder, status):
    upload(folder, "ada/mine", True, "Upload")
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes() + b"!")
    before, sent = dict(hub.repositories["ada/mine"].files), len(puts(hub))
    hub.fail("PUT /large", status, after=1)
    said = refused(folder)
    assert ("the connection to the Hub failed" if status is None else f"trouble of its own ({status})") in said
    assert hub.repositories["ada/mine"].files == before  # never half of it
    kept = len(hub.large) - 3
    hub.faults.clear()
    sent = len(puts(hub))
    upload(folder, "ada/mine", True, "Upload")
    assert 1 <= kept < 3 and len(puts(hub)) - sent == 3 - kept
    assert hub.repositories["ada/mine"].files["third.safetensors"] == b"third" * 1000 + b"!"


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("repos/create", 401), ("repos/create", 403), ("repos/create", 500), ("repos/create", None),
        ("preupload", 401), ("preupload", 403), ("preupload", 404), ("preupload", 409), ("preupload", 429),
        ("PUT /large", 403), ("PUT /large", 500), ("PUT /large", None),
        ("commit", 400), ("commit", 403), ("commit", 409), ("commit", 412), ("commit", 500), ("commit", None),
    ],
)  # fmt: skip
def test_each_failure_is_a_sentence_that_says_what_to_do(hub, folder, where, status):
    hub.fail(where, status)
    said = refused(folder)
    wanted = {
        None: "the connection to the Hub failed",
        400: "the Hub refuses it (400): mend what it says; it says: a reason",
        401: "the Hub does not know who you are (401): log in by `hf auth login` with a token with write access",
        403: "the Hub does not let you write there (403): log in by",
        404: "you have no access (404): check --hub_model_id",
        409: "something else is changing the repository (409): try again",
        412: "something else has changed the repository meanwhile (412): try again",
        429: "too many requests (429): try again in some minutes",
        500: "the Hub has trouble of its own (500): try again later",
    }
    assert wanted[status] in said
    assert "ada/mine" not in hub.repositories or hub.repositories["ada/mine"].commits == []
    hub.faults.clear()
    upload(folder, "ada/mine", True, "Upload")
    assert hub.repositories["ada/mine"].commits == ["Upload"]


@pytest.mark.parametrize(
    ("status", "wanted"), [(401, "does not know who you are (401)"), (403, "let you write there (403)")]
)
def test_the_store_of_large_files_is_understood_too(hub, folder, monkeypatch, status, wanted):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("xet-write-token", status)
    assert wanted in refused(folder)
    assert hub.repositories["ada/mine"].commits == [] and any("xet-write-token" in request for request in hub.requests)


def test_who_may_not_write_is_told_so(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert "does not let you write there (403)" in refused(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_nobodysToken")
    assert "does not know who you are (401)" in refused(folder)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "log in by `hf auth login`" in refused(folder)


def test_a_private_upload_never_goes_to_a_public_repository(hub, folder):
    HfApi().create_repo("ada/mine", private=False)
    assert "ada/mine is there already and is public: make it private in its settings" in refused(folder)
    assert hub.repositories["ada/mine"].commits == [] and not hub.repositories["ada/mine"].private
    assert upload(folder, "ada/mine", False, "Upload").endswith("ada/mine, public.")


def test_a_repository_that_is_private_stays_so(hub, folder):
    HfApi().create_repo("ada/mine", private=True)
    assert upload(folder, "ada/mine", False, "Upload").endswith("ada/mine, private.")


def test_an_answer_that_holds_the_token_is_said_without_it(hub, folder, monkeypatch):
    hub.fail("preupload", 400, message=f"what is {TOKEN}?")
    assert "what is hf_…?" in refused(folder)
    monkeypatch.setenv("HF_TOKEN", "plainToken")
    hub.faults.clear()
    hub.fail("create", 400, message="what is plainToken?")
    assert "plainToken" not in refused(folder)


def test_offline_is_said(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(folder) == "HF_HUB_OFFLINE forbids it: unset it"
    assert hub.requests == []


def test_a_file_that_cannot_be_read_is_named(hub, folder):
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    assert "can't decode" in refused(folder)
