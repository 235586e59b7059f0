"""What `hf-tfenc export` does: a model as one graph, for ONNX runtimes or for torch itself, compared with the model."""

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .. import modeling_tfenc
from ..configuration_tfenc import TfEncConfig
from ..extras import require
from ..pretrained import class_of, load_whole, read_config
from ..tokenization import load_tokenizer, save_tokenizer
from .comparing import largest_difference, sample_batches

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def export(source: str, out: Path, kind: str) -> list[str]:
    """Write a model of ours as a graph whose batch and length are open, with its configuration and tokenizer.

    Args:
        source: folder or Hub id.
        out: a folder, new or empty.
        kind: a key of `FORMATS`.

    Returns:
        what was done, in sentences, with the largest difference between model and graph over several shapes

    Raises:
        ValueError: not a model of ours, no such format, or outputs that differ.
        OSError: nothing to read, `out` holds something, or a package is missing.
    """
    if kind not in FORMATS:
        raise ValueError(f"--format is {kind!r}; it is one of {', '.join(FORMATS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OSError(f"{out} holds something already: choose a new folder.")
    for package in REQUIRED[kind]:
        require(package, "onnx")
    config = read_config(source)
    if config.model_type != TfEncConfig.model_type:
        raise ValueError(
            f"{source} is a {config.model_type} model: convert it with hf-tfenc convert, and export that."
        )
    model = load_whole(class_of(config, source), source).eval()
    if kind == "torch-export" and isinstance(model, modeling_tfenc.TfEncForMultipleChoice):
        raise ValueError(
            f"torch.export fixes the batch of a {type(model).__name__}, so it goes to --format onnx only."
        )
    tokenizer = load_tokenizer(source)
    if not config.type_vocab_size:  # whoever runs the graph hands on what the tokenizer gives
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    batches = list(sample_batches(model, segments="token_type_ids" in tokenizer.model_input_names))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".exporting-", dir=out.parent))
    try:
        run = FORMATS[kind](model, batches[0], beside)
        with torch.no_grad():
            largest = max(
                largest_difference(run(batch), tensors_of(model(**batch)), batch["attention_mask"])
                for batch in batches
            )
        vars(model.config).pop("auto_map", None)  # a graph needs no code of ours; nobody is to be asked to run it
        (beside / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
        save_tokenizer(tokenizer, beside)
        beside.chmod(0o755)  # it was made for its owner alone
        os.replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shapes = ", ".join("×".join(map(str, batch["input_ids"].shape)) for batch in batches)
    return [
        f"Outputs of model and graph differ by {largest:.1e} at most, over batches of {shapes}.",
        f"{out} holds {', '.join(sorted(path.name for path in out.glob('model.*')))}, configuration and tokenizer.",
    ]


def tensors_of(output: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


# --- Formats: write the graph, and return what runs it ---------------------------------------------------------------


def to_onnx(model: PreTrainedModel, batch: dict[str, Tensor], out: Path) -> Run:
    """`model.onnx`, and its weights in `model.onnx.data`; run by onnxruntime."""
    import onnx_ir
    import onnxruntime
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    with _silence():
        exported: Any = OnnxExporter().export(model, batch, config=OnnxConfig(dynamic_shapes=open_shapes(batch)))
    graph = exported.program if hasattr(exported, "program") else exported.model  # older versions of transformers
    onnx_ir.save(graph, out / "model.onnx", external_data="model.onnx.data")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, map(torch.from_numpy, map(np.asarray, arrays)), strict=True))

    return run


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter tells of each step, of what is odd in torch itself, and that it may be wrong: that is found out here."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def to_torch_export(model: PreTrainedModel, batch: dict[str, Tensor], out: Path) -> Run:
    """`model.pt2`, which `torch.export.load` reads, without transformers too."""
    program = torch.export.export(PlainOutputs(model), (), batch, dynamic_shapes=open_shapes(batch))
    torch.export.save(program, out / "model.pt2")
    module = torch.export.load(out / "model.pt2").module()
    return lambda inputs: module(**inputs)


class PlainOutputs(nn.Module):
    """A model whose outputs are a dict of tensors: transformers' own class of them would have to be there to load it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        return dict(self.model(input_ids, attention_mask, token_type_ids=token_type_ids))


FORMATS: dict[str, Callable[[PreTrainedModel, dict[str, Tensor], Path], Run]] = {
    "onnx": to_onnx,
    "torch-export": to_torch_export,
}
REQUIRED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}


def open_shapes(batch: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """For each input the axes that may have any size: batch and length, and choices in multiple choice."""
    return {name: dict.fromkeys(range(tensor.dim()), torch.export.Dim.AUTO) for name, tensor in batch.items()}
