"""Trains a CLIP tokenizer (byte-pair encoding) on captions, deterministically.

The trainer of the tokenizers library numbers symbols in the order of a randomly seeded hash map, so two
runs give two vocabularies; the merges are therefore learned here (Sennrich et al. 2016, algorithm 1), and
the library only applies them.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
END = "</w>"
"""Marks the last symbol of a word."""

Word = tuple[str, ...]


def new_tokenizer(captions: Iterable[str], size: int, length: int) -> CLIPTokenizer:
    """A tokenizer of at most `size` tokens that pads to and cuts at `length` of them."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*SPECIAL, *alphabet, *(letter + END for letter in alphabet)]
    merges = learn_merges(words_of(captions), size - len(symbols))
    tokens = symbols + [left + right for left, right in merges]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def words_of(captions: Iterable[str]) -> Counter[Word]:
    """How often each word occurs, as CLIP splits text: one symbol per byte, the last one marked."""
    pipeline = CLIPTokenizer(vocab={token: i for i, token in enumerate(SPECIAL)}, merges=[]).backend_tokenizer
    counts: Counter[Word] = Counter()
    for caption in captions:
        text = pipeline.normalizer.normalize_str(caption)
        for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(text):
            counts[(*word[:-1], word[-1] + END)] += 1
    return counts


def learn_merges(words: Counter[Word], count: int) -> list[tuple[str, str]]:
    """At most `count` merges, the most frequent pair first, ties in alphabetical order."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[Word] = Counter()
        for word, times in words.items():
            merged[joined(word, best)] += times
        words = merged
    return merges


def joined(word: Word, pair: tuple[str, str]) -> Word:
    """The word with every occurrence of the pair merged into one symbol."""
    symbols: list[str] = []
    for symbol in word:
        if symbols and (symbols[-1], symbol) == pair:
            symbols[-1] += symbol
        else:
            symbols.append(symbol)
    return tuple(symbols)
