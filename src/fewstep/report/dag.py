"""The graph of the stages, laid out as boxes and curves.

Layers are longest paths (Sugiyama et al. 1981, "Methods for visual understanding of hierarchical
system structures"): a stage stands right of everything it needs. Inside a layer stages take lanes as
branches do in a version history: the first child stays in its parent's lane.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

GAP, LETTER, LINE, PADDING = 34, 7.6, 15, 11
"""Gap between layers, letter width, line height, padding from text to border; all in CSS pixels."""


@dataclass(frozen=True)
class Box:
    """A stage or a group of stages; `x`, `y`: its top left corner. `lines`: the group's members, wrapped."""

    name: str
    members: tuple[str, ...]
    lines: list[str]
    x: float
    y: float
    width: float
    height: float

    def baseline(self, row: int) -> float:
        """Baseline of text row `row`, measured from the box's top; row 0 is the name."""
        return PADDING + LINE * (row + 0.78)


@dataclass(frozen=True)
class Drawing:
    """Boxes over curves (SVG path data) on a canvas of `width` x `height`."""

    boxes: tuple[Box, ...]
    curves: tuple[str, ...]
    width: float
    height: float


@dataclass(frozen=True)
class Way:
    """Waypoint in `layer` of the edges from `source` to later layers."""

    source: str
    layer: int


Node = str | Way


def draw(needs: Mapping[str, Iterable[str]]) -> Drawing:
    """Lay out the stages; `needs`: name of each stage -> names of the stages it needs, without a cycle."""
    groups = collapse(needs)
    graph = nx.transitive_reduction(groups)
    layers = [sorted(layer) for layer in nx.topological_generations(graph)]
    routed = route(graph, layers)
    lanes = assign_lanes(routed, layers)

    lines = {name: wrap(groups.nodes[name]["members"]) for name in graph}
    widths = [max(box_width(name, lines[name]) for name in layer) for layer in layers]
    lefts = [sum(widths[:i]) + i * GAP for i in range(len(widths))]
    heights = {name: 2 * PADDING + LINE * (1 + len(lines[name])) for name in graph}
    pitch = max(heights.values(), default=0) + GAP / 2
    layer_of = {name: i for i, layer in enumerate(layers) for name in layer}

    def middle(node: Node) -> float:
        return lanes[node] * pitch + pitch / 2

    def left(node: Node) -> float:
        return lefts[node.layer if isinstance(node, Way) else layer_of[node]]

    def right(node: Node) -> float:
        return left(node) + widths[node.layer if isinstance(node, Way) else layer_of[node]]

    curves = [
        f"M{right(a):.1f} {middle(a):.1f}"
        f"C{(right(a) + left(b)) / 2:.1f} {middle(a):.1f} {(right(a) + left(b)) / 2:.1f} {middle(b):.1f} "
        f"{left(b):.1f} {middle(b):.1f}" + (f"H{right(b):.1f}" if isinstance(b, Way) else "")
        for a, b in routed.edges
    ]
    boxes = [
        Box(
            name=name,
            members=groups.nodes[name]["members"],
            lines=lines[name],
            x=left(name),
            y=middle(name) - heights[name] / 2,
            width=widths[layer_of[name]],
            height=heights[name],
        )
        for layer in layers
        for name in layer
    ]
    return Drawing(
        boxes=tuple(boxes),
        curves=tuple(sorted(curves)),
        width=sum(widths) + GAP * max(len(widths) - 1, 0),
        height=pitch * (1 + max(lanes.values(), default=-1)),
    )


def collapse(needs: Mapping[str, Iterable[str]]) -> nx.DiGraph:
    """One node per stage, or per group `halve@4, halve@2, ...`; an edge leads from the needed to the needing.

    A group is not merged where a stage outside it both needs it and feeds it: that would be a cycle.
    Nodes carry `members`: the parts behind the `@`, in the order given; empty for a single stage.
    """
    edges = [(need, name) for name, all_needs in needs.items() for need in all_needs]
    group = {name: name.partition("@")[0] for name in needs}
    merged = nx.DiGraph((group[a], group[b]) for a, b in edges if group[a] != group[b])
    entangled = {name for knot in nx.strongly_connected_components(merged) if len(knot) > 1 for name in knot}
    shown = {name: name if group[name] in entangled else group[name] for name in needs}

    graph = nx.DiGraph()
    for node in shown.values():
        members = tuple(name.partition("@")[2] for name in needs if shown[name] == node != name)
        graph.add_node(node, members=members)
    graph.add_edges_from((shown[a], shown[b]) for a, b in edges if shown[a] != shown[b])
    return graph


def route(graph: nx.DiGraph, layers: list[list[str]]) -> nx.DiGraph:
    """The graph with every edge split at the layers it crosses; edges of one source share waypoints."""
    layer_of = {name: i for i, layer in enumerate(layers) for name in layer}
    routed = nx.DiGraph()
    routed.add_nodes_from(graph)
    for a, b in graph.edges:
        ways = [Way(a, layer) for layer in range(layer_of[a] + 1, layer_of[b])]
        nx.add_path(routed, [a, *ways, b])
    return routed


def assign_lanes(routed: nx.DiGraph, layers: list[list[str]]) -> dict[Node, int]:
    """The lane of every node, 0 at the top: its uppermost parent's, or the next free one below.

    Among siblings, the one with the longest path ahead comes first, so that the longest path is straight.
    """
    ahead: dict[Node, int] = {}
    for node in reversed(list(nx.topological_sort(routed))):
        ahead[node] = max((ahead[child] for child in routed.successors(node)), default=0)
        ahead[node] += not isinstance(node, Way)

    lanes: dict[Node, int] = {}
    for i in range(len(layers)):
        nodes: list[Node] = [*layers[i], *(n for n in routed if isinstance(n, Way) and n.layer == i)]
        wish = {n: min((lanes[parent] for parent in routed.predecessors(n)), default=0) for n in nodes}
        free = 0
        for node in sorted(nodes, key=lambda n: (wish[n], isinstance(n, Way), -ahead[n], str(n))):
            lanes[node] = max(free, wish[node])
            free = lanes[node] + 1
    return lanes


def wrap(members: tuple[str, ...]) -> list[str]:
    """The members of a group as at most three short lines."""
    return textwrap.wrap(", ".join(members), width=18, max_lines=3, placeholder=" …", break_on_hyphens=False)


def box_width(name: str, lines: list[str]) -> float:
    """Wide enough for the longest line of the box, plus padding."""
    return max(map(len, [name, *lines])) * LETTER + 2 * PADDING
