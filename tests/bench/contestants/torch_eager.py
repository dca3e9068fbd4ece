"""PyTorch as most people write it: eager modules, autograd and a fused optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.bench.contestants import torch_tagger
from tests.bench.workloads import Recurrent, Tagger, Workload


def run(workload: Workload, packed: bool = False) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses.

    Args:
        packed: a tagger reads packed sequences, see `torch_tagger`.
    """
    import torch

    torch.set_num_threads(workload.threads)
    spec = workload.specification
    make = {"attention": _block, "recurrent": _recurrent}.get(spec.kind, _dense)
    is_tagger = isinstance(spec, Tagger)
    model = torch_tagger.tagger(workload, packed) if is_tagger else make(workload)
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[spec.optimizer](model.parameters(), lr=spec.rate, fused=True)
    inputs = [torch.from_numpy(workload.data[k]) for k in ("X", "lengths") if k in workload.data]
    labels = torch_tagger.labels(workload) if is_tagger else workload.data["y"]
    y = torch.from_numpy(labels).long()
    orders = [torch.from_numpy(order).long() for order in workload.orders]
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal done
        means = []
        for _ in range(epochs):
            losses = []
            for rows in orders[done % len(orders)]:
                optimizer.zero_grad(set_to_none=True)
                logits = model(*(array[rows] for array in inputs))
                loss = torch.nn.functional.cross_entropy(
                    logits.reshape(-1, logits.shape[-1]), y[rows].reshape(-1)
                )
                loss.backward()
                if isinstance(spec, Recurrent):
                    torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip, foreach=True)
                optimizer.step()
                losses.append(loss.detach())
            means.append(float(torch.stack(losses).mean()))
            done += 1
        return means

    return train


def _linear(w: Any, b: Any) -> Any:
    import torch

    layer = torch.nn.Linear(*w.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w.T))
        layer.bias.copy_(torch.from_numpy(b))
    return layer


def _dense(workload: Workload) -> Any:
    import torch

    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[workload.training.activation]
    modules: list[Any] = []
    for w, b in workload.weights:
        modules += [_linear(w, b), activation()]
    return torch.nn.Sequential(*modules[:-1])


def _block(workload: Workload) -> Any:
    """The encoder block, with `scaled_dot_product_attention`."""
    import torch
    from torch.nn import functional

    spec, p = workload.attention, workload.parameters

    class Block(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.tensor(p["E"]), freeze=False)
            self.places = torch.nn.Parameter(torch.tensor(p["P"]))
            self.norm1, self.norm2 = (torch.nn.LayerNorm(spec.width) for _ in range(2))
            names = ("qkv", "o", "1", "2", "c")
            layers = [_linear(p["W" + name], p["b" + name]) for name in names]
            self.qkv, self.out, self.up, self.down, self.named = layers

        def forward(self, x: Any) -> Any:
            n, t = x.shape
            h = self.table(x) + self.places
            qkv = self.qkv(self.norm1(h)).view(n, t, 3, spec.heads, -1)
            o = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
            h = h + self.out(o.transpose(1, 2).reshape(n, t, -1))
            h = h + self.down(functional.gelu(self.up(self.norm2(h)), approximate="tanh"))
            return self.named(h)

    return Block()


def _recurrent(workload: Workload) -> Any:
    """`nn.RNN`, `nn.GRU` or `nn.LSTM` between an embedding and a linear layer."""
    import torch

    spec, p = workload.recurrent, workload.parameters

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.tensor(p["E"]), freeze=False)
            kinds = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
            self.cell = kinds[spec.cell](spec.width, spec.hidden, batch_first=True)
            self.named = _linear(p["Wo"], p["bo"])
            with torch.no_grad():
                self.cell.weight_ih_l0.copy_(torch.from_numpy(p["Wx"].T))
                self.cell.weight_hh_l0.copy_(torch.from_numpy(p["Wh"].T))
                self.cell.bias_ih_l0.copy_(torch.from_numpy(p["b"]))
                self.cell.bias_hh_l0.zero_()
            self.cell.bias_hh_l0.requires_grad_(False)  # the others have one bias

        def forward(self, x: Any) -> Any:
            return self.named(self.cell(self.table(x))[0])

    return Network()
