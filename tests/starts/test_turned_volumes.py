"""Two volumes: any turn of space is found, what is likely of a turn, and bends that do not tear."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import regframe as rf
from regframe.starts import images, priors

SHAPE = (30, 34, 26)


def _organ(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A round thing without symmetry on an empty background ``[z, y, x]``, its texture a few voxels across."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    body = np.sqrt((at**2).sum(axis=0)) + 0.25 * at[0] * at[1] + 0.2 * at[2] ** 2 * at[0] < 0.75
    texture = gaussian_filter(rng.standard_normal(shape), 2.0)
    return np.where(body, 2 + texture / texture.std(), 0.0)


def _seen(organ: np.ndarray, pull: np.ndarray, grid: rf.Grid) -> rf.Image:
    """Another modality's volume of ``organ`` on ``grid``, whose positions lie at ``pull`` ``[4, 4]`` of them in the organ."""
    at = grid.coords().numpy() @ pull[:3, :3].T + pull[:3, 3]
    values = map_coordinates(organ, np.moveaxis(at, -1, 0), order=1)
    noise = 0.1 * np.random.default_rng(1).standard_normal(grid.shape)
    return rf.Image(torch.from_numpy(5 - values + noise)[None].to(torch.float32), grid)


def test_any_turn_of_space_is_found() -> None:
    """Of another modality, shifted, with voxels twice as long along one axis; in millimetres, so the size is known."""
    organ = _organ(SHAPE)
    axis = np.array([0.3, -0.8, 0.5])
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * math.radians(130)).as_matrix()
    moving = rf.Grid((22, 46, 44), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), "mm")
    pull = np.eye(4)
    pull[:3, :3] = turn
    pull[:3, 3] = (np.array(SHAPE) - 1) / 2 - turn @ (np.array(moving.center) + np.array([2.0, -1.0, 1.5]))
    fixed = rf.Image(torch.from_numpy(organ)[None].to(torch.float32), rf.Grid(SHAPE, unit="mm"))
    found = images.search(fixed, _seen(organ, pull, moving), rf.Config(transform="rigid"))
    corners = rf.Grid((3, 3, 3), (8.0, 8.0, 6.0), (7.0, 9.0, 7.0)).coords().reshape(-1, 3)
    truth = corners @ torch.from_numpy(np.linalg.inv(pull)[:3, :3]).T + torch.from_numpy(np.linalg.inv(pull)[:3, 3])
    off = (rf.Affine(found.matrix).inverse().points(corners) - truth).norm(dim=1)
    assert float(off.median()) < 1.0


def test_turns_of_space_are_spread_evenly() -> None:
    """They are turns, and none of a thousand others is farther than 35 degrees from the nearest of them."""
    turns = images.turns_of(3).double()
    eye = torch.eye(3, dtype=torch.float64).expand(len(turns), 3, 3)
    torch.testing.assert_close(turns @ turns.mT, eye, rtol=0, atol=1e-5)
    assert float(torch.linalg.det(turns).min()) > 0
    others = torch.from_numpy(Rotation.random(1000, random_state=0).as_matrix())
    cosine = (torch.einsum("nij,mij->nm", others, turns).amax(dim=1) - 1) / 2
    assert math.degrees(math.acos(float(cosine.min()))) < 35


def test_the_ordinary_turn_of_a_volume_pays_nothing() -> None:
    """As it lies, or flipped along any one axis; a large turn pays more than a small one, and the farthest is still possible."""
    prior = priors.Prior(1.0, physical=True)
    eye = torch.eye(3)
    plain = torch.stack([eye, *(torch.diag(1 - 2 * eye[d]) for d in range(3)), -eye])
    assert prior.of_turn(plain).abs().max() < 1e-4
    angles = torch.deg2rad(torch.tensor([5.0, 20.0, 90.0, 180.0])).numpy()
    turned = torch.from_numpy(Rotation.from_rotvec(np.outer(angles, [0.6, 0.0, 0.8])).as_matrix())
    paid = prior.of_turn(turned)
    assert 0 < paid[0] < paid[1] < paid[2] <= paid[3] < 10


def test_a_step_of_a_model_stays_in_it() -> None:
    """Rigid steps keep all lengths, steps of a similarity their ratios."""
    steps = torch.randn((5, 12), generator=torch.Generator().manual_seed(0))
    start = torch.eye(3, 4).expand(5, 3, 4)
    for kind, size in (("rigid", 6), ("similarity", 7)):
        linear = images._stepped(start, steps[:, :size], 1.0, 4.0, kind)[:, :, :3]
        values = torch.linalg.svdvals(linear)
        assert (values / values[:, :1] - 1).abs().max() < 1e-5
        assert ((values - 1).abs().max() < 1e-5) == (kind == "rigid")


def _bent(size: float, shape: tuple[int, int, int] = SHAPE) -> tuple[rf.Image, rf.Image, torch.Tensor, torch.Tensor]:
    """A volume and the same bent by up to ``size`` voxels, with noise; fixed positions and where they went."""
    organ = _organ(shape, 2)
    rng = np.random.default_rng(5)
    bend = np.stack([gaussian_filter(rng.standard_normal(shape), 5, mode="wrap") for _ in range(3)])
    bend *= size / np.linalg.norm(bend, axis=0).max()
    at = np.stack(np.meshgrid(*[np.arange(float(n)) for n in shape], indexing="ij"))
    bent = map_coordinates(organ, at + bend, order=1) + 0.05 * rng.standard_normal(shape)
    p = np.stack(np.meshgrid(*[np.arange(8.0, n - 8, 3) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    q = p + np.stack([map_coordinates(b, p.T, order=1) for b in bend], axis=-1)
    images = [rf.Image.from_array(a.astype(np.float32), "zyx") for a in (organ, bent)]
    return images[0], images[1], torch.from_numpy(q), torch.from_numpy(p)


def test_a_bend_of_a_volume_is_followed_without_tearing() -> None:
    """Noise in half of the voxels is not explained by squeezing them."""
    fixed, moving, q, p = _bent(2.5)
    off = {}
    for model in ("affine", "lddmm"):
        result = rf.register(fixed, moving, init="identity", transform=model)
        off[model] = float((result.to_moving(q) - p).norm(dim=1).median())
    assert off["lddmm"] < 0.75 * off["affine"]
    assert off["lddmm"] < 0.4
    assert result.metrics["model"] == "lddmm"
    assert 0.3 < result.metrics["jacobian_min"] < result.metrics["jacobian_max"] < 3


def test_a_bend_of_a_volume_that_tears_is_given_up() -> None:
    """A prior that restrains nothing: the affine map is kept, and it is said by how much the bend changed volumes."""
    fixed, moving, _, _ = _bent(2.5, (22, 26, 20))
    loose = rf.Config(sigma_regularizer=20.0, sobolev={"scale": 1.5, "order": 1.0})
    result = rf.register(fixed, moving, init="identity", config=loose)
    assert result.metrics["model"] == "affine"
    assert result.metrics["torn"] > 10
