"""The suite needs no network, and must not find one: loading a local file is nobody's business."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
