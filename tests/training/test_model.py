"""A run makes its model, or goes on from another one: ours, a BERT or a ModernBERT, with its tokenizer or a new one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, ModernBertConfig

from hf_tfenc.tasks.labels import Labels
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.training.arguments import Arguments, OptionError
from hf_tfenc.training.model import fit_labels
from hf_tfenc.training.run import run

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STILL = {"learning_rate": 1e-12, "max_steps": 1}  # one step that moves nothing to speak of


@pytest.fixture(params=["bert", "modernbert"])
def pretrained(request, tmp_path, tokenizer):
    """A masked language model of transformers' own, and its folder."""
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")}
    torch.manual_seed(0)
    if request.param == "bert":
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **SIZE)
        model = transformers.BertForPreTraining(config)
    else:
        special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
        model = transformers.ModernBertForMaskedLM(ModernBertConfig(vocab_size=len(tokenizer), **SIZE, **special))
    model.save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    return model.eval(), tmp_path / "pretrained"


@pytest.fixture
def start(tiny, tmp_path, texts):
    """A run from that folder."""
    Dataset.from_dict({"text": texts, "label": [str(len(text) % 2) for text in texts]}).to_parquet(
        tmp_path / "rows.parquet"
    )

    def start(**options):
        given = {"model_name_or_path": str(tmp_path / "pretrained"), "train_file": [str(tmp_path / "rows.parquet")]}
        args = tiny(**{"config_overrides": None, **given, **options})
        return args, run(args)

    return start


def logits_of(model, inputs):
    with torch.no_grad():
        output = model.eval()(**inputs)
    logits = output.prediction_logits if "prediction_logits" in output else output.logits
    return logits[inputs["attention_mask"].bool()]


def test_pre_training_goes_on_where_it_was(pretrained, start, tokenizer):
    theirs, _ = pretrained
    args, metrics = start(**STILL)
    ours = AutoModelForMaskedLM.from_pretrained(args.output_dir)
    assert ours.config.model_type == "tfenc"
    inputs = tokenizer(["the cat draws [MASK]", "0:"], padding=True, return_tensors="pt")
    torch.testing.assert_close(logits_of(ours, inputs), logits_of(theirs, inputs), atol=1e-5, rtol=1e-4)
    assert metrics["parameters"] < theirs.num_parameters() + 1


def test_a_resumed_run_is_the_same_run(pretrained, start):
    args, metrics = start(max_steps=4, save_steps=2, eval_steps=2, save_total_limit=9)
    folder = Path(args.output_dir)
    expected = load_file(folder / "checkpoint-000004" / "model.safetensors")
    for path in (folder / "metrics.json", folder / "model.safetensors"):
        path.unlink()
    shutil.rmtree(folder / "checkpoint-000004")
    # The weights that it began with are not read again.
    (pretrained[1] / "model.safetensors").unlink()
    again = run(Arguments(**vars(args)))
    resumed = load_file(folder / "checkpoint-000004" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    assert again["eval_loss"] == metrics["eval_loss"]


def test_a_pretrained_encoder_is_fine_tuned(pretrained, start, caplog):
    theirs, _ = pretrained
    args, _ = start(task="sequence-classification", text_column="text", **STILL)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(args.output_dir)
    body = theirs.base_model.state_dict()
    names = {"bert": "embeddings.word_embeddings.weight", "modernbert": "embeddings.tok_embeddings.weight"}
    torch.testing.assert_close(
        model.model.embeddings.embed_tokens.weight, body[names[theirs.config.model_type]], atol=1e-6, rtol=1e-5
    )
    if theirs.config.model_type == "bert":  # trained with the next-sentence head, which others leave out
        torch.testing.assert_close(model.model.pooler.dense.weight, body["pooler.dense.weight"], atol=1e-6, rtol=1e-5)
    assert "Not in" in caplog.text and "classifier.weight" in caplog.text


@pytest.mark.parametrize("trained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_new_tokenizer_takes_over_the_vectors(pretrained, start, texts, tmp_path, trained, tokenizer):
    theirs, _ = pretrained
    if trained:
        options = {"train_tokenizer": True, "vocab_size": 290, "tokenizer_type": "byte-level-bpe"}
    else:
        train_tokenizer(texts[::-1], 310, model_max_length=64).save_pretrained(tmp_path / "other")
        options = {"tokenizer_name": str(tmp_path / "other")}
    args, _ = start(**STILL | options, save_steps=1)
    ours, new = AutoModelForMaskedLM.from_pretrained(args.output_dir), AutoTokenizer.from_pretrained(args.output_dir)
    assert ours.config.vocab_size == len(new) == (290 if trained else 310)
    old_rows, new_rows = theirs.get_input_embeddings().weight, ours.get_input_embeddings().weight
    shared = new.get_vocab().keys() & tokenizer.get_vocab().keys()
    assert len(shared) > 250
    for token in shared:
        mine, other = new_rows[new.get_vocab()[token]], old_rows[tokenizer.get_vocab()[token]]
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)

    (Path(args.output_dir) / "metrics.json").unlink()  # it goes on from the checkpoint, with the tokenizer in it
    run(Arguments(**vars(args)))
    assert AutoTokenizer.from_pretrained(args.output_dir).get_vocab() == new.get_vocab()


def test_a_rotary_encoder_reads_longer_rows_with_another_base(pretrained, start):
    theirs, _ = pretrained
    overrides = {"max_position_embeddings": 9000}
    if theirs.config.model_type == "bert":
        with pytest.raises(OptionError, match="has another shape there than --config_overrides ask for"):
            start(config_overrides=json.dumps(overrides))
        return
    overrides["rope_parameters"] = {"full_attention": {"rope_theta": 5e5}}
    args, _ = start(max_steps=1, max_seq_length=200, config_overrides=json.dumps(overrides))
    config = AutoModelForMaskedLM.from_pretrained(args.output_dir).config
    assert config.max_position_embeddings == 9000
    bases = {kind: parameters["rope_theta"] for kind, parameters in config.rope_parameters.items()}
    theirs = theirs.config.rope_parameters["sliding_attention"]["rope_theta"]
    assert bases == {"full_attention": 5e5} | ({"sliding_attention": theirs} if len(bases) > 1 else {})


def test_rows_up_to_an_odd_limit_of_positions_train(tiny, tmp_path, texts):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = json.dumps(sizes | {"max_position_embeddings": 20})
    (tmp_path / "train.txt").write_text("\n".join(texts))
    files = {"train_file": [str(tmp_path / "train.txt")]}
    assert run(tiny(**files, max_steps=2, max_seq_length=20, config_overrides=sizes))["eval_loss"] > 0


@pytest.mark.parametrize("names", [["cat", "dog", "fox"], ["a", "b"]])
def test_a_run_for_other_labels_begins_its_output_layer_anew(tiny, tmp_path, texts, caplog, names):
    def start(labels, **options):
        rows = {"text": texts, "label": [labels[number % len(labels)] for number in range(len(texts))]}
        Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
        args = tiny(
            task="sequence-classification", train_file=[str(tmp_path / "rows.parquet")], max_steps=2, **options
        )
        run(args)
        return transformers.AutoModelForSequenceClassification.from_pretrained(args.output_dir)

    first = start(["x", "y"])
    options = {"model_name_or_path": str(tmp_path / "out"), "output_dir": str(tmp_path / "more")}
    second = start(names, **options, learning_rate=1e-9)
    assert f"The output layer of {tmp_path / 'out'} is for other labels, so it begins anew." in caplog.text
    if second.classifier.weight.shape == first.classifier.weight.shape:
        assert (second.classifier.weight - first.classifier.weight).abs().max() > 1e-3
    assert list(second.config.id2label.values()) == names and second.classifier.out_features == len(names)
    torch.testing.assert_close(
        second.model.embeddings.embed_tokens.weight, first.model.embeddings.embed_tokens.weight, atol=1e-5, rtol=1e-3
    )
    with pytest.raises(ValueError, match=r"has another shape there than --config_overrides ask for"):
        start(
            names, **options | {"output_dir": str(tmp_path / "other"), "config_overrides": '{"intermediate_size": 64}'}
        )


def test_an_output_layer_for_the_same_labels_is_put_in_their_order(caplog):
    layer = {"classifier.weight": torch.arange(6.0).reshape(3, 2), "classifier.bias": torch.arange(3.0)}
    weights, labels = {**layer, "other": torch.ones(1)}, Labels(["a", "b", "c"])
    fitted = fit_labels(weights, labels, ["c", "a", "b"], "here")
    assert fitted["classifier.weight"].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert fitted["classifier.bias"].tolist() == [2, 0, 1]
    assert fit_labels(weights, labels, ["a", "b", "c"], "here") is weights and not caplog.text
    assert fit_labels(weights, labels, ["a", "b", "x"], "here").keys() == {"other"}
    assert "The output layer of here is for other labels, so it begins anew." in caplog.text


def test_what_does_not_go_together_is_refused(tiny):
    for options, said in [
        ({"train_tokenizer": True}, "--train_tokenizer is for --model_name_or_path"),
        ({"train_tokenizer": True, "model_name_or_path": "x", "tokenizer_name": "y"}, "exclude each other"),
    ]:
        with pytest.raises(OptionError, match=said):
            tiny(**options)
