"""A navigation mesh from a level's own geometry: where a player can stand, and paths between such places.

The level is cut into square cells. A cell is walkable when a player (a box of 2 RADIUS, HEIGHT high) that stands at its
centre touches no wall, no step higher than STEP above it and no obstacle. Neighbouring cells are joined where the step
between them is at most STEP and the gap under the ceilings at least HEIGHT; one does not jump down. What is kept is the
largest connected part. Its cells are merged into rectangles, the mesh's polygons. A path is the shortest chain of
rectangles under randomly stretched lengths, through a random point of each gate between two rectangles, then pulled
straight where the way is free. Walls are known to half a cell.

Distances are engine units; the constants are Doom's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from mgjax.data.play.motion import Motion
from mgjax.data.types import Engine

RADIUS, HEIGHT, STEP = 16.0, 56.0, 24.0
_LONGEST = 8  # cells along a rectangle's side: long ones make poor estimates of a path's length
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Sector(NamedTuple):
    """A part of a level with one floor and one ceiling height, and the segments around it."""

    floor: float
    ceiling: float
    segments: Float[np.ndarray, "n 4"]  # x1, y1, x2, y2
    blocking: Bool[np.ndarray, " n"]


class Geometry(NamedTuple):
    """A level: sectors that share their border segments, and solid round objects."""

    sectors: Sequence[Sector]
    obstacles: Float[np.ndarray, "k 3"]  # x, y, radius


class NavMesh(NamedTuple):
    """Row i and column j of the grid are the square around (x, y) = origin + cell * (j, i)."""

    origin: Float[np.ndarray, " 2"]  # centre of cell (0, 0)
    cell: float
    walkable: Bool[np.ndarray, "r c"]
    floor: Float[np.ndarray, "r c"]
    clearance: Float[np.ndarray, "r c"]  # distance to the nearest cell that is not walkable
    rectangle: Int[np.ndarray, "r c"]  # the rectangle that a walkable cell belongs to, else -1
    edges: Int[np.ndarray, "e 2"]  # rectangles (from, to), sorted
    gates: Float[np.ndarray, "e 4"]  # the border between the two, from (x1, y1) to (x2, y2)
    lengths: Float[np.ndarray, " e"]  # centre to gate to centre
    starts: Int[np.ndarray, " n1"]  # edges that leave rectangle i are starts[i] to starts[i + 1]

    @property
    def area(self) -> float:
        """Walkable area in square units."""
        return float(self.walkable.sum()) * self.cell**2


def build(geometry: Geometry, cell: float = 16.0) -> NavMesh:
    """The mesh of a level; the smaller the cells, the narrower the passages that are found.

    Raises:
      ValueError: nowhere in the level can a player stand.
    """
    corners = np.concatenate([sector.segments.reshape(-1, 2) for sector in geometry.sectors])
    origin = np.floor(corners.min(0) / cell) * cell + cell / 2
    cols, rows = (np.ceil((corners.max(0) - origin) / cell).astype(int) + 1).tolist()

    floor, ceiling = _heights(geometry.sectors, origin, cell, (rows, cols))
    walkable = (ceiling - floor >= HEIGHT) & ~_blocked(geometry, floor, origin, cell)
    if not walkable.any():
        raise ValueError("nowhere in this level can a player stand")
    joints = _joints(walkable, floor, ceiling)
    walkable, joints = _largest_part(walkable, joints)
    rectangle, boxes = _rectangles(walkable, joints)
    edges, gates = _gates(rectangle, joints, origin, cell)
    centres = origin + cell * (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2
    middle = (gates[:, :2] + gates[:, 2:]) / 2
    lengths = sum(np.linalg.norm(centres[edges[:, end]] - middle, axis=1) for end in (0, 1))
    clearance = np.asarray(ndimage.distance_transform_edt(np.pad(walkable, 1)))[1:-1, 1:-1] * cell
    starts = np.searchsorted(edges[:, 0], np.arange(len(boxes) + 1))
    return NavMesh(origin, cell, walkable, floor, clearance, rectangle, edges, gates, lengths, starts)


@runtime_checkable
class Navigable(Engine, Protocol):
    """An engine that tells where a player can stand and how keys move him."""

    motion: Motion

    @property
    def navmesh(self) -> NavMesh:
        """Of the level that is being played."""
        ...


def cell_of(mesh: NavMesh, points: Float[np.ndarray, "*b 2"]) -> Int[np.ndarray, "*b 2"]:
    """Row and column of the cells that hold `points` (x, y); points outside get the nearest cell of the grid."""
    indices = np.rint((np.asarray(points)[..., :2] - mesh.origin) / mesh.cell).astype(int)[..., ::-1]
    return np.clip(indices, 0, np.array(mesh.walkable.shape) - 1)


def nearest(mesh: NavMesh, point: Float[np.ndarray, " 2"]) -> tuple[int, int]:
    """Row and column of the walkable cell that is nearest to a point."""
    row, col = cell_of(mesh, point).tolist()
    if mesh.walkable[row, col]:
        return row, col
    rows, cols = np.nonzero(mesh.walkable)
    best = np.argmin((rows - row) ** 2 + (cols - col) ** 2)
    return int(rows[best]), int(cols[best])


def random_point(mesh: NavMesh, rng: np.random.Generator) -> Float[np.ndarray, " 2"]:
    """A uniformly drawn walkable cell's centre (x, y)."""
    rows, cols = np.nonzero(mesh.walkable)
    i = rng.integers(len(rows))
    return mesh.origin + mesh.cell * np.array([cols[i], rows[i]])


def free_distance(
    mesh: NavMesh, point: Float[np.ndarray, " 2"], directions: Float[np.ndarray, "n 2"], reach: float
) -> Float[np.ndarray, " n"]:
    """How far a player can go from `point` along unit vectors on the mesh, up to `reach`; exact to half a cell."""
    distances = np.arange(0.0, reach + mesh.cell / 2, mesh.cell / 2)
    cells = cell_of(mesh, np.asarray(point)[:2] + distances[:, None, None] * np.asarray(directions))
    rows, cols = cells[..., 0], cells[..., 1]
    floor = mesh.floor[rows, cols]
    stop = ~mesh.walkable[rows, cols]
    stop[1:] |= np.abs(np.diff(floor, axis=0)) > STEP
    stop[0] = False
    first = np.where(stop.any(0), stop.argmax(0), len(distances))
    return np.minimum(distances[np.maximum(first - 1, 0)], reach)


def is_free(mesh: NavMesh, start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"]) -> bool:
    """Whether the straight way from `start` to `end` stays on the mesh."""
    difference = np.asarray(end)[:2] - np.asarray(start)[:2]
    length = float(np.hypot(*difference))
    if length < mesh.cell / 2:
        return True
    return bool(free_distance(mesh, start, difference[None] / length, length)[0] >= length - mesh.cell / 2)


def find_path(
    mesh: NavMesh,
    start: Float[np.ndarray, " 2"],
    goal: Float[np.ndarray, " 2"],
    rng: np.random.Generator,
    randomness: float = 0.3,
) -> Float[np.ndarray, "n 2"]:
    """Way points (x, y) from `start` to `goal`, both included (each moved onto the mesh if it lies beside it).

    `randomness` 0 gives the shortest chain of rectangles through the middles of their gates. Above that, lengths are
    multiplied by exp(randomness * normal) and gates are crossed anywhere within that share of their width, at most all.
    """
    ends = [mesh.origin + mesh.cell * np.array(nearest(mesh, point))[::-1] for point in (start, goal)]
    first, last = (mesh.rectangle[nearest(mesh, point)] for point in ends)
    weights = mesh.lengths * np.exp(randomness * rng.standard_normal(len(mesh.lengths)))
    num = len(mesh.starts) - 1
    graph = sparse.csr_matrix((weights, mesh.edges[:, 1], mesh.starts), shape=(num, num))
    before = csgraph.dijkstra(graph, indices=first, return_predecessors=True)[1]
    chain = [last]
    while chain[-1] != first:
        chain.append(before[chain[-1]])
    points = [ends[0]]
    for a, b in zip(chain[:0:-1], chain[-2::-1], strict=True):
        edge = mesh.starts[a] + np.searchsorted(mesh.edges[mesh.starts[a] : mesh.starts[a + 1], 1], b)
        share = 0.5 + min(randomness, 1.0) * (rng.random() - 0.5)
        points.append(mesh.gates[edge, :2] + share * (mesh.gates[edge, 2:] - mesh.gates[edge, :2]))
    points.append(ends[1])
    return _pulled_straight(mesh, points)


def _pulled_straight(mesh: NavMesh, points: list[np.ndarray], ahead: int = 6) -> Float[np.ndarray, "n 2"]:
    """Leaves out points between two that see each other, at most `ahead` apart."""
    kept, i = [points[0]], 0
    while i < len(points) - 1:
        furthest = next(
            (j for j in (i + ahead, i + ahead // 2) if j < len(points) and is_free(mesh, points[i], points[j])), i + 1
        )
        kept.append(points[furthest])
        i = furthest
    return np.stack(kept)


def _heights(sectors, origin, cell, shape) -> tuple[np.ndarray, np.ndarray]:
    """Floor and ceiling [r, c] of every cell's centre; outside all sectors the ceiling lies on the floor."""
    floor, ceiling = np.zeros(shape), np.zeros(shape)
    owners: dict[tuple, int] = {}
    for sector in sectors:
        for segment in _undirected(sector.segments):
            owners[segment] = owners.get(segment, 0) + 1
    for sector in sectors:
        # A segment of one sector that does not block has that sector on both sides: no border.
        shared = np.array([owners[segment] > 1 for segment in _undirected(sector.segments)], bool)
        borders = sector.segments[shared | sector.blocking]
        if not len(borders):
            continue
        low = np.maximum(np.floor((borders.reshape(-1, 2).min(0) - origin) / cell).astype(int), 0)
        high = np.ceil((borders.reshape(-1, 2).max(0) - origin) / cell).astype(int) + 1
        # A hundredth of a unit beside the grid's lines, on which many borders lie.
        xs = origin[0] + cell * np.arange(low[0], min(high[0], shape[1])) + 0.01
        ys = origin[1] + cell * np.arange(low[1], min(high[1], shape[0])) + 0.01
        along_x, total_x = _crossings(borders, xs, ys)
        along_y, total_y = _crossings(borders[:, [1, 0, 3, 2]], ys, xs)
        votes = along_x % 2 + (total_x - along_x) % 2 + (along_y % 2 + (total_y - along_y) % 2).T
        # Three of four rays: a fence inside a sector, which looks like a border, misleads at most those that cross it.
        inside = votes >= 3
        window = (slice(low[1], low[1] + len(ys)), slice(low[0], low[0] + len(xs)))
        floor[window][inside] = sector.floor
        ceiling[window][inside] = sector.ceiling
    return floor, ceiling


def _crossings(segments, xs, ys) -> tuple[np.ndarray, np.ndarray]:
    """Segments [n, 4] crossed left of (x, y), [len(ys), len(xs)], and by the whole line at y, [len(ys), 1]."""
    x1, y1, x2, y2 = segments.T[..., None]
    crossed = (y1 > ys) != (y2 > ys)  # [n, rows]
    slope = np.divide(x2 - x1, y2 - y1, out=np.zeros_like(x1), where=y2 != y1)
    at = np.where(crossed, x1 + (ys - y1) * slope, np.inf)
    count = np.stack([np.searchsorted(np.sort(column), xs) for column in at.T])
    return count, crossed.sum(0)[:, None]


def _undirected(segments) -> list[tuple]:
    """Keys that are equal for a segment and its reverse."""
    return [min((a, b, c, d), (c, d, a, b)) for a, b, c, d in segments.tolist()]


def _blocked(geometry: Geometry, floor, origin, cell) -> np.ndarray:
    """Whether a player at a cell's centre [r, c] touches a wall, too high a step, too low a ceiling or an obstacle."""
    sides: dict[tuple, list[Sector]] = {}
    walls = set()
    for sector in geometry.sectors:
        for segment, blocking in zip(_undirected(sector.segments), sector.blocking, strict=True):
            sides.setdefault(segment, []).append(sector)
            if blocking:
                walls.add(segment)
    blocked = np.zeros(floor.shape, bool)
    for segment, sectors in sides.items():
        gap = min(sector.ceiling for sector in sectors) - max(sector.floor for sector in sectors)
        top = np.inf if segment in walls or gap < HEIGHT else max(sector.floor for sector in sectors)
        if top <= min(sector.floor for sector in sectors) + STEP:
            continue
        x1, y1, x2, y2 = segment
        lows = np.array([min(y1, y2), min(x1, x2)]) - RADIUS
        highs = np.array([max(y1, y2), max(x1, x2)]) + RADIUS
        low = np.maximum(np.ceil((lows - origin[::-1]) / cell).astype(int), 0)
        high = np.floor((highs - origin[::-1]) / cell).astype(int) + 1
        window = (slice(low[0], high[0]), slice(low[1], high[1]))
        y = (origin[1] + cell * np.arange(*window[0].indices(floor.shape[0])[:2]))[:, None]
        x = (origin[0] + cell * np.arange(*window[1].indices(floor.shape[1])[:2]))[None]
        # A box meets a segment unless the segment's own line passes it; its bounding box is the window.
        beside = np.abs((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1))
        touches = beside < RADIUS * (abs(x2 - x1) + abs(y2 - y1))
        blocked[window] |= touches & (floor[window] + STEP < top)
    y, x = (origin[1] + cell * np.arange(floor.shape[0]))[:, None], origin[0] + cell * np.arange(floor.shape[1])
    for ox, oy, radius in geometry.obstacles:
        blocked |= np.maximum(np.abs(x - ox), np.abs(y - oy)) < radius + RADIUS
    return blocked


def _joints(walkable, floor, ceiling) -> dict[tuple[int, int], np.ndarray]:
    """For each of eight directions (rows, columns): whether a step that way [r, c] leads from cell to cell."""
    padded = np.pad(walkable, 1)
    rows, cols = walkable.shape

    def shifted(array, step):
        return np.roll(array, (-step[0], -step[1]), (0, 1))

    joints = {}
    for dr, dc in (*_NEIGHBOURS, *((-r, -c) for r, c in _NEIGHBOURS)):
        there = padded[1 + dr : 1 + dr + rows, 1 + dc : 1 + dc + cols]
        gap = np.minimum(ceiling, shifted(ceiling, (dr, dc))) - np.maximum(floor, shifted(floor, (dr, dc)))
        step = np.abs(shifted(floor, (dr, dc)) - floor)
        joints[dr, dc] = walkable & there & (gap >= HEIGHT) & (step <= STEP)
    for dr, dc in [step for step in joints if all(step)]:
        # Diagonally only where both ways around the corner are open.
        around = [joints[a] & shifted(joints[b], a) for a, b in (((dr, 0), (0, dc)), ((0, dc), (dr, 0)))]
        joints[dr, dc] = joints[dr, dc] & around[0] & around[1]
    return joints


def _largest_part(walkable, joints) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """The largest connected part, and the joints inside it."""
    number = np.arange(walkable.size).reshape(walkable.shape)
    pairs = [(number[joint], number[joint] + dr * walkable.shape[1] + dc) for (dr, dc), joint in joints.items()]
    sources, targets = (np.concatenate(side) for side in zip(*pairs, strict=True))
    graph = sparse.coo_matrix((np.ones(len(sources)), (sources, targets)), shape=(walkable.size, walkable.size))
    part = csgraph.connected_components(graph, directed=False)[1].reshape(walkable.shape)
    best = np.bincount(part[walkable]).argmax()
    inside = walkable & (part == best)
    kept = {}
    for (dr, dc), joint in joints.items():
        kept[dr, dc] = joint & inside & np.roll(inside, (-dr, -dc), (0, 1))
    return inside, kept


def _rectangles(walkable, joints) -> tuple[np.ndarray, np.ndarray]:
    """Each cell's rectangle [r, c] (-1: none), and the rectangles' first and last cells [n, 4] (row, col, row, col)."""
    right, down = joints[0, 1], joints[1, 0]
    owner = np.full(walkable.shape, -1)
    boxes = []
    for row, col in np.argwhere(walkable).tolist():
        if owner[row, col] >= 0:
            continue
        width = 1
        while width < _LONGEST and right[row, col + width - 1] and owner[row, col + width] < 0:
            width += 1
        height, across = 1, slice(col, col + width)
        while (
            height < _LONGEST
            and down[row + height - 1, across].all()
            and right[row + height, col : col + width - 1].all()
            and (owner[row + height, across] < 0).all()
        ):
            height += 1
        owner[row : row + height, across] = len(boxes)
        boxes.append((row, col, row + height - 1, col + width - 1))
    return owner, np.array(boxes)


def _gates(owner, joints, origin, cell) -> tuple[np.ndarray, np.ndarray]:
    """Edges [e, 2] between rectangles that touch, sorted, and the borders [e, 4] where one can cross."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for (dr, dc), joint in joints.items():
        rows, cols = np.nonzero(joint & (owner != np.roll(owner, (-dr, -dc), (0, 1))))
        if dr and dc:
            continue
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
            pair = (int(owner[row, col]), int(owner[row + dr, col + dc]))
            found.setdefault(pair, []).append((col + dc / 2, row + dr / 2))
    edges = np.array(sorted(found)).reshape(-1, 2)
    ends = [(found[a, b][0], found[a, b][-1]) for a, b in edges.tolist()]
    return edges, np.tile(origin, 2) + cell * np.array(ends).reshape(-1, 4)
