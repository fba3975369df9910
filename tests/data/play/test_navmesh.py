"""The navigation mesh of drawn levels, whose walkable area and paths are known, and of a real one."""

import itertools

import numpy as np
import pytest

from mgjax.data.play import navmesh
from mgjax.data.play.navmesh import Geometry, Sector


def box(x1, y1, x2, y2, floor=0.0, ceiling=128.0, open_sides=()):
    """A rectangular sector; sides are 0 south, 1 east, 2 north, 3 west."""
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    segments = np.array([(*corners[i], *corners[(i + 1) % 4]) for i in range(4)], float)
    return Sector(floor, ceiling, segments, np.array([i not in open_sides for i in range(4)]))


def level(*sectors, obstacles=()):
    return Geometry(sectors, np.array(obstacles, float).reshape(-1, 3))


def two_rooms(**second):
    """A room, and another one to the east of it, joined along the whole side x = 256."""
    return level(box(0, 0, 256, 256, open_sides=(1,)), box(256, 0, 512, 256, open_sides=(3,), **second))


def l_shape():
    """Three rooms around a corner: from (0, 0) east to (512, 0), then north."""
    return level(
        box(0, 0, 256, 256, open_sides=(1,)),
        box(256, 0, 512, 256, open_sides=(3, 2)),
        box(256, 256, 512, 512, open_sides=(0,)),
    )


def walkable_at(mesh, *points):
    return [bool(mesh.walkable[tuple(navmesh.cell_of(mesh, np.array(point)))]) for point in points]


@pytest.mark.parametrize("cell", [4.0, 8.0, 16.0])
def test_a_room_is_walkable_up_to_the_players_radius(cell):
    mesh = navmesh.build(level(box(0, 0, 256, 256)), cell)
    sides = 256 - 2 * navmesh.RADIUS
    assert mesh.area == pytest.approx(sides**2, rel=2 * cell / sides)
    rows, cols = np.nonzero(mesh.walkable)
    centres = mesh.origin + cell * np.stack([cols, rows], axis=1)
    assert centres.min() >= navmesh.RADIUS
    assert centres.max() <= 256 - navmesh.RADIUS


def test_obstacles_and_low_ceilings_cannot_be_walked():
    mesh = navmesh.build(level(box(0, 0, 256, 256), obstacles=[(128, 128, 16)]))
    assert walkable_at(mesh, (128, 128), (104, 128), (88, 128), (40, 40)) == [False, False, True, True]
    low = navmesh.build(two_rooms(ceiling=50.0))
    assert walkable_at(low, (128, 128), (384, 128), (248, 128)) == [True, False, False]


@pytest.mark.parametrize(("floor", "joined"), [(0, True), (24, True), (25, False), (-24, True), (-25, False)])
def test_steps(floor, joined):
    """Rooms that lie further apart in height than a step are not joined, and only one of them is kept."""
    mesh = navmesh.build(two_rooms(floor=float(floor)))
    assert sum(walkable_at(mesh, (128, 128), (384, 128))) == 1 + joined


def test_a_fence_inside_a_sector_keeps_the_sector_whole():
    room = box(0, 0, 256, 256)
    fence = np.array([[128.0, 64.0, 128.0, 192.0]])
    fenced = room._replace(segments=np.concatenate([room.segments, fence]), blocking=np.append(room.blocking, True))
    mesh = navmesh.build(level(fenced))
    assert walkable_at(mesh, (128, 128), (64, 128), (200, 128), (128, 24)) == [False, True, True, True]
    line = fenced._replace(blocking=np.append(room.blocking, False))
    assert walkable_at(navmesh.build(level(line)), (128, 128), (64, 128), (200, 128)) == [True] * 3


def test_a_level_without_room_is_an_error():
    with pytest.raises(ValueError, match="stand"):
        navmesh.build(level(box(0, 0, 24, 24)))


@pytest.mark.parametrize("randomness", [0.0, 0.5])
def test_paths_stay_on_the_mesh_and_end_where_they_should(randomness):
    mesh = navmesh.build(l_shape())
    rng = np.random.default_rng(0)
    for _ in range(50):
        start, goal = navmesh.random_point(mesh, rng), navmesh.random_point(mesh, rng)
        path = navmesh.find_path(mesh, start, goal, rng, randomness)
        np.testing.assert_array_equal(path[[0, -1]], [start, goal])
        for a, b in itertools.pairwise(path):
            points = a + np.linspace(0, 1, 50)[:, None] * (b - a)
            rows, cols = navmesh.cell_of(mesh, points).T
            # A straightened way is followed in half cells and may cut a corner by that much.
            assert mesh.walkable[rows, cols].mean() > 0.9


def test_a_path_is_about_as_short_as_can_be():
    mesh = navmesh.build(l_shape())
    start, goal = np.array([40.0, 40.0]), np.array([472.0, 472.0])
    corner = np.array([256 + 16, 256 - 16])
    shortest = np.linalg.norm(corner - start) + np.linalg.norm(goal - corner)
    path = navmesh.find_path(mesh, start, goal, np.random.default_rng(0), randomness=0.0)
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    assert shortest * 0.99 < length < 1.15 * shortest


def test_randomness_makes_other_paths_and_the_seed_makes_the_same():
    mesh = navmesh.build(l_shape())
    start, goal = np.array([40.0, 40.0]), np.array([472.0, 472.0])

    def path(seed, randomness):
        return navmesh.find_path(mesh, start, goal, np.random.default_rng(seed), randomness)

    np.testing.assert_array_equal(path(1, 0.5), path(1, 0.5))
    np.testing.assert_array_equal(path(1, 0.0), path(2, 0.0))
    assert len({path(seed, 0.5).tobytes() for seed in range(10)}) > 5


def test_a_drop_is_walked_around():
    """A ring of rooms in which one border is a drop of 48, and two stairs of 24 lead around it."""
    ring = level(
        box(0, 0, 256, 256, floor=48, open_sides=(1, 2)),
        box(256, 0, 512, 256, floor=0, open_sides=(3, 2)),
        box(256, 256, 512, 512, floor=24, open_sides=(0, 3)),
        box(0, 256, 256, 512, floor=48, open_sides=(1, 0)),
    )
    mesh = navmesh.build(ring)
    top, bottom = np.array([128.0, 64.0]), np.array([400.0, 64.0])
    for start, goal in ((top, bottom), (bottom, top)):
        path = navmesh.find_path(mesh, start, goal, np.random.default_rng(0), randomness=0.0)
        assert path[:, 1].max() > 256
    assert not navmesh.is_free(mesh, top, bottom)
    assert navmesh.is_free(mesh, np.array([400.0, 64.0]), np.array([400.0, 400.0]))


def test_free_distance_ends_at_walls():
    mesh = navmesh.build(level(box(0, 0, 256, 256)), cell=4.0)
    directions = np.array([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.6, 0.8)])
    free = navmesh.free_distance(mesh, np.array([100.0, 100.0]), directions, 1000.0)
    expected = np.array([256 - 16 - 100, 100 - 16, 256 - 16 - 100, (256 - 16 - 100) / 0.8])
    np.testing.assert_allclose(free, expected, atol=mesh.cell)
    assert navmesh.free_distance(mesh, np.array([100.0, 100.0]), directions, 30.0).max() == 30.0


def test_the_doom_levels_hold_the_player_where_the_mesh_says():
    """Warped to random places of the mesh, the player stands there, on the mesh's floor or on a step beside it."""
    pytest.importorskip("vizdoom")
    from mgjax.data.play.engines import make_engine

    engine = make_engine("doom", size=(48, 80), levels=("my_way_home", "map01"))
    for seed in range(20):
        position = engine.reset(seed).pose.position
        row, col = navmesh.cell_of(engine.navmesh, position[:2])
        assert engine.navmesh.walkable[row, col]
        assert -0.1 <= position[2] - 41 - engine.navmesh.floor[row, col] <= navmesh.STEP
    engine.close()
