"""The tagger in PyTorch: `nn.LSTM` over padded rows, one for each direction, or over packed ones.

The one that goes back reads each row turned at its length; behind the end of a row states are
whatever they are, for no word's loss depends on them. A packed sequence has no padding at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.bench.workloads import Workload

NO_WORD = -100  # a label that cross_entropy leaves out, unless told otherwise


def labels(workload: Workload) -> np.ndarray:
    """The labels, `NO_WORD` in the padding."""
    is_word = np.arange(workload.tagger.length) < workload.data["lengths"][:, None]
    return np.where(is_word, workload.data["y"], NO_WORD)


def tagger(workload: Workload, packed: bool) -> Any:
    """A module of x and lengths."""
    import torch
    from torch.nn.utils import rnn

    spec, p = workload.tagger, workload.parameters

    def filled(cell: Any, ways: str) -> Any:
        with torch.no_grad():
            for way, end in zip(ways, ("_l0", "_l0_reverse"), strict=False):
                getattr(cell, "weight_ih" + end).copy_(torch.from_numpy(p[f"Wx_{way}"].T))
                getattr(cell, "weight_hh" + end).copy_(torch.from_numpy(p[f"Wh_{way}"].T))
                getattr(cell, "bias_ih" + end).copy_(torch.from_numpy(p[f"b_{way}"]))
                other = getattr(cell, "bias_hh" + end)
                other.zero_()
                other.requires_grad_(False)  # the others have one bias
        return cell

    def lstm(ways: str) -> Any:
        two = len(ways) == 2
        cell = torch.nn.LSTM(spec.width, spec.hidden, batch_first=True, bidirectional=two)
        return filled(cell, ways)

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.tensor(p["E"]), freeze=False)
            self.named = torch.nn.Linear(2 * spec.hidden, spec.tags)
            with torch.no_grad():
                self.named.weight.copy_(torch.from_numpy(p["Wo"].T))
                self.named.bias.copy_(torch.from_numpy(p["bo"]))

    class Padded(Network):
        def __init__(self) -> None:
            super().__init__()
            self.there, self.back = lstm("f"), lstm("b")

        def forward(self, x: Any, lengths: Any) -> Any:
            words = self.table(x)
            time, ends = torch.arange(spec.length), lengths.long()[:, None]
            turned = torch.where(time < ends, ends - 1 - time, time)[..., None]
            back, _ = self.back(words.gather(1, turned.expand_as(words)))
            back = back.gather(1, turned.expand_as(back))
            return self.named(torch.cat([self.there(words)[0], back], -1))

    class Packed(Network):
        def __init__(self) -> None:
            super().__init__()
            self.both = lstm("fb")

        def forward(self, x: Any, lengths: Any) -> Any:
            words = rnn.pack_padded_sequence(
                self.table(x), lengths, batch_first=True, enforce_sorted=False
            )
            states, _ = self.both(words)
            full = rnn.pad_packed_sequence(states, batch_first=True, total_length=spec.length)[0]
            return self.named(full)

    return Packed() if packed else Padded()
