"""Chapter 5: tagging with context. From counting to a network that reads in both directions.

    python examples/05_pos_tagging.py [--quick] [--data DIR] [--epochs N] [--out DIR]

The tagger of chapter 1 looks at one word: it must be wrong about "walk" half of the time, and can
say nothing about a word that it never saw. Each tagger here sees more than the one before:

1. counting: the word itself;
2. a window: two words on either side;
3. a recurrent network: all words before;
4. an LSTM: the same, with a better memory;
5. in both directions: all words before and after;
6. and the letters of each word, which say something of words that were never seen.

With `--data DIR` they learn from a folder of a Universal Dependencies treebank, say of the English
Web Treebank (see corpus.py), and training takes minutes; without, from our own small corpus.

Sources: Collobert et al. 2011 for the window; Elman 1990; Hochreiter and Schmidhuber 1997; Schuster
and Paliwal 1997 for both directions; dos Santos and Zadrozny 2014 and Ma and Hovy 2016
(arXiv 1603.01354) for letters by convolution; Kiperwasser and Goldberg 2016 (arXiv 1603.04351) for
hiding words at random.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLACK, BLUE, GREEN, ORANGE, SKY, command_line, save
from corpus import (
    DEVELOPMENT,
    TEST,
    TRAINING,
    Counts,
    Sentence,
    count,
    read_sentences,
    tag_of_unknown,
    treebank,
)
from symgrad.graph.nodes import Node
from symgrad.train.history import EpochRecord

Data = dict[str, list]
COLORS = (BLACK, SKY, GREEN, ORANGE, BLUE)


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Fields:
        word, letter: numbers that stand for a word and for a letter.
        filters:      what is read off the letters.
        units:        of a recurrent layer, per direction.
        layers:       of the network that reads in both directions.
        rows:         sentences per step.
        epochs:       how often the corpus is read: by the last tagger, and by the others.
        rate, drop:   the first learning rate, and the rate of dropout.
        least:        how often a word must occur to have numbers of its own.
        longest:      letters of a word that are read: so many from its beginning and from its end.
    """

    word: int
    letter: int
    filters: int
    units: int
    layers: int
    rows: int
    epochs: tuple[int, int]
    rate: float
    drop: float
    least: int
    longest: int


LARGE = Size(
    word=100, letter=32, filters=100, units=160, layers=2, rows=32, epochs=(16, 5), rate=2e-3,
    drop=0.4, least=2, longest=8,
)
SMALL = Size(
    word=16, letter=8, filters=16, units=16, layers=1, rows=4, epochs=(40, 40), rate=1e-2,
    drop=0.2, least=1, longest=4,
)


# What all taggers share: words as numbers ---------------------------------------------------------
#
# Words are numbered in lower case; the letters keep their case. Number 0 is padding, behind the end
# of a sentence or a word, and number 1 is whatever has no number of its own.
class Numbers:
    """The numbers of words, letters and tags, from the training part alone."""

    def __init__(self, training: list[Sentence], size: Size) -> None:
        self.size, self.counts = size, count(training)
        lower: dict[str, int] = {}
        for word, seen in self.counts.items():
            lower[word.lower()] = lower.get(word.lower(), 0) + seen.total()
        kept = [word for word, n in lower.items() if n >= size.least]
        self.words = {word: k for k, word in enumerate(kept, start=2)}
        self.times = np.array([0, 0, *(lower[word] for word in kept)], np.float32)
        letters = sorted({letter for word in self.counts for letter in word})
        self.letters = {letter: k for k, letter in enumerate(letters, start=2)}
        self.tags = sorted({tag for seen in self.counts.values() for tag in seen})

    def of_letters(self, word: str) -> list[int]:
        """The letters from the beginning, then those before the end, padded in the middle."""
        n = self.size.longest
        codes = [self.letters.get(letter, 1) for letter in word]
        head, tail = codes[:n], codes[n:][-n:]
        return [*head, *[0] * (2 * n - len(head) - len(tail)), *tail]

    def data(self, sentences: list[Sentence]) -> Data:
        """Sentences as arrays (T, ..), each as long as it is: the trainer pads what it must."""
        tags = {tag: k for k, tag in enumerate(self.tags)}
        words = [[self.words.get(word.lower(), 1) for word, _ in s] for s in sentences]
        letters = [np.array([self.of_letters(word) for word, _ in s], np.int32) for s in sentences]
        answers = [[tags.get(tag, 0) for _, tag in s] for s in sentences]
        lengths = [len(s) for s in sentences]
        return {"words": words, "letters": letters, "tags": answers, "lengths": lengths}


# 1. Counting --------------------------------------------------------------------------------------
def counted(counts: Counts, development: list[Sentence]) -> Callable[[Sentence], list[str]]:
    """Return the tagger of chapter 1: the commonest tag of a word, one tag for unknown ones."""
    fallback = tag_of_unknown(counts, development)
    best = {word: seen.most_common(1)[0][0] for word, seen in counts.items()}
    return lambda sentence: [best.get(word, fallback) for word, _ in sentence]


# 2. to 6. Networks --------------------------------------------------------------------------------
#
# Every network turns words into features (rows, T, n) and ends in one affine map to logits. What
# differs is what stands between, and so what a feature has seen:
#
#     window     f[t] = tanh([e[t-2], .., e[t+2]] W + b)
#     RNN        f[t] = tanh(e[t] W + f[t-1] U + b)
#     LSTM       chapter 6 derives it
#     both       f[t] = [LSTM from the left, LSTM from the right]
#
# Letters: each word is a short sequence of letters, read by a convolution: the same affine map of
# every three neighbours, and of each of its results the greatest along the word,
#
#     g[j] = [l[j-1], l[j], l[j+1]] W + b,      v = max over j of g[j]
#
# so that one filter can look for "ing" anywhere. v is put beside the numbers of the word.
#
# *Hiding words.* The numbers of a rare word are learned from few examples, and the network would
# come to trust them rather than letters and context, which is all that it has for unknown words. So
# in training a word that occurs n times is made unknown with probability a / (a + n).
def window(x: Node, width: int) -> Node:
    """Each element beside its neighbours, zeros beyond the ends: (.., T, n) -> (.., T, width n)."""
    half, steps = width // 2, x.shape[-2]
    pads = [(0, 0)] * (x.ndim - 2) + [(half, half), (0, 0)]
    wide = sg.pad(x, pads)
    return sg.concatenate([wide[..., k : k + steps, :] for k in range(width)], axis=-1)


def spelled(letters: Node, count: int, size: Size) -> Node:
    """What a convolution reads off the letters of each word: (rows, T, filters)."""
    e = sg.nn.Embedding(count, size.letter, sg.init.normal(std=0.3), name="letters")(letters)
    return sg.nn.Dense(size.filters, name="filters")(window(e, 3)).max(axis=-2)


def hidden(words: Node, times: np.ndarray, share: float = 0.25) -> Node:
    """Words, some of which are made unknown (1) while training, the rare ones more often."""
    rate = sg.constant((share / (share + times)).astype(np.float32))
    drawn = sg.dropout(sg.ones(words.shape), rate[words])
    return sg.where((drawn > 0.0) | (words < 2), words, sg.ones_like(words))


KINDS = ("window", "RNN", "LSTM", "BiLSTM", "BiLSTM + letters")


def network(kind: str, numbers: Numbers, words: Node, letters: Node, lengths: Node) -> Node:
    """The logits (rows, T, tags) of one of the networks."""
    size, nn = numbers.size, sg.nn
    chosen = hidden(words, numbers.times)
    x = nn.Embedding(len(numbers.times), size.word, sg.init.normal(std=0.3), name="words")(chosen)
    if kind == "BiLSTM + letters":
        x = sg.concatenate([x, spelled(letters, len(numbers.letters) + 2, size)], axis=-1)
    x = sg.dropout(x, size.drop)
    if kind == "window":
        f = nn.Dense(2 * size.units, sg.tanh)(window(x, 5))
    elif kind == "RNN":
        f, _ = nn.RNN(2 * size.units).run(x, lengths=lengths)
    elif kind == "LSTM":
        f, _ = nn.LSTM(2 * size.units).run(x, lengths=lengths)
    else:
        layers = [nn.Bidirectional(nn.LSTM(size.units)) for _ in range(size.layers)]
        f, _ = nn.Stacked(layers, rate=size.drop).run(x, lengths=lengths)
    return nn.Dense(len(numbers.tags), name="tags")(sg.dropout(f, size.drop))


class Tagger:
    """One of the networks, its trainer, and its answers."""

    def __init__(self, kind: str, numbers: Numbers, epochs: int, steps: int, threads: int) -> None:
        self.kind, self.numbers, self.epochs = kind, numbers, epochs
        size, rows, T = numbers.size, sg.dim("rows"), sg.dim("T")
        words, tags = (sg.input(name, (rows, T), dtype="int32") for name in ("words", "tags"))
        letters = sg.input("letters", (rows, T, 2 * size.longest), dtype="int32")
        lengths = sg.input("lengths", (rows,), dtype="int32")
        logits = network(kind, numbers, words, letters, lengths)
        self.answer = sg.argmax(logits, axis=-1)
        loss = sg.nn.sequence_cross_entropy(logits, tags, lengths).sum() / lengths.sum()
        right = (self.answer == tags) & sg.nn.sequence_mask(lengths, T)
        rate = sg.optim.cosine_decay(size.rate, epochs * steps, size.rate / 50)
        self.trainer = sg.Trainer(
            loss, sg.optim.adam(rate), clip_norm=5.0, threads=threads,
            metrics={"right": right.sum() / lengths.sum()}, weight=lengths,
        )
        self.reads = {leaf.name for leaf in sg.inputs(loss)}
        self.size = sum(math.prod(p.shape) for p in sg.parameters(loss))

    def data(self, sentences: list[Sentence]) -> Data:
        """What the network reads of sentences."""
        parts = self.numbers.data(sentences)
        return {name: rows for name, rows in parts.items() if name in self.reads}

    def fit(self, training: list[Sentence], development: list[Sentence]) -> list[float]:
        """Train; return the share of right tags on the development part after every epoch."""
        began = time.perf_counter()

        def say(record: EpochRecord) -> None:
            print(
                f"  {self.kind}, epoch {record.epoch:>2}   loss {record.loss:.3f}   development "
                f"{record.validation['right']:.1%}   {time.perf_counter() - began:.0f} s",
                flush=True,
            )

        history = self.trainer.fit(
            self.data(training), self.epochs, self.numbers.size.rows,
            validation=self.data(development), callbacks=[say] if len(training) > 1000 else [],
        )
        return list(history.validation["right"])

    def tag(self, sentences: list[Sentence]) -> list[list[str]]:
        """Return the tags of all sentences."""
        answers = self.trainer.predict(self.answer, self.data(sentences))
        return [[self.numbers.tags[k] for k in row] for row in answers]


# What they can and cannot -------------------------------------------------------------------------
def scores(
    sentences: list[Sentence], found: list[list[str]], counts: Counts
) -> tuple[float, float, float]:
    """Return the share of right tags among all words, known ones and unknown ones."""
    pairs = [
        (word in counts, tag == answer)
        for sentence, answers in zip(sentences, found, strict=True)
        for (word, tag), answer in zip(sentence, answers, strict=True)
    ]
    known, right = np.array(pairs).T
    return float(right.mean()), float(right[known].mean()), float(right[~known].mean())


def confusion(sentences: list[Sentence], found: list[list[str]], tags: list[str]) -> np.ndarray:
    """Count how often each tag (row) was answered with each tag (column)."""
    table = np.zeros((len(tags), len(tags)), int)
    for sentence, answers in zip(sentences, found, strict=True):
        for (_, tag), answer in zip(sentence, answers, strict=True):
            if tag in tags:
                table[tags.index(tag), tags.index(answer)] += 1
    return table


def plot_taggers(
    rows: dict[str, tuple[float, ...]], curves: dict[str, list[float]], out: Path
) -> None:
    """Plot accuracy by tagger, and on the development part by epoch."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    places = np.arange(len(rows))
    for k, (label, color) in enumerate((("all", BLUE), ("known", GREEN), ("unknown", ORANGE))):
        values = [100 * row[k] for row in rows.values()]
        bars.bar(places + (k - 1) * 0.27, values, 0.25, color=color, label=f"{label} words")
    lowest = min(100 * row[2] for row in rows.values())
    bars.set_xticks(places, [name.replace(" + ", "\n+ ") for name in rows])
    bars.set(ylabel="% right, test part", ylim=(max(lowest - 10, 0), 100))
    bars.set_title("What each tagger sees, and how often it is right")
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        percent = 100 * np.array(curve)
        lines.plot(np.arange(len(curve)) + 1, percent, "o-", color=color, ms=3, label=name)
    lines.set(xlabel="epoch", ylabel="% right, development part", title="Learning")
    lines.xaxis.get_major_locator().set_params(integer=True)
    lines.legend(loc="lower right")
    for axes in (bars, lines):
        axes.grid(alpha=0.3)
    save(figure, out / "taggers.png")


def plot_confusion(table: np.ndarray, tags: list[str], out: Path) -> None:
    """Show the table of confusions, each row as shares of its tag."""
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 0.5 * len(tags) + 2
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (u, v), n in np.ndenumerate(table):
        if n:
            color = "white" if shares[u, v] > 0.5 else "black"
            axes.text(v, u, str(n), ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(tags)), tags, rotation=90)
    axes.set_yticks(range(len(tags)), tags)
    axes.set(xlabel="answer", ylabel="tag", title="Tags and answers on the test part")
    figure.colorbar(image, ax=axes, label="share of the tag", shrink=0.8)
    save(figure, out / "confusion.png")


def main() -> None:
    """Run the chapter."""
    parser = command_line(__file__, "Tagging with context.", quick="200 sentences, fewer epochs")
    parser.add_argument("--data", type=Path, help="folder of a treebank in CoNLL-U")
    parser.add_argument("--epochs", type=int, help="how often the last tagger reads the corpus")
    parser.add_argument("--threads", type=int, help="processors to share the work")
    parser.add_argument("--only", choices=KINDS, help="train one of the networks")
    arguments = parser.parse_args()
    size, parts = SMALL, [read_sentences(text) for text in (TRAINING, DEVELOPMENT, TEST)]
    if arguments.data:
        size, parts = LARGE, treebank(arguments.data)
    if arguments.quick:
        size = replace(SMALL, epochs=(20, 20))
        parts = [sentences[:200] for sentences in parts]
    if arguments.epochs:
        size = replace(size, epochs=(arguments.epochs, size.epochs[1]))
    threads = arguments.threads or (2 if arguments.data else 1)  # small work is not shared
    training, development, test = parts
    numbers = Numbers(training, size)
    words = [word for s in test for word, _ in s]
    unknown = np.mean([word not in numbers.counts for word in words])
    print(f"{len(training):,} sentences to learn from, {len(test):,} to test on, of {len(words):,}")
    print(f"words, {unknown:.1%} of them unknown; {len(numbers.tags)} tags\n")

    by_counting = counted(numbers.counts, development)
    found = [by_counting(sentence) for sentence in test]
    rows = {"counting": scores(test, found, numbers.counts)}
    curves: dict[str, list[float]] = {}
    sizes = {"counting": sum(len(seen) for seen in numbers.counts.values())}
    for kind in [arguments.only] if arguments.only else KINDS:
        epochs = size.epochs[kind != KINDS[-1]]
        tagger = Tagger(kind, numbers, epochs, -(-len(training) // size.rows), threads)
        curves[kind] = tagger.fit(training, development)
        found, sizes[kind] = tagger.tag(test), tagger.size
        rows[kind] = scores(test, found, numbers.counts)

    print(f"\n{'test part':<20}{'all words':>10}{'known':>10}{'unknown':>10}{'numbers':>12}")
    for name, shares in rows.items():
        print(f"{name:<20}" + "".join(f"{x:>10.1%}" for x in shares) + f"{sizes[name]:>12,}")

    table = confusion(test, found, numbers.tags)
    print(f"\nthe commonest confusions of {list(rows)[-1]}:")
    wrong = table - np.diag(np.diag(table))
    for place in np.argsort(-wrong, axis=None)[:5]:
        u, v = np.unravel_index(place, wrong.shape)
        if wrong[u, v]:
            tag, answer = numbers.tags[u], numbers.tags[v]
            print(f"  {tag:<6} answered with {answer:<6}{wrong[u, v]:>6} times")
    print()
    plot_taggers(rows, curves, arguments.out)
    plot_confusion(table, numbers.tags, arguments.out)


if __name__ == "__main__":
    main()
