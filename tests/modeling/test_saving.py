"""A checkpoint loads whole, by every head, with and without the package, and only what it lacks is new."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from corners import CORNERS, HEADS, build, tiny, token_ids
from safetensors.torch import load_file, save_file
from torch import nn

import hf_tfenc
from hf_tfenc import (
    TfEncConfig,
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForQuestionAnswering,
    TfEncForSequenceClassification,
    TfEncModel,
)
from hf_tfenc.configuration_tfenc import AUTO_MAP
from hf_tfenc.modeling_tfenc import (
    ResidualProjection,
    RotaryPositions,
    SinusoidalPositions,
    rotary_table,
    sinusoidal_table,
)

CLASSES = {auto: path.split(".")[1] for auto, path in AUTO_MAP.items() if auto != "AutoConfig"}  # Auto class -> ours
SAVED = {
    "classic-mlm": ("classic", TfEncForMaskedLM),
    "bert-classifier": ("bert", TfEncForSequenceClassification),
    "modern-causal": ("modern", TfEncForCausalLM),
    "classic-encoder": ("classic", TfEncModel),
    "modern-answers": ("modern", TfEncForQuestionAnswering),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Some checkpoints and, beside each, what it gives: `<name>.safetensors`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ids = token_ids(2, 9)
    for name, (corner, model_class) in SAVED.items():
        model = build(model_class, tiny(corner, num_labels=3))
        model.save_pretrained(folder / name)
        ahead = build(TfEncModel, tiny(corner, is_causal=True))
        ahead.load_state_dict(model.base_model.state_dict(), strict=False)
        with torch.no_grad():
            outputs = {
                "encoder": model.base_model(ids).last_hidden_state,
                "encoder_looking_ahead": ahead(ids).last_hidden_state,
                "head": model(ids)[0].contiguous(),
            } | dict(model.base_model.named_buffers())
        save_file({"ids": ids} | outputs, folder / f"{name}.safetensors")
    return folder


# What follows runs here, and once more as a program of its own where the package cannot be imported.
def load_by_every_class(folder, names, classes, **options):
    """For each checkpoint and Auto class, the names of what is not as it was saved."""
    import torch
    import transformers
    from safetensors.torch import load_file

    wrong = {}
    for name, saved_class in names.items():
        saved = load_file(f"{folder}/{name}.safetensors")
        for auto, own in classes.items():
            model = getattr(transformers, auto).from_pretrained(f"{folder}/{name}", **options).eval()
            ahead = model.config.is_causal
            with torch.no_grad():
                encoded = model.base_model(saved["ids"]).last_hidden_state
                same = {
                    "class": type(model).__name__ == own,
                    "encoder": torch.equal(encoded, saved["encoder_looking_ahead" if ahead else "encoder"]),
                    "head": own != saved_class or torch.equal(model(saved["ids"])[0], saved["head"]),
                    "table": all(torch.equal(t, saved[key]) for key, t in model.base_model.named_buffers()),
                    "mode": model.dtype == torch.float32,
                }
            wrong[f"{name} by {auto}"] = [what for what, right in same.items() if not right]
    return wrong


ALONE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_tfenc":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import json
import torch
from transformers import AutoModelForMaskedLM
torch.set_num_threads(1)

SOURCE
folder, names, classes = json.loads(sys.argv[1])
wrong = load_by_every_class(folder, names, classes, trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained(f"{folder}/classic-mlm", trust_remote_code=True)
model.save_pretrained(f"{folder}/saved-again")
again = AutoModelForMaskedLM.from_pretrained(f"{folder}/saved-again", trust_remote_code=True)
modules = sorted({type(model).__module__.split(".")[0], *(name for name in sys.modules if name == "hf_tfenc")})
same = all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
print(json.dumps({"wrong": wrong, "modules": modules, "saved again": same}))
"""

ALL_RIGHT = {f"{name} by {auto}": [] for name in SAVED for auto in CLASSES}
SAVED_CLASSES = {name: model_class.__name__ for name, (_, model_class) in SAVED.items()}


def test_every_head_loads_from_every_checkpoint(checkpoints):
    """Through the Auto classes, after `import hf_tfenc`, with no `trust_remote_code`."""
    assert load_by_every_class(checkpoints, SAVED_CLASSES, CLASSES) == ALL_RIGHT


def test_the_installed_class_wins_over_the_code_in_the_checkpoint(checkpoints):
    model = transformers.AutoModel.from_pretrained(checkpoints / "classic-mlm", trust_remote_code=True)
    assert type(model) is TfEncModel


def test_every_head_loads_where_the_package_is_not_installed(checkpoints, tmp_path):
    """Through the Auto classes with `trust_remote_code`; and a checkpoint saved from there loads again."""
    program = ALONE.replace("SOURCE", inspect.getsource(load_by_every_class))
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps([str(checkpoints), SAVED_CLASSES, CLASSES])],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == {"wrong": ALL_RIGHT, "modules": ["transformers_modules"], "saved again": True}
    assert sorted(path.name for path in (checkpoints / "saved-again").iterdir()) == FILES


FILES = ["config.json", "configuration_tfenc.py", "model.safetensors", "modeling_tfenc.py"]


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_holds_weights_configuration_and_code(checkpoints, name):
    files = sorted(path.name for path in (checkpoints / name).iterdir())
    assert files == sorted([*FILES, "generation_config.json"] if name == "modern-causal" else FILES)
    config = json.loads((checkpoints / name / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["model_type"] == "tfenc"
    for file in ("configuration_tfenc.py", "modeling_tfenc.py"):
        own = Path(hf_tfenc.__file__).parent / file
        assert (checkpoints / name / file).read_text() == own.read_text()


def test_every_class_is_in_the_auto_map():
    classes = {name for name in hf_tfenc.__all__ if name.startswith("TfEnc")} - {"TfEncPreTrainedModel"}
    assert {path.split(".")[1] for path in AUTO_MAP.values()} == classes


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_loads_as_it_was(head, corner, tmp_path):
    model_class, options = HEADS[head]
    model = build(model_class, tiny(corner, **options))
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    assert not loaded.training
    for (name, expected), parameter in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("corner", CORNERS)
def test_a_tied_decoder_is_saved_once_and_tied_again(corner, tmp_path):
    model = build(TfEncForMaskedLM, tiny(corner))
    model.save_pretrained(tmp_path)
    assert "decoder.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = TfEncForMaskedLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.model.embeddings.embed_tokens.weight


@pytest.mark.parametrize(
    "corner, new, left_over",
    [
        ("classic", {"classifier.weight", "classifier.bias"}, {"decoder.bias"}),
        (
            "bert",
            {"classifier.weight", "classifier.bias", "model.pooler.dense.weight", "model.pooler.dense.bias"},
            {"decoder.bias", "head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"},
        ),
        ("modern", {"classifier.weight", "classifier.bias"}, {"decoder.bias"}),
    ],
)
def test_a_head_that_the_checkpoint_lacks_is_new_and_reported(corner, new, left_over, tmp_path):
    model = build(TfEncForMaskedLM, tiny(corner, initializer_range=0.3))
    model.save_pretrained(tmp_path)
    loaded, report = TfEncForSequenceClassification.from_pretrained(tmp_path, num_labels=99, output_loading_info=True)
    assert set(report["missing_keys"]) == new
    assert set(report["unexpected_keys"]) == left_over
    assert loaded.classifier.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert not loaded.classifier.bias.any()


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("auto", CLASSES)
def test_bfloat16_loads_and_stays_near(checkpoints, auto, corner, tmp_path):
    model = build(TfEncModel, tiny(corner, num_labels=3))
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto).from_pretrained(tmp_path, dtype=torch.bfloat16, is_causal=False).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    check_tables(loaded, tolerance=2**-8)
    if not loaded.config.is_causal:
        ids = token_ids(2, 40)
        exact, rounded = model(ids).last_hidden_state, loaded.base_model(ids).last_hidden_state
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


# --- Initial weights -------------------------------------------------------------------------------------------------


def check_tables(model, tolerance=0):
    """That nothing but tables of positions is in the buffers, and these are right; rotary ones in float32 always."""
    checked = 0
    for module in model.modules():
        if isinstance(module, SinusoidalPositions):
            expected = sinusoidal_table(64, model.config.hidden_size)
            torch.testing.assert_close(module.table.float(), expected, rtol=0, atol=tolerance)
        elif isinstance(module, RotaryPositions):
            expected = rotary_table(torch.arange(64), module.head_dim, module.theta)
            assert torch.equal(module.bits.view(torch.float32), expected)
        else:
            continue
        checked += 1
    assert checked == len(list(model.buffers()))


def expected_deviation(config, module):
    """The standard deviation of a fresh module's weights, and None for a norm."""
    if isinstance(module, nn.Embedding):
        return config.embedding_initializer_range
    if isinstance(module, ResidualProjection):
        scale = config.residual_initializer_scale
        return config.initializer_range * ((2 * config.num_hidden_layers) ** -0.5 if scale is None else scale)
    return config.initializer_range if isinstance(module, nn.Linear) else None


@pytest.mark.parametrize("residual_initializer_scale", [None, 0.25])
@pytest.mark.parametrize("way", ["constructed", "loaded from nothing"])
@pytest.mark.parametrize("corner", CORNERS)
def test_initial_weights_of_every_role(corner, way, residual_initializer_scale):
    config = tiny(
        corner,
        hidden_size=64,
        num_labels=40,
        initializer_range=0.1,
        embedding_initializer_range=0.5,
        residual_initializer_scale=residual_initializer_scale,
        tie_word_embeddings=False,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    for model_class in (TfEncForMaskedLM, TfEncForSequenceClassification):
        if way == "constructed":
            model = model_class(config)
        else:
            model = model_class.from_pretrained(None, config=config, state_dict={})
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None:
                continue
            if (deviation := expected_deviation(config, module)) is None:
                assert (weight == 1).all(), name
            else:
                tolerance = 0.1 if weight.numel() > 1000 else 0.3
                assert weight.std().item() == pytest.approx(deviation, rel=tolerance), name
                assert abs(weight.mean().item()) < 0.2 * deviation, name
            if getattr(module, "bias", None) is not None:
                assert not module.bias.any(), name
        assert not model.get_input_embeddings().weight[3].any()
        check_tables(model)


def test_embeddings_begin_as_linear_layers_do_unless_told_otherwise():
    torch.manual_seed(0)
    model = TfEncModel(TfEncConfig(vocab_size=200, hidden_size=64, num_hidden_layers=1, initializer_range=0.3))
    assert model.embeddings.embed_tokens.weight[1:].std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("way", ["constructed", "loaded from nothing"])
def test_keys_may_begin_equal_to_queries(way):
    config = tiny(hidden_size=64, initializer_range=0.1, query_key_initializer_range=0.4)
    torch.manual_seed(0)
    model = (
        TfEncModel(config) if way == "constructed" else TfEncModel.from_pretrained(None, config=config, state_dict={})
    )
    for layer in model.layers:
        query, key, value = layer.attention.qkv_proj.weight.chunk(3)
        assert torch.equal(query, key)
        assert query.std().item() == pytest.approx(0.4, rel=0.1)
        assert value.std().item() == pytest.approx(0.1, rel=0.1)


def test_a_loaded_weight_is_never_begun_anew(tmp_path):
    """Neither the row of the pad token nor a query, which `_init_weights` fills apart from their parameter."""
    model = build(TfEncModel, tiny(query_key_initializer_range=0.4))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["layers.1.attention.qkv_proj.bias"]  # so that the module, of which a part is missing, is initialized
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = TfEncModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"layers.1.attention.qkv_proj.bias"}
    for name, tensor in state.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.layers[1].attention.qkv_proj.bias.any()
