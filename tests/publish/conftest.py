"""A Hub on this machine, and huggingface_hub pointed at it."""

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import constants


@pytest.fixture
def hub(monkeypatch):
    """In this process and in those that it starts. Nothing waits before it tries again."""
    with Hub() as hub:
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield hub
