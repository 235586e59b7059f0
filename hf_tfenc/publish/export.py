"""What `hf-tfenc export` does: a model as one graph, for ONNX runtimes or for torch itself, compared with the model."""

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
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
from ..pretrained import read_config
from ..tokenization import load_tokenizer

TOLERANCE = 1e-4  # of the largest output, as in conversion
SHAPES = ((2, 8), (1, 1), (1, 13), (3, 5), (5, 29))  # of sample batches; the first is what the graph is traced with

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
    head = getattr(modeling_tfenc, next(iter(config.architectures or []), "TfEncModel"))
    model = head.from_pretrained(source, dtype=torch.float32).eval()
    if kind == "torch-export" and isinstance(model, modeling_tfenc.TfEncForMultipleChoice):
        raise ValueError(f"torch.export fixes the batch of a {head.__name__}, so it goes to --format onnx only.")
    tokenizer = load_tokenizer(source)
    batches = list(sample_batches(model, segments="token_type_ids" in tokenizer.model_input_names))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".exporting-", dir=out.parent))
    try:
        run = FORMATS[kind](model, batches[0], beside)
        largest = max(largest_difference(model, run, batch) for batch in batches)
        vars(model.config).pop("auto_map", None)  # a graph needs no code of ours; nobody is to be asked to run it
        (beside / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
        tokenizer.save_pretrained(beside)
        beside.chmod(0o755)  # it was made for its owner alone
        os.replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shapes = ", ".join("×".join(map(str, batch["input_ids"].shape)) for batch in batches)
    return [
        f"Outputs of model and graph differ by {largest:.1e} at most, over batches of {shapes}.",
        f"{out} holds {', '.join(sorted(path.name for path in out.glob('model.*')))}, configuration and tokenizer.",
    ]


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


# --- Comparing -------------------------------------------------------------------------------------------------------


def sample_batches(model: PreTrainedModel, segments: bool) -> Iterator[dict[str, Tensor]]:
    """Batches of several shapes, with padding.

    Args:
        segments: whether a first text is told from a second, where the model can; a graph takes what its tokenizer gives.
    """
    random, config = torch.Generator().manual_seed(0), model.config
    choices = (2,) if isinstance(model, modeling_tfenc.TfEncForMultipleChoice) else ()
    for rows, length in SHAPES:
        shape = (rows, *choices, min(length, config.max_position_embeddings))
        ids = torch.randint(config.vocab_size, shape, generator=random)
        lengths = torch.randint(1, shape[-1] + 1, shape[:-1], generator=random)
        batch = {"input_ids": ids, "attention_mask": (torch.arange(shape[-1]) < lengths[..., None]).long()}
        if segments and config.type_vocab_size:
            batch["token_type_ids"] = torch.randint(config.type_vocab_size, shape, generator=random)
        yield batch


def largest_difference(model: PreTrainedModel, run: Run, batch: dict[str, Tensor]) -> float:
    """Between what the model and the graph say of a batch, padding left out.

    Raises:
        ValueError: it is more than float32 explains.
    """
    with torch.no_grad():
        expected = {name: value for name, value in model(**batch).items() if isinstance(value, Tensor)}
    result, mask, largest = run(batch), batch["attention_mask"], 0.0
    for name, values in expected.items():
        kept = mask.bool() if values.shape[: mask.dim()] == mask.shape else slice(None)
        difference = float((result[name][kept] - values[kept]).detach().abs().max())
        if not difference <= TOLERANCE * max(1.0, float(values[kept].abs().max())):
            raise ValueError(
                f"{name} of model and graph differ by {difference:.1e} on a batch of shape {tuple(mask.shape)}, so the "
                "graph is no good; please report it."
            )
        largest = max(largest, difference)
    return largest
