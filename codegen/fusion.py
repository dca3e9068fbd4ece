"""Fusion: which stage each node joins.

Pointwise nodes wait until something needs them: a product, a reduction, memory. Then they are
computed with it, in a stage that already reads or makes what they read, where the loops allow it;
so an optimiser's whole update is one loop, wherever its parts stand in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codegen.access import (
    DYNAMIC,
    Index,
    can_inline,
    is_view,
    read_by,
    reads,
    root_of,
    views_of_steps,
)
from codegen.counted import counted_in_node, tellers_of
from codegen.joining import may_join
from codegen.loop_ir import Affine
from codegen.ordering import in_order
from codegen.products import Product, compact, homes_of, is_product, layout_of, matched
from codegen.schedule import (
    Apart,
    Checked,
    FoldStage,
    LoopStage,
    MoveStage,
    ProductStage,
    Schedule,
    Stage,
    domain_labels,
    domain_of,
    equal_shapes,
    member_reads,
    place_in,
    position_of,
    result_index,
    runs_along_rows,
)
from symgrad.graph.dims import Shape
from symgrad.graph.folds import Fold, Proj, counted_by
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    RUNNING,
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
    map_node,
)
from symgrad.graph.traversal import toposort

Roots = list[tuple[Node, Index]]
# A stage takes no more members than this, so that compilation stays linear in their number. Its
# small divisors make equal kernels of the parts of a chain that repeats itself.
MOST_MEMBERS = 240
# A stage says at most so often why it is apart from an earlier one.
MOST_REASONS = 3
OTHER_KINDS: dict[type, str] = {
    ProductStage: "{stage} is a product",
    MoveStage: "{stage} moves elements",
    FoldStage: "{stage} is a recurrence",
}


def make_schedule(outputs: Sequence[Node], checked: list[Checked] | None = None) -> Schedule:
    """Group the nodes that the outputs need into stages.

    Args:
        outputs: what is wanted in memory.
        checked: the list that nodes with checked indices join; bodies share that of their graph.
    """
    graph = Graph(_leaves(outputs), tuple(outputs))
    return _Scheduler(graph, [] if checked is None else checked).run()


def in_memory(node: Node) -> Node:
    """The node, or a copy of it where it is a leaf, so that it has memory of its own."""
    if not isinstance(root_of(node), (Input, Constant)):
        return node
    return map_node(P[0], [node], node.dtype)


def _leaves(outputs: Sequence[Node]) -> tuple[Input, ...]:
    return tuple(n for n in toposort(outputs) if isinstance(n, Input))


class _Scheduler:
    def __init__(self, graph: Graph, checked: list[Checked]) -> None:
        self.graph = graph
        self.checked = checked
        self.stages: list[Stage] = []
        self.stage_of: dict[Node, int] = {}
        self.readers: dict[Node, set[int]] = {}
        self.tellers = tellers_of(graph)
        self.passed = views_of_steps(graph)
        self.forced = frozenset(self._must_lie_in_memory())
        self.joint: set[Node] = set()  # arrays that products write their parts of
        self.products = self._find_products()
        self.stored: set[Node] = set(self.forced)
        self.wanted = {root_of(o) for o in graph.outputs}
        self.waiting: dict[Node, int] = {}  # and how long a chain of waiting nodes it ends

    def _must_lie_in_memory(self) -> Iterator[Node]:
        """What a kernel or the caller needs as memory; reshapes show the memory of another."""
        read = [*self.graph.outputs, *self.tellers.values()]
        for node in self.graph.nodes:
            if isinstance(node, Fold):
                read.extend(read_by(node))
            elif is_view(node):
                read.extend(node.args if node not in self.passed else ())
            elif isinstance(node, Reindex) and not can_inline(node):
                pieces = zip(node.args, node.pieces, strict=True)
                read.extend(arg for arg, piece in pieces if piece.view != arg.shape)
        yield from (root for root in map(root_of, read) if can_inline(root))

    def _find_products(self) -> dict[Node, Product]:
        """All products; what lies so that one cannot read it is forced into memory of its own.

        That may be what another product looked through, so all are looked at again; likewise where
        one of the products that write into a joint array cannot.
        """
        todo = [node for node in self.graph.nodes if isinstance(node, Einsum) and is_product(node)]
        homes = homes_of(self.graph)
        while True:
            found: dict[Node, Product] = {}
            forced, away = set(self.forced), set()
            for node in todo:
                operands = zip(node.args, node.labels, strict=True)
                a, b = (layout_of(arg, labels, self.inline) for arg, labels in operands)
                home, own = homes.get(node), compact(node, node.out)
                product = matched(node, a, b, home or own) if a and b else None
                if product is not None:
                    found[node] = product
                elif home is not None and (not (a and b) or matched(node, a, b, own)):
                    away.add(home.root)
                else:
                    forced.update(root for root in map(root_of, node.args) if can_inline(root))
            if not away and forced == self.forced:
                self.joint = {homes[n].root for n in found if n in homes}
                return found
            homes = {n: home for n, home in homes.items() if home.root not in away}
            self.forced = frozenset(forced)

    def inline(self, node: Node) -> bool:
        return can_inline(node) and node not in self.forced

    def roots(self, node: Node, position: Index) -> list[tuple[Node, Index]]:
        """What a member reads once inline nodes and views are looked through."""
        found: list[tuple[Node, Index]] = []
        stack = list(zip(node.args, member_reads(node, position), strict=True))
        while stack:
            arg, index = stack.pop()
            if self.inline(arg):
                stack.extend(zip(arg.args, reads(arg, index), strict=True))
            elif is_view(arg):
                found.append((root_of(arg), (Affine(((DYNAMIC, 1),)),)))
            else:
                found.append((arg, index))
        if self.tellers:
            told = sorted(counted_in_node(node) & self.tellers.keys(), key=lambda d: d.name)
            found += [(self.tellers[d], (Affine(((DYNAMIC, 1),)),)) for d in told]
        return found

    def run(self) -> Schedule:
        for node in in_order(self.graph, self.tellers):
            if isinstance(node, Reindex) and counted_by(node) is not None:
                self._need(node.args[0])
            if isinstance(node, (Input, Constant)) or self.inline(node):
                continue
            if is_view(node):
                if node not in self.passed:
                    self._need(node.args[0])
            elif isinstance(node, Fold):
                self._recur(node)
            elif isinstance(node, Proj):
                self.stage_of[node] = self.stage_of[node.args[0]]
                self.stored.add(node)
            elif node in self.products:
                assert isinstance(node, Einsum)
                self._alone(ProductStage(node, self.products[node]), node)
            elif node in self.joint:
                self.stage_of[node] = max(self.stage_of[_made_by(arg)] for arg in node.args)
                self.stored.add(node)
            elif (isinstance(node, Reindex) and not can_inline(node)) or (
                isinstance(node, Reduce) and node.op in RUNNING and not runs_along_rows(node)
            ):
                if not self._joins(node):
                    self._alone(MoveStage(node), node)
            elif self._may_wait(node) and (length := self._chain(node)) < MOST_MEMBERS:
                self.waiting[node] = length
            else:
                self._place(node)
        for node in self.graph.outputs:
            self._need(node)
        return Schedule(
            self.graph,
            tuple(self.stages),
            self.stage_of,
            frozenset(self.stored),
            self.forced,
            self.checked,
        )

    def _may_wait(self, node: Node) -> bool:
        """Whether a node is computed with its first reader; scalars are not worth waiting for."""
        return (
            _is_pointwise(node)
            and node.ndim > 0
            and not self._comes_first(node)
            and node not in self.wanted
            and node not in self.forced
        )

    def _comes_first(self, node: Node) -> bool:
        """Whether a node is rows of a leaf: what is computed of them joins them, in any stage.

        Not where one pointwise node alone reads them, and a product besides.
        """
        if not (isinstance(node, Gather) and all(isinstance(a, Input) for a in node.args)):
            return False
        first, *others = [n for n in self.graph.nodes for arg in n.args if arg is node] or [node]
        return bool(others) or not (_is_pointwise(first) and self.products.keys() & {*first.args})

    def _chain(self, node: Node) -> int:
        """How long a chain of waiting nodes becomes with this one."""
        found = 0
        stack = list(node.args)
        while stack:
            arg = stack.pop()
            if self.inline(arg):
                stack.extend(arg.args)
            else:
                found = max(found, self.waiting.get(arg, 0))
        return found + 1

    def _place(self, node: Node) -> None:
        """Compute a node now, and with it the waiting nodes that it reads."""
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            top, ready = stack.pop()
            if top in self.stage_of:
                continue
            together, others = self._waiting_for(top)
            if others and not ready:
                stack.append((top, True))
                stack.extend((other, False) for other in reversed(others))
                continue
            self._fuse([*together, top])

    def _waiting_for(self, node: Node) -> tuple[list[Node], list[Node]]:
        """Waiting nodes that a node reads: those of its own loops, and those of other loops."""
        domain = domain_of(node)
        here = position_of(domain)
        together: dict[Node, None] = {}
        others: dict[Node, None] = {}
        stack = [node]
        while stack:
            for root, index in self.roots(stack.pop(), here):
                if root not in self.waiting:
                    continue
                if index != here or not equal_shapes(domain_of(root), domain):
                    others[root] = None
                elif root not in together:
                    together[root] = None
                    stack.append(root)
        # what other loops read must be there before them
        for root in list(together):
            if root in others:
                del together[root]
        order = self.graph.number
        return sorted(together, key=order.__getitem__), sorted(others, key=order.__getitem__)

    def _recur(self, node: Fold) -> None:
        """A stage of its own; copies of the old carry come first, while it is still there."""
        outputs = tuple(in_memory(o) for o in node.body.outputs)
        copies = [a for a, b in zip(outputs, node.body.outputs, strict=True) if a is not b]
        inner = make_schedule([*copies, *outputs], self.checked)
        self._alone(FoldStage(node, inner, outputs), node)
        self.stored.discard(node)

    def _need(self, node: Node) -> None:
        """A node must lie in memory: it is computed now if it still waits."""
        root = root_of(node)
        if root in self.waiting:
            self._place(root)
        if not isinstance(root, (Input, Constant)):
            self.stored.add(root)

    def _joins(self, node: Reindex | Reduce) -> bool:
        """Whether one stage of loops makes all pieces of an array; then it writes the array."""
        if not isinstance(node, Reindex) or not may_join(node):
            return False
        if not all(_is_pointwise(arg) and not self.inline(arg) for arg in node.args):
            return False
        for arg in node.args:
            if arg in self.waiting:
                self._place(arg)
        number, *others = {self.stage_of.get(arg) for arg in node.args}
        if number is None or others:
            return False
        stage = self.stages[number]
        if not isinstance(stage, LoopStage) or not stage.is_full(node.args[0].shape):
            return False
        stage.joined.append(node)
        self.stage_of[node] = number
        self.stored.add(node)
        return True

    def _alone(self, stage: Stage, node: Node) -> None:
        """A stage of its own; what it reads is computed before."""
        stack = [*read_by(node)][::-1]
        while stack:
            top = stack.pop()
            if self.inline(top):
                stack.extend(top.args)
            else:
                self._need(top)
        self.stage_of[node] = len(self.stages)
        self.stages.append(stage)
        self.stored.add(node)

    def _fuse(self, group: Sequence[Node]) -> None:
        """Put nodes of one domain, in order, into a stage that takes all, else into a new one."""
        domain = domain_of(group[-1])
        here = position_of(domain)
        members = set(group)
        roots = {n: self.roots(n, here) for n in group}
        outer = [r for n in group for r in roots[n] if r[0] not in members]
        first = max((self.stage_of.get(root, 0) for root, _ in outer), default=0)
        apart: list[Apart] = []
        for number in self._sharing(outer, first):
            found = self._hindrance(number, group, domain, roots)
            if found is None:
                stage = self.stages[number]
                assert isinstance(stage, LoopStage)
                break
            apart.append(found)
        else:
            stage = LoopStage(domain, len(domain), apart=tuple(apart[:MOST_REASONS]))
            number = len(self.stages)
            self.stages.append(stage)
        for node in group:
            self._join(stage, number, node, domain, roots[node])

    def _hindrance(
        self, number: int, group: Sequence[Node], domain: Shape, roots: dict[Node, Roots]
    ) -> Apart | None:
        """What keeps a group of nodes out of a stage; None where they fit."""
        stage = self.stages[number]
        if not isinstance(stage, LoopStage):
            return Apart(number, OTHER_KINDS[type(stage)], stage.node)
        if len(stage.members) + len(group) > MOST_MEMBERS:
            return Apart(number, "{stage} holds as many nodes as a stage may", group[0])
        for node in group:
            found = self._misfit(stage, number, node, domain, roots[node])
            if found is not None:
                return Apart(number, *found)
        return None

    def _join(self, stage: LoopStage, number: int, node: Node, domain: Shape, roots: Roots) -> None:
        """Make a node a member of a stage that it fits."""
        self.waiting.pop(node, None)
        self._reduces(stage, node, domain)
        self.stage_of[node] = number
        stage.members.append(node)
        for root, index in roots:
            self.readers.setdefault(root, set()).add(number)
            if self.stage_of.get(root) != number:
                self._need(root)
            elif not self._aligned(stage, root, index):
                self.stored.add(root)
        if node in stage.accumulated:
            self.stored.add(node)

    def _sharing(self, roots: list[tuple[Node, Index]], first: int) -> list[int]:
        """Stages from `first` on that make or read a root, the last before the others.

        To join one of them saves memory traffic.
        """
        found: set[int] = set()
        for root, _ in roots:
            found.update(self.readers.get(root, ()))
            if root in self.stage_of:
                found.add(self.stage_of[root])
        return sorted((k for k in found if k >= first), reverse=True)

    def _misfit(
        self, stage: LoopStage, number: int, node: Node, domain: Shape, roots: Roots
    ) -> tuple[str, Node] | None:
        """Why a node cannot become a member of a stage, and of which node that speaks."""
        full = stage.is_full(domain)
        read = [(root, index) for root, index in roots if self.stage_of.get(root) == number]
        for root, _ in read:
            if root in stage.accumulated or any(root is node for node in stage.joined):
                return "{node} is whole when the loops of {stage} end", root
        if not full and not (stage.is_split and _is_row(domain, stage)):
            return "{stage} has other loops", node
        for root, index in read:
            if not self._aligned(stage, root, index) and not self._within_row(
                stage, root, index, node
            ):
                return "{node} is read at other places than {stage} makes it", root
        suffix = _reduced_suffix(node)
        if suffix is None or self._splits(stage, domain, suffix):
            return None
        if full and suffix >= 0 and not stage.is_split:  # its rows would not be those of members
            return "{node} reduces rows, {stage} has none", node
        if isinstance(node, Reduce) and node.op in RUNNING:
            return "{node} needs rows of its own", node
        return None

    def _splits(self, stage: LoopStage, domain: Shape, suffix: int) -> bool:
        """Whether a reduction over the last `suffix` axes is one over the stage's rows."""
        if suffix < 0 or not stage.is_full(domain):
            return False
        if stage.is_split:
            return stage.split == len(stage.domain) - suffix
        return all(stage.is_full(domain_of(m)) for m in stage.members)

    def _reduces(self, stage: LoopStage, node: Node, domain: Shape) -> None:
        """Mark how a member reduces: within a row, or into memory."""
        suffix = _reduced_suffix(node)
        if suffix is None:
            return
        if self._splits(stage, domain, suffix):
            stage.split, stage.is_split = len(stage.domain) - suffix, True
            if not runs_along_rows(node):
                stage.trailing.add(node)
        else:
            stage.accumulated.add(node)

    def _aligned(self, stage: LoopStage, root: Node, index: Index) -> bool:
        """Whether a member is read at the position where it is computed."""
        here = position_of(stage.domain)
        if root in stage.trailing:
            return index == result_index(root, place_in(stage, root))
        if stage.is_full(root.shape):
            return index == here
        rows = here[: stage.split]
        return index[: stage.split] == rows and not any(i.terms for i in index[stage.split :])

    def _within_row(self, stage: LoopStage, root: Node, index: Index, node: Node) -> bool:
        """Whether a Gather reads the row that was just computed, at a computed place."""
        here = position_of(stage.domain)
        return (
            isinstance(node, Gather)
            and stage.is_split
            and root is node.args[0]
            and stage.is_full(root.shape)
            and root not in stage.trailing
            and index[: stage.split] == here[: stage.split]
        )


def _made_by(node: Node) -> Node:
    """The product of which a node shows the result, perhaps transposed."""
    while not is_product(node):
        (node,) = node.args
    return node


def _is_pointwise(node: Node) -> bool:
    """Whether a node computes each of its elements from single elements."""
    if isinstance(node, Einsum):
        return not node.summed
    return isinstance(node, (Map, Gather))


def _is_row(domain: Shape, stage: LoopStage) -> bool:
    rows = stage.domain[: stage.split]
    return (
        equal_shapes(domain[: stage.split], rows)
        and all(type(e) is int and e == 1 for e in domain[stage.split :])
        and len(domain) >= stage.split
    )


def _reduced_suffix(node: Node) -> int | None:
    """How many last axes of its domain a member reduces; -1 for others, None for none."""
    if isinstance(node, Scatter):
        return -1
    if not (isinstance(node, Einsum) and node.summed) and not isinstance(node, Reduce):
        return None
    labels, summed = domain_labels(node)
    return len(summed) if set(labels[len(labels) - len(summed) :]) == summed else -1
