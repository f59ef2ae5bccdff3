"""Run a captured forward pass on tensors: look at what its nodes get, replace it, or go from value to value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from coreprune.engine.double import mapped, name_of, wide, written
from coreprune.engine.norms import Norms, normalised, normalises
from coreprune.engine.precision import multiplies, product
from coreprune.engine.schedule import ends_of, scheduled, written_into
from coreprune.model.capture import Arguments, Captured
from coreprune.model.shapes import shaped
from coreprune.model.site import Tap

__all__ = ["Hook", "Part", "Steps", "asserts", "part_between", "run"]

_GROUPED = {f"aten.conv{axes}d.{kind}" for axes in (1, 2, 3) for kind in ("default", "padding")}
#: on the meta device; none that a counter of operations counts
_QUICK = {"aten.batch_norm.default", "aten.cat.default"}
_ASSERTS = ("aten._assert", "aten.sym_constrain")
_SIZED = ("aten.view.", "aten.reshape.", "aten._unsafe_view.", "aten.expand.")
#: gets a tap and what its node gets, and returns what the node is to get instead, if anything
Hook = Callable[[Tap, Tensor], Tensor | None]


def run(
    captured: Captured,
    tensors: Mapping[str, Tensor],
    arguments: Arguments,
    *,
    taps: Iterable[Tap] = (),
    hook: Hook | None = None,
    batch_statistics: bool = False,
    norms: Norms | None = None,
    complete: bool = True,
    grad: bool = False,
    widened: bool = False,
) -> list[Any]:
    """Run a captured graph, and return its outputs, flattened.

    Values are freed after their last use. What the code writes into is copied first. Everything is computed
    where the tensors are, whatever device the graph was captured on.

    Args:
        captured: the graph.
        tensors: parameters and buffers, by their name in the model.
        arguments: (args, kwargs), with the structure of the example's.
        taps: of this graph, where `hook` is called.
        hook: gets a tap and the operand as its node sees it (`observe.as_seen`); what it returns, if anything, is
            what that node gets instead. Other nodes see the original.
        batch_statistics: BatchNorms use the statistics of the batch at hand, see `coreprune.engine.norms.normalised`.
        norms: of this graph, takes in these statistics.
        complete: False stops behind the last tap and the last of `norms`, and returns nothing.
        grad: whether gradients can be asked for afterwards, of what `hook` makes require them.
        widened: whether every node gets its operands in double precision.
    """
    at = _located(captured.graph, taps)
    how = _How(at, hook, _device(captured, tensors, arguments), batch_statistics, norms, widened)
    with torch.set_grad_enabled(grad):
        outputs = _Runner(captured.graph, how).go(_fed(captured, tensors, arguments, how.device), complete=complete)
    return pytree.tree_leaves(outputs) if complete else []


def _fed(
    captured: Captured, tensors: Mapping[str, Tensor], arguments: Arguments, device: torch.device
) -> Sequence[Any]:
    """Values of the graph's placeholders, copies of those that the code writes into."""
    known: dict[str, set[str]] = captured.graph.meta
    if "written" not in known:
        known["written"] = written_into(captured.graph.graph)
    changed = known["written"]
    holders = [n.name for n in captured.graph.graph.nodes if n.op == "placeholder"]
    feed = captured.feed(tensors, arguments)
    for i, (name, value) in enumerate(zip(holders, feed, strict=True)):
        if isinstance(value, Tensor):
            moved = (value.detach() if value.requires_grad else value).to(device)
            feed[i] = moved.clone() if name in changed else moved
    return feed


class Steps:
    """Several passes of one graph side by side, each going on as far as the values that are asked for.

    Every node is run once at most, and only when something that is asked for depends on it, so that what `put` changes
    reaches all that was not needed before. Of the values only those are held that are still to be read or asked for.
    """

    def __init__(
        self,
        captured: Captured,
        tensors: Mapping[str, Tensor],
        batches: Iterable[Arguments],
        wanted: Sequence[Sequence[str]],
        *,
        batch_statistics: bool = False,
    ) -> None:
        """Start.

        Args:
            captured: the graph. tensors: parameters and buffers, by name. batches: inputs, one for each pass.
            wanted: names of the nodes of every call of `values`, in the order of the calls.
            batch_statistics: see `run`.
        """
        self._states = captured.states
        self._left = Counter(name for names in wanted for name in set(names))
        order = scheduled(captured.graph.graph, wanted)
        self._order = iter(order)
        ends = ends_of([node for nodes in order for node in nodes])
        self._passes: list[tuple[_Runner, dict[str, Any]]] = []
        for arguments in batches:
            how = _How({}, None, _device(captured, tensors, arguments), batch_statistics, norms=None)
            runner = _Runner(captured.graph, how)
            runner.env, runner.args_iter = {}, iter(_fed(captured, tensors, arguments, how.device))
            runner.user_to_last_uses = ends
            self._passes.append((runner, {}))

    @torch.no_grad()
    def values(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Values of nodes by name, for every pass."""
        found, nodes = [], next(self._order)
        for runner, held in self._passes:
            for node in nodes:
                result = runner.advance(node)
                if self._left[node.name]:
                    held[node.name] = result
            found.append({name: held[name] for name in names})
        self._left.subtract(set(names))
        for _, held in self._passes:
            for name in [name for name in held if not self._left[name]]:
                del held[name]
        return found

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Use other tensors from here on, in the precision of those before.

        Args:
            tensors: some of the parameters and buffers, by name.
        """
        for runner, _ in self._passes:
            for node, value in runner.env.items():
                name = self._states.get(node.name)
                if name is not None and name in tensors:
                    runner.env[node] = tensors[name].detach().to(value)


@dataclass(frozen=True)
class Part:
    """What lies between the first use of some tensors and some nodes, as a function of tensors and of what comes in.

    Attributes:
        captured: the whole. nodes: those of the part, in order. last: whose values are given back.
        states: names of the parameters and buffers that the part reads.
        incoming: names of all other nodes outside whose values it reads.
    """

    captured: Captured
    nodes: tuple[fx.Node, ...]
    last: tuple[fx.Node, ...]
    states: tuple[str, ...]
    incoming: tuple[str, ...]

    def __call__(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[Tensor]:
        """The values of the last nodes; gradients follow to the tensors.

        Args:
            tensors: parameters and buffers, by name. values: of `incoming`.
        """
        device = next(iter(tensors.values())).device
        runner = _Runner(self.captured.graph, _How({}, None, device, forced=False, norms=None))
        known = {**self.captured.constants, **values}
        states = {name: tensors[state] for name, state in self.captured.states.items() if state in tensors}
        outside = {a for node in self.nodes for a in node.all_input_nodes} - set(self.nodes)
        runner.env = {a: states[a.name] if a.name in states else known[a.name] for a in outside}
        for node in self.nodes:
            runner.env[node] = runner.run_node(node)
        return [runner.env[node] for node in self.last]


def part_between(captured: Captured, names: Collection[str], last: Sequence[str]) -> Part | None:
    """The part of a graph from tensors to nodes.

    Args:
        captured: the graph.
        names: of the tensors. last: of the nodes.

    Returns:
        The part, or None where it does not hold together: something else uses the tensors, or what is computed between,
        or values from outside are written into.
    """
    own = {name for name, state in captured.states.items() if state in names}
    nodes = list(captured.graph.graph.nodes)
    by_name = {node.name: node for node in nodes}
    reached: set[fx.Node] = set()
    for node in nodes:
        if any(a.name in own or a in reached for a in node.all_input_nodes):
            reached.add(node)
    ends = [by_name[name] for name in last]
    needed, waiting = set(ends), list(ends)
    while waiting:
        fresh = {a for a in waiting.pop().all_input_nodes if a in reached} - needed
        needed |= fresh
        waiting += fresh
    inside = tuple(node for node in nodes if node in needed)
    starts = [node for node in nodes if node.name in own]
    between = [*starts, *(node for node in inside if node.name not in last)]
    if any(user not in needed and not asserts(user) for node in between for user in node.users):
        return None
    outside = dict.fromkeys(a for node in inside for a in node.all_input_nodes if a not in needed)
    if any(node.args[i] in outside for node in inside for i in written(node.target) if i < len(node.args)):
        return None
    states = tuple(captured.states[a.name] for a in outside if a.name in captured.states)
    known = {*captured.states, *captured.constants}
    incoming = tuple(a.name for a in outside if a.name not in known and a.op != "get_attr")
    return Part(captured, inside, tuple(ends), states, incoming)


def asserts(node: fx.Node) -> bool:
    """Whether an operator only asserts, which is left out of every run."""
    return str(node.target).startswith(_ASSERTS)


def _as_many(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a view that has as many rows as its operand, for as many as there are, not as the example had."""
    operand, (value, sizes, *rest) = node.args[0], args
    held = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    if not isinstance(held, Tensor) or not held.dim() or not sizes or not isinstance(held.shape[0], int):
        return args
    if not value.dim() or sizes[0] != held.shape[0] or len(value) == held.shape[0]:
        return args
    return (value, [len(value), *sizes[1:]], *rest)


class _How(NamedTuple):
    taps: Mapping[fx.Node, list[Tap]]
    hook: Hook | None
    device: torch.device
    forced: bool
    norms: Norms | None
    widened: bool = False


class _Runner(fx.Interpreter):
    """Runs the nodes one by one."""

    def __init__(self, graph: fx.GraphModule, how: _How) -> None:
        super().__init__(graph)
        self._how = how
        self._at: fx.Node | None = None

    def go(self, feed: Sequence[Any], *, complete: bool = True) -> Any:
        """The output for values of the placeholders."""
        self.env, self.args_iter = {}, iter(feed)
        waiting = set() if complete else {node for node in self.graph.nodes if self._within(node)}
        for node in self.graph.nodes:
            if not complete and not waiting:
                return None
            result = self.advance(node)
            waiting.discard(node)
        return result

    def advance(self, node: fx.Node) -> Any:
        """The value of the next node; what it was the last to use is freed."""
        self.env[node] = result = next(self.args_iter) if node.op == "placeholder" else self.run_node(node)
        for last in self.user_to_last_uses.get(node, ()):
            del self.env[last]
        return result

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def _within(self, node: fx.Node) -> bool:
        """Whether a tap is at the node or in a graph that it runs."""
        bodies: list[Any] = [self.fetch_attr(str(a.target)) for a in node.all_input_nodes if a.op == "get_attr"]
        inner = (n for b in bodies if isinstance(b, fx.GraphModule) for n in b.graph.nodes)
        norms = self._how.norms
        return (
            node in self._how.taps or (norms is not None and node in norms) or any(n in self._how.taps for n in inner)
        )

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Arguments of a node, the tapped operand replaced and devices set."""
        self._at = n
        new: dict[str, Tensor] = {}
        for tap in self._how.taps.get(n, ()):
            operand = next(a for a in n.all_input_nodes if a.name == tap.operand)
            seen = self._how.hook(tap, new.get(tap.operand, self.env[operand])) if self._how.hook else None
            if seen is not None:
                new[tap.operand] = seen
        known = self.env.__getitem__
        args, kwargs = fx.map_arg((n.args, n.kwargs), (lambda a: new.get(a.name, known(a))) if new else known)
        if self._how.widened:
            args, kwargs = mapped(wide, (args, kwargs))
        if n.op == "call_function" and _kind(n.target).placed:
            args, kwargs = mapped(lambda a: self._how.device if isinstance(a, torch.device) else a, (args, kwargs))
        return args, kwargs

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One operator; what only asserts is left out."""
        kind = _kind(target)
        if kind.asserts:
            return None
        if kind.runs and any(isinstance(a, fx.GraphModule) for a in args):  # a block under no_grad, or under autocast
            at = next(i for i, a in enumerate(args) if isinstance(a, fx.GraphModule))
            return _Runner(args[at], self._how).go(args[at + 1 :])
        if kind.quick and self._how.device.type == "meta" and not kwargs:
            return shaped(target, args)
        if kind.normalises and self._how.forced:
            whole = name_of(target).startswith("aten.batch_norm")
            if not (whole and args[5]) and args[3] is not None:
                taking = self._how.norms.taking(self._at) if self._how.norms and self._at else None
                result = normalised(args[:5], args[7] if whole else args[6], taking)
                return result if whole else (result, result.new_empty(0), result.new_empty(0))
        if kind.grouped and len(args) > 6 and args[6] > 1:  # as many as the tensors, which may be cut, tell
            args = (*args[:6], args[0].shape[1 - args[1].dim()] // args[1].shape[1])
        if kind.sized and self._at is not None:
            args = _as_many(self._at, args)
        mixed = product(target, args) if kind.multiplies else None
        return target(*args, **kwargs) if mixed is None else mixed


class _Kind(NamedTuple):
    """What a run has to know of an operator.

    Attributes:
        asserts: and does nothing else. runs: a graph within the graph. normalises: as a BatchNorm.
        quick: on the meta device. grouped: a convolution. sized: has the sizes of its result.
        multiplies: by a matrix. placed: may have a device among its arguments.
    """

    asserts: bool
    runs: bool
    quick: bool
    normalises: bool
    grouped: bool
    sized: bool
    multiplies: bool
    placed: bool


@cache
def _kind(operator: Any) -> _Kind:
    """The kind of an operator, which is asked for at every node of every run."""
    name = name_of(operator)
    schema = getattr(operator, "_schema", None)
    return _Kind(
        name.startswith(_ASSERTS),
        name.startswith("wrap_with"),
        name in _QUICK,
        normalises(operator),
        name in _GROUPED,
        name.startswith(_SIZED),
        multiplies(operator),
        schema is None or any("Device" in str(argument.type) for argument in schema.arguments),
    )


def _located(graph: fx.GraphModule, taps: Iterable[Tap]) -> dict[fx.Node, list[Tap]]:
    """The nodes of the taps, in the graph itself or else in a graph within it, whose names may be the same."""
    parts = [part for part in graph.modules() if isinstance(part, fx.GraphModule)]
    nodes = {(n.name, a.name): n for part in reversed(parts) for n in part.graph.nodes for a in n.all_input_nodes}
    found: dict[fx.Node, list[Tap]] = {}
    for tap in taps:
        found.setdefault(nodes[tap.node, tap.operand], []).append(tap)
    return found


def _device(captured: Captured, tensors: Mapping[str, Tensor], arguments: Arguments) -> torch.device:
    leaves = (a for a in pytree.tree_leaves(arguments) if isinstance(a, Tensor))
    first: Tensor = next(chain((tensors[name] for name in captured.states.values()), leaves), torch.empty(0))
    return first.device
