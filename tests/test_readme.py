"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest
import torch

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config

SNIPPETS = re.findall("```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[-1][:40])
def test_a_snippet_runs(snippet, tokenizer, tmp_path, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = preset_config("modern-tiny", vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, **sizes)
    TfEncForMaskedLM(config).save_pretrained(tmp_path / "outputs" / "mlm")
    tokenizer.save_pretrained(tmp_path / "outputs" / "mlm")
    monkeypatch.chdir(tmp_path)
    with torch.device("meta" if "bert-base" in snippet else "cpu"):  # the weights of large models take seconds
        exec(snippet, {})


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2
