"""Folders laid out as on the Hub, and what is said where there is neither such a folder nor the Hub."""

import json
import socket

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_tfenc.data.sources import Column, Source, load_split, load_splits

COLUMNS = [
    Column("text", "text", ("text", "sentence"), option="--text_column"),
    Column("label", "label", ("label", "score"), option="--label_column"),
]

pytestmark = pytest.mark.usefixtures("cache", "offline")


def readme(*configs):
    return "---\nconfigs:\n" + "".join(f"- {json.dumps(config)}\n" for config in configs) + "---\n# A data set\n"


def config(name, **files):
    return {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}


def rows(*texts):
    return [{"text": text, "label": number} for number, text in enumerate(texts)]


def texts_of(splits):
    return {split: rows["text"][:] for split, rows in splits.items()}


def sentence(**options):
    with pytest.raises((ValueError, OSError)) as error:
        load_splits(Source(**options), COLUMNS)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(write, tmp_path):
    """Two configurations: `one` by default, with all splits; `two` with other names for them."""
    write("set/one/a.jsonl", rows("one a"))
    write("set/one/b.jsonl", rows("one b"))
    write("set/one/dev.csv.jsonl", rows("one c"))
    write("set/one/t.jsonl", rows("one d"))
    write("set/two/x.csv", "sentence,score\nNA,1\n42,0.5\n")
    write("set/two/y.csv", "sentence,score\ntwo y,1\n")
    write("set/two/z.csv", "sentence,score\ntwo z,1\n")
    write(
        "set/README.md",
        readme(
            {"default": True} | config("one", train="one/[ab].jsonl", validation="one/dev*", test="one/t.jsonl"),
            config("two", train="two/x.csv", validation_matched="two/y.csv", extra="two/z.csv"),
        ),
    )
    return str(tmp_path / "set")


def test_configurations(folder, log):
    assert texts_of(load_splits(Source(dataset_name=folder), COLUMNS)) == {
        "train": ["one a", "one b"],
        "validation": ["one c"],
        "test": ["one d"],
    }
    assert log.messages == []
    splits = load_splits(Source(dataset_name=folder, dataset_config_name="two"), COLUMNS)
    assert texts_of(splits) == {"train": ["NA", "42"], "validation": ["two y"]}
    assert splits["validation"]["label"][:] == [1.0]
    assert log.messages == [
        f"--dataset_name {folder} (two): validation is its split 'validation_matched'; the splits left out are extra.",
        f"--dataset_name {folder}/two/x.csv: columns by convention are 'sentence' for text, 'score' for label; "
        "--text_column and --label_column name others.",
    ]


def test_files_go_before_the_folders_splits(folder, write):
    other = write("other.jsonl", rows("other"))
    splits = load_splits(Source(dataset_name=folder, test_file=other), COLUMNS)
    assert texts_of(splits)["test"] == ["other"] and texts_of(splits)["validation"] == ["one c"]


def test_files_by_their_names_alone(write, tmp_path):
    for name in ("train", "validation", "test"):
        write(f"plain/{name}.csv", f"text,label\n{name},1\n")
    splits = load_splits(Source(dataset_name=str(tmp_path / "plain")), COLUMNS)
    assert texts_of(splits) == {name: [name] for name in ("train", "validation", "test")}


def test_a_lone_split_is_trained_on(write, tmp_path, log):
    write("lone/v.jsonl", rows(*map(str, range(100))))
    write("lone/README.md", readme(config("default", validation="v.jsonl")))
    splits = load_splits(Source(dataset_name=str(tmp_path / "lone")), COLUMNS)
    assert list(splits) == ["train", "validation"] and sum(map(len, splits.values())) == 100
    assert log.messages[0] == f"--dataset_name {tmp_path / 'lone'}: train is its split 'validation'."


def test_conll_in_a_folder(write, tmp_path):
    pytest.importorskip("datasets.packaged_modules.conll")  # since datasets 5.2
    write("tagged/a.conllu", "# text = Dogs\n1\tDogs\tdog\tNOUN\tNNS\t_\t0\troot\t_\t_\n\n")
    write("tagged/b.conllu", "1-2\tcats\t" + "_\t" * 7 + "_\n1\tCats\tcat\tNOUN\tNNS\t_\t0\troot\t_\t_\n\n")
    write("tagged/README.md", readme(config("default", train="a.conllu", validation="b.conllu")))
    columns = [Column("words", "words", ()), Column("tags", "tags", ("upos",), "xpos", "--tags_column")]
    splits = load_splits(Source(dataset_name=str(tmp_path / "tagged")), columns)
    assert {split: rows.to_dict() for split, rows in splits.items()} == {
        "train": {"words": [["Dogs"]], "tags": [["NNS"]]},
        "validation": {"words": [["Cats"]], "tags": [["NNS"]]},
    }


def test_bad_rows_are_found_in_their_file(write, tmp_path):
    write("bad/train.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n')
    write("bad/README.md", readme(config("default", train="train.jsonl")))
    assert sentence(dataset_name=str(tmp_path / "bad")) == (
        f"--dataset_name {tmp_path / 'bad' / 'train.jsonl'}, line 2, character 13: "
        "this is not JSON (Expecting ',' delimiter): mend the line."
    )


def test_a_configuration_that_says_how_to_read(write, tmp_path):
    write("odd/a.csv", "a;1\nb;0\n")
    write("odd/b.csv", "c;1\n")
    reading = {"sep": ";", "column_names": ["text", "label"]}
    write("odd/README.md", readme(config("default", train="a.csv", test="b.csv") | reading))
    splits = load_splits(Source(dataset_name=str(tmp_path / "odd")), COLUMNS)
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == ["a", "b"]
    assert splits["test"].to_dict() == {"text": ["c"], "label": [1]}


def test_class_labels_of_a_saved_data_set(tmp_path, log):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})

    def save(split, labels):
        texts = [f"{split} {number}" for number in range(len(labels))]
        rows = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        rows.to_parquet(tmp_path / "saved" / f"{split}.parquet")

    (tmp_path / "saved").mkdir()
    save("train", [1, 0])
    save("validation", [1])
    save("test", [-1, -1])  # as GLUE's: their labels are kept by those who test
    splits = load_splits(Source(dataset_name=str(tmp_path / "saved")), COLUMNS)
    assert splits["train"]["label"][:] == ["yes", "no"]
    assert list(splits) == ["train", "validation"]
    where = f"--dataset_name {tmp_path / 'saved' / 'test.parquet'}"
    assert log.messages[-1] == (
        f"{where}: no row has a label in the column 'label': name another with --label_column. "
        "The test split is left out."
    )
    given = str(tmp_path / "saved" / "test.parquet")
    assert sentence(dataset_name=str(tmp_path / "saved"), test_file=given).startswith(f"--test_file {given}: no row")


def test_what_cannot_be_found(folder, write, tmp_path):
    assert sentence(dataset_name="nobody/nothing") == (
        "--dataset_name nobody/nothing is no folder here, and the Hugging Face Hub cannot be reached: "
        "check the connection, or give files with --train_file."
    )
    found = sentence(dataset_name=folder, dataset_config_name="three")
    assert found.startswith(f"--dataset_name {folder} (three) cannot be read (BuilderConfig 'three' not found.")
    write("tests/v.jsonl", rows("a"))
    write("tests/README.md", readme(config("default", validation="v.jsonl", test="v.jsonl")))
    assert sentence(dataset_name=str(tmp_path / "tests")) == (
        f"--dataset_name {tmp_path / 'tests'} has no split to train on, only validation, test: "
        "give rows with --train_file, and a file of these with --validation_file or --test_file."
    )
    (tmp_path / "empty").mkdir()
    assert sentence(dataset_name=str(tmp_path / "empty")).startswith(
        f"--dataset_name {tmp_path / 'empty'} cannot be read ("
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"train_file": "a", "dataset_name": "b"},
            "--train_file and --dataset_name both say where training rows come from: give one.",
        ),
        (
            {"dataset_config_name": "en"},
            "--dataset_config_name en belongs to a --dataset_name: give that too.",
        ),
        (
            {"dataset_revision": "main", "train_file": "a"},
            "--dataset_revision main belongs to a --dataset_name: give that too.",
        ),
    ],
)
def test_options_that_exclude_each_other(options, expected):
    assert sentence(**options) == expected


def test_a_revision_of_a_folder(folder):
    assert sentence(dataset_name=folder, dataset_revision="v1") == (
        f"--dataset_revision v1 is of the Hub, and --dataset_name {folder} is a folder: leave it out."
    )


def test_a_folder_opens_no_connection(folder, monkeypatch):
    # Even where the user has not forbidden it.
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def looked_up(*_, **__):
        raise AssertionError("a folder needs no network")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    load_splits(Source(dataset_name=folder), COLUMNS)


def test_one_split_to_evaluate_on(folder, write, tmp_path, log):
    assert load_split(Source(dataset_name=folder), COLUMNS)["test"]["text"][:] == ["one d"]
    two = Source(dataset_name=folder, dataset_config_name="two")
    assert load_split(two, COLUMNS)["test"].to_dict() == {"text": ["two y"], "label": [1]}
    other = write("other.jsonl", rows("other", "rest"))
    assert load_split(Source(test_file=other, max_eval_samples=1), COLUMNS)["test"]["text"][:] == ["other"]
    write("lone/v.jsonl", rows("lone"))
    write("lone/README.md", readme(config("default", validation="v.jsonl")))
    assert load_split(Source(dataset_name=str(tmp_path / "lone")), COLUMNS)["test"]["text"][:] == ["lone"]
    for source, has in ((Source(train_file=other), "the data has only train"), (Source(), "no data is given")):
        with pytest.raises(ValueError) as error:
            load_split(source, COLUMNS)
        assert str(error.value) == f"There are no rows to evaluate on, {has}: name a file with --test_file."
