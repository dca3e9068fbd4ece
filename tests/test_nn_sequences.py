"""Losses over steps, sampling, generation; tagging and sequence to sequence on toy strings."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad import nn
from tests.calculus_judges import all_judges, real, sample

B, T = sg.dim("B"), sg.dim("T")


def test_losses_of_steps_and_the_last_one() -> None:
    rng = np.random.default_rng(0)
    z = sg.input("z", (B, T, 5), "float64")
    y, n = sg.input("y", (B, T), "int32"), sg.input("n", (B,), "int32")
    data = {"z": rng.normal(size=(3, 7, 5)), "y": rng.integers(0, 5, (3, 7)), "n": [7, 0, 4]}
    every, masked = nn.sequence_cross_entropy(z, y), nn.sequence_cross_entropy(z, y, n)
    last, mask = nn.last_step(z, n), nn.sequence_mask(n, T)
    a, b, c, d = sg.compile([every, masked, last, mask])(**data)
    p = np.exp(data["z"]) / np.exp(data["z"]).sum(-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(p, data["y"][..., None], 2)[..., 0])
    there = np.arange(7) < np.array(data["n"])[:, None]
    np.testing.assert_allclose(a, wanted, rtol=1e-12)
    np.testing.assert_allclose(b, np.where(there, wanted, 0.0), rtol=1e-12)
    np.testing.assert_array_equal(c, data["z"][[0, 1, 2], [6, 0, 3]])
    np.testing.assert_array_equal(d, there)
    with pytest.raises(sg.DataError, match="7"):
        sg.evaluate(last, data | {"n": [8, 1, 1]})


def test_derivatives() -> None:
    z = real("z", 2, 3, 5)
    labels, n = sg.constant([[0, 4, 2], [3, 3, 1]]), sg.constant([2, 3])
    out = nn.sequence_cross_entropy(z, labels, n).sum() + (nn.last_step(z, n) ** 3).sum()
    all_judges(out, [z], sample([z]))


def test_samples_follow_the_probabilities() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    z, heat = sg.input("z", (B, 4), "float64"), sg.input("heat", (), "float64")
    f = sg.compile([nn.sample(z, heat), nn.sample(z, heat)])
    n = 40_000
    for temperature in (1.0, 0.5):
        tokens, other = f(z=np.tile(logits, (n, 1)), heat=temperature)
        p = np.exp(logits / temperature)
        p /= p.sum()
        found = np.bincount(tokens, minlength=4) / n
        # five standard deviations of a share of n draws
        np.testing.assert_array_less(np.abs(found - p), 5 * np.sqrt(p * (1 - p) / n))
        assert tokens.dtype == np.int32 and 0.2 < np.mean(tokens != other) < 0.8
    greedy, _ = f(z=np.random.default_rng(0).normal(size=(50, 4)), heat=0.0)
    z50 = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(greedy, z50.argmax(1))


def test_generation_is_the_steps_one_after_the_other() -> None:
    model, table, out = nn.GRU(6), nn.Embedding(5, 3, sg.init.normal(std=2.0)), nn.Dense(5)
    first, heat = sg.input("first", (B,), "int32"), sg.input("heat")

    def step(h, token):
        h, y = model.step(h, table(token))
        return h, 3.0 * out(y)

    tokens, h = nn.generate(step, model.start((B,)), first, 9, heat)
    f = sg.compile([tokens, h], seed=4)
    data = {"first": [0, 4, 2], "heat": 1.0}
    got, last = f(**data)
    assert got.shape == (3, 9) and got.dtype == np.int32 and last.shape == (3, 6)
    wanted = sg.evaluate([tokens, h], data, seed=4)
    np.testing.assert_array_equal(got, wanted[0])
    np.testing.assert_allclose(last, wanted[1], rtol=1e-5)
    assert (sg.evaluate(tokens, data, seed=5) != got).any()
    # greedy: every token is the likeliest after those before it
    greedy = sg.evaluate(tokens, data | {"heat": 0.0})
    fed = np.concatenate([np.array(data["first"])[:, None], greedy[:, :-1]], axis=1)
    read = sg.input("read", (B, T), "int32")
    logits = out(model(table(read)))
    np.testing.assert_array_equal(sg.evaluate(logits, {"read": fed}).argmax(-1), greedy)


def test_what_is_asked_wrongly_is_refused() -> None:
    z, y = sg.input("z", (3, 7, 5)), sg.input("y", (3, 7), "int32")
    with pytest.raises(sg.DTypeError, match="sequence_mask: lengths: must be integers"):
        nn.sequence_cross_entropy(z, y, sg.input("n", (3,)))
    with pytest.raises(sg.ShapeError, match=r"(?s)last_step: needs ys .*\(3, 7, 5\).*\(3, 7\)"):
        nn.last_step(z, y)
    with pytest.raises(sg.DTypeError, match=r"(?s)sample: needs logits.*int32"):
        nn.sample(y)
    with pytest.raises(sg.DTypeError, match="shifted: tokens: must be integers"):
        nn.shifted(z, 0)
    with pytest.raises(sg.DTypeError, match="generate: first: must be integers"):
        nn.generate(lambda c, t: (c, z), (), z, 3)


# -- learning --------------------------------------------------------------------------------------
def test_a_tagger_reads_what_comes_later() -> None:
    """Tag each letter with the letter after it: only the direction from behind knows."""
    rng = np.random.default_rng(0)
    words, tags = sg.input("words", (B, 6), "int32"), sg.input("tags", (B, 6), "int32")
    model = nn.Sequential([nn.Embedding(5, 8), nn.Bidirectional(nn.RNN(12)), nn.Dense(5)])
    logits = model(words)
    right = (sg.argmax(logits, axis=-1) == tags).astype("float32").mean(axis=1)
    trainer = sg.Trainer(
        nn.sequence_cross_entropy(logits, tags).mean(axis=1), sg.optim.adam(0.02),
        metrics={"accuracy": right},
    )
    x = rng.integers(0, 5, (500, 6)).astype("int32")
    data = {"words": x, "tags": np.concatenate([x[:, 1:], np.zeros((500, 1), "int32")], axis=1)}
    history = trainer.fit(data, epochs=15, batch_size=25)
    assert history.records[-1].metrics["accuracy"] > 0.99


def test_an_encoder_and_a_decoder_learn_to_reverse() -> None:
    """Sequence to sequence: taught with the right letters, then decoding greedily on its own."""
    rng = np.random.default_rng(1)
    letters, begin, steps = 6, 6, 4
    source = sg.input("source", (B, steps), "int32")
    target = sg.input("target", (B, steps), "int32")
    table = nn.Embedding(letters + 1, 12, sg.init.normal(std=0.3))
    encoder, decoder = nn.GRU(48, name="encoder"), nn.GRU(48, name="decoder")
    out = nn.Dense(letters)
    _, thought = encoder.run(table(source))
    taught, _ = decoder.run(table(nn.shifted(target, begin)), thought)
    loss = nn.sequence_cross_entropy(out(taught), target).mean(axis=1)

    def step(h, letter):
        h, y = decoder.step(h, table(letter))
        return h, out(y)

    first = sg.full((B,), begin, "int32")
    decoded, _ = nn.generate(step, thought, first, steps, temperature=0.0)

    x = rng.integers(0, letters, (1200, steps)).astype("int32")
    data = {"source": x, "target": x[:, ::-1].copy()}
    trainer = sg.Trainer(loss, sg.optim.adam(0.01))
    trainer.fit({k: v[:1000] for k, v in data.items()}, epochs=25, batch_size=50)
    answers = trainer.predict(decoded, {"source": x[1000:]})
    assert np.mean((answers == x[1000:, ::-1]).all(axis=1)) > 0.9
