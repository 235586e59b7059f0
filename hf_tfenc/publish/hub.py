"""Upload to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

# Training state, half-written files and what was said of other data stay at home.
IGNORED = ["checkpoint-*", "checkpoint-*/**", "eval-*", "eval-*/**", ".*"]


def push_folder(folder: Path, repo_id: str) -> str:
    """Upload an output folder as a private model repository, made if it is not there.

    Returns:
        one sentence: where it is, or why it is not. A failure loses nothing: the folder stays as it is.
    """
    try:
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=True, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=IGNORED, commit_message="Upload model")
    except Exception as error:  # whatever went wrong on the way, training is done and its result must not be lost
        reason = " ".join(str(error).split()) or type(error).__name__
        return (
            f"The upload to {repo_id} failed ({reason}). The model is whole in {folder}; when the cause is mended, "
            f"upload it with: hf upload {repo_id} {folder} --exclude 'checkpoint-*'"
        )
    return f"Uploaded to {repo_id}."
