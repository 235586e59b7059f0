"""The model card: metadata that the Hub can read, and the run's own numbers."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.publish import card as card_module
from hf_tfenc.publish.card import write_card
from hf_tfenc.training.arguments import Arguments

METRICS = {
    "eval_loss": 2.34567, "eval_perplexity": 10.4403, "eval_accuracy": 0.45678, "eval_loss_per_byte": 0.87654,
    "eval_unigram_loss": 6.54321, "eval_unigram_accuracy": 0.04321, "eval_bigram_accuracy": 0.32109,
    "train_runtime": 123.4, "train_steps": 4321, "train_tokens": 7654321, "train_tokens_per_second": 62345.6,
    "parameters": 98765, "python_version": "3.11.7", "examples": ["… the ____ sat …\n    'cat' 90%   (text: 'cat')"],
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    def card(**options):
        config = preset_config("classic-tiny", vocab_size=50, hidden_size=16, num_attention_heads=2)
        args = Arguments(learning_rate=0.0123, **options)
        write_card(tmp_path, args, TfEncForMaskedLM(config), METRICS)
        return ModelCard.load(tmp_path / "README.md")

    return card


def test_metadata_can_be_read(card, tmp_path):
    loaded = card(hub_model_id="me/mine")
    front = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    data = yaml.safe_load(front)
    assert (
        data["library_name"] == "transformers" and data["pipeline_tag"] == "fill-mask" and "hf_tfenc" in data["tags"]
    )
    assert loaded.data.model_name == "mine"
    measured = {result.metric_type: result.metric_value for result in loaded.data.eval_results}
    assert measured == {"loss": 2.3457, "perplexity": 10.4403, "accuracy": 0.4568, "loss_per_byte": 0.8765}
    assert {result.dataset_name for result in loaded.data.eval_results} == {
        "held-out part of Python's own documentation"
    }


def test_the_runs_numbers_are_in_it(card):
    text = card().text
    for number in (
        "0.457",
        "0.321",
        "0.043",
        "2.346",
        "6.543",
        "0.877",
        "98,765",
        "7,654,321",
        "4,321",
        "62,346",
        "0.0123",
    ):
        assert number in text, number
    assert METRICS["examples"][0] in text and "](loss.png)" in text
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_it_tells_how_to_load_the_model(card, tmp_path):
    assert f'pipeline("fill-mask", "{tmp_path}")' in card().text
    assert 'pipeline("fill-mask", "me/mine")' in card(hub_model_id="me/mine").text


def test_it_names_files_without_where_they_lay(card):
    loaded = card(train_file=["/home/ada/secret project/letters.txt", "more"], validation_file=["/home/ada/held.txt"])
    assert "letters.txt, more" in loaded.text and "secret project" not in str(loaded)
    assert {result.dataset_name for result in loaded.data.eval_results} == {"held.txt"}


def test_an_odd_name_breaks_nothing(card):
    loaded = card(train_file=['a: "b" {{ c }} #d.txt'])
    assert 'a: "b" {{ c }} #d.txt' in loaded.text
    assert loaded.data.eval_results[0].dataset_name == 'held-out part of a: "b" {{ c }} #d.txt'


def test_the_template_is_found_where_a_wheel_puts_it(card, tmp_path, monkeypatch):
    assert card_module.TEMPLATES[0].exists()
    monkeypatch.setattr(card_module, "TEMPLATES", (tmp_path / "none.md", card_module.TEMPLATES[0]))
    assert "How to use it" in card().text


def test_it_says_whether_the_model_began_from_scratch(card):
    assert "trained from scratch on" in card().text
    assert "trained further on" in card(model_name_or_path="me/before").text


def test_the_test_split_stands_apart(card, monkeypatch):
    assert "looked at once" not in card().text
    monkeypatch.setitem(METRICS, "test_accuracy", 0.56789)
    loaded = card(test_file=["/home/ada/new.txt"])
    assert "looked at once" in loaded.text and "| masked-token accuracy | 0.568 |" in loaded.text
    assert ("new.txt", "accuracy", 0.5679) in {
        (result.dataset_name, result.metric_type, result.metric_value) for result in loaded.data.eval_results
    }


def test_a_data_set_is_named(card, tmp_path):
    assert "trained from scratch on ada/letters with" in card(dataset_name="ada/letters").text
    (tmp_path / "secret" / "letters").mkdir(parents=True)
    loaded = card(dataset_name=str(tmp_path / "secret" / "letters"))
    assert "trained from scratch on letters with" in loaded.text
    assert {result.dataset_name for result in loaded.data.eval_results} == {"held-out part of letters"}
