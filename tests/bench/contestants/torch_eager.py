"""PyTorch as most people write it: eager modules, autograd and a fused optimiser."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    import torch

    torch.set_num_threads(1)
    spec = workload.training
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[spec.activation]
    modules: list[torch.nn.Module] = []
    for w, b in workload.weights:
        layer = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.T))
            layer.bias.copy_(torch.from_numpy(b))
        modules += [layer, activation()]
    model = torch.nn.Sequential(*modules[:-1])
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[spec.optimizer](model.parameters(), lr=spec.rate, fused=True)
    x = torch.from_numpy(workload.data["X"])
    y = torch.from_numpy(workload.data["y"]).long()
    orders = [torch.from_numpy(order).long() for order in workload.orders]
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal done
        means = []
        for _ in range(epochs):
            losses = []
            for rows in orders[done % len(orders)]:
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            means.append(float(torch.stack(losses).mean()))
            done += 1
        return means

    return train
