"""A model that has learned something, its page by the program itself, and a browser that looks at it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def folder(texts, tmp_path_factory):
    """The output folder of a short run on the texts of the tests."""
    work = tmp_path_factory.mktemp("browser")
    (work / "texts.txt").write_text("\n".join(texts * 3))
    options = {
        "train_file": work / "texts.txt",
        "sample_by": "line",
        "output_dir": work / "mlm",
        "config_overrides": MODEL,
        "vocab_size": 400,
        "max_seq_length": 64,
        "max_steps": 300,
        "learning_rate": 0.02,
        "cpu_threads": 1,
    }
    program = Path(__file__).parents[2] / "train.py"
    command = [sys.executable, str(program), *(f"--{name}={value}" for name, value in options.items())]
    environment = os.environ | {"HF_DATASETS_CACHE": str(work / "datasets")}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return work / "mlm"


@pytest.fixture(scope="session")
def address(folder):
    """Where `hf-tfenc demo` shows it."""
    command = [sys.executable, "-m", "hf_tfenc.cli", "demo", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        yield re.search(r"http://127\.0\.0\.1:\d+", program.stdout.readline())[0]
        program.terminate()


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright comes with pip install -e '.[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium: on Debian, apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # of no page but our own
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page as it is opened, with what went wrong in it and where it has asked."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.wrong, page.asked = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("main[aria-busy=false]")
    yield page
    assert page.wrong == []
    assert all(url.startswith((f"{address}/", "data:")) for url in page.asked), page.asked
    page.close()
