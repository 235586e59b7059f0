"""What the page asks of each head: a text, and how the answer is shown.

An answer is made of parts: `bars` (a title, and labels with numbers), `spans` (words with tags), and `text`.
"""

import unicodedata
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tasks.token_classification import special_tokens_around
from ..tokenization import encode_rows
from .inside import token_texts

CHARACTERS, LINES, MASKS, TOKENS = 10_000, 200, 8, 512  # at most
SHOWN = 8  # candidates for a mask, or for the next token
SHOWN_LABELS = 12
NEW_TOKENS = 40
LEAST_TEMPERATURE = 0.05  # below it chances overflow


class Encoded(NamedTuple):
    """A text as the model reads it: token ids and, where it tells two texts apart, which text each is of."""

    ids: list[int]
    segments: list[int] | None = None


class Head:
    """A model without a head that the page can ask: its inside can be looked at.

    Args:
        model: in evaluation mode
    """

    title = "A text to look at"
    hint = "This page has no question for this model's head. What happens inside it is shown below."
    button = "Look"
    example = "Return a new object."
    second = ""  # what the second text is, if there is one
    second_example = ""
    temperature = False  # whether there is a choice of one

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.longest = min(TOKENS, tokenizer.model_max_length)
        if model.config.position_limit is not None:
            self.longest = min(self.longest, model.config.position_limit)

    def encode(self, text: str, second: str) -> Encoded:
        """Raises ValueError, one sentence, for what cannot be asked."""
        encoded = self.tokenize(checked(text), second)
        if len(encoded.ids) > self.longest:
            raise ValueError(
                f"The text has {len(encoded.ids):,} tokens, and this model reads {self.longest:,}: shorten it."
            )
        return encoded

    def tokenize(self, text: str, second: str) -> Encoded:
        return Encoded(encode_rows(self.tokenizer, [text])["input_ids"][0])

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        """The parts of an answer. Raises ValueError, one sentence, for what cannot be asked."""
        return []

    def outputs(self, encoded: Encoded) -> Any:
        ids = torch.tensor([encoded.ids])
        segments = {} if encoded.segments is None else {"token_type_ids": torch.tensor([encoded.segments])}
        with torch.no_grad():
            return self.model(ids, torch.ones_like(ids), **segments)

    def candidates(self, title: str, logits: Tensor) -> dict[str, Any]:
        """The likeliest tokens by their logits (vocabulary,)."""
        chances, ids = finite(logits).softmax(dim=-1).topk(min(SHOWN, len(logits)))
        return bars(title, token_texts(self.tokenizer, ids.tolist()), chances.tolist()) | {"tokens": True}


class FillMask(Head):
    title = "Fill in what is missing"
    button = "Fill in"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(model, tokenizer)
        if tokenizer.mask_token is None:
            raise ValueError("The tokenizer in the folder has no mask token, which this model is to fill in.")
        self.hint = f"Write {tokenizer.mask_token} where a token is missing."
        self.example = f"Return a new {tokenizer.mask_token}."

    def tokenize(self, text: str, second: str) -> Encoded:
        return Encoded(self.tokenizer(text)["input_ids"])  # here a mask that is spelled out is one

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        encoded, mask = self.encode(text, second), self.tokenizer.mask_token
        places = [place for place, token in enumerate(encoded.ids) if token == self.tokenizer.mask_token_id]
        if not places:
            raise ValueError(f"The text holds no {mask}: write it where a token is missing.")
        if len(places) > MASKS:
            raise ValueError(
                f"The text holds {len(places)} times {mask}, and this page fills in {MASKS}: leave some out."
            )
        logits = self.outputs(encoded).logits[0, places]
        titles = [f"{mask} {number}" for number in range(1, len(places) + 1)] if len(places) > 1 else [mask]
        return [self.candidates(title, row) for title, row in zip(titles, logits, strict=True)]


class Continue(Head):
    title = "Go on with a text"
    hint = "The model writes on, token by token. Ask again for another way to go on."
    button = "Go on"
    example = "Return a new"
    temperature = True

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        encoded = self.encode(text, second)
        room = min(NEW_TOKENS, self.longest - len(encoded.ids))
        if room < 1:
            raise ValueError(f"The text fills all {self.longest:,} tokens that this model reads: shorten it.")
        row = torch.tensor([encoded.ids])
        chance: dict[str, Any] = {"do_sample": False}
        if temperature:
            chance = {"do_sample": True, "temperature": max(temperature, LEAST_TEMPERATURE), "top_k": 50}
        next_token = self.candidates("the next token", self.outputs(encoded).logits[0, -1])
        written = self.model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=room,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.model.config.eos_token_id,
            **chance,
        )
        new = self.tokenizer.decode(written[0, row.shape[1] :], skip_special_tokens=True)
        return [{"kind": "text", "given": text, "text": new}, next_token]


class Classify(Head):
    title = "Classify a text"
    hint = "The model gives a score to each of its labels."
    button = "Classify"
    second = "Second text, where the model was trained on pairs"

    def tokenize(self, text: str, second: str) -> Encoded:
        pair = [checked(second)] if second.strip() else None
        encoded = encode_rows(self.tokenizer, [text], pair, return_token_type_ids=True)
        segments = encoded["token_type_ids"][0] if self.model.config.type_vocab_size > 1 else None
        return Encoded(encoded["input_ids"][0], segments)

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        config = self.model.config
        logits = finite(self.outputs(self.encode(text, second)).logits[0])
        names = [str(config.id2label[number]) for number in range(len(logits))]
        problem = config.problem_type or ("regression" if len(logits) == 1 else "single_label_classification")
        if problem == "regression":
            values = zip(names, logits.tolist(), strict=True)
            return [{"kind": "text", "given": "", "text": " · ".join(f"{n}: {v:.3f}" for n, v in values)}]
        scores = logits.softmax(dim=-1) if problem == "single_label_classification" else logits.sigmoid()
        best, order = scores.topk(min(SHOWN_LABELS, len(scores)))
        others = len(scores) - len(best)
        title = f"the first {len(best)} of {len(scores)} labels" if others else "labels"
        return [bars(title, [names[number] for number in order.tolist()], best.tolist())]


class Tag(Head):
    title = "Tag the words of a text"
    hint = "Each word gets the tag that the model finds likeliest."
    button = "Tag"
    example = "Ada Lovelace lived in London."

    def tokenize(self, text: str, second: str) -> Encoded:
        return Encoded(self.places(words_of(text))[0])

    def places(self, words: list[str]) -> tuple[list[int], list[int | None]]:
        """Token ids, and where the first of each word stands; None for a word that the tokenizer drops."""
        before, after = special_tokens_around(self.tokenizer)
        spaced = [" " * (place > 0) + word for place, word in enumerate(words)]  # as in training
        ids, places = list(before), []
        for pieces in encode_rows(self.tokenizer, spaced, add_special_tokens=False)["input_ids"]:
            places.append(len(ids) if pieces else None)
            ids += pieces
        return ids + after, places

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        chances = finite(self.outputs(self.encode(text, second)).logits[0]).softmax(dim=-1)
        words = words_of(text)
        spans: list[dict[str, Any]] = []
        for word, place in zip(words, self.places(words)[1], strict=True):
            tag, chance = "O", 0.0
            if place is not None:
                chance, number = (value.item() for value in chances[place].max(dim=-1))
                tag = str(self.model.config.id2label[number])
            spans.append({"word": word, "tag": tag, "chance": round(chance, 4)})
        return [{"kind": "spans", "spans": spans}]


class Search(Head):
    title = "Search in lines of text"
    hint = "The lines are put in order by the cosine of their vector and that of the query."
    button = "Search"
    example = "Open a file and read it."
    second = "Lines to search, one text each"
    second_example = (
        "Read the contents of a file.\nReturn the square root of x.\nSend a request to the server.\n"
        "Split a path into its parts."
    )

    def answer(self, text: str, second: str, temperature: float) -> list[dict[str, Any]]:
        if self.model.config.pooling == "none":
            raise ValueError("This model has no pooling, so a text has no vector: its inside can be looked at.")
        encoded = [self.encode(text, "")]
        lines = [line for line in checked(second, "The list of lines").splitlines() if line.strip()]
        if len(lines) > LINES:
            raise ValueError(f"There are {len(lines):,} lines, and this page searches {LINES}: leave some out.")
        encoded += [self.encode(line, "") for line in lines]
        vectors = torch.cat([self.outputs(row).pooler_output.float() for row in encoded])
        query, *others = F.normalize(finite(vectors), dim=-1)
        cosines = torch.stack(others) @ query
        order = cosines.argsort(descending=True, stable=True).tolist()
        return [bars("cosine similarity", [lines[number] for number in order], cosines[order].tolist())]


HEADS: dict[str, type[Head]] = {
    "TfEncForMaskedLM": FillMask,
    "TfEncForCausalLM": Continue,
    "TfEncForSequenceClassification": Classify,
    "TfEncForTokenClassification": Tag,
    "TfEncModel": Search,
}


# --- What heads share ------------------------------------------------------------------------------------------------


def checked(text: str, name: str = "The text") -> str:
    """The text itself. Raises ValueError, one sentence, where there is none, or too much."""
    if not text.strip():
        raise ValueError(f"{name} is empty: write something.")
    if len(text) > CHARACTERS:
        raise ValueError(f"{name} has {len(text):,} characters, and this page takes {CHARACTERS:,}: shorten it.")
    return text


def words_of(text: str) -> list[str]:
    """Words and, apart from them, the punctuation around them."""

    def is_mark(character: str) -> bool:
        return unicodedata.category(character).startswith("P")

    words: list[str] = []
    for part in text.split():
        first = next((place for place, character in enumerate(part) if not is_mark(character)), len(part))
        last = next((place for place in range(len(part), first, -1) if not is_mark(part[place - 1])), first)
        words += [*part[:first], *[part[first:last]] * (first < last), *part[last:]]
    return words


def finite(values: Tensor) -> Tensor:
    """The values in float32. Raises ValueError where one is no number."""
    if not values.isfinite().all():
        raise ValueError("The model answers with values that are not finite: its training has diverged.")
    return values.float()


def bars(title: str, labels: list[str], values: list[float]) -> dict[str, Any]:
    """A part of an answer: labels with their numbers, of which 1 is a whole bar."""
    shown = [{"label": label, "value": round(value, 4)} for label, value in zip(labels, values, strict=True)]
    return {"kind": "bars", "title": title, "bars": shown}
