"""The model card: metadata that the Hub can read, and the run's own numbers."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.publish import card as card_module
from hf_tfenc.publish.card import data_card, duration, in_a_cell, public_name, renew_card, write_card
from hf_tfenc.training.arguments import Arguments

METRICS = {
    "eval_loss": 2.34567, "eval_perplexity": 10.4403, "eval_accuracy": 0.45678, "eval_loss_per_byte": 0.87654,
    "eval_unigram_loss": 6.54321, "eval_unigram_accuracy": 0.04321, "eval_bigram_accuracy": 0.32109,
    "train_runtime": 123.4, "train_steps": 4321, "train_tokens": 7654321, "train_tokens_per_second": 62345.6,
    "parameters": 98765, "python_version": "3.11.7", "examples": ["… the ____ sat …\n    'cat' 90%   (text: 'cat')"],
    "data": {
        "train": {"rows": 1234, "sequences": 5678, "tokens": 7654321},
        "validation": {"rows": 12, "sequences": 56, "tokens": 76543},
    },
    "hardware": "2 processes on CPU", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "date": "2031-05-17",
    "widget": [{"text": "the [MASK] sat"}],
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    def card(**options):
        config = preset_config("classic-tiny", vocab_size=50, hidden_size=16, num_attention_heads=2)
        args = Arguments(learning_rate=0.0123, **options)
        write_card(tmp_path, args, TfEncForMaskedLM(config).config, METRICS)
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
        "| validation | 12 | 56 | 76,543 |",
        "4,321 optimizer steps in 2 min 3 s",
        "62,346",
        "0.0123",
        "Hardware: 2 processes on CPU.",
        "Versions: torch 2.13.0, transformers 5.23.0.",
        "year = {2031}",
    ):
        assert number in text, number
    assert METRICS["examples"][0] in text
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
    loaded = card(model_name_or_path="me/before")
    assert "trained further, from me/before, on" in loaded.text and loaded.data.base_model == "me/before"
    assert "from before, on" in card(model_name_or_path="/home/ada/before").text


def test_the_test_split_stands_beside_the_validation_split(card, monkeypatch):
    assert "once, at the end" not in card().text and "| masked-token accuracy | 0.457 |\n" in card().text
    monkeypatch.setitem(METRICS, "test_accuracy", 0.56789)
    monkeypatch.setitem(METRICS, "test_loss", 2.0)
    loaded = card(test_file=["/home/ada/new.txt"])
    assert "once, at the end, on new.txt" in loaded.text and "| masked-token accuracy | 0.457 | 0.568 |" in loaded.text
    assert ("new.txt", "accuracy", 0.5679) in {
        (result.dataset_name, result.metric_type, result.metric_value) for result in loaded.data.eval_results
    }


def test_a_data_set_is_named(card, tmp_path):
    assert "trained from scratch on ada/letters\n" in card(dataset_name="ada/letters").text
    (tmp_path / "secret" / "letters").mkdir(parents=True)
    loaded = card(dataset_name=str(tmp_path / "secret" / "letters"))
    assert "trained from scratch on letters\n" in loaded.text and loaded.data.datasets is None
    assert {result.dataset_name for result in loaded.data.eval_results} == {"held-out part of letters"}


def test_metadata_says_what_the_user_says_of_it(card):
    data = card(license="apache-2.0", language=["en", "de"], dataset_name="ada/letters").data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en", "de"], "ada/letters")
    assert data.widget == [{"text": "the [MASK] sat"}]
    assert card().data.license is None and card().data.base_model is None


def test_it_is_as_the_hub_wants_it(card):
    """What the Hub checks of a card when it is uploaded."""
    data = card(license="mit", language=["en"], dataset_name="ada/letters").data.to_dict()
    assert data["pipeline_tag"] == "fill-mask" and re.fullmatch("[a-z0-9.-]+", data["license"])
    (index,) = data["model-index"]
    for result in index["results"]:
        assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        assert result["metrics"] and all(isinstance(metric["value"], float) for metric in result["metrics"])
    assert all(isinstance(value, str | list) for value in data.values())


def test_a_leaderboard_reads_what_was_measured_on_a_dataset_of_the_hub(card, tmp_path, monkeypatch):
    card(train_file=["a.txt"])
    assert not (tmp_path / ".eval_results").exists()
    card(dataset_name="ada/letters", dataset_config_name="long")
    written = yaml.safe_load((tmp_path / ".eval_results" / "ada--letters.yaml").read_text())
    (entry,) = parse_eval_result_entries(written)
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == ("ada/letters", "long", 0.4568, "2031-05-17")
    assert entry.notes == "masked-token accuracy, on held-out part of ada/letters"
    monkeypatch.setitem(METRICS, "test_accuracy", 0.56789)
    card(dataset_name="ada/letters", dataset_config_name="long")
    (entry,) = parse_eval_result_entries(
        yaml.safe_load((tmp_path / ".eval_results" / "ada--letters.yaml").read_text())
    )
    assert entry.value == 0.5679 and "test split" in entry.notes


@pytest.mark.parametrize("where", ["dataset_name", "train_file"])
def test_the_licence_of_the_data_is_what_the_data_says(tmp_path, where):
    folder = tmp_path / "letters"
    folder.mkdir()
    options = {where: str(folder) if where == "dataset_name" else [str(folder / "train.txt")]}
    assert data_card(Arguments(**options)) == {}
    card = "---\nlicense: cc-by-4.0\nlanguage:\n- de\n{}pretty_name: x\n---\n# Letters\n"
    known = {"license": "cc-by-4.0", "language": ["de"]}
    (folder / "README.md").write_text(card.format("configs: []\n"))
    assert data_card(Arguments(**options)) == known
    (folder / "README.md").write_text(card.format(""))  # of something else, maybe
    assert data_card(Arguments(**options)) == (known if where == "dataset_name" else {})
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert data_card(Arguments(**options)) == {}


def test_the_licence_and_the_language_of_the_data_are_in_it(card, monkeypatch):
    assert "Licence of the data: not known." in card(train_file=["a.txt"]).text
    monkeypatch.setitem(METRICS, "data_card", {"license": "cc-by-4.0", "language": ["de"]})
    loaded = card(train_file=["a.txt"])
    assert "Licence of the data: cc-by-4.0." in loaded.text and loaded.data.license is None
    assert loaded.data.language == ["de"] and card(train_file=["a.txt"], language=["en"]).data.language == ["en"]


def test_options_that_are_not_the_defaults_are_in_it(card):
    loaded = card(
        seed=7, train_file=["/home/ada/a.txt"], tokenizer_name="/home/ada/tokens", output_dir="/home/ada/out"
    )
    (options,) = re.findall("```yaml\n(.*?)```", loaded.text, re.DOTALL)
    assert yaml.safe_load(options) == {"seed": 7, "tokenizer_name": "tokens"} and "home" not in str(loaded)
    assert "not the defaults" not in card().text


def test_an_example_may_hold_code(card, monkeypatch):
    monkeypatch.setitem(METRICS, "examples", ["```", "a ````b```` c"])
    assert "`````\n```\na ````b```` c\n`````\n" in card().text
    monkeypatch.setitem(METRICS, "examples", [])
    assert "Held-out examples" not in card().text


def test_labels_stand_in_a_table(tmp_path):
    names = {number: f"a|{number}" for number in range(40)}
    config = preset_config("classic-tiny", vocab_size=50, id2label=names)
    write_card(tmp_path, Arguments(task="sequence-classification", learning_rate=0.1), config, METRICS)
    (line,) = re.findall("[|] labels [|].*", (tmp_path / "README.md").read_text())
    assert line.startswith(r"| labels | a\|0, a\|1, ") and line.endswith(", … (40) |")


def test_a_picture_is_shown_where_there_is_one(card, tmp_path):
    assert "loss.png" not in card().text
    (tmp_path / "loss.png").write_bytes(b"")
    assert "](loss.png)" in card().text


def test_a_card_that_was_edited_is_never_overwritten(card, tmp_path, caplog):
    card()
    card(seed=7)
    assert "seed 7" in (tmp_path / "README.md").read_text() and not caplog.messages
    edited = (tmp_path / "README.md").read_text().replace("## Limits", "## Limits and more")
    (tmp_path / "README.md").write_text(edited)
    card(seed=8)
    assert (tmp_path / "README.md").read_text() == edited
    assert "seed 8" in (tmp_path / "README.new.md").read_text()
    assert caplog.messages == [
        f"{tmp_path / 'README.md'} has been edited and stays as it is; the card of this run is README.new.md."
    ]


def test_a_card_of_an_older_run_can_be_written(card, monkeypatch):
    for name in ("data", "hardware", "versions", "date", "widget"):
        monkeypatch.delitem(METRICS, name)
    text = card().text
    assert not [word for word in ("year = ", "| validation | 12", "Versions", "Hardware", "None") if word in text]


def test_a_finished_run_may_be_given_a_licence(card, tmp_path):
    card(language=["en"])
    args = Arguments(output_dir=str(tmp_path), language=["en"], seed=7, learning_rate=0.0123)
    (tmp_path / "train_config.yaml").write_text(args.to_yaml())
    config = preset_config("classic-tiny", vocab_size=50)
    renew_card(tmp_path, Arguments(license="mit", seed=8), config, METRICS)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert (loaded.data.license, loaded.data.language) == ("mit", ["en"]) and "seed 7" in loaded.text
    assert yaml.safe_load((tmp_path / "train_config.yaml").read_text()) == yaml.safe_load(args.to_yaml()) | {
        "license": "mit"
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    renew_card(tmp_path, Arguments(), config, METRICS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("seconds, words", [(7.4, "7 s"), (123, "2 min 3 s"), (7384, "2 h 3 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_names_that_others_may_know(tmp_path):
    assert public_name("ada/letters") == "ada/letters"
    assert [public_name(name) for name in (str(tmp_path), "/none/here", "../here", "~/here")] == [tmp_path.name] + [
        "here"
    ] * 3


@pytest.mark.parametrize(
    "label, cell",
    [("x\ny", "x y"), ("<NAME>", "&lt;NAME&gt;"), ("a|b", r"a\|b"), (r"a\|b", r"a\\\|b"), ("a & b", "a &amp; b")],
)
def test_a_label_stays_in_its_cell(label, cell):
    assert in_a_cell(label) == cell
