"""Each head's question, its answer, and the sentences for what cannot be asked."""

import pytest
import torch
import torch.nn.functional as F
from transformers import pipeline

from hf_tfenc.demo.heads import CHARACTERS, HEADS, LINES, words_of

LABELS = {"id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}


def test_masks_are_filled_as_by_the_pipeline(head, tokenizer):
    made = head("TfEncForMaskedLM")
    text = "the [MASK] draws the [MASK]."
    parts = made.answer(text, "", 0.0)
    theirs = pipeline("fill-mask", model=made.model, tokenizer=tokenizer, device="cpu")(text, top_k=8)
    assert [part["title"] for part in parts] == ["[MASK] 1", "[MASK] 2"]
    for part, expected in zip(parts, theirs, strict=True):
        assert [bar["value"] for bar in part["bars"]] == pytest.approx([e["score"] for e in expected], abs=1e-4)
    assert made.answer("[MASK]", "", 0.0)[0]["title"] == "[MASK]"


def test_classes_are_scored_as_by_the_pipeline(head, tokenizer):
    made = head("TfEncForSequenceClassification", **LABELS)
    (part,) = made.answer("the cat", "", 0.0)
    theirs = pipeline("text-classification", model=made.model, tokenizer=tokenizer, device="cpu")("the cat", top_k=3)
    assert [bar["label"] for bar in part["bars"]] == [e["label"] for e in theirs]
    assert [bar["value"] for bar in part["bars"]] == pytest.approx([e["score"] for e in theirs], abs=1e-4)


def test_several_labels_and_numbers(head):
    several = head("TfEncForSequenceClassification", problem_type="multi_label_classification", **LABELS)
    values = [bar["value"] for bar in several.answer("the cat", "", 0.0)[0]["bars"]]
    logits = several.outputs(several.encode("the cat", "")).logits[0].sigmoid()
    assert values == pytest.approx(sorted(logits.tolist(), reverse=True), abs=1e-4)
    one = {"num_labels": 1, "id2label": {0: "score"}, "label2id": {"score": 0}}
    number = head("TfEncForSequenceClassification", problem_type="regression", **one)
    said = f"score: {number.outputs(number.encode('the cat', '')).logits[0, 0].item():.3f}"
    assert number.answer("the cat", "", 0.0) == [{"kind": "text", "given": "", "text": said}]


def test_a_second_text_is_read(head, tokenizer):
    made = head("TfEncForSequenceClassification", preset="bert-tiny", **LABELS)
    encoded = made.encode("the cat", "a dog")
    both = tokenizer("the cat", "a dog", return_token_type_ids=True)
    assert encoded.ids == both["input_ids"] and encoded.segments == both["token_type_ids"]
    assert made.encode("the cat", " ").ids == tokenizer("the cat")["input_ids"]


def test_many_labels_are_counted(head):
    labels = {number: f"label {number}" for number in range(20)}
    made = head("TfEncForSequenceClassification", id2label=labels, label2id={name: n for n, name in labels.items()})
    (part,) = made.answer("the cat", "", 0.0)
    assert part["title"] == "the first 12 of 20 labels" and len(part["bars"]) == 12


def test_words_are_tagged_by_their_first_token(head):
    made = head("TfEncForTokenClassification", **LABELS)
    (part,) = made.answer("My neighbour, the fox.", "", 0.0)
    assert [span["word"] for span in part["spans"]] == ["My", "neighbour", ",", "the", "fox", "."]
    ids, places = made.places(["My", "neighbour"])
    assert ids == made.tokenizer("My neighbour")["input_ids"]  # a space before each word but the first
    chances = made.model(torch.tensor([ids])).logits[0].softmax(-1)
    spans = made.answer("My neighbour", "", 0.0)[0]["spans"]
    assert [LABELS["label2id"][span["tag"]] for span in spans] == chances[places].argmax(-1).tolist()
    assert [span["chance"] for span in spans] == pytest.approx(chances[places].amax(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("London.", ["London", "."]),
        ("“(So!)” he said…", ["“", "(", "So", "!", ")", "”", "he", "said", "…"]),
        ("don't x=1 ...", ["don't", "x=1", ".", ".", "."]),
        ("नमस्ते, e\u0301a", ["नमस्ते", ",", "e\u0301a"]),
        ("  ", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_the_nearest_line_is_the_same_line(head):
    made = head("TfEncModel", pooling="mean")
    lines = ["the river", "a red house", "the last train"]
    (part,) = made.answer("a red house", "\n\n".join(lines), 0.0)
    assert part["bars"][0] == {"label": "a red house", "value": pytest.approx(1, abs=1e-4)}
    vectors = [made.outputs(made.encode(line, "")).pooler_output[0] for line in lines]
    expected = sorted((F.cosine_similarity(vectors[1], vector, dim=0).item() for vector in vectors), reverse=True)
    assert [bar["value"] for bar in part["bars"]] == pytest.approx(expected, abs=1e-4)


def test_a_text_is_gone_on_with(head, tokenizer):
    made = head("TfEncForCausalLM")
    written, likeliest = made.answer("the cat", "", 0.0)
    first = made.outputs(made.encode("the cat", "")).logits[0, -1].argmax()
    assert written["given"] == "the cat" and written["text"].startswith(tokenizer.decode([first]))
    assert written == made.answer("the cat", "", 0.0)[0]
    torch.manual_seed(0)
    assert made.answer("the cat", "", 1.0)[0] != written
    assert made.answer("the cat", "", 1e-9)[0]["given"] == "the cat"
    assert likeliest["title"] == "the next token" and likeliest["tokens"]


def test_other_heads_have_no_question(head):
    made = head("TfEncForQuestionAnswering")
    assert made.answer("the cat", "", 0.0) == [] and "no question" in made.hint


@pytest.mark.parametrize("name", HEADS)
def test_what_cannot_be_asked_is_a_sentence(head, name):
    made = head(name)
    second = "a line" if name == "TfEncModel" else ""
    for text, sentence in [
        ("", "The text is empty: write something."),
        (" \n\t", "The text is empty: write something."),
        ("x" * 50_000, f"The text has 50,000 characters, and this page takes {CHARACTERS:,}: shorten it."),
        ("the cat " * 100, "tokens, and this model reads 64: shorten it."),
    ]:
        with pytest.raises(ValueError) as refused:
            made.answer(text, second, 0.0)
        assert str(refused.value).endswith(sentence)


def test_sentences_of_single_heads(head):
    refusals = [
        ("TfEncForMaskedLM", "the cat", "", "holds no [MASK]: write it"),
        ("TfEncForMaskedLM", "[MASK] " * 9, "", "holds 9 times [MASK], and this page fills in 8"),
        ("TfEncModel", "the cat", "", "The list of lines is empty"),
        ("TfEncModel", "the cat", "a\n" * (LINES + 1), "There are 201 lines, and this page searches 200"),
        ("TfEncForSequenceClassification", "the cat", "y" * 50_000, "has 50,000 characters"),
    ]
    for name, text, second, sentence in refusals:
        with pytest.raises(ValueError) as refused:
            head(name).answer(text, second, 0.0)
        assert sentence in str(refused.value)
    with pytest.raises(ValueError, match="This model has no pooling"):
        head("TfEncModel", pooling="none").answer("the cat", "a dog", 0.0)
    full = head("TfEncForCausalLM")
    full.longest = len(full.encode("the cat", "").ids)
    with pytest.raises(ValueError, match="fills all"):
        full.answer("the cat", "", 0.0)


def test_a_diverged_model_is_a_sentence(head):
    made = head("TfEncForMaskedLM")
    made.model.decoder.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="its training has diverged"):
        made.answer("[MASK]", "", 0.0)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script> [MASK]", "שלום [MASK] עולם", "e\u0301\u0323 [MASK] \u202eabc", "\0[MASK]"]
)
def test_any_text_is_a_text(head, text):
    assert len(head("TfEncForMaskedLM").answer(text, "", 0.0)[0]["bars"]) == 8
