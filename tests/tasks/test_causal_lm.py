"""The task causal-lm: every token predicted once, and a folder that writes on."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import SIZES, batch_of, evaluate, make_model
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks.causal_lm import CausalLM
from hf_tfenc.training.arguments import Arguments


def test_every_token_and_the_end_of_a_text_are_predicted_once(encoded_task, texts):
    odd = [*texts[:20], "x", "😀 naïve 東京 " * 20]
    task, rows = encoded_task("causal-lm", DatasetDict(train=Dataset.from_dict({"text": odd})), max_seq_length=16)
    tokenizer, windows = task.tokenizer, rows["train"]["input_ids"][:]
    assert rows["train"]["length"][:] == list(map(len, windows)) and max(map(len, windows)) == 16
    assert {ids[0] for ids in windows} == {tokenizer.cls_token_id}
    whole = tokenizer(odd, add_special_tokens=False)["input_ids"]
    expected = [token for ids in whole for token in [*ids, tokenizer.sep_token_id]]
    assert [token for ids in windows for token in ids[1:]] == expected
    batch = batch_of(task, rows["train"], range(len(windows)))
    assert task.count_items(batch) == len(expected)
    model = make_model(task)
    assert evaluate(task, model, rows["train"])["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("end", ["<end>", None])
def test_without_a_token_that_begins_a_text_all_but_its_first_are_predicted_once(tokenizer, texts, end):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", eos_token=end)
    odd = [*texts[:20], "x"]
    task = CausalLM(Arguments(task="causal-lm", max_seq_length=16), bare)
    rows = task.encode(DatasetDict(train=Dataset.from_dict({"text": odd})))["train"]
    ends = [] if end is None else [bare.eos_token_id]
    whole = [ids + ends for ids in bare(odd, add_special_tokens=False)["input_ids"]]
    assert [token for ids in rows["input_ids"][:] for token in ids[1:]] == [
        token for ids in whole for token in ids[1:]
    ]
    assert max(rows["length"][:]) == 16 and min(rows["length"][:]) > 0


def test_metrics_and_baselines_by_hand(encoded_task):
    task, rows = encoded_task("causal-lm")
    model, losses, right, size = make_model(task), [], [], 0
    pairs = [(ids[place - 1], ids[place]) for ids in rows["validation"]["input_ids"] for place in range(1, len(ids))]
    for ids in rows["validation"]["input_ids"]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        losses += (-logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]).tolist()
        right += (logits.argmax(-1).numpy() == ids[1:]).tolist()
        size += len(task.tokenizer.decode(ids, skip_special_tokens=True).encode())
    assert evaluate(task, model, rows["validation"]) == pytest.approx(
        {
            "eval_loss": np.mean(losses),
            "eval_perplexity": np.exp(np.mean(losses)),
            "eval_accuracy": np.mean(right),
            "eval_loss_per_byte": np.sum(losses) / size,
        },
        rel=1e-5,
    )
    tokens = np.concatenate(rows["train"]["input_ids"][:]).tolist()
    counts = {token: 0.1 for token in range(len(task.tokenizer))}
    after = {}
    for left, token in pairwise(tokens):
        after.setdefault(left, dict(counts))[token] += 1
    for row in after.values():
        for token in np.flatnonzero(task.is_special):
            row[token] = -1
    baselines = task.baselines(rows["train"], rows["validation"])
    best = np.array([after[left][token] == max(after[left].values()) for left, token in pairs])
    tied = np.array([list(after[left].values()).count(max(after[left].values())) > 1 for left, _ in pairs])
    assert (best & ~tied).mean() <= baselines["eval_bigram_accuracy"] <= best.mean() < 0.1 + (best & ~tied).mean()
    assert baselines["eval_unigram_accuracy"] < baselines["eval_bigram_accuracy"] < 1
    assert baselines["eval_unigram_loss"] == task.baseline_loss(rows["train"], rows["validation"])


def test_a_saved_tokenizer_puts_nothing_behind_a_prompt(encoded_task, tmp_path):
    task, _ = encoded_task("causal-lm")
    make_model(task).save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = tokenizer("the cat", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.cls_token_id and tokenizer.sep_token_id not in prompt["input_ids"]
    written = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert model.config.is_causal and written.shape[1] <= prompt["input_ids"].shape[1] + 5
    logits = model(prompt["input_ids"]).logits[0, -1]
    assert written[0, prompt["input_ids"].shape[1]] == logits.argmax()


@pytest.mark.parametrize("is_causal", [False, True])
def test_starting_from_a_model_that_looks_both_ways_is_said(tokenizer, tmp_path, caplog, is_causal):
    config = preset_config("classic-tiny", vocab_size=len(tokenizer), is_causal=is_causal, **SIZES)
    TfEncForMaskedLM(config).save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="hf_tfenc"):
        task = CausalLM(Arguments(task="causal-lm", model_name_or_path=str(tmp_path)), copy.deepcopy(tokenizer))
    assert ("causal-lm sets is_causal" in caplog.text) == (not is_causal)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, **task.config_options).config.is_causal
