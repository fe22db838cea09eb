"""The kit on the adapter ``mesh`` and the solver ``meshes``, and what is special about triangles."""

from types import SimpleNamespace

import pytest
import torch
from example_mesh import Mesh, MeshAdapter, Meshes, Surface, Surfaces, bumpy, closest, known_pair

import regframe
from regframe.testing import AdapterTests, SolverTests


class TestAdapter(AdapterTests):
    bad_options = ({"unit": "furlong"},)

    def make(self):
        return MeshAdapter(unit="µm")


class TestObj(AdapterTests):
    def make(self):
        return MeshAdapter(unit="mm")

    def sample(self, folder):
        MeshAdapter().save(bumpy(1, unit="mm"), folder / "ball.obj")
        return folder / "ball.obj"


class TestSolver(SolverTests):
    bad_options = ({"turns": 0}, {"turns": True}, {"turns": 2.5})

    def make(self):
        return Meshes()


@pytest.mark.parametrize("ending", ["off", "obj"])
def test_faces_survive(tmp_path, ending):
    ball = bumpy(2)
    path = tmp_path / f"ball.{ending}"
    MeshAdapter("µm").save(ball, path)
    moved = MeshAdapter("µm").apply(path, regframe.Affine(torch.diag(torch.tensor([2.0, 1, 1, 1])), "µm", "mm"))
    assert isinstance(moved, Mesh)
    assert torch.equal(moved.faces, ball.faces)
    assert torch.equal(moved.coords[:, 1:], ball.coords[:, 1:])
    assert moved.unit == "mm"


def test_polygons_and_corners_of_obj(tmp_path):
    path = tmp_path / "square.obj"
    path.write_text("# made\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvn 0 0 1\nf 1/1/1 2//1 3/3 -1\n")
    mesh = MeshAdapter().open(path)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.coords[1].tolist() == [0, 0, 1]  # z, y, x


@pytest.mark.parametrize(
    "text",
    [
        "OFF\n1 1 0\n0 0 0\n3 0 0 7\n",
        "OFF\n9 0 0\n0 0 0\n",
        "OFF\n1 1 0\n0 0 0\n4 0 0 0\n",
        "OFF\n-1 2 0\n0 0 0\n",
        "OFF\n",
    ],
)
def test_a_damaged_mesh_is_refused(tmp_path, text):
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(ValueError, match="wanted vertices and faces of a mesh"):
        MeshAdapter().open(tmp_path / "a.off")


def test_closest_points_are_those_of_brute_force():
    generator = torch.Generator().manual_seed(1)
    corners = torch.randn((40, 5, 3, 3), generator=generator, dtype=torch.float64)
    at = 2 * torch.randn((40, 3), generator=generator, dtype=torch.float64)
    best, weights = closest(at, corners)
    rows = torch.arange(40)
    found = ((weights[:, :, None] * corners[rows, best]).sum(1) - at).norm(dim=1)
    parts = torch.tensor([(a, b, 60 - a - b) for a in range(61) for b in range(61 - a)], dtype=torch.float64) / 60
    dense = torch.einsum("pc,nkcd->nkpd", parts, corners)
    brute = (dense - at[:, None, None]).norm(dim=-1).amin((1, 2))
    assert bool((weights >= -1e-12).all())
    assert bool((found <= brute + 1e-12).all())
    assert float((brute - found).max()) < 0.05


@pytest.mark.parametrize(("model", "seed"), [("rigid", 11), ("similarity", 12), ("affine", 13), ("affine", 14)])
def test_rough_and_partial_meshes(model, seed):
    """Seeds that nothing was set on; 0.5 % of the diagonal is the bar."""
    known = known_pair(4, seed, model)
    task = regframe.Task(known.fixed, known.moving, None, "auto", regframe.Config(transform=model))
    solver = Meshes()
    fitted = solver.fit(task)
    away = (
        (fitted.transform.points(known.moving.coords) - known.transform.points(known.moving.coords)).norm(dim=1).max()
    )
    diagonal = (known.fixed.coords.amax(0) - known.fixed.coords.amin(0)).norm()
    assert float(away / diagonal) < 0.005
    assert not solver.judge(fitted)


def test_another_object_is_no_match():
    known = known_pair(3)
    box = known.moving.replace(coords=torch.sign(known.moving.coords) * known.moving.coords.abs().clamp(5, 9) ** 2)
    task = regframe.Task(known.fixed, box, None, "auto", regframe.Config(transform="similarity"))
    solver = Meshes()
    assert [finding.severity for finding in solver.judge(solver.fit(task))] != []


def test_a_start_is_taken():
    known = known_pair(4, 3, "rigid")
    for start in (
        known.transform,
        regframe.landmarks(known.moving.coords[:9], known.transform.points(known.moving.coords[:9])),
    ):
        task = regframe.Task(known.fixed, known.moving, None, start, regframe.Config(transform="rigid"))
        fitted = Meshes().fit(task)
        away = fitted.transform.points(known.moving.coords) - known.transform.points(known.moving.coords)
        assert float(away.norm(dim=1).max()) < 0.5
        assert fitted.figures["poses"] == 1


def test_units_are_converted_and_asked_for():
    known = known_pair(3, 5, "rigid")
    small = known.moving.replace(coords=known.moving.coords / 1000, unit="mm")
    task = regframe.Task(known.fixed, small, None, "auto", regframe.Config(transform="rigid"))
    away = Meshes().fit(task).transform.points(small.coords) - known.transform.points(known.moving.coords)
    assert float(away.norm(dim=1).max()) < 0.7
    with pytest.raises(ValueError, match="both meshes in length units"):
        Meshes().check(regframe.Task(known.fixed, known.moving.replace(unit="px"), None, "auto", task.config))
    with pytest.raises(ValueError, match="at least 4 triangles"):
        Meshes().check(regframe.Task(known.fixed, Mesh(known.moving.coords, "µm"), None, "auto", task.config))


def test_samples_lie_on_the_surface():
    ball = bumpy(2)
    surface = Surface(ball.coords[ball.faces], 0)
    best, weights = closest(surface.samples, surface.corners[surface.nearest(surface.samples)])
    assert len(best) == len(weights) == len(surface.samples)


def test_the_section_shows_the_shares():
    def result(**figures):
        return SimpleNamespace(metrics=figures, fixed_grid=regframe.Grid((2, 2, 2), unit="µm"))

    shown = Surfaces().show(result(on_the_other=[0.9, 0.5], surface_distance=0.25))
    assert [row[1] for row in shown.table] == ["90%", "50%", 0.25]
    assert shown.picture.count("<rect") == 2
    assert Surfaces().show(result()) is None
