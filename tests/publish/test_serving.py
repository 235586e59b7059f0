"""The pipelines of transformers say of our folders what they say of the same model as a BERT or a ModernBERT.

And docs/serving.md, from top to bottom, does what it says.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import pipeline
from typer.testing import CliRunner

import hf_tfenc
from hf_tfenc.cli import app
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.conversion import convert
from hf_tfenc.publish.sentence_transformers import write_modules
from hf_tfenc.training.checkpointing import save_model
from hf_tfenc.training.run import main

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


@pytest.fixture
def outputs(tmp_path, tokenizer, texts, monkeypatch):
    """The models that the page speaks of, tiny, in `outputs/`."""
    monkeypatch.chdir(tmp_path)
    config = preset_config("modern-tiny", vocab_size=len(tokenizer), **SIZES, pad_token_id=tokenizer.pad_token_id)
    for name, head in (("mlm", "ForMaskedLM"), ("classifier", "ForSequenceClassification"), ("embedding", "Model")):
        model = getattr(hf_tfenc, f"TfEnc{head}")(config)
        save_model(model, tokenizer, tmp_path / "outputs" / name)
        write_modules(model, tmp_path / "outputs" / name)
    Dataset.from_dict({"text": texts, "label": [f"{len(text) % 3}" for text in texts]}).to_csv("train.csv")
    options = {"task": "sequence-classification", "train_file": "train.csv", "text_column": "text", "max_steps": 2}
    options |= {"model_name_or_path": "outputs/mlm", "lora_r": 8, "output_dir": "outputs/adapted", "cpu_threads": 1}
    main([f"--{name}={value}" for name, value in options.items()])


@pytest.mark.slow
def test_the_page_does_what_it_says(outputs, capsys, tokenizer):
    for package in ("onnx", "onnxscript", "onnxruntime", "peft", "sentence_transformers"):
        pytest.importorskip(package, reason="needs the extra all")
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    session = {}
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(body, body, "exec"), session)
            continue
        for line in body.splitlines():
            program, *arguments = shlex.split(line)
            result = CliRunner().invoke(app, arguments)
            assert program == "hf-tfenc" and result.exit_code == 0, (line, result.output)
    assert "'score'" in capsys.readouterr().out
    assert session["vectors"].shape == (2, SIZES["hidden_size"])
    model = hf_tfenc.TfEncForSequenceClassification.from_pretrained("outputs/classifier").eval()
    with torch.no_grad():
        expected = model(**tokenizer(["My card has not come."], return_tensors="pt")).logits
        adapted = session["model"].eval()(**tokenizer("the cat", return_tensors="pt")).logits
        merged = hf_tfenc.TfEncForSequenceClassification.from_pretrained("outputs/adapted").eval()
        torch.testing.assert_close(adapted, merged(**tokenizer("the cat", return_tensors="pt")).logits)
    torch.testing.assert_close(session["logits"], expected, atol=1e-5, rtol=1e-5)
    assert type(pipeline("text-classification", "served").model).__name__ == "ModernBertForSequenceClassification"
