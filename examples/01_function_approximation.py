"""Chapter 1: learning is approximating a function. A tagger, by counting and as a network.

    python examples/01_function_approximation.py [--quick] [--data DIR] [--out DIR]

A tagger is a function from a sentence to a sequence of parts of speech: (the, girls, walk) to
(DET, N, V). We do not know the function; we have seen some of its values. To learn it, three things
must be chosen: a class of functions, what "best" means in it, and how to find the best one. The
parts:

1. a class small enough for pen and paper, P(tag | word), and its best member: counting;
2. what the class can do and what it cannot: new sentences, unknown words, ambiguous words;
3. the same class as a neural network, trained until it holds the same numbers.

With `--data DIR`, parts 2 and 3 are repeated on a real corpus: a folder of a Universal Dependencies
treebank, say of the English Web Treebank, with its train, dev and test files in CoNLL-U (.conllu or
.conllu.gz). None comes with symgrad: see universaldependencies.org.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLUE, ORANGE, command_line, save
from corpus import (
    DEVELOPMENT,
    LECTURE,
    TEST,
    TRAINING,
    Counts,
    Sentence,
    count,
    read_sentences,
    tag_of_unknown,
    treebank,
)


# 1. A class of functions and its best member ------------------------------------------------------
#
# Suppose that the tag of a word depends on that word alone. A member of this class is a table: for
# each word v, probabilities P(u | v) of the tags u that are not negative and sum to one. It gives a
# tagged sentence the probability
#
#     P(u_1 .. u_T | v_1 .. v_T) = P(u_1 | v_1) * ... * P(u_T | v_T)
#
# As a function of the table, this number is called the *likelihood* of what we have seen. The best
# table is the one with the greatest likelihood. Finding it is easy here. Let n(v, u) be the number
# of times that v was seen with u. The logarithm of the likelihood of a corpus is
#
#     log L = sum over v, u of  n(v, u) log P(u | v)
#
# and where sum_u P(u | v) = 1, its maximum is at  P(u | v) = n(v, u) / n(v): count and divide.
# (The sentences, and `count`, stand in corpus.py: chapter 5 goes on with them.)
# (By a Lagrange multiplier: n(v, u) / P(u | v) must be the same for all u.)
def probability(counts: Counts, tag: str, word: str) -> float:
    """P(tag | word) = n(word, tag) / n(word)."""
    return counts[word][tag] / counts[word].total()


def likelihood(counts: Counts, sentences: list[Sentence]) -> float:
    """Multiply P(tag | word) over all words of the sentences."""
    return float(np.prod([probability(counts, u, v) for s in sentences for v, u in s]))


def two_sentences(out: Path) -> None:
    """Count two sentences, print the table and its likelihood, plot that nothing is better."""
    first, second = read_sentences(LECTURE)
    counts = count([first, second])
    tags = ("DET", "N", "V")

    print("== 1. Two sentences, counted\n")
    print("  P(u | v)" + "".join(f"{tag:>8}" for tag in tags))
    for word in counts:
        print(f"  {word:<8}" + "".join(f"{probability(counts, u, word):8.2f}" for u in tags))
    print(f"\nlikelihood of the first sentence   {likelihood(counts, [first])}")
    print(f"likelihood of both                 {likelihood(counts, [first, second])}")
    print("'walk' is a verb once and a noun once: no table does better than 1/2 * 1/2 = 1/4.")

    # All other rows are certain. With q = P(V | walk), the likelihood of both is q (1 - q).
    q = np.linspace(0, 1, 201)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(q, q * (1 - q), color=BLUE, lw=2)
    axes.plot(0.5, 0.25, "o", color=ORANGE, ms=9)
    axes.annotate("counting: 1/4 at q = 1/2", (0.5, 0.25), (0.5, 0.195), ha="center")
    axes.set(
        xlabel="q = P(V | walk) = 1 - P(N | walk)",
        ylabel="likelihood  q (1 - q)",
        title="The two sentences under every possible table",
        ylim=(0, 0.28),
    )
    axes.grid(alpha=0.3)
    save(figure, out / "likelihood.png")


# 2. What the class can do, and what it cannot -----------------------------------------------------
#
# To tag a word, take its most probable tag. This works on sentences that were never seen, if their
# words were: the table shares what it knows between sentences, and that is why it generalises. It
# says nothing about a word that was never seen. We need a rule for those: always answer with the
# tag that is commonest among the unknown words of further sentences, the development part. And it
# must be wrong about "walk" half of the time, because it cannot see the words around it.
#
# The honest measure is the accuracy on sentences that played no part in counting or in choosing.
def held_out(training: list[Sentence], development: list[Sentence], test: list[Sentence]) -> Counts:
    """Count on the training part, choose on the development part, measure on the test part."""
    counts = count(training)
    fallback = tag_of_unknown(counts, development)
    best = {word: seen.most_common(1)[0][0] for word, seen in counts.items()}
    pairs = [pair for sentence in test for pair in sentence]
    right = [best.get(word, fallback) == tag for word, tag in pairs]
    known = [word in counts for word, _ in pairs]
    ambiguous = [len(counts[word]) > 1 for word, _ in pairs if word in counts]

    print(f"training    {len(training):,} sentences, {len(counts):,} different words")
    print(f"test        {len(test):,} sentences, {len(pairs):,} words")
    print(f"            {1 - np.mean(known):.1%} of them unknown: answered with {fallback}")
    print(f"            {np.mean(ambiguous):.1%} of the known ones seen with several tags")
    hits, seen = np.array(right), np.array(known)
    print(f"accuracy    {hits.mean():.1%}  (known {hits[seen].mean():.1%}, ", end="")
    print(f"unknown {hits[~seen].mean():.1%})")
    return counts


# 3. The same class as a neural network ------------------------------------------------------------
#
# Give each word a number v and write it as a vector that is 1 at place v and 0 elsewhere: one-hot.
# A linear layer multiplies it by a matrix W, one row per word and one column per tag, and the
# softmax turns the numbers that come out, the logits, into probabilities:
#
#     z = onehot(v) W = W[v],        P(u | v) = exp(z_u) / (exp(z_1) + ... + exp(z_U))
#
# Any table with positive entries can be written like this: z_u = log P(u | v). So the network is
# the same class in other clothes. (To an unknown word, all zeros, it gives all tags alike.) Its
# loss, the cross-entropy, is the negative log-likelihood:
#
#     L(W) = - sum over v, u of  n(v, u) log P(u | v)
#
# The corpus enters only through the counts, so we train on each different pair (v, u) once, with
# its count n as a weight. The gradient is what the model expects minus what it has seen,
#
#     dL/dW[v, u] = n(v) P(u | v) - n(v, u)
#
# and it is zero exactly where P is the counted table. But that table has zeros, and a zero would
# need a logit of minus infinity: the loss has no lowest point, only directions in which it falls
# for ever. What does that do to training?
#
# *Gradient descent* moves W by -rate * dL/dW. For a tag that was never seen the gradient is n(v) p,
# with p = P(u | v): the smaller p, the smaller the step. Solving dp/dt ~ -p^2 gives p ~ 1/t. Each
# further digit costs ten times as many steps.
#
# *Newton's method* divides the slope by the curvature. The matrix of second derivatives H has no
# entries between different words (they share no weight), and one small block for each word:
#
#     H_v = n(v) (diag(p) - p p^T)
#
# For a tag with small p, slope and curvature are both n(v) p: the step is -1, however small p is.
# So p shrinks by a factor e in every step, and where the lowest point is finite, Newton is faster
# still. Two details. Adding one number to all logits of a word changes nothing, so H_v is singular
# in that direction; adding a matrix of ones makes it invertible and leaves the step as it is. And
# far from the goal a step may be too long: no logit may move by more than 2.
#
# symgrad derives H from the formula of the loss. We ask for H times a matrix: with the column of
# tag u set to one for all words at once, the product is column u of every block.
def as_network(counts: Counts, one_hot: bool, out: Path | None, steps: int) -> None:
    """Train the table as a network, by gradient descent and by Newton, and compare with counting.

    Args:
        one_hot: write the input one-hot; otherwise pick the row W[v], which is the same number.
        out:     where figures go; None: draw nothing and only run Newton.
        steps:   the last number of steps of gradient descent.
    """
    words = list(counts)
    tags = sorted({tag for seen in counts.values() for tag in seen})
    pairs = [(v, tags.index(u), n) for v, w in enumerate(words) for u, n in counts[w].items()]
    table = np.zeros((len(words), len(tags)))
    for v, u, n in pairs:
        table[v, u] = n
    table /= table.sum(axis=1, keepdims=True)

    rows = sg.dim("B")
    word = sg.input("word", (rows,), dtype="int32")
    tag = sg.input("tag", (rows,), dtype="int32")
    n = sg.input("n", (rows,), dtype="float64")
    W = sg.parameter("W", table.shape, dtype="float64", init=0.0)
    logits = sg.one_hot(word, len(words)).astype("float64") @ W if one_hot else W[word]
    loss = (n * sg.cross_entropy(logits, tag)).sum()
    probabilities = sg.softmax(W, axis=1)
    data = dict(zip(("word", "tag", "n"), map(np.array, zip(*pairs, strict=True)), strict=True))
    print(f"network     {len(words):,} inputs, {len(tags)} outputs, {table.size:,} weights")

    # Newton: the gradient, and H times a direction, as one compiled function.
    direction = sg.input("direction", table.shape, dtype="float64")
    gradient, product = sg.grad(loss, W), sg.hvp(loss, W, direction)
    slope = sg.compile([gradient, probabilities])
    curvature = sg.compile(product)
    seen = {name: data[name] for name in ("word", "n")}  # H does not depend on the tags
    columns = np.eye(len(tags))
    values = np.zeros_like(table)
    newton = []
    while not newton or newton[-1] > 1e-7:
        g, p = slope(W=values, **data)
        newton.append(np.abs(p - table).max())
        if len(newton) == 100:
            break
        blocks = [
            curvature(W=values, direction=np.tile(e, (len(words), 1)), **seen) for e in columns
        ]
        H = np.stack(blocks, axis=2) + 1.0  # (word, tag, tag), and the matrix of ones
        step = np.linalg.solve(H, g[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        values -= step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
    print(f"Newton      largest difference from counting {newton[-1]:.1e}", end="")
    print(f" after {len(newton) - 1} steps")
    if out is None:
        return

    # Gradient descent: the same loss given to the trainer, all data in every step.
    trainer = sg.Trainer(loss / float(len(pairs)), optimizer=sg.optim.sgd(5.0))
    print("gradient descent:")
    descent: dict[int, float] = {}
    while max(descent, default=0) < steps:
        done = trainer.epoch
        target = 1 if not done else done * 10
        trainer.fit(data, epochs=target - done, batch_size=len(pairs), shuffle=False)
        p = sg.evaluate(probabilities, {W: trainer.parameters["W"]})
        descent[target] = float(np.abs(p - table).max())
        print(f"            {descent[target]:.1e} after {target:,} steps")

    plot_differences(newton, descent, out)
    plot_table(table, sg.evaluate(probabilities, {W: values}), words, tags, out)
    save(sg.draw(loss), out / "network.svg")
    save(sg.draw(loss, wrt=[W]), out / "network_backward.svg")


def plot_differences(newton: list[float], descent: dict[int, float], out: Path) -> None:
    """Plot how the network approaches the counted table."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(newton))
    axes.loglog(*zip(*descent.items(), strict=True), "s-", color=ORANGE, label="gradient descent")
    axes.loglog(steps, newton[1:], "o-", color=BLUE, label="Newton")
    axes.axhline(1e-6, color="black", lw=1, ls=":")
    axes.set(
        xlabel="steps",
        ylabel="largest difference of probabilities",
        title="From the network to the counted table",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, out / "network_to_table.png")


def plot_table(
    counted: np.ndarray, trained: np.ndarray, words: list[str], tags: list[str], out: Path
) -> None:
    """Show the rows of both tables for the words that were seen with several tags."""
    chosen = [v for v in range(len(words)) if np.count_nonzero(counted[v]) > 1]
    figure = Figure(figsize=(9, 0.32 * len(chosen) + 1.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(panels, (counted, trained), ("counted", "trained"), strict=True):
        image = axes.imshow(values[chosen], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tags)), tags)
        axes.set_yticks(range(len(chosen)), [words[v] for v in chosen])
        axes.set_title(f"P(tag | word), {title}")
        for row, v in enumerate(chosen):
            for u in np.flatnonzero(counted[v]):
                color = "black" if values[v, u] > 0.6 else "white"
                axes.text(u, row, f"{values[v, u]:.2f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=panels)
    save(figure, out / "tables.png")


def main() -> None:
    """Run the chapter."""
    parser = command_line(
        __file__, "A tagger, by counting and as a network.", quick="fewer steps of gradient descent"
    )
    parser.add_argument("--data", type=Path, help="folder of a treebank in CoNLL-U")
    arguments = parser.parse_args()

    two_sentences(arguments.out)
    print("\n== 2. A small corpus, counted\n")
    counts = held_out(*map(read_sentences, (TRAINING, DEVELOPMENT, TEST)))
    print("\n== 3. The same table as a neural network\n")
    steps = 1_000 if arguments.quick else 100_000
    as_network(counts, one_hot=True, out=arguments.out, steps=steps)
    if arguments.data:
        print(f"\n== Both on {arguments.data.name}\n")
        counts = held_out(*treebank(arguments.data))
        as_network(counts, one_hot=False, out=None, steps=0)


if __name__ == "__main__":
    main()
