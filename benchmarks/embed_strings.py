"""Embedding of texts on a CPU, from strings to one vector each, beside BERT in transformers and in onnxruntime.

    python benchmarks/embed_strings.py --output benchmarks/results/embed_strings_cpu.md

The texts are 2,000 pieces of Python's own documentation, of log-normal length (median 100 words, cut at 512 tokens). All
contenders have the same weights (`bert-small`, float32), the same tokenizer, batches of 32 texts padded to the longest
of each, and the mean of the last states as vector; that their vectors agree is checked. Texts come in random order, and
once more from the longest to the shortest. Rounds alternate between the contenders, and the table gives medians.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from torch import Tensor
from transformers import BertModel

from hf_tfenc import TfEncModel
from hf_tfenc.data.stdlib_corpus import stdlib_documents
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.convert import from_bert, to_bert_config
from hf_tfenc.publish.export import to_onnx
from hf_tfenc.tokenization import train_tokenizer

TEXTS, MEDIAN_WORDS, SIGMA, MAX_LENGTH, BATCH = 2000, 100, 0.7, 512, 32
Encode = Callable[[dict[str, Tensor]], Tensor]


def some_texts(documents: list[str]) -> list[str]:
    words = " ".join(documents).split()
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(MEDIAN_WORDS), SIGMA, TEXTS).astype(int).clip(3, 1000)
    starts = random.integers(len(words) - 1000, size=TEXTS)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@torch.inference_mode()
def embed(encode: Encode, tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    vectors = []
    for first in range(0, len(texts), BATCH):
        options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
        batch = tokenizer(texts[first : first + BATCH], **options, return_token_type_ids=False)
        mask = batch["attention_mask"][..., None]
        vectors.append((encode(dict(batch)) * mask).sum(1) / mask.sum(1))
    return torch.cat(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--preset", default="bert-small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    documents = stdlib_documents()["train"]["text"][:]
    tokenizer = train_tokenizer(documents, 8192, model_max_length=MAX_LENGTH)
    config = preset_config(options.preset, vocab_size=len(tokenizer))
    bert = BertModel._from_config(to_bert_config(config), attn_implementation="sdpa", add_pooling_layer=False).eval()
    ours = TfEncModel(config, add_pooling_layer=False).eval()
    ours.load_state_dict(from_bert(bert.state_dict()), strict=True)
    example = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graph = to_onnx(bert, example, Path(folder))
        contenders: dict[str, Encode] = {
            "transformers BERT": lambda batch: bert(**batch).last_hidden_state,
            "onnxruntime": lambda batch: graph(batch)["last_hidden_state"],
            "hf_tfenc": lambda batch: ours(**batch).last_hidden_state,
        }
        texts = some_texts(documents)
        tokens = sum(min(len(ids), MAX_LENGTH) for ids in tokenizer(texts)["input_ids"])
        few = texts[:64]
        expected = embed(contenders["transformers BERT"], tokenizer, few)
        for name, encode in contenders.items():
            apart = float((embed(encode, tokenizer, few) - expected).abs().max())
            assert apart < 1e-4, f"{name} differs by {apart}"
        by_length = sorted(texts, key=len, reverse=True)
        for order, ordered in (("random order", texts), ("by length", by_length)):
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name, encode in contenders.items():
                    started = time.perf_counter()
                    embed(encode, tokenizer, ordered)
                    seconds[name].append(time.perf_counter() - started)
                    print(order, name, f"{seconds[name][-1]:.1f} s", flush=True)
            speeds = {name: tokens / statistics.median(found) for name, found in seconds.items()}
            for name, speed in speeds.items():
                ratios = " | ".join(f"{speed / speeds[peer]:.2f} ×" for peer in ("transformers BERT", "onnxruntime"))
                rows.append(f"| {order} | {name} | {speed:,.0f} | {TEXTS * speed / tokens:,.0f} | {ratios} |")
    lines = [
        "| texts | | tokens/s | texts/s | against BERT | against onnxruntime |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"{options.threads} threads of {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, onnxruntime {onnxruntime.__version__}; "
        f"{tokens:,} tokens",
    ]
    print(*lines, sep="\n")
    if options.output:
        options.output.write_text("\n".join([__doc__, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
