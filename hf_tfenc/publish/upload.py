"""One upload of a folder to the Hub, by huggingface_hub alone.

Run as a file it is a process of its own, there in half a second, since it imports neither torch nor the package:
python -P upload.py FOLDER user/name private|public MESSAGE. It says one sentence, and ends with its parent.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

HTTPError = HfHubHTTPError.__bases__[0]  # of the HTTP library, which is not the same one in all versions
WRITE_ACCESS = "a token with write access, from https://huggingface.co/settings/tokens"
LOG_IN = f"log in by `hf auth login` with {WRITE_ACCESS}"
ANSWERS = {
    401: f"the Hub does not know who you are (401): {LOG_IN}",
    403: f"the Hub does not let you write there (403): {LOG_IN}, or choose another --hub_model_id",
    404: f"there is no such user or organization, or you have no access (404): check --hub_model_id, or {LOG_IN}",
    409: "something else is changing the repository (409): try again when that has ended",
    412: "something else has changed the repository meanwhile (412): try again",
    429: "the Hub has had too many requests (429): try again in some minutes",
}
LONGEST_REASON = 300  # characters


class UploadError(OSError):
    """An upload failed; the message says why, and what to do."""


def upload(folder: Path, repo_id: str, private: bool, message: str) -> str:
    """Upload all of a folder as a model repository, made if it is not there. What is there already is not sent again.

    Files that huggingface_hub keeps apart from git (weights, pictures) go first, each once; then one commit has all.

    Args:
        private: what a new repository is made; one that is there must not be public then, and is never changed
        message: of the commit

    Returns:
        one sentence that says where it is

    Raises:
        UploadError: nothing was committed. What was sent need not be sent again.
    """
    try:
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        is_private = bool(api.model_info(repo_id).private)
        if private and not is_private:
            raise UploadError(
                f"{repo_id} is there already and is public: make it private in its settings, choose another "
                "--hub_model_id, or say that the model is public (hf-tfenc push --public, train.py --no_hub_private_repo)"
            )
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except UploadError:
        raise
    except Exception as error:  # of many classes, from huggingface_hub and what it stands on
        raise UploadError(without_token(reason_of(error))) from None
    return f"Uploaded to {api.endpoint}/{repo_id}, {'private' if is_private else 'public'}."


def reason_of(error: BaseException) -> str:
    """Why an upload failed, and what to do, without a full stop."""
    for cause in causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids it: unset it"
        if isinstance(cause, LocalTokenNotFoundError):
            return ANSWERS[401]
        if status := status_of(cause):
            if status >= 500:
                return f"the Hub has trouble of its own ({status}): try again later"
            answer = ANSWERS.get(status, f"the Hub refuses it ({status}): mend what it says")
            said = " ".join((getattr(cause, "server_message", None) or "").split())
            return answer + (f"; it says: {said[:LONGEST_REASON].rstrip('.')}" if said else "")
        if isinstance(cause, (HTTPError, ConnectionError)):
            return f"the connection to the Hub failed ({short(cause)}): check it, and try again"
    return f"{short(error)}: when that is mended, try again"


def status_of(error: BaseException) -> int | None:
    """The Hub's answer that an error is about, if it is about one. Its store of large files tells it in words alone."""
    if isinstance(error, HfHubHTTPError):
        return getattr(error.response, "status_code", None)
    told = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
    return int(told[1]) if told else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def short(error: BaseException) -> str:
    """An error's message in a line, or its class where it has none."""
    return " ".join(str(error).split())[:LONGEST_REASON].rstrip(".:") or type(error).__name__


def without_token(text: str) -> str:
    """A text in which no token stands, whoever has put it there."""
    text = re.sub("hf_[A-Za-z0-9]{20,}", "hf_…", text)
    token = get_token() or ""
    return text.replace(token, "…") if len(token) > 4 else text


def end_with_parent() -> None:
    """End when standard input does, whose other end the parent holds as long as it lives."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    path, repository, visibility, commit_message = sys.argv[1:]
    try:
        print(upload(Path(path), repository, visibility == "private", commit_message))
    except UploadError as failure:
        print(failure)
        sys.exit(1)
