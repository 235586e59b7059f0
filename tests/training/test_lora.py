"""Adapters train beside a frozen model, survive a restart bit for bit, and merge into a model like any other."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

import hf_tfenc
from hf_tfenc.presets import preset_config
from hf_tfenc.training.arguments import Arguments, OptionError
from hf_tfenc.training.checkpointing import put_back, step_of
from hf_tfenc.training.run import run

peft = pytest.importorskip("peft", reason="needs the extra peft")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def start(tiny, tmp_path, texts, tokenizer):
    """A run with adapters on a small masked language model in `base`."""
    torch.manual_seed(0)
    config = preset_config("modern-tiny", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZE)
    hf_tfenc.TfEncForMaskedLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    labels = [["short", "long"][len(text) > 100] for text in texts]
    Dataset.from_dict({"text": texts, "label": labels}).to_parquet(tmp_path / "rows.parquet")

    def start(**options):
        given = {"model_name_or_path": str(tmp_path / "base"), "train_file": [str(tmp_path / "rows.parquet")]}
        given |= {"lora_r": 4, "lora_dropout": 0.1, "config_overrides": None, "max_steps": 4, "eval_steps": 2}
        args = tiny(**given | options)
        return args, run(args)

    return start


def base_weights(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.")}


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("task", ["mlm", "sequence-classification", "embedding"])
def test_every_task_trains_adapters_and_saves_a_merged_model(start, tmp_path, texts, task, optim):
    options = {}
    if task == "embedding":
        rows = Dataset.from_dict({"anchor": [text[:20] for text in texts], "positive": texts})
        rows.to_parquet(tmp_path / "pairs.parquet")
        options = {"train_file": [str(tmp_path / "pairs.parquet")]}
    args, _ = start(task=task, optim=optim, **options)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (tmp_path / "base", args.output_dir))
    names = {name.removeprefix("model."): tensor for name, tensor in before.items()}
    changed = {
        name
        for name, tensor in after.items()
        if name.removeprefix("model.") in names and not torch.equal(tensor, names[name.removeprefix("model.")])
    }
    assert changed and all(name.endswith("proj.weight") and "layers." in name for name in changed)
    assert len(changed) == 2 * 4  # four linear layers in each of two layers
    assert not any("lora" in name or "base_layer" in name for name in after)


def test_the_adapter_alone_is_the_merged_model(start, tmp_path, tokenizer):
    args, _ = start(task="sequence-classification")
    merged = AutoModelForSequenceClassification.from_pretrained(args.output_dir).eval()
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", config=merged.config)
    adapter = Path(args.output_dir) / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    inputs = tokenizer(["the cat draws", "0:"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = merged(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values()) < 10_000


@pytest.mark.parametrize("task", [pytest.param("mlm", marks=pytest.mark.slow), "sequence-classification"])
def test_a_resumed_run_is_the_same_run(start, task):
    args, metrics = start(task=task, save_steps=2, save_total_limit=9)
    folder = Path(args.output_dir)
    expected = {name: (folder / "checkpoint-000004" / name).read_bytes() for name in (
        "model.safetensors", "optimizer.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
    )}  # fmt: skip
    for path in (folder / "metrics.json", folder / "model.safetensors"):
        path.unlink()
    shutil.rmtree(folder / "checkpoint-000004")
    again = run(Arguments(**vars(args)))
    for name, content in expected.items():
        assert (folder / "checkpoint-000004" / name).read_bytes() == content, name
    assert again["eval_loss"] == metrics["eval_loss"]
    assert run(Arguments(**vars(args)))["eval_loss"] == metrics["eval_loss"]  # finished: measured once more


def test_what_trains_cannot_change_on_the_way(start, tmp_path):
    args, _ = start(save_steps=2)
    (Path(args.output_dir) / "metrics.json").unlink()
    changed = vars(args) | {"resume_with_changes": True}
    for options, said in [
        ({"lora_r": 2}, "holds other adapters than the options ask for"),
        ({"lora_target_modules": ["qkv_proj"]}, "holds other adapters than the options ask for"),
        ({"lora_r": None, "lora_dropout": 0.0}, "leave --lora_r as it was"),
        ({"lora_alpha": 1.0}, "or --lora_alpha, is another"),
        ({"config_overrides": "{attention_bias: true}"}, r"qkv_proj\.bias is not what it was"),
    ]:
        with pytest.raises(OptionError, match=said):
            run(Arguments(**changed | options))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.embeddings.embed_tokens.weight[7] += 0.1
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(
        OptionError, match=r"embed_tokens\.weight is not what it was when .*: the model that --model_na"
    ):
        run(Arguments(**vars(args)))


def test_the_adapter_at_the_top_is_that_of_the_model_there(start):
    """A continuation that was killed may have left later ones."""
    args, _ = start(save_steps=2, save_total_limit=9)
    folder = Path(args.output_dir)
    best = next(
        path
        for path in folder.glob("checkpoint-*")
        if (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    )
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"):
        (folder / name).write_bytes(b"another")
    assert put_back(folder, step_of(best))
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (best / name).read_bytes()


def test_a_new_head_trains_beside_the_adapters_and_travels_with_them(start, tmp_path, tokenizer):
    """Of a head whose output weights are the frozen embeddings, only the rest is new."""
    body = AutoModel.from_pretrained(tmp_path / "base")
    body.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    args, _ = start(model_name_or_path=str(tmp_path / "body"))
    merged = AutoModelForMaskedLM.from_pretrained(args.output_dir).eval()
    assert torch.equal(merged.get_input_embeddings().weight, body.get_input_embeddings().weight)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "body")
    model = peft.PeftModel.from_pretrained(again, Path(args.output_dir) / "adapter").eval()
    inputs = tokenizer(["the cat draws [MASK]", "0:"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, merged(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_sharded_models_are_refused(start, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(OptionError, match=r"^--lora_r does not go with FSDP"):
        start()


def test_a_bert_learns_adapters_too(start, tmp_path, tokenizer):
    bert = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZE))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    args, _ = start(model_name_or_path=str(tmp_path / "bert"), lora_target_modules=["qkv_proj"])
    after = AutoModelForMaskedLM.from_pretrained(args.output_dir)
    assert torch.equal(after.get_input_embeddings().weight, bert.get_input_embeddings().weight)
    assert torch.equal(after.model.layers[0].mlp.up_proj.weight, bert.bert.encoder.layer[0].intermediate.dense.weight)
    assert not torch.equal(
        after.model.layers[0].attention.qkv_proj.weight[:32], bert.bert.encoder.layer[0].attention.self.query.weight
    )


def test_what_does_not_go_together_is_refused(tiny, start, monkeypatch):
    for options, said in [
        ({"lora_r": 4}, "--lora_r is for --model_name_or_path"),
        ({"lora_alpha": 4.0}, "need --lora_r, the rank"),
        ({"lora_r": 0, "model_name_or_path": "x"}, "--lora_r is 0; it must be above 0"),
        ({"lora_r": 4, "model_name_or_path": "x", "lora_dropout": 1.0}, "--lora_dropout is 1.0"),
        ({"lora_r": 4, "model_name_or_path": "x", "train_tokenizer": True}, "--lora_r freezes the embeddings"),
    ]:
        with pytest.raises(OptionError, match=said):
            tiny(**options)
    with pytest.raises(
        OptionError, match=r"--lora_target_modules query is no linear layer .*: down_proj, out_proj, qkv"
    ):
        start(lora_target_modules=["query"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(OSError, match=r"^peft is missing: pip install 'hf_tfenc\[peft\]'\.$"):
        start()
