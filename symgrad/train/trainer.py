"""The trainer: fit, evaluate, predict, save and load, in the manner of scikit-learn."""

from __future__ import annotations

import os
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codegen.compiled import Compiled
from codegen.pipeline import check_options, compile
from symgrad.graph.dims import listed, printable, quoted
from symgrad.graph.errors import DataError, LeafError, SymgradError
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import as_node, inputs, parameters
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.streams import as_flag
from symgrad.graph.structure import flatten
from symgrad.optim import Optimizer
from symgrad.train import checkpoint
from symgrad.train.callbacks import Callback, Listener, listeners_of
from symgrad.train.carried import checked_state, first_value
from symgrad.train.data import Bound, Data, bind, check_batch_size, is_count, rows_at_a_time
from symgrad.train.driver import Run, Stop, share
from symgrad.train.epochs import Epochs, make_epochs
from symgrad.train.failures import not_measured, stopped
from symgrad.train.history import EpochRecord, History
from symgrad.train.interruption import interruptions
from symgrad.train.objective import Objective, make_objective
from symgrad.train.prediction import predicted
from symgrad.train.programs import BoundEpochs
from symgrad.train.progress import progress_bar

if TYPE_CHECKING:
    from codegen.reporting import Report

Array = npt.NDArray[Any]
Measure = Callable[[], dict[str, float]]


class Trainer:
    """Trains the parameters of a loss.

    Args:
        loss:      a float scalar, the mean over the batch, or one value per row, shape (B,), whose
                   mean is taken.
        optimizer: from `symgrad.optim`.
        wrt:       the parameters to train; default all of the loss.
        clip_norm: the norm to which larger gradients are scaled down, all parameters together.
        metrics:   further expressions to follow, by name: scalars or one value per row.
        target:    what to compile for.
        threads:   how many threads a step may use.
        seed:      of the initial parameters and of the order of rows. The same seed gives the same
                   bits.
        on_nan:    "raise": stop at the first step whose loss or gradient norm is NaN or infinite,
                   before it changes anything; "continue": train on.
        state:     {leaf: expression}: inputs or parameters that carry something from each minibatch
                   to the next, such as the hidden state of a recurrence over a long stream. An
                   epoch begins with zeros, or with a parameter's initial value. See `carried`.
        weight:    what each row counts in the means that are reported, shape (B,); default 1. Where
                   loss and metrics are means over words, the lengths of the rows.

    Losses and metrics are reported as means weighted by rows. Inputs that lead with the batch dim
    are data, one row per example; any other input is passed whole.

    Rows may differ in extents: sentences, say. Give a list of arrays for an input such as (B, T)
    with T = dim("T"). Each batch is padded with zeros to its own longest row, and rows of like size
    share a batch where they are shuffled or measured. Let the loss leave out the padding: by
    lengths, as in `sg.nn.LSTM(..).run(x, lengths=..)` and `sg.nn.sequence_cross_entropy`.

    Raises: SymgradError and its kinds where loss, parameters or options cannot work.

    >>> import symgrad as sg
    >>> B = sg.dim("B")
    >>> x, y = sg.input("x", (B,)), sg.input("y", (B,))
    >>> w = sg.parameter("w", ())
    >>> trainer = sg.Trainer(sg.mse(w * x, y), optimizer=sg.optim.sgd(0.5))
    >>> values = np.linspace(-1, 1, 50)
    >>> history = trainer.fit({"x": values, "y": 3 * values}, epochs=30, batch_size=10)
    >>> round(float(trainer.parameters["w"]), 3), len(history.loss)
    (3.0, 30)
    """

    def __init__(
        self,
        loss: Node,
        optimizer: Optimizer | None = None,
        wrt: Node | Sequence[Node] | None = None,
        clip_norm: float | None = None,
        metrics: Mapping[str, Node] | None = None,
        target: str = "cpu",
        threads: int = 1,
        seed: int = 0,
        on_nan: str = "raise",
        state: Mapping[Input, Node] | None = None,
        weight: Node | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            got = "none" if optimizer is None else type(optimizer).__name__
            raise SymgradError(
                f"Trainer: needs an optimizer, got {got}. Write optimizer=sg.optim.adam(1e-3)."
            )
        if on_nan not in ("raise", "continue"):
            raise SymgradError(f'Trainer: on_nan must be "raise" or "continue", got {on_nan!r}.')
        if not is_count(seed):
            raise SymgradError(f"Trainer: seed must be an integer of at least 0, got {seed!r}.")
        check_options(target, threads, seed, "Trainer")
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.target, self.threads, self.seed, self.on_nan = target, threads, int(seed), on_nan
        self.objective: Objective = make_objective(
            loss, optimizer, wrt, clip_norm, metrics or {}, checked_state(state), weight
        )
        self.epoch = 0
        self._records: list[EpochRecord] = []
        self._pace, self._size = 0.0, 0
        self._values = {leaf: first_value(leaf, self.seed) for leaf in self.objective.kept}
        self._programs: dict[str, tuple[Epochs, Compiled]] = {}
        self._predictions: dict[tuple[Node, ...], Compiled] = {}

    def __repr__(self) -> str:
        names = listed(printable(leaf.name[:40]) for leaf in self.objective.trained)
        return f"<Trainer of {names} with {self.optimizer}, after {self.epoch} epochs>"

    # -- what has been learned ---------------------------------------------------------------------
    @property
    def parameters(self) -> dict[str, Array]:
        """The parameters of loss and metrics by name, trained or not: fresh copies."""
        state = self._state_leaves()
        return {
            leaf.name: value.copy()
            for leaf, value in self._values.items()
            if leaf.kind == "parameter" and leaf not in state
        }

    @property
    def state(self) -> dict[str, Array]:
        """All that steps change, by name: parameters, the optimiser's state, the step count."""
        return {leaf.name: value.copy() for leaf, value in self._values.items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go back to an earlier `state` of this trainer; epochs count on."""
        for leaf, value in self._values.items():
            value[...] = state[leaf.name]

    @property
    def history(self) -> History:
        """Every epoch so far, over all calls of `fit`."""
        return History(tuple(self._records))

    def _state_leaves(self) -> set[Input]:
        own = {leaf for param in self.objective.trained for leaf in self.optimizer.state(param)}
        return own | set(self.objective.state)

    # -- training ----------------------------------------------------------------------------------
    def fit(
        self,
        data: Data,
        epochs: int = 10,
        batch_size: int = 32,
        shuffle: bool = True,
        validation: Data | None = None,
        callbacks: Iterable[Listener] = (),
        progress: bool | None = None,
    ) -> History:
        """Train for a number of epochs; a further call continues where this one ended.

        Args:
            data:       arrays by name or leaf, lists of arrays where rows differ in extents.
                        Memory-mapped files of the leaf's dtype are read as training goes.
            epochs:     passes over the data.
            batch_size: rows per step, at most as many as there are; the last batch may be smaller.
            shuffle:    a new order of rows in every epoch, made of seed and epoch. Rows of
                        different extents are put together by size first, then the batches are
                        shuffled; with False, all are taken as they stand.
            validation: data on which loss and metrics are computed after every epoch.
            callbacks:  called after every epoch with its EpochRecord; one that returns True or
                        "stop" ends training. See `EarlyStopping`, `Checkpoint` and `CsvLog`.
            progress:   show a bar on standard error; None: when that is a terminal.
        Returns: the epochs of this call. Ctrl-C ends it early, after about 0.1 s, with
            `interrupted` set; a second Ctrl-C raises KeyboardInterrupt.
        Raises: LeafError, ShapeError, DTypeError and DataError for data that do not fit; DataError
            when a loss or a gradient is not finite under on_nan="raise" and when an index is out
            of range: the step that met it has changed nothing.
        """
        goal, listeners = self.objective, listeners_of(callbacks)
        bound = bind("fit", data, goal.inputs, goal.batch)
        size = self._size = check_batch_size("fit", batch_size, bound.n)
        if not is_count(epochs):
            raise DataError(f"fit: epochs must be an integer of at least 0, got {epochs!r}.")
        as_flag("fit: shuffle", shuffle)
        if progress is not None:
            as_flag("fit: progress", progress)
        measure = None
        if validation is not None:
            held_out = self._bound_to_measure("fit: validation", validation)
            measure = self._measure("fit: validation", held_out, size)
            measure()  # what is wrong with these data is said before the first epoch
        run = Run(
            self._bound("train", bound, size), bound.n, epochs=int(epochs), batch_size=size,
            first_epoch=self.epoch, pace=self._pace,
            orders=bound.orders(size, bool(shuffle), self.seed, by_size=bool(shuffle)),
        )
        first = len(self._records)
        informed = [listener for listener in listeners if isinstance(listener, Callback)]
        for listener in informed:
            listener.begin(self)
        interrupted = self._train(run, bound, measure, listeners, progress)
        self._pace = run.pace
        for listener in informed:
            listener.end()
        return History(tuple(self._records[first:]), interrupted)

    def _train(
        self,
        run: Run,
        bound: Bound,
        measure: Measure | None,
        listeners: Sequence[Listener],
        progress: bool | None,
    ) -> bool:
        """Run to the end, or to Ctrl-C (True), or to a callback's stop."""
        epochs, first = len(run.sums), self.epoch
        one_by_one = measure is not None or bool(listeners)
        seconds = np.zeros(epochs + 1)
        total = epochs * run.steps_per_epoch
        with progress_bar(total, progress) as report, interruptions() as interrupted:
            while run.epoch < epochs:
                before, began = run.steps, time.perf_counter()
                seen = run.epoch
                status = run.advance(seen + 1 if one_by_one else epochs)
                share(seconds, time.perf_counter() - began, before, run)
                for k in range(seen, run.epoch):
                    record = self._record(run, k, seconds[k], bound, measure)
                    if any([listener(record) in (True, "stop") for listener in listeners]):
                        return interrupted()
                report(run.steps, lambda: self._progress_text(first + epochs))
                if status != Stop.DONE:  # the epoch that it stopped in does not count
                    raise stopped(run, status, bound, self.epoch + 1)
                if interrupted():
                    if run.start:
                        self._record(run, run.epoch, seconds[run.epoch], bound, None)
                    return True
        return False

    def _record(
        self, run: Run, k: int, seconds: float, bound: Bound, measure: Measure | None
    ) -> EpochRecord:
        """Enter epoch `k` of a run, which may be a part of one."""
        rows = bound.n if k < run.epoch else run.start
        means, norm = self._means(run.sums[k], rows)
        self.epoch += 1
        record = EpochRecord(
            epoch=self.epoch,
            loss=means["loss"],
            metrics={name: means[name] for name in self.objective.outputs if name != "loss"},
            gradient_norm=norm,
            validation={},
            seconds=float(seconds),
            rows=rows,
            steps=-(-rows // run.batch_size),
        )
        self._records.append(record)
        if measure is not None:  # a failure here leaves the epoch that was trained in the history
            record = self._records[-1] = replace(record, validation=measure())
        return record

    def _means(self, sums: Array, rows: int) -> tuple[dict[str, float], float]:
        """Sums of an epoch as means of loss and metrics, and the last of them on its own."""
        goal = self.objective
        counts = rows if goal.weight is None else sums[len(goal.outputs)]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (sums / counts).tolist()
        return dict(zip(goal.outputs, means, strict=False)), means[-1]

    def _progress_text(self, last: int) -> str:
        if not self._records:
            return ""
        record = self._records[-1]
        figures = {"loss": record.loss, **record.metrics}
        figures |= {f"validation {k}": v for k, v in record.validation.items()}
        text = "  ".join(f"{printable(k)} {v:.4g}" for k, v in figures.items())
        return f"epoch {record.epoch}/{last}  {text}"

    # -- using what was learned --------------------------------------------------------------------
    def evaluate(self, data: Data, batch_size: int | None = None) -> dict[str, float]:
        """Loss and metrics on data: means weighted by rows.

        Args:
            data:       as for `fit`.
            batch_size: rows computed at a time.
        """
        bound = self._bound_to_measure("evaluate", data)
        if batch_size is None and self.objective.state and self._size:
            batch_size = self._size  # what is carried was made for as many rows
        return self._measure("evaluate", bound, rows_at_a_time("evaluate", batch_size, bound))()

    def _bound_to_measure(self, asked: str, data: Data) -> Bound:
        """Data for loss and metrics; what only updates read may be among them."""
        goal = self.objective
        read = inputs([*goal.measured, *goal.state.values()])
        own = [x for x in read if x not in goal.state]
        return bind(asked, data, own, goal.batch, goal.inputs)

    def _measure(self, asked: str, bound: Bound, batch_size: int) -> Measure:
        """A function that computes loss and metrics on checked data, for whom `asked` names."""
        size = min(batch_size, bound.n)
        run = Run(
            self._bound("evaluate", bound, size), bound.n, epochs=1, batch_size=size,
            orders=bound.orders(size, by_size=not self.objective.state),
        )

        def measure() -> dict[str, float]:
            run.restart()
            while run.epoch < 1:
                if run.advance(1) != Stop.DONE:
                    raise not_measured(asked, run.failure)
            return self._means(run.sums[0], bound.n)[0]

        return measure

    def predict(self, expr: Any, data: Data, batch_size: int | None = None) -> Any:
        """The value of an expression on data, with the parameters as they are.

        Args:
            expr:       an expression, a sequence or a dictionary of expressions.
            data:       arrays for its inputs; those of the loss that it does not read are ignored.
            batch_size: rows computed at a time.
        Returns: arrays in the structure of `expr`. What leads with the batch dim has a row for each
            row of the data, in a list where the rows differ in extents. Where something else is
            asked for, all rows are computed together.
        """
        outputs, rebuild = flatten(expr, "predict")
        leaves = [x for x in Graph.of(outputs).inputs if not x.is_supplied]
        inputs = [x for x in leaves if x.kind == "input"]
        batch = self.objective.batch
        bound = bind("predict", data, inputs, batch, self.objective.inputs)
        for leaf in leaves:
            if leaf.kind != "input" and leaf not in self._values:
                own = {x.name: x for x in self._values if x.name in self.parameters}
                advice = f"It has {listed(map(quoted, own)) or 'none'}."
                if leaf.name in own:
                    advice = f"Its own is another leaf of that name\n  {describe(own[leaf.name])}"
                raise LeafError(
                    f"predict: the trainer has no value for\n  {describe(leaf)}\n  {advice}"
                )
        key = tuple(outputs)
        if key not in self._predictions:
            self._predictions[key] = self._compiled(outputs)
        f = self._predictions[key]
        fixed = {x.name: self._values[x] for x in leaves if x.kind != "input"}
        per_row = all(e.shape and e.shape[0] == batch for e in outputs)
        if not bound.rows or not per_row:
            return rebuild(f(**{**bound.batch(slice(None)), **fixed}))
        size = rows_at_a_time("predict", batch_size, bound)
        return rebuild(predicted(f, outputs, bound, fixed, size))

    # -- programs ----------------------------------------------------------------------------------
    @property
    def program(self) -> Compiled:
        """The compiled program that trains: epochs as one recurrence, and in it one over batches.

        `trainer.program.stages` has its graph and what became of it, `trainer.program.source` the
        generated code. It takes the data whole and the order of their rows.
        """
        return self._epochs("train")[1]

    def report(self, data: Data | None = None, batch_size: int = 32) -> Report:
        """Every kernel of a training step: flops, bytes, bound; on data also its measured time.

        Args:
            data:       as for `fit`: up to 50 batches are timed, and nothing is learned from them.
            batch_size: rows per step.
        Returns: text with figures as attributes, as `trainer.program.report()` of a compiled
            function.
        """
        if data is None:
            from codegen.reporting import make_report

            why = "Not measured: trainer.report(data, batch_size=32) times steps on data."
            return make_report(self.program, None, None, why)
        bound = bind("report", data, self.objective.inputs, self.objective.batch)
        size = check_batch_size("report", batch_size, bound.n)
        return self._bound("train", bound, size).report()

    def _epochs(self, key: str) -> tuple[Epochs, Compiled]:
        """Epochs of training, or of evaluation, and the program made of them when first needed."""
        if key not in self._programs:
            goal, train = self.objective, key == "train"
            outputs = dict(goal.outputs)
            if goal.weight is not None:  # named as no metric is
                outputs["".join(outputs) + " weight"] = as_node(1.0)
            if train:
                outputs["".join(outputs) + " gradient norm"] = goal.norm
            updates = goal.updates if train else goal.state
            epochs = make_epochs(outputs, goal.batch, updates, goal.state, goal.weight)
            f = self._compiled(epochs.outputs, training=train)
            self._programs[key] = (epochs, f)
        return self._programs[key]

    def _bound(self, key: str, bound: Bound, size: int) -> BoundEpochs:
        epochs, f = self._epochs(key)
        first = {leaf: first_value(leaf, self.seed) for leaf in self.objective.state}
        train = key == "train"
        values: MutableMapping[Input, Array] = self._values
        if not train:  # what is carried while measuring is not what training goes on with
            values = ChainMap({leaf: array.copy() for leaf, array in first.items()}, self._values)
        finite = train and self.on_nan == "raise"
        return BoundEpochs(f, epochs, bound, size, values, finite, first)

    def _compiled(self, outputs: list[Node], training: bool = False) -> Compiled:
        return compile(
            outputs, target=self.target, threads=self.threads, seed=self.seed, training=training
        )

    # -- files -------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, optimiser state, counts, settings and history to one file.

        The file is safetensors with JSON in its header. It appears whole or not at all.

        Raises: OSError when it cannot be written.
        """
        record = {
            "leaves": [checkpoint.described(leaf) for leaf in self._values],
            "trained": [leaf.name for leaf in self.objective.trained],
            "optimizer": self.optimizer.to_json(),
            "clip_norm": self.clip_norm,
            "target": self.target,
            "threads": self.threads,
            "seed": self.seed,
            "on_nan": self.on_nan,
            "epoch": self.epoch,
            "history": [entry.to_json() for entry in self._records],
        }
        checkpoint.write(path, {leaf.name: v for leaf, v in self._values.items()}, record)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        loss: Node,
        optimizer: Optimizer | None = None,
        metrics: Mapping[str, Node] | None = None,
        state: Mapping[Input, Node] | None = None,
        weight: Node | None = None,
    ) -> Trainer:
        """The trainer that `save` wrote, over the same loss: `fit` goes on bit for bit.

        Args:
            path:      the file.
            loss:      the expression that was trained; its leaves must have the same names, shapes
                       and dtypes.
            optimizer: needed only where its learning rate is an expression.
            metrics, state, weight: as for Trainer; they are not in the file.
        Raises: DataError for a file that is damaged or something else, LeafError when the leaves
            differ.
        """
        arrays, record = checkpoint.read(path)
        try:
            settings = {k: record[k] for k in ("clip_norm", "target", "threads", "seed", "on_nan")}
            leaves = record["leaves"]
            stored = [(str(x["name"]), str(x["dtype"]), tuple(x["shape"])) for x in leaves]
            chosen = optimizer or Optimizer.from_json(record["optimizer"])
            wanted = [str(name) for name in record["trained"]]
            epoch = int(record["epoch"])
            history = [EpochRecord(**entry) for entry in record["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"load: the header of {os.fspath(path)} is damaged ({error!r})."
            ) from None
        wrt = [p for p in parameters(as_node(loss)) if p.name in wanted]
        missing = [repr(name) for name in wanted if name not in {p.name for p in wrt}]
        if missing:
            raise LeafError(
                f"load: the loss has no parameter {', '.join(map(printable, missing))}, "
                f"which {os.fspath(path)} trains."
            )
        trainer = cls(
            loss, chosen, wrt, metrics=metrics, state=state, weight=weight, **settings
        )
        own = [(leaf.name, str(leaf.dtype), checkpoint.sizes(leaf)) for leaf in trainer._values]
        if set(own) != set(stored):
            raise LeafError(checkpoint.difference(os.fspath(path), own, stored))
        for leaf, value in trainer._values.items():
            value[...] = arrays[leaf.name]
        trainer.epoch, trainer._records = epoch, history
        return trainer
