"""A graph says what the model says, whatever the shape of the batch."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import hf_tfenc
from hf_tfenc.cli import app
from hf_tfenc.presets import preset_config
from hf_tfenc.publish import export as module
from hf_tfenc.publish.comparing import largest_difference, sample_batches
from hf_tfenc.publish.export import export, tensors_of

HEADS = (
    "Model", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip


@pytest.fixture
def make(tmp_path, tokenizer):
    """A folder with a head whose weights are all random, and the head."""

    def make(preset, head, segments=True):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = preset_config(preset, vocab_size=len(tokenizer), max_position_embeddings=32, pooling="mean", **sizes)
        model = getattr(hf_tfenc, f"TfEnc{head}")(config)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) / 3)
        model.save_pretrained(tmp_path / "model")
        own = copy.deepcopy(tokenizer)
        own.model_input_names = ["input_ids", *["token_type_ids"] * segments, "attention_mask"]
        own.save_pretrained(tmp_path / "model")
        return model.eval(), tmp_path / "model"

    return make


def check_onnx(make, tmp_path, preset, head):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        onnxruntime = pytest.importorskip(package, reason="needs the extra onnx")
    model, folder = make(preset, head)
    export(str(folder), tmp_path / "graph", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    random = np.random.default_rng(0)
    choices = (3,) if head == "ForMultipleChoice" else ()
    for _ in range(8):
        shape = (int(random.integers(1, 7)), *choices, int(random.integers(1, 33)))
        mask = np.arange(shape[-1]) < random.integers(1, shape[-1] + 1, shape[:-1])[..., None]
        inputs = {
            "input_ids": random.integers(0, model.config.vocab_size, shape),
            "attention_mask": mask.astype(np.int64),
        }
        if model.config.type_vocab_size:
            inputs["token_type_ids"] = random.integers(0, 2, shape)
        result = dict(zip(names, session.run(None, inputs), strict=True))
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        assert result.keys() == expected.keys()
        for name, values in expected.items():
            kept = mask if values.shape[: mask.ndim] == mask.shape else ...
            np.testing.assert_allclose(result[name][kept], values.numpy()[kept], atol=1e-5, rtol=1e-5)


def test_onnx_says_what_the_model_says(make, tmp_path, tokenizer):
    check_onnx(make, tmp_path, "modern-tiny", "Model")
    assert {path.name for path in (tmp_path / "graph").iterdir()} >= {"model.onnx", "model.onnx.data", "config.json"}
    travelled = AutoTokenizer.from_pretrained(tmp_path / "graph")
    assert travelled("the cat [MASK]").input_ids == tokenizer("the cat [MASK]").input_ids


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("preset", ["classic-tiny", "bert-tiny", "modern-tiny"])
def test_onnx_of_every_head_says_what_the_model_says(make, tmp_path, preset, head):
    check_onnx(make, tmp_path, preset, head)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_torchs_graph_says_what_the_model_says(make, tmp_path, head):
    model, folder = make("bert-tiny", head)
    report = export(str(folder), tmp_path / "graph", "torch-export")
    assert "model.pt2" in report[-1]
    program = torch.export.load(tmp_path / "graph" / "model.pt2")
    assert program.call_spec.out_spec.type is dict  # a class of transformers could not be loaded without it
    graph = program.module()
    for batch in sample_batches(model, segments=True):
        with torch.no_grad():
            assert largest_difference(graph(**batch), tensors_of(model(**batch)), batch["attention_mask"]) < 1e-5


def test_a_graph_takes_what_its_tokenizer_gives(make, tmp_path):
    model, folder = make("bert-tiny", "ForSequenceClassification", segments=False)
    export(str(folder), tmp_path / "graph", "torch-export")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "graph")(["the cat", "3:"], padding=True, return_tensors="pt")
    assert inputs.keys() == {"input_ids", "attention_mask"}
    graph = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(graph(**inputs)["logits"], model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_graph_asks_nobody_to_run_code(make, tmp_path):
    _, folder = make("bert-tiny", "Model")
    export(str(folder), tmp_path / "graph", "torch-export")
    assert not list((tmp_path / "graph").glob("*.py"))
    written = json.loads((tmp_path / "graph" / "config.json").read_text())
    expected = json.loads((folder / "config.json").read_text())
    assert expected.pop("auto_map") and written == expected


def test_a_tokenizer_gives_a_graph_no_segments_that_it_does_not_take(make, tmp_path):
    model, folder = make("modern-tiny", "ForSequenceClassification")
    options = json.loads((folder / "tokenizer_config.json").read_text())
    options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    export(str(folder), tmp_path / "graph", "torch-export")
    inputs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "graph")(["the cat"], return_tensors="pt")
    logits = torch.export.load(tmp_path / "graph" / "model.pt2").module()(**inputs)["logits"]
    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_whole_is_refused(make, tmp_path):
    _, folder = make("modern-tiny", "ForSequenceClassification")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "classifier" not in name}, folder / "model.safetensors")
    with pytest.raises(OSError, match=r"has no classifier\.bias: save it there anew\.$"):
        export(str(folder), tmp_path / "graph", "torch-export")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(OSError, match=r"^The model in .* cannot be read \(.*\): save it there anew\.$"):
        export(str(folder), tmp_path / "graph", "torch-export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MyEncoder"]}))
    with pytest.raises(ValueError, match=r"is a MyEncoder, which is none of our classes: TfEncForCausalLM, "):
        export(str(folder), tmp_path / "graph", "torch-export")


def test_a_graph_that_differs_is_not_left_behind(make, tmp_path, monkeypatch):
    _, folder = make("bert-tiny", "Model")

    def wrong(model, batch, out):
        (out / "model.pt2").touch()
        return lambda inputs: {name: value + 1 for name, value in model(**inputs).items()}

    monkeypatch.setitem(module.FORMATS, "torch-export", wrong)
    with pytest.raises(ValueError, match=r"^last_hidden_state would differ by 1\.0e\+00 on a batch of"):
        export(str(folder), tmp_path / "graph", "torch-export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_mistakes_are_one_sentence(make, tmp_path, monkeypatch):
    make("classic-tiny", "ForMultipleChoice")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")

    def refusal(*argv):
        result = CliRunner().invoke(app, ["export", *map(str, argv)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("Error: ")
        return result.stderr

    folder, out = tmp_path / "model", tmp_path / "out"
    assert "--format is 'tflite'; it is one of onnx, torch-export." in refusal(folder, out, "--format", "tflite")
    assert "holds something already" in refusal(folder, tmp_path)
    assert "is a bert model: convert it with hf-tfenc convert" in refusal(
        tmp_path / "bert", out, "--format", "torch-export"
    )
    assert "so it goes to --format onnx only" in refusal(folder, out, "--format", "torch-export")

    monkeypatch.setitem(sys.modules, "onnx", None)  # so that importing it fails
    assert refusal(folder, out) == "Error: onnx is missing: pip install 'hf_tfenc[onnx]'.\n"
    assert not out.exists()
