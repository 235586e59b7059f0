"""Words and their sub-words: rows cut into windows between words, each word's first sub-word known."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class WordWindow:
    """A part of a row of words.

    tokens: sub-words, no special ones
    first_word: the index in the row of the first word that begins here
    starts: for each word that begins here the place of its first sub-word in `tokens`, -1 if it has none
    """

    first_word: int
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


def word_windows(words: Sequence[Sequence[int]], capacity: int) -> list[WordWindow]:
    """Cut a row into windows of at most `capacity` sub-words; nothing is dropped, nothing stands twice.

    A cut falls between words. Only a word longer than a whole window is cut itself: it begins a window of its own, and
    what is left of it stands at the beginning of the next. A word without a sub-word belongs where it stands.

    Args:
        words: the sub-words of each word, maybe none
    """
    windows = [WordWindow(first_word=0)]
    for index, word in enumerate(words):
        if windows[-1].tokens and len(windows[-1].tokens) + len(word) > capacity:
            windows.append(WordWindow(first_word=index))
        windows[-1].starts.append(len(windows[-1].tokens) if len(word) else -1)
        windows[-1].tokens += word[:capacity]
        for rest in range(capacity, len(word), capacity):
            windows.append(WordWindow(first_word=index + 1))
            windows[-1].tokens += word[rest : rest + capacity]
    return windows
