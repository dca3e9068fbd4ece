"""Chapter 7: a network that writes. Predicting the next character, and what follows from it.

    python examples/07_character_model.py [--quick] [--data DIR] [--epochs N] [--out DIR]

Whoever can say at every place of a text how likely each next character is, can measure texts and
can write them. The parts:

1. counting: which character follows k others, and what that leaves open;
2. an LSTM that has read everything before, trained by truncated backpropagation through time;
3. where it is surprised: the text, character by character;
4. writing: its own answers as input, at several temperatures.

With `--data DIR` it reads a folder with a file input.txt, say tiny Shakespeare (1.1 million
characters), and trains for minutes; without, a small language that is made up here, whose entropy
is known.

Sources: Shannon 1951 for the guessing game; Witten and Bell 1991 for counting with interpolation;
Hochreiter and Schmidhuber 1997 for the LSTM; Williams and Peng 1990 for truncated backpropagation
through time; Sutskever, Martens and Hinton 2011 and Graves 2013 (arXiv 1308.0850) for networks that
write.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLACK, BLUE, GREEN, ORANGE, command_line, save
from symgrad.graph.nodes import Node
from symgrad.insight.plots import plain_ticks
from symgrad.train.history import EpochRecord

# The words of a small language: what it says is "the small birds that the dog saw sing at night."
NOUNS = (("bird", "birds"), ("dog", "dogs"), ("girl", "girls"), ("stone", "stones"))
VERBS = (("sings", "sing"), ("sleeps", "sleep"), ("waits", "wait"), ("sinks", "sink"))
ADJECTIVES = ("small", "old", "silver", "silent")
SEEN = ("saw", "heard", "missed", "carried")
PLACES = ("at night", "in the rain", "by the sea", "alone")


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Fields:
        units:   of the LSTM.
        feature: numbers that stand for a character.
        rows:    streams that are read side by side.
        steps:   characters through which the gradient passes, T.
        epochs:  how often the text is read.
        rate:    the first learning rate.
        drop:    the rate of dropout.
    """

    units: int
    feature: int
    rows: int
    steps: int
    epochs: int
    rate: float
    drop: float


LARGE = Size(units=384, feature=64, rows=32, steps=100, epochs=8, rate=5e-3, drop=0.3)
SMALL = Size(units=64, feature=16, rows=16, steps=50, epochs=20, rate=1e-2, drop=0.1)


class Text:
    """A text as numbers: the first nine tenths to learn from, the rest to measure on."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        self.codes = self.encode(text)
        cut = len(text) * 9 // 10
        self.training, self.held_out = self.codes[:cut], self.codes[cut:]

    def encode(self, text: str) -> np.ndarray:
        """Return the number of each character."""
        number = {c: k for k, c in enumerate(self.characters)}
        return np.array([number[c] for c in text], np.int32)

    def decode(self, codes: np.ndarray) -> str:
        """Return the characters of the numbers."""
        return "".join(self.characters[k] for k in codes)


def small_language(length: int) -> tuple[str, float]:
    """Make up sentences; return them and their entropy in nats per character.

    Each choice among n is made with probability 1 / n, and a sentence tells how it was made: the
    entropy is the sum of log n. A verb agrees with its noun, however much stands between the two.
    """
    rng = np.random.default_rng(0)
    nats = 0.0

    def one_of(options: Sequence) -> object:
        nonlocal nats
        nats += math.log(len(options))
        return options[rng.integers(len(options))]

    parts: list[str] = []
    while sum(map(len, parts)) < length:
        number = one_of((0, 1))
        words = ["the"]
        words += [one_of(ADJECTIVES)] if one_of((False, True)) else []
        words += [one_of(NOUNS)[number]]
        if one_of((False, True)):
            words += ["that the", one_of(one_of(NOUNS)), one_of(SEEN)]
        words += [one_of(VERBS)[number]]
        words += [one_of(PLACES)] if one_of((False, True)) else []
        parts.append(" ".join(words) + ".\n")
    text = "".join(parts)
    return text, nats / len(text)


# 1. Counting --------------------------------------------------------------------------------------
#
# The measure is the mean of -log P(character | those before it) over a text that was not learned
# from: nats per character. It is log of the number of characters for who knows nothing, and 0 for
# who knows everything. (One nat is 1.44 bits: 1.6 nats are 2.3 yes-no questions.)
#
# Counting which character c follows the k characters v gives n(v, c) / n(v). Long contexts say
# most, but most long contexts were never seen. Interpolation lets each length k lean on k - 1,
#
#     P_k(c | v) = (n(v, c) + u(v) P_{k-1}(c | v')) / (n(v) + u(v))
#
# where v' is v without its first character and u(v) the number of different characters that were
# seen after v: the more there were, the likelier is yet another. P_{-1} is the same for all.
def count(text: Text, longest: int) -> list[float]:
    """Return the nats per character of held-out text for contexts of 0 .. longest characters."""
    kinds = len(text.characters)
    codes = text.codes.astype(np.int64)
    first = len(text.training)
    chance = np.full(len(codes) - first, 1.0 / kinds)
    context = np.zeros(len(codes), np.int64)  # the k characters before each place, as one number
    nats = []
    for k in range(longest + 1):
        if k:
            context[k:] += codes[: len(codes) - k] * kinds ** (k - 1)
        pairs = context * kinds + codes
        seen, times = np.unique(pairs[k:first], return_counts=True)
        owners, begin = np.unique(seen // kinds, return_index=True)
        total, different = np.add.reduceat(times, begin), np.diff([*begin, len(seen)])
        n_vc, (n_v, u_v) = (
            found(seen, pairs[first:], times[None])[0],
            found(owners, context[first:], np.stack([total, different])),
        )
        known = n_v > 0
        chance[known] = ((n_vc + u_v * chance) / np.maximum(n_v + u_v, 1))[known]
        nats.append(float(-np.log(chance).mean()))
    return nats


def found(keys: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the columns of `values` that belong to the wanted keys, 0 where there is none."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[:, place], 0)


def counting(text: Text) -> list[float]:
    """Count with contexts of every length and print what each leaves open."""
    print("== 1. Counting\n")
    print(f"{len(text.codes):,} characters, {len(text.characters)} different ones; the last tenth")
    print("is held out. Nats per character of it, by the number of characters before:\n")
    nats = count(text, longest=6)
    print("   nothing known    " + "".join(f"{k:>8}" for k in range(len(nats))))
    print(f"{math.log(len(text.characters)):>12.3f}        " + "".join(f"{x:>8.3f}" for x in nats))
    print("\nLonger contexts help until they are too rare to have been seen.")
    return nats


# 2. A network that has read everything before -----------------------------------------------------
#
# A recurrent network needs no list of contexts: it carries a state from character to character and
# learns what to keep in it,
#
#     e[t] = E[x[t]],     state[t+1] = LSTM(state[t], e[t]),     P(x[t+1] | ..) = softmax(h[t+1] V)
#
# The gradient of a loss at step t flows back through all states before it. Through a million
# characters that is too much, so the text is cut into pieces of T characters. The *state* goes on
# from piece to piece, the gradient stops at the border: truncated backpropagation through time.
#
# To read B streams side by side, the text is folded into B rows; a step of training takes the next
# T columns. The trainer carries the state from step to step, `state={h: h after the step}`: the
# whole epoch, with its states, is one call of compiled code.
class Model:
    """The network, its trainer, and what it says about held-out text."""

    def __init__(self, text: Text, size: Size, threads: int) -> None:
        self.text, self.size, kinds = text, size, len(text.characters)
        self.steps = (len(text.training) // size.rows - 1) // size.steps
        self.table = sg.nn.Embedding(kinds, size.feature, sg.init.normal(std=1.0))
        self.lstm = sg.nn.LSTM(size.units)
        self.out = sg.nn.Dense(kinds)

        tokens = sg.input("tokens", (sg.dim("streams"), size.steps + 1), dtype="int32")
        state = tuple(sg.input(k, (size.rows, size.units)) for k in ("h", "c"))
        losses, after = self.losses(tokens, state)
        rate = sg.optim.cosine_decay(size.rate, size.epochs * self.steps, size.rate / 50)
        self.trainer = sg.Trainer(
            losses.mean(), sg.optim.adam(rate), clip_norm=1.0, threads=threads,
            state=dict(zip(state, after, strict=True)),
        )
        count = sum(math.prod(p.shape) for p in sg.parameters(losses))
        print(f"{count:,} weights, {self.steps:,} steps of {size.rows} x {size.steps} an epoch")

        # the same with any number of rows and columns, for reading
        rows, columns = sg.dim("rows"), sg.dim("columns")
        tokens = sg.input("tokens", (rows, columns), dtype="int32")
        state = tuple(sg.input(k, (rows, size.units)) for k in ("h", "c"))
        self.read = sg.compile(self.losses(tokens, state), threads=threads)

    def losses(self, tokens: Node, state: tuple[Node, Node]) -> tuple[Node, tuple[Node, Node]]:
        """Return -log P of all tokens (rows, columns) but the first, and the state after them."""
        ys, after = self.lstm.run(self.table(tokens[:, :-1]), state)
        logits = self.out(sg.dropout(ys, self.size.drop))
        return sg.cross_entropy(logits, tokens[:, 1:]), after

    def zeros(self, rows: int) -> dict[str, np.ndarray]:
        """Return a state that has read nothing."""
        return {name: np.zeros((rows, self.size.units), np.float32) for name in ("h", "c")}

    @staticmethod
    def streams(codes: np.ndarray, rows: int) -> np.ndarray:
        """Fold a text into rows; each begins with the last character of the row above."""
        columns = (len(codes) - 1) // rows
        places = np.arange(rows)[:, None] * columns + np.arange(columns + 1)
        return codes[places]

    def fit(self) -> tuple[list[float], list[float]]:
        """Train; return the loss of every epoch, and that on held-out text after it."""
        rows, T = self.streams(self.text.training, self.size.rows), self.size.steps
        pieces = [rows[:, k * T : k * T + T + 1] for k in range(self.steps)]
        measured: list[float] = []
        began = time.perf_counter()

        def measure(record: EpochRecord) -> None:
            measured.append(float(np.mean(self.surprise(self.text.held_out))))
            if self.size.epochs <= 20 or record.epoch % 10 == 0:
                print(
                    f"epoch {record.epoch:>3}   training {record.loss:.3f}   held out "
                    f"{measured[-1]:.3f}   {time.perf_counter() - began:>6.1f} s", flush=True,
                )

        history = self.trainer.fit(
            {"tokens": np.concatenate(pieces)}, self.size.epochs, self.size.rows, shuffle=False,
            callbacks=[measure], progress=False,
        )
        return list(history.loss), measured

    def surprise(self, codes: np.ndarray) -> np.ndarray:
        """Return -log P of the characters of a text, in rows of 2,000 or more, read from zeros."""
        rows = self.streams(codes, max(1, min(len(codes) // 2000, 64)))
        state, values, parts = self.zeros(len(rows)), self.trainer.parameters, []
        for k in range(0, rows.shape[1] - 1, 100):
            losses, (h, c) = self.read(tokens=rows[:, k : k + 101], **state, **values)
            state = {"h": h, "c": c}
            parts.append(losses)
        return np.concatenate(parts, axis=1)


def learning(
    text: Text, size: Size, threads: int, counted: list[float], entropy: float | None, out: Path
) -> Model:
    """Train the network and plot how its loss falls below that of counting."""
    print("\n== 2. A network\n")
    model = Model(text, size, threads)
    losses, measured = model.fit()
    best = int(np.argmin(counted))
    print(f"\nheld out: {measured[-1]:.3f} nats per character;", end=" ")
    print(f"counting, {best} characters: {counted[best]:.3f}")
    if entropy:
        print(f"the language itself: {entropy:.3f}, its entropy")

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, "s-", color=BLUE, ms=4, label="training, mean of the epoch")
    axes.plot(epochs, measured, "o-", color=ORANGE, ms=4, label="held out, after it")
    for k, x in enumerate(counted):
        if k in (0, 1, 2, best):
            axes.axhline(x, color=BLACK, lw=0.8, ls=":")
            label = f"counting, {k} before"
            axes.annotate(label, (len(losses), x), (0, 2), textcoords="offset points", ha="right")
    if entropy:
        axes.axhline(entropy, color=GREEN, lw=1.2, label="entropy of the language")
    axes.set(xlabel="epoch", ylabel="nats per character", ylim=(0.9 * min(*losses, *measured), 3.6))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("A network that reads characters")
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.legend(loc="upper center")
    axes.grid(alpha=0.3)
    save(figure, out / "loss.png")
    return model


# 3. Where it is surprised -------------------------------------------------------------------------
#
# -log P of each character is its surprise; the loss is the mean of it. Most of it falls on the
# first letters of words: which word comes is hard to say, how it goes on is not.
def surprises(model: Model, out: Path) -> None:
    """Colour held-out text by surprise, and take the mean by the place in a word."""
    print("\n== 3. Where it is surprised\n")
    codes = model.text.held_out
    values = model.surprise(codes)
    rows = model.streams(codes, len(values))[:, 1:]
    letters = np.array([c.isalpha() for c in model.text.characters])[rows]
    place = np.zeros(rows.shape, int)  # 1 for the first letter of a word, 0 outside of words
    for t in range(1, rows.shape[1]):
        place[:, t] = np.where(letters[:, t], place[:, t - 1] + 1, 0)
    longest = 8
    means = [values[place == k].mean() for k in range(1, longest + 1) if (place == k).any()]
    print("nats by the place of a letter in its word:")
    print("  " + "".join(f"{k:>8}" for k in range(1, len(means) + 1)))
    print("  " + "".join(f"{x:>8.2f}" for x in means))

    wide, high = 72, 8
    skip = min(rows.shape[1] // 4, 200)  # the state is fresh at the beginning of a row
    line = slice(skip, skip + wide * high)
    shown = list(zip(model.text.decode(rows[0, line]), values[0, line], strict=True))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    page, bars = figure.subplots(2, 1, height_ratios=(1.6, 1))
    cells = np.full((-(-len(shown) // wide), wide), np.nan)
    for k, (character, value) in enumerate(shown):
        row, column = divmod(k, wide)
        cells[row, column] = value
        sign = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" if character == "\n" else character
        color = "white" if value > 3 else "black"
        page.text(column, row, sign, ha="center", va="center", color=color, family="monospace")
    image = page.imshow(cells, cmap="Oranges", vmin=0, vmax=5, aspect="auto")
    page.set_axis_off()
    page.set_title("Held-out text: the darker, the more surprising")
    figure.colorbar(image, ax=page, label="nats")
    bars.bar(range(1, len(means) + 1), means, color=BLUE)
    bars.set(xlabel="place of the letter in its word", ylabel="nats", title="Where words are hard")
    bars.grid(alpha=0.3, axis="y")
    save(figure, out / "surprise.png")


# 4. Writing ---------------------------------------------------------------------------------------
#
# To write, draw a character from P, take it as the next input, and so on: a recurrence whose carry
# is the state and the last character. The logits are divided by a temperature before the softmax.
# At 0 the likeliest character comes every time, and soon the same words again; at 1 the network
# writes as it reads; above, it grows bolder and misspells.
def writing(model: Model, opening: str, length: int) -> None:
    """Let the network go on after an opening at three temperatures."""
    print("\n== 4. Writing")
    read = sg.input("read", (1, sg.dim("characters")), dtype="int32")
    heat = sg.input("heat")
    _, state = model.lstm.run(model.table(read[:, :-1]))

    def step(state: tuple, token: Node) -> tuple:
        state, y = model.lstm.step(state, model.table(token))
        return state, model.out(y)

    written, _ = sg.nn.generate(step, state, read[:, -1], length, heat)
    write = sg.compile(written, seed=1)
    prompt = model.text.encode(opening)[None]
    for temperature in (0.0, 0.5, 1.0):
        codes = write(read=prompt, heat=temperature, **model.trainer.parameters)[0]
        print(f"\n-- temperature {temperature}\n{opening}{model.text.decode(codes)}")


def main() -> None:
    """Run the chapter."""
    parser = command_line(__file__, "A network that writes.", quick="a shorter text, fewer epochs")
    parser.add_argument("--data", type=Path, help="folder with a file input.txt")
    parser.add_argument("--epochs", type=int, help="how often the text is read")
    parser.add_argument("--threads", type=int, default=2, help="processors to share the work")
    arguments = parser.parse_args()
    size, entropy = SMALL, None
    if arguments.data:
        path = arguments.data / "input.txt"
        if not path.is_file():
            raise SystemExit(f"--data: no file {path}")
        raw = path.read_text(encoding="utf-8")
        size, raw = (SMALL, raw[:30_000]) if arguments.quick else (LARGE, raw)
    else:
        raw, entropy = small_language(30_000 if arguments.quick else 100_000)
    if arguments.quick or arguments.epochs:
        size = replace(size, epochs=arguments.epochs or 16)
    text = Text(raw)
    counted = counting(text)
    model = learning(text, size, arguments.threads, counted, entropy, arguments.out)
    surprises(model, arguments.out)
    writing(model, raw[:20].split("\n")[0], length=200 if entropy else 600)


if __name__ == "__main__":
    main()
