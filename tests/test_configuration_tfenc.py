"""The configuration: its words, what it works out, what it refuses, what it writes and reads."""

import json
import logging

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hf_tfenc import TfEncConfig
from hf_tfenc.configuration_tfenc import AUTO_MAP


@pytest.fixture(autouse=True)
def fresh_warnings():
    """Let `warning_once` speak in each test."""
    transformers.utils.logging.warning_once.cache_clear()


def test_the_defaults_are_the_textbook_encoder():
    config = TfEncConfig()
    assert config.position_embedding_type == "sinusoidal"
    assert config.norm_position == "post"
    assert config.hidden_act == "relu"
    assert (config.hidden_dropout, config.attention_dropout) == (0.1, 0.0)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (512, 8, 6)
    assert not (config.gated_mlp or config.is_causal or config.sparse_prediction or config.type_vocab_size)


def test_the_textbooks_words_are_taken_and_read():
    config = TfEncConfig(d_model=64, nhead=4, num_layers=2, dim_feedforward=128, max_len=99)
    assert config.hidden_size == config.d_model == 64
    assert config.num_attention_heads == config.nhead == 4
    assert config.num_hidden_layers == config.num_layers == 2
    assert config.intermediate_size == config.dim_feedforward == 128
    assert config.max_position_embeddings == config.max_len == 99
    assert "d_model" not in config.to_dict()


@pytest.mark.parametrize(
    "options, scale",
    [
        ({}, 8.0),
        ({"embedding_scale": 3}, 3),
        ({"position_embedding_type": "learned"}, 1.0),
        ({"position_embedding_type": "rotary"}, 1.0),
        ({"position_embedding_type": "none"}, 1.0),
    ],
)
def test_tokens_are_scaled_up_where_the_table_would_drown_them(options, scale):
    assert TfEncConfig(hidden_size=64, **options).embedding_scale == scale


def test_each_layer_type_has_its_own_rotary_base():
    options = {
        "position_embedding_type": "rotary",
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 8,
    }

    def bases(rope_parameters):
        config = TfEncConfig(**options, rope_parameters=rope_parameters)
        assert all(parameters["rope_type"] == "default" for parameters in config.rope_parameters.values())
        return [config.rope_parameters[kind]["rope_theta"] for kind in options["layer_types"]]

    assert bases(None) == [10_000.0, 10_000.0]
    assert bases({"rope_theta": 500.0}) == [500.0, 500.0]
    assert bases({"full_attention": {"rope_theta": 7.0}}) == [7.0, 10_000.0]
    assert bases({"rope_theta": 500.0, "sliding_attention": {"rope_theta": 7.0}}) == [500.0, 7.0]


ROTARY = {"position_embedding_type": "rotary"}
ONE_LOCAL_LAYER = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"hiden_size": 64}, "'hiden_size' is not an option of TfEncConfig. Did you mean 'hidden_size'?"),
        ({"d_modle": 64}, "'d_modle' is not an option of TfEncConfig. Did you mean 'd_model'?"),
        ({"xyz": 1}, "'xyz' is not an option of TfEncConfig. TfEncConfig's docstring lists the options."),
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1."),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1."),
        ({"hidden_size": -8}, "hidden_size is -8; it must be at least 1."),
        ({"type_vocab_size": -1}, "type_vocab_size is -1; it must be at least 0."),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0; it must not be below 0."),
        (
            {"position_embedding_type": "rotary", "rope_parameters": {"rope_theta": -1.0, "rope_type": "default"}},
            "rope_theta is -1.0; it must be a number above 0.",
        ),
        (
            {"position_embedding_type": "rotary", "rope_parameters": {"rope_theta": "1e5"}},
            "rope_theta is '1e5'; it must be a number above 0.",
        ),
        (
            {"position_embedding_type": "rotary", "rope_parameters": {"full_attention": 10_000}},
            "rope_parameters of full_attention are 10000; write them as {'rope_theta': 10000.0}.",
        ),
        ({"initializer_range": -1}, "initializer_range is -1; it must not be below 0."),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1."),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1."),
        ({"intermediate_size": 0}, "intermediate_size is 0; it must be at least 1."),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; it must be at least 1."),
        (
            {"vocab_size": 10, "pad_token_id": 10},
            "pad_token_id is 10, outside the vocabulary of 10 tokens.",
        ),
        ({"embedding_scale": 0.0}, "embedding_scale is 0.0; it must be above 0."),
        (
            {"hidden_size": 65, "num_attention_heads": 8},
            "hidden_size 65 is not divisible by num_attention_heads 8; change either.",
        ),
        (
            {"hidden_size": 15, "num_attention_heads": 5},
            "Sinusoidal positions come in pairs of sine and cosine; hidden_size 15 is odd.",
        ),
        (
            {"hidden_size": 20, "num_attention_heads": 4} | ROTARY,
            "Rotary positions turn pairs of features; hidden_size 20 over 4 heads is 5 a head, which is odd.",
        ),
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 2},
            "layer_types names 2 layers, num_hidden_layers is 3; they must agree.",
        ),
        (
            {"num_hidden_layers": 1, "layer_types": ["local"]},
            "layer_types holds 'local'; each entry is one of full_attention, sliding_attention.",
        ),
        (
            ONE_LOCAL_LAYER,
            "layer_types has sliding_attention and sliding_window is None; set it to the number of tokens seen to "
            "each side.",
        ),
        (
            ONE_LOCAL_LAYER | {"sliding_window": 0},
            "layer_types has sliding_attention and sliding_window is 0; set it to the number of tokens seen to each "
            "side.",
        ),
        (
            {"rope_parameters": {"rope_theta": 10_000.0}},
            "rope_parameters go with rotary positions; position_embedding_type is 'sinusoidal'.",
        ),
        (
            ROTARY | {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters {'rope_type': 'linear', 'rope_theta': 10000.0} are not supported; for each layer type "
            "give only rope_theta.",
        ),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' is no activation of transformers; one is ['gelu', "),
        ({"classifier_activation": "gelo"}, "classifier_activation 'gelo' is no activation of transformers; one is ["),
        ({"pooler_activation": "tan"}, "pooler_activation 'tan' is no activation of transformers; one is ["),
        (
            {"pooler_activation": "tanh", "pooling": "none"},
            "pooler_activation 'tanh' needs pooling cls or mean; pooling is none.",
        ),
        ({"embedding_dropout": 1.0}, "embedding_dropout is 1.0; a dropout rate lies in [0, 1)."),
        ({"hidden_dropout": -0.1}, "hidden_dropout is -0.1; a dropout rate lies in [0, 1)."),
        ({"attention_dropout": 2}, "attention_dropout is 2; a dropout rate lies in [0, 1)."),
        ({"mlp_dropout": 1.5}, "mlp_dropout is 1.5; a dropout rate lies in [0, 1)."),
        ({"classifier_dropout": 1.5}, "classifier_dropout is 1.5; a dropout rate lies in [0, 1)."),
    ],
    ids=lambda value: (
        "+".join(f"{name}={setting}" for name, setting in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_what_cannot_work_is_one_sentence(options, sentence):
    with pytest.raises(ValueError) as error:
        TfEncConfig(**options)
    message = str(error.value)
    assert message.startswith(sentence) if sentence.endswith(("[", ", ")) else message == sentence
    assert "\n" not in message


def test_an_unknown_problem_type():
    """Some versions of transformers look at it first, in words of their own."""
    with pytest.raises(
        (ValueError, StrictDataclassFieldValidationError), match=r"regresion.*(none|one) of.*regression"
    ):
        TfEncConfig(problem_type="regresion")


@pytest.mark.parametrize(
    "options, choices",
    [
        ({"position_embedding_type": "alibi"}, "('sinusoidal', 'learned', 'rotary', 'none')"),
        ({"norm_position": "middle"}, "('post', 'pre')"),
        ({"pooling": "max"}, "('cls', 'mean', 'none')"),
        ({"head_transform": "some"}, "('none', 'lm', 'all')"),
        ({"hidden_size": "64"}, "expected int, got str"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused_with_the_right_ones(options, choices):
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        TfEncConfig(**options)
    assert choices in str(error.value)


def test_a_sinusoidal_table_needs_an_even_width_and_no_other_positions_do():
    for kind in ("learned", "none"):
        TfEncConfig(hidden_size=15, num_attention_heads=5, position_embedding_type=kind)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_size": 24, "num_attention_heads": 3, "pooling": "mean", "num_labels": 4},
        ROTARY | ONE_LOCAL_LAYER | {"sliding_window": 3, "rope_parameters": {"rope_theta": 500.0}},
        {"id2label": {0: "no", 1: "yes"}, "problem_type": "multi_label_classification", "pad_token_id": None},
    ],
    ids=["defaults", "other sizes", "rotary", "labels"],
)
def test_a_saved_configuration_reads_back_equal(options, tmp_path):
    config = TfEncConfig(**options)
    config.save_pretrained(tmp_path)
    loaded = TfEncConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is TfEncConfig


def test_options_given_on_loading_win(tmp_path):
    TfEncConfig(hidden_dropout=0.2).save_pretrained(tmp_path)
    config, unused = TfEncConfig.from_pretrained(tmp_path, hidden_dropout=0.3, max_len=7, return_unused_kwargs=True)
    assert config.hidden_dropout == 0.3
    assert config.max_position_embeddings == 7
    assert not unused


def test_an_unknown_key_in_a_saved_file_is_kept_with_one_warning(tmp_path, caplog):
    """A newer version may have written it."""
    TfEncConfig(hidden_size=64).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"future_option": [1, 2], "another": "x"}))
    with caplog.at_level(logging.WARNING):
        configs = [TfEncConfig.from_pretrained(tmp_path) for _ in range(2)]
    warnings = [record.message for record in caplog.records if "does not know" in record.message]
    assert warnings == ["config.json has keys that this version of TfEncConfig does not know: another, future_option."]
    assert all(config.future_option == [1, 2] and config.hidden_size == 64 for config in configs)
    configs[0].save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["future_option"] == [1, 2]


def test_every_option_is_explained():
    """The docstring names each field of the class itself, apart from the ids of special tokens."""
    inherited = set(transformers.PreTrainedConfig().to_dict()) | set(dir(transformers.PreTrainedConfig))
    own = {name for name in TfEncConfig.__annotations__ if name not in inherited and not name.endswith("_token_id")}
    assert not {name for name in own if f"{name}" not in TfEncConfig.__doc__}
