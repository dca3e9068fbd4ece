"""The main job: a network learns handwritten digits, and everything that happens is shown.

A 64-32-10 tanh network is trained on the digits of the UCI set that scikit-learn carries (1797
images of 8 x 8 pixels). Weights, training and pictures all come from the public face alone, so this
module is also the longest example of it.

The step size, the decay and the number of epochs were chosen by the accuracy on a fifth of the
*training* rows, averaged over ten splits; the test rows decide nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import symgrad as sg
from symgrad.diagram.rendering import RenderError
from symgrad.insight.explosion import explosion_figure
from symgrad.insight.plots import plain_ticks

if TYPE_CHECKING:
    from codegen.compiled import Compiled
    from symgrad.diagram.records import Diagram
    from symgrad.graph.nodes import Input, Node
    from symgrad.optim import Optimizer
    from symgrad.train.history import History

HIDDEN = 32  # neurons
BATCH = 32  # rows per step
EPOCHS, QUICK_EPOCHS = 60, 20
RATE = 0.01  # first step size of adam; it falls to zero along a cosine
DECAY = 1e-3  # weight of the sum of squared weights in what is minimised
_EXTRAS = {"scikit-learn": "sklearn", "matplotlib": "matplotlib"}


@dataclass(frozen=True, slots=True)
class Digits:
    """Images as rows of 64 pixels and their labels, in a training and a test part."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True, slots=True)
class Network:
    """The network as expressions.

    Attributes:
        x: images, (B, 64).
        y: labels, (B,).
        parameters: W1 (64, 32), b1 (32,), W2 (32, 10), b2 (10,).
        loss: mean cross entropy of the rows.
        objective: the loss plus the decay of the weights, which is what training minimises.
        accuracy: the fraction of rows whose largest logit is at the label.
    """

    x: Input
    y: Input
    parameters: tuple[Input, ...]
    loss: Node
    objective: Node
    accuracy: Node


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network: its parameters by name, its history, and figures on the test rows."""

    parameters: dict[str, np.ndarray]
    history: History
    test: dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What the main job gives back; times in seconds.

    Attributes:
        test_accuracy: fraction of the test rows that are labelled rightly.
        test_loss: mean cross entropy of the test rows.
        epochs: how often each training row was seen.
        steps: how often the parameters moved.
        train_seconds: time in the compiled training loop.
        compile_seconds: time from the expressions to machine code.
        passes: the same, pass by pass.
        files: what was written, with a word on each.
        notes: what could not be done, and what to install for it.
    """

    test_accuracy: float
    test_loss: float
    epochs: int
    steps: int
    train_seconds: float
    compile_seconds: float
    passes: dict[str, float]
    files: dict[Path, str]
    notes: tuple[str, ...]

    @property
    def steps_per_second(self) -> float:
        """Steps of the compiled training loop per second."""
        return self.steps / self.train_seconds if self.train_seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """Return the result as a JSON object."""
        return {
            "test_accuracy": self.test_accuracy,
            "steps_per_second": self.steps_per_second,
            "compile_seconds": self.compile_seconds,
            "files": [str(path) for path in self.files],
            "test_loss": self.test_loss,
            "epochs": self.epochs,
            "passes": self.passes,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the closing words for the terminal."""
        passes = ", ".join(f"{name} {s * 1e3:.0f}" for name, s in self.passes.items())
        width = max((len(str(path)) for path in self.files), default=0)
        lines = [
            "",
            f"test accuracy   {self.test_accuracy:.2%} of images never seen in training "
            f"(loss {self.test_loss:.3f})",
            f"training        {self.epochs} epochs, {self.steps} steps in "
            f"{self.train_seconds:.2f} s: {self.steps_per_second:,.0f} steps per second",
            f"compilation     {self.compile_seconds:.2f} s; in ms: {passes}",
            "",
            *(f"{path!s:<{width}}  {what}" for path, what in self.files.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def load_digits(seed: int = 0) -> Digits:
    """Load the images, cut them into 80 % training and 20 % test rows, and standardise each pixel.

        x' = (x - mean) / (std + 1),    mean and std of the training rows

    The 1, a sixteenth of the range, keeps pixels that are almost always white from being blown up.

    """
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(pixels))
    train, test = np.split(order, [len(order) * 4 // 5])
    mean, deviation = pixels[train].mean(axis=0), pixels[train].std(axis=0)
    x = ((pixels - mean) / (deviation + 1.0)).astype(np.float32)
    y = labels.astype(np.int32)
    return Digits(x[train], y[train], x[test], y[test])


def write_network() -> Network:
    """Write the network as mathematics.

    h = tanh(x W1 + b1),   logits = h W2 + b2,   loss = mean of cross_entropy(logits, y)
    """
    batch = sg.dim("B")
    x = sg.input("x", (batch, 64))
    y = sg.input("y", (batch,), dtype="int32")
    w1 = sg.parameter("W1", (64, HIDDEN), init=sg.init.glorot_uniform())
    b1 = sg.parameter("b1", (HIDDEN,), init=sg.init.zeros())
    w2 = sg.parameter("W2", (HIDDEN, 10), init=sg.init.glorot_uniform())
    b2 = sg.parameter("b2", (10,), init=sg.init.zeros())

    h = sg.tanh(x @ w1 + b1)
    logits = h @ w2 + b2
    loss = sg.cross_entropy(logits, y).mean()
    objective = loss + DECAY * (sg.square(w1).sum() + sg.square(w2).sum())
    parameters = (w1, b1, w2, b2)
    return Network(
        x=x,
        y=y,
        parameters=parameters,
        loss=loss,
        objective=objective,
        accuracy=(sg.argmax(logits, axis=1) == y).astype("float32").mean(),
    )


def make_optimizer(rows: int, epochs: int) -> Optimizer:
    """Make adam with a step size that falls to zero along half a cosine.

        rate(step) = RATE * (1 + cos(pi * step / steps)) / 2

    The rate is an expression of the step, so it is compiled with everything else.
    """
    steps = epochs * math.ceil(rows / BATCH)
    done = sg.minimum(sg.optim.step.astype("float32") / steps, 1.0)
    return sg.optim.adam(RATE / 2 * (1.0 + sg.cos(math.pi * done)))


def compile_step(network: Network, optimizer: Optimizer) -> Compiled:
    """Compile one training step by hand: what the trainer runs, to be read and saved.

    The two programs are equal, so the trainer finds this one in the cache folder.
    """
    gradients = sg.grad(network.objective, network.parameters)
    first, *others = (sg.square(gradient).sum() for gradient in gradients)
    outputs = {
        "loss": network.objective,
        "loss_of_rows": network.loss,
        "accuracy": network.accuracy,
        "gradient_norm": sg.sqrt(sum(others, first)),
    }
    updates = optimizer.updates(network.parameters, gradients)
    return sg.compile(outputs, updates=updates, training=True)


def fit(
    network: Network,
    digits: Digits,
    epochs: int,
    seed: int = 0,
    quiet: bool = True,
    threads: int = 1,
) -> Fitted:
    """Train the network on the training rows and measure it on the test rows."""
    trainer = sg.Trainer(
        network.objective,
        optimizer=make_optimizer(len(digits.x_train), epochs),
        metrics={"loss_of_rows": network.loss, "accuracy": network.accuracy},
        seed=seed,
        threads=threads,
    )
    test = {"x": digits.x_test, "y": digits.y_test}
    history = trainer.fit(
        {"x": digits.x_train, "y": digits.y_train},
        epochs=epochs,
        batch_size=BATCH,
        validation=test,
        progress=False if quiet else None,
    )
    return Fitted(trainer.parameters, history, trainer.evaluate(test))


class Gallery:
    """Writes the files of the main job into one folder and keeps a word on each.

    Where nothing can lay out a picture, its DOT text is written instead and a note says what to
    install.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[Path, str] = {}
        self.notes: list[str] = []

    def path(self, name: str, what: str) -> Path:
        """Return the path of a file that is about to be written, and keep a word on it."""
        path = self.folder / name
        self.files[path] = what
        return path

    def draw(self, name: str, what: str, picture: Diagram) -> None:
        """Write a picture as SVG, or as DOT text where it cannot be rendered."""
        try:
            picture.save(self.folder / f"{name}.svg")
        except RenderError as error:
            picture.save(self.path(f"{name}.dot", what))
            self.notes.append(str(error).partition("\n  The DOT text")[0])
        else:
            self.path(f"{name}.svg", what)


def plot_training(history: History, path: Path) -> None:
    """Plot loss, accuracy and gradient norm against the epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    curves = {
        "loss": (history.metrics["loss_of_rows"], history.validation["loss_of_rows"]),
        "accuracy": (history.metrics["accuracy"], history.validation["accuracy"]),
        "norm of the gradient": (history.gradient_norm, None),
    }
    for axes, (title, (training, test)) in zip(panels, curves.items(), strict=True):
        axes.plot(history.epochs, training, color="#0072B2", label="training")
        if test is not None:
            axes.plot(history.epochs, test, color="#D55E00", label="test")
            axes.legend()
        axes.set(title=title, xlabel="epoch")
        if title != "accuracy":
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _page(title: str, body: str) -> str:
    """A whole HTML page around a fragment that brings its own heading and style."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _prepare(out: Path) -> None:
    """Find out now, rather than after training, that a package or the folder cannot be used."""
    missing = [name for name, module in _EXTRAS.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"demo: {' and '.join(missing)} not found: the images of digits come with "
            "scikit-learn, the curves are drawn by matplotlib. "
            'Install them with  pip install "symgrad[demo]"'
        )
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()


def run(out: Path, quick: bool = False, quiet: bool = False, threads: int = 1) -> Result:
    """Train the network, draw it, and write everything into a folder.

    Args:
        out: the folder; made where it is missing.
        quick: fewer epochs and smaller pictures.
        quiet: print nothing and show no progress.
        threads: that training may use.
    Raises: OSError when the folder cannot be written, CompileError for a number of threads that
        cannot be, ImportError when an extra is missing.
    """
    say: Callable[[str], None] = (lambda line: None) if quiet else partial(print, flush=True)
    _prepare(out)
    digits = load_digits()
    network = write_network()
    epochs = QUICK_EPOCHS if quick else EPOCHS

    say(f"compiling a network of 64-{HIDDEN}-10 neurons and its gradient")
    step = compile_step(network, make_optimizer(len(digits.x_train), epochs))
    say(f"training on {len(digits.x_train)} images of handwritten digits, {epochs} times each")
    fitted = fit(network, digits, epochs, quiet=quiet, threads=threads)

    values = {
        "x": digits.x_train[:BATCH],
        "y": digits.y_train[:BATCH],
        **fitted.parameters,
    }
    say(f"drawing into {out}")
    gallery = Gallery(out)
    gallery.draw("forward", "the network as it is written", sg.draw(network.loss))
    both = sg.draw(network.loss, wrt=network.parameters)
    gallery.draw("backprop", "forward and backward halves, and what crosses between them", both)
    flow = sg.gradient_flow(network.loss, network.parameters, values)
    overlaid = sg.draw(network.loss, wrt=network.parameters, flow=flow)
    gallery.draw("gradient_flow", "the same with measured gradient magnitudes", overlaid)
    explosion_figure(
        gallery.path("explosion.svg", "30 layers, three initialisations: theory and measurement"),
        quick=quick,
    )
    derivation = sg.derive(network.loss, network.parameters[0])
    gallery.path("derivation.html", "the chain rule for dL/dW1, step by step").write_text(
        _page("dL/dW1, step by step", derivation._repr_html_()), encoding="utf-8"
    )
    step.save(gallery.path("kernels.py", "the generated training step"))
    plot_training(
        fitted.history, gallery.path("training.png", "loss, accuracy, gradient norm by epoch")
    )
    return Result(
        test_accuracy=fitted.test["accuracy"],
        test_loss=fitted.test["loss_of_rows"],
        epochs=len(fitted.history),
        steps=fitted.history.steps,
        train_seconds=sum(fitted.history.seconds),
        compile_seconds=sum(step.stages.seconds.values()),
        passes=dict(step.stages.seconds),
        files=gallery.files,
        notes=tuple(dict.fromkeys(gallery.notes)),
    )
