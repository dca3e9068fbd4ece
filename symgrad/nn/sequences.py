"""What stands behind recurrent layers: losses over steps, the last step, sampling, generation.

A tagger answers at every step, a classifier at the last one, a language model with the next
element. `lengths` (*rows) says how many of the T steps of each row there are; the others, padding,
count nowhere.

From a sequence to another one, an encoder and a decoder, Sutskever et al. 2014 (arXiv 1409.3215):

    _, thought = encoder.run(table(source))                             # what was read, as a carry
    ys, _ = decoder.run(table(shifted(target, begin)), thought)         # taught with the answer
    loss = sequence_cross_entropy(out(ys), target)

    def step(carry, token):                                             # on its own
        carry, y = decoder.step(carry, table(token))
        return carry, out(y)

    answer, _ = generate(step, thought, first, steps, temperature=0.0)  # greedy decoding
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from symgrad.graph.arithmetic import less, maximum, where
from symgrad.graph.dims import Extent, same
from symgrad.graph.dtypes import INT32, is_float, is_int
from symgrad.graph.elementwise import log
from symgrad.graph.errors import DTypeError, ShapeError
from symgrad.graph.indexing import take_along_axis
from symgrad.graph.leaves import ArrayLike, arange, as_node, cast, zeros
from symgrad.graph.losses import cross_entropy
from symgrad.graph.nodes import Node, describe
from symgrad.graph.reductions import argmax
from symgrad.graph.scanning import scan
from symgrad.graph.shapes import (
    broadcast_to,
    concatenate,
    expand_dims,
    moveaxis,
    squeeze,
)
from symgrad.graph.streams import uniform

#: Half of the smallest positive number that `uniform` draws in float32.
_LEAST = 2.0**-25


# -- over steps ------------------------------------------------------------------------------------
def sequence_mask(lengths: ArrayLike, steps: Extent) -> Node:
    """Which steps there are: `t < lengths[..]`, for t = 0 .. steps-1.

    Args:
        lengths: integers (*rows).
        steps:   the extent T of the padded sequences.
    Returns: bool (*rows, T).

    >>> sg.evaluate(sequence_mask(sg.constant([2, 0]), 3)).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    return less(arange(steps), expand_dims(_integers("sequence_mask: lengths", lengths), -1))


def sequence_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, lengths: ArrayLike | None = None
) -> Node:
    """The cross entropy of every step; 0 where there is no step.

        out[.., t] = cross_entropy(logits[.., t, :], labels[.., t])  for t < lengths[..],  else 0

    The mean over what there is: `sequence_cross_entropy(z, y, n).sum() / n.sum()`.

    Args:
        logits:  float (*rows, T, K).
        labels:  integers (*rows, T) in 0..K-1; what stands behind the end of a row is not read.
        lengths: integers (*rows); None: all steps count.
    Raises: ShapeError, DTypeError; DataError when labels out of range arrive.

    >>> z = sg.input("z", (sg.dim("B"), 7, 5))
    >>> y, n = sg.input("y", (sg.dim("B"), 7), "int32"), sg.input("n", (sg.dim("B"),), "int32")
    >>> sequence_cross_entropy(z, y, n).shape
    (B, 7)
    """
    if lengths is None:
        return cross_entropy(logits, labels)
    y = as_node(labels)
    if not y.ndim:
        return cross_entropy(logits, y)  # which says what is wrong
    live = sequence_mask(lengths, y.shape[-1])
    return where(live, cross_entropy(logits, where(live, y, 0)), 0.0)


def last_step(ys: ArrayLike, lengths: ArrayLike) -> Node:
    """The result of each row's own last step: `ys[.., lengths[..] - 1, :]`.

    Without lengths it is `ys[..., -1, :]`. A row of length 0 has none: it gets `ys[.., 0, :]`.

    Args:
        ys:      (*rows, T, n).
        lengths: integers (*rows).
    Raises: ShapeError, DTypeError; DataError for lengths above T.

    >>> ys = sg.constant([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    >>> sg.evaluate(last_step(ys, sg.constant([2, 3]))).tolist()
    [[2.0], [6.0]]
    """
    node, counts = as_node(ys), _integers("last_step: lengths", lengths)
    if node.ndim < 2 or not _alike(node.shape[:-2], counts.shape):
        raise ShapeError(
            "last_step: needs ys (*rows, T, n) and lengths (*rows)\n"
            f"  {describe(node)}\n  {describe(counts)}\n"
            "  Each row has one length, so both have the same axes of rows."
        )
    place = expand_dims(expand_dims(maximum(counts - 1, 0), -1), -1)
    wide = broadcast_to(place, (*counts.shape, 1, node.shape[-1]))
    return squeeze(take_along_axis(node, wide, axis=-2), axis=-2)


def shifted(tokens: ArrayLike, first: int) -> Node:
    """What a decoder reads while it is taught: the answer, one step late, behind `first`.

        out[.., 0] = first,        out[.., t] = tokens[.., t-1]

    Each step is given the right element before it, whatever the model would have said: teacher
    forcing, Williams and Zipser 1989.

    >>> sg.evaluate(shifted(sg.constant([[3, 1, 4]]), first=0)).tolist()
    [[0, 3, 1]]
    """
    node = _integers("shifted: tokens", tokens)
    begin = zeros((*node.shape[:-1], 1), node.dtype) + first
    return concatenate([cast(begin, node.dtype), node[..., :-1]], axis=-1)


# -- sampling --------------------------------------------------------------------------------------
def sample(logits: ArrayLike, temperature: ArrayLike = 1.0) -> Node:
    """Draw one class per row: k with probability `softmax(logits / temperature)[k]`.

        k = argmax_k(logits[.., k] + temperature g[.., k]),    g = -log(-log u),  u uniform

    The noise g is Gumbel's: the greatest of the sums is distributed like that. At temperature 0 the
    likeliest class comes; below 1 the likely ones come more often, above 1 less.

    Args:
        logits:      float (*rows, K).
        temperature: at least 0, a number or an expression that broadcasts to the logits.
    Returns: int32 (*rows). Draws follow from seed and step, as of `sg.random.uniform`.
    Source: Gumbel 1954.

    >>> z = sg.constant([[0.0, 3.0, 1.0]] * 4)
    >>> sg.evaluate(sample(z, 0.0)).tolist(), sg.evaluate(sample(z, 2.0), seed=1).tolist()
    ([1, 1, 1, 1], [1, 0, 2, 1])
    """
    scores = as_node(logits)
    if not is_float(scores.dtype) or not scores.ndim:
        raise DTypeError(
            f"sample: needs logits, floats of shape (*rows, K)\n  {describe(scores)}\n"
            "  Give what a last layer computes, such as nn.Dense(K)(h)."
        )
    noise = -log(-log(maximum(uniform(scores.shape, scores.dtype), _LEAST)))
    heat = as_node(temperature, scores.dtype)
    return cast(argmax(scores + heat * noise, axis=-1), INT32)


def generate(
    step: Callable[[Any, Node], tuple[Any, Node]],
    carry: Any,
    first: ArrayLike,
    steps: Extent,
    temperature: ArrayLike = 1.0,
) -> tuple[Node, Any]:
    """Let a model go on from `first`, each step reading what the one before has drawn.

        carry, logits = step(carry, token[t]);   token[t+1] = sample(logits, temperature)

    A recurrence like any other: it compiles, and the seed gives the same tokens again.

    Args:
        step:        (carry, token (*rows)) -> (carry, logits (*rows, K)).
        carry:       before the first step, see `Recurrent.start`, or from what was read before.
        first:       integers (*rows): what stands before the first token that is drawn.
        steps:       how many tokens to draw, a number or a dim of an input.
        temperature: see `sample`; 0 is greedy decoding.
    Returns: tokens int32 (*rows, steps) without `first`, and the carry to go on from.

    >>> counting = lambda carry, token: (carry, sg.one_hot((token + 1) % 4, 4))
    >>> tokens, _ = generate(counting, (), sg.constant([0, 2]), steps=5, temperature=0.0)
    >>> sg.evaluate(tokens).tolist()
    [[1, 2, 3, 0, 1], [3, 0, 1, 2, 3]]
    """
    start = cast(_integers("generate: first", first), INT32)

    def one(state: tuple[Any, Node], _: Node) -> tuple[tuple[Any, Node], Node]:
        after, logits = step(*state)
        token = sample(logits, temperature)
        return (after, token), token

    (last, _), tokens = scan(one, (carry, start), arange(steps))
    return moveaxis(tokens, 0, -1), last


# -- checks ----------------------------------------------------------------------------------------
def _integers(asked: str, value: ArrayLike) -> Node:
    node = as_node(value)
    if not is_int(node.dtype):
        raise DTypeError(
            f"{asked}: must be integers\n  {describe(node)}\n  Cast: x.astype('int32')."
        )
    return node


def _alike(a: tuple[Extent, ...], b: tuple[Extent, ...]) -> bool:
    return len(a) == len(b) and all(same(x, y) is not False for x, y in zip(a, b, strict=True))
