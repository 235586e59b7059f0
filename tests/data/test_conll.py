"""CoNLL and CoNLL-U, by small files and against the reader of `datasets`."""

import pytest
from datasets import Dataset, load_dataset

from hf_tfenc.data import conll

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
. . O O

Peter NNP B-NP B-PER
"""

CONLLU = """# sent_id = 1
# text = Don't go = stay
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\tMood=Imp\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\tVB\t_\t_\t_\t_\t_

1\tNew York\tNew York\tPROPN\tNNP\t_\t0\troot\t_\t_

# a comment alone
"""


@pytest.fixture
def rows(tmp_path):
    def rows(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return list(conll.rows([path], "conllu" if name.endswith("u") else "conll"))

    return rows


def test_conll(rows):
    assert rows("a.conll", CONLL) == [
        {
            "words": ["EU", "rejects", "."],
            "column_2": ["NNP", "VBZ", "."],
            "column_3": ["B-NP", "B-VP", "O"],
            "tags": ["B-ORG", "O", "O"],
        },
        {"words": ["Peter"], "column_2": ["NNP"], "column_3": ["B-NP"], "tags": ["B-PER"]},
    ]


def test_as_datasets_reads_it(tmp_path, cache, offline):
    pytest.importorskip("datasets.packaged_modules.conll")  # since datasets 5.2
    path = tmp_path / "a.conll"
    path.write_text(CONLL)
    names = ["words", "column_2", "column_3", "tags"]
    theirs = load_dataset("conll", data_files=str(path), split="train", column_names=names)
    assert Dataset.from_list(list(conll.rows([path], "conll"))).to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        b"New York\tB-LOC\nis\tO\n \n\n\nbig\tO",  # a blank within a word, several blank lines, no last line break
        b"\xef\xbb\xbfNew York\tB-LOC\r\nis\tO\r\n\r\nbig\tO\r\n",  # as Windows writes it
    ],
)
def test_tabs_and_line_ends(rows, text):
    assert rows("a.bio", text) == [
        {"words": ["New York", "is"], "tags": ["B-LOC", "O"]},
        {"words": ["big"], "tags": ["O"]},
    ]


def test_a_blank_that_does_not_break(rows):
    assert rows("a.conll", "10\u00a0000  O \nmen   O\t\n") == [{"words": ["10\u00a0000", "men"], "tags": ["O", "O"]}]


def test_words_without_tags(rows):
    assert rows("a.conll", "one\ntwo\n\nthree\n") == [{"words": ["one", "two"]}, {"words": ["three"]}]


def test_conllu(rows):
    assert rows("a.conllu", CONLLU) == [
        {
            "text": "Don't go = stay",
            "words": ["Do", "n't", "go"],
            "lemma": ["do", "not", "go"],
            "upos": ["AUX", "PART", "VERB"],
            "xpos": ["VB", "RB", "VB"],
            "feats": ["Mood=Imp", "_", "_"],
            "deprel": ["aux", "advmod", "root"],
        },
        {
            "text": None,
            "words": ["New York"],
            "lemma": ["New York"],
            "upos": ["PROPN"],
            "xpos": ["NNP"],
            "feats": ["_"],
            "deprel": ["root"],
        },
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.conll",
            "EU NNP B-ORG\n\nPeter NNP\n",
            "line 3: the number of columns is 2, and the file's first line has 3: mend the line.",
        ),
        (
            "a.conllu",
            CONLLU.replace("3\tgo\tgo", "3 go go"),
            "line 6: the number of columns is 8, and CoNLL-U has 10: mend the line.",
        ),
    ],
)
def test_lines_with_other_columns(rows, name, text, message):
    with pytest.raises(ValueError) as error:
        rows(name, text)
    assert str(error.value) == message
