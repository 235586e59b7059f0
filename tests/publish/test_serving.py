"""The pipelines of transformers say of our folders what they say of the same model as a BERT or a ModernBERT."""

import numpy as np
import pytest
import torch
from transformers import pipeline

import hf_tfenc
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.conversion import convert
from hf_tfenc.training.checkpointing import save_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXTS = ["the cat draws [MASK].", "the old fox never forgets the [MASK], and 3: my neighbour draws a red house."]
NAMES = ["contradiction", "entailment", "neutral"]
PIPELINES = {
    "fill-mask": ("ForMaskedLM", {"top_k": 5}),
    "feature-extraction": ("Model", {}),
    "text-classification": ("ForSequenceClassification", {"top_k": None}),
    "token-classification": ("ForTokenClassification", {}),
    "zero-shot-classification": ("ForSequenceClassification", {"candidate_labels": ["animals", "rivers", "houses"]}),
}


def flat(value):
    """Words and numbers of nested answers, in order."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in flat(part)]
    return [float(value) if isinstance(value, np.floating) else value]


@pytest.mark.parametrize("preset, family", [("bert-tiny", "bert"), ("modern-tiny", "modernbert")])
@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines_say_the_same(tmp_path, tokenizer, task, preset, family):
    head, options = PIPELINES[task]
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")}
    special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    config = preset_config(preset, vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, **special, **labels)
    model = getattr(hf_tfenc, f"TfEnc{head}")(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 3)
    save_model(model, tokenizer, tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "theirs", family)
    ours, theirs = (pipeline(task, str(tmp_path / name), device="cpu") for name in ("ours", "theirs"))
    assert type(ours.model).__name__ == f"TfEnc{head}" and type(theirs.model).__module__.startswith("transformers.")
    found, expected = (flat(pipe(TEXTS, **options)) for pipe in (ours, theirs))
    assert len(found) > 10 and len({value for value in found if isinstance(value, float)}) > 5
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)
