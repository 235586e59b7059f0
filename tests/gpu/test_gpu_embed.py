"""`hf-tfenc embed --torch_compile`: compiled layers, for texts of any length."""

import numpy as np
import pytest
import torch

from hf_tfenc import TfEncModel
from hf_tfenc.embed import Encoding, load_model, vectors
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.sentence_transformers import write_modules

pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("preset", ["bert-tiny", "modern-tiny"])
def test_compiled_layers_give_the_same_vectors(preset, tokenizer, texts, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = TfEncModel(preset_config(preset, vocab_size=len(tokenizer), pooling="mean"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_modules(model, tmp_path)
    asked = [*texts[:60], *[texts[0]] * 9, "a"]  # batches of varied length, of one length, and of one text
    torch.compiler.reset()
    monkeypatch.setattr(torch.compiler.config, "fail_on_recompile_limit_hit", True)
    found = [
        vectors(load_model(str(tmp_path), encoding), asked, encoding)
        for encoding in (Encoding(3, bf16=True), Encoding(3, bf16=True, torch_compile=True))
    ]
    differences = np.linalg.norm(found[0] - found[1], axis=1) / np.linalg.norm(found[0], axis=1)
    assert differences.max() <= 0.02
