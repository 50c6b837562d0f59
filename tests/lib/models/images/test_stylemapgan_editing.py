"""Editing with StyleMapGAN: identities of masks and boxes, and directions against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import nn

from lib.models.images.stylemapgan import Generator
from lib.models.images.stylemapgan_editing import (
    direction,
    edit,
    edit_errors,
    half_mask,
    interpolated,
    mean_map,
    moved,
    random_maps,
    reduced_mask,
    style_mixed,
    transplanted,
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(resolution=32, map_size=8, style_channels=4, latent_size=4, width=8).requires_grad_(
        False
    )


@pytest.fixture(scope="module")
def maps(generator) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = random_maps(generator, 4, random=torch.Generator().manual_seed(1)).chunk(2)
    return first, second


def mask_of(*rows: slice, count: int = 1) -> torch.Tensor:
    mask = torch.zeros(count, 1, 32, 32, dtype=torch.bool)
    for row in rows:
        mask[..., row, 4:9] = True
    return mask


# --- masks ---


@pytest.mark.parametrize("space", ["codes", "map"])
@pytest.mark.parametrize("pool", ["any", "most"])
def test_an_empty_mask_gives_the_source_and_a_full_one_the_reference(generator, maps, space, pool):
    source, reference = maps
    empty = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    options = {"space": space, "pool": pool}
    assert torch.equal(edit(generator, source, reference, empty, **options), generator(source))
    assert torch.equal(edit(generator, source, reference, ~empty, **options), generator(reference))
    assert torch.equal(edit(generator, source, reference, ~empty, strength=0, **options), generator(source))


def test_one_pixel_edits_one_cell_or_none():
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 13, 30] = True
    found = reduced_mask(mask, 8)
    assert found.nonzero().tolist() == [[0, 0, 3, 7]] and found.dtype == torch.bool
    assert not reduced_mask(mask, 8, pool="most").any()
    assert torch.equal(reduced_mask(mask, 32), mask)
    mask[..., 12:14, 28:32] = True  # eight of sixteen pixels are not most of them
    assert not reduced_mask(mask, 8, pool="most").any()
    mask[..., 14, 29] = True
    assert reduced_mask(mask, 8, pool="most").nonzero().tolist() == [[0, 0, 3, 7]]


def test_masks_at_every_size_are_max_pooled():
    mask = torch.rand(2, 1, 32, 32) > 0.95
    for size in (1, 8, 16, 32):
        expected = nn.functional.max_pool2d(mask.float(), 32 // size) > 0
        assert torch.equal(reduced_mask(mask, size), expected)


def test_halves():
    for side, axis, second in (("left", 3, 0), ("right", 3, 1), ("top", 2, 0), ("bottom", 2, 1)):
        mask = half_mask(8, side)
        assert mask.sum() == 32 and mask.narrow(axis, 4 * second, 4).all()
    with pytest.raises(ValueError, match="there is no half 'middle' of 8 pixels"):
        half_mask(8, "middle")


@pytest.mark.parametrize("wrong, message", [
    (torch.zeros(1, 1, 32, 32), r"a mask must be bool \(N, 1, H, W\), got torch.float32"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.bool), r"must be bool \(N, 1, H, W\), got torch.bool \(1, 3"),
    (torch.zeros(32, 32, dtype=torch.bool), r"must be bool \(N, 1, H, W\), got torch.bool \(32, 32\)"),
    (torch.zeros(0, 1, 32, 32, dtype=torch.bool), r"must be bool \(N, 1, H, W\), got torch.bool \(0"),
    (torch.zeros(1, 1, 32, 16, dtype=torch.bool), r"must be a square of a multiple of 8 pixels"),
    (torch.zeros(1, 1, 12, 12, dtype=torch.bool), r"must be a square of a multiple of 8 pixels"),
])  # fmt: skip
def test_other_masks_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        reduced_mask(wrong, 8)


def test_unknown_pools_spaces_and_strengths_are_refused(generator, maps):
    with pytest.raises(ValueError, match="pool must be 'any' or 'most', got 'mean'"):
        reduced_mask(mask_of(slice(3)), 8, pool="mean")
    with pytest.raises(ValueError, match="space must be 'codes' or 'map', got 'w'"):
        edit(generator, *maps, mask_of(slice(3)), space="w")
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 1.5"):
        edit(generator, *maps, mask_of(slice(3)), strength=1.5)
    with pytest.raises(ValueError, match="a mask must have 32 pixels a side"):
        edit(generator, *maps, mask_of(slice(3))[..., :16, :16])
    with pytest.raises(ValueError, match="must be as many, got"):
        edit(generator, *maps, mask_of(slice(3), count=3))
    with pytest.raises(ValueError, match="the source's style maps must be"):
        edit(generator, maps[0][:, :2], maps[1][:, :2], mask_of(slice(3)))


# --- local editing ---


def test_an_edit_changes_its_place_most(generator, maps):
    source, reference = maps
    mask = mask_of(slice(4, 12))
    change = {}
    for space in ("codes", "map"):
        edited = edit(generator, source, reference, mask, space=space)
        difference = (edited - generator(source)).abs().mean(dim=1, keepdim=True)
        change[space] = float(
            difference[:, :, 20:, 16:].mean() / difference[mask.expand(2, -1, -1, -1)].mean()
        )
    assert 0 < change["codes"] < 0.5 and 0 < change["map"] < 0.5


def test_where_the_resizer_looks_at_no_neighbour_both_spaces_agree_on_the_first_codes(generator, maps):
    """Selecting and a map of each cell by itself commute; from the first blur on they do not."""
    pointwise = Generator(resolution=32, map_size=8, style_channels=4, latent_size=4, width=8)
    with torch.no_grad():
        for conv in pointwise.resizer.convs:
            centre = conv.weight[..., 1:2, 1:2].clone()
            conv.weight.zero_()[..., 1:2, 1:2] = centre
        source, reference = maps
        cells = reduced_mask(mask_of(slice(4, 12)), 8).float()
        mixed = pointwise.codes(torch.lerp(source, reference, cells))
        both = zip(pointwise.codes(source), pointwise.codes(reference), strict=True)
        selected = [
            torch.lerp(a, b, reduced_mask(mask_of(slice(4, 12)), a.shape[-1]).float()) for a, b in both
        ]
    assert torch.equal(mixed[0], selected[0]) and torch.equal(mixed[1], selected[1])
    assert not torch.allclose(mixed[2], selected[2], atol=1e-3)


def test_strength_runs_from_source_to_reference(generator, maps):
    source, reference = maps
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    half = edit(generator, source, reference, mask, space="map", strength=0.5)
    torch.testing.assert_close(half, generator((source + reference) / 2), rtol=1e-4, atol=1e-4)


def test_a_rectangle_of_cells_goes_to_another_place(maps):
    source, reference = maps
    before = source.clone()
    found = transplanted(source, reference, source_corner=(4, 2), reference_corner=(3, 2), height=2, width=4)
    assert torch.equal(source, before)
    assert torch.equal(found[..., 4:6, 2:6], reference[..., 3:5, 2:6])
    found[..., 4:6, 2:6] = source[..., 4:6, 2:6]
    assert torch.equal(found, source)
    for wrong in (
        {"source_corner": (7, 0)}, {"reference_corner": (0, 5)}, {"source_corner": (-1, 0)},
        {"height": 0}, {"width": 9},
    ):  # fmt: skip
        place = {"source_corner": (0, 0), "reference_corner": (0, 0), "height": 2, "width": 4} | wrong
        with pytest.raises(ValueError, match=r"there are no .* cells from .* in a map of 8×8"):
            transplanted(source, reference, **place)
    with pytest.raises(ValueError, match="style maps must be alike"):
        transplanted(source, reference[:1], source_corner=(0, 0), reference_corner=(0, 0), height=1, width=1)


# --- mixing, sampling, directions ---


def test_interpolation(maps):
    first, second = maps
    assert torch.equal(interpolated(first, second, 0.0), first)
    assert torch.equal(interpolated(first, second, 1.0), second)
    found = interpolated(first, second, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(found[0], 0.75 * first[0] + 0.25 * second[0])
    assert torch.equal(found[1], second[1])


def test_coarse_codes_of_one_and_fine_ones_of_another(generator, maps):
    first, second = maps
    assert torch.equal(style_mixed(generator, first, second, layers=0), generator(second))
    assert torch.equal(style_mixed(generator, first, second, layers=6), generator(first))
    codes = [*generator.codes(first)[:2], *generator.codes(second)[2:]]
    assert torch.equal(style_mixed(generator, first, second), generator.synthesise(codes))
    with pytest.raises(ValueError, match=r"layers must be in 0\.\.6, got 7"):
        style_mixed(generator, first, second, layers=7)


def test_random_maps_and_their_mean(generator):
    draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    maps = random_maps(generator, 50, random=draw())
    mean = mean_map(generator, count=50, batch=20, random=draw())
    assert mean.shape == (1, 4, 8, 8)
    torch.testing.assert_close(mean, maps.mean(dim=0, keepdim=True))
    truncated = random_maps(generator, 50, truncation=0.7, mean=mean, random=draw())
    torch.testing.assert_close(truncated, mean + 0.7 * (maps - mean))
    with pytest.raises(ValueError, match="a truncation other than 1 needs the mean style map"):
        random_maps(generator, 2, truncation=0.7)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        random_maps(generator, 0)
    with pytest.raises(ValueError, match="count and batch must be at least 1, got 0 and 1024"):
        mean_map(generator, count=0)


@pytest.mark.parametrize("count", [30, 400])
def test_directions_are_scikit_learns_support_vector_machine(count):
    """More examples than values, and fewer."""
    random = np.random.default_rng(0)
    labels = random.random(count) < 0.4
    points = random.normal(size=(count, 48)) + 0.7 * labels[:, None] * random.normal(size=48) + 3
    found = direction(torch.from_numpy(points).view(count, 3, 4, 4), torch.from_numpy(labels))
    assert found.shape == (3, 4, 4)
    assert float(found.norm()) == pytest.approx(1)
    # its intercept is punished like a weight, unless it is scaled up
    machine = LinearSVC(loss="squared_hinge", dual=False, intercept_scaling=1e4, tol=1e-10, max_iter=100_000)
    normal = machine.fit(points - points.mean(axis=0), labels).coef_[0]
    assert float(found.flatten().numpy() @ normal / np.linalg.norm(normal)) > 0.9999


def test_of_two_clouds_the_direction_is_from_one_to_the_other():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(8000) % 2 == 0
    apart = torch.randn(2, 2, 2, generator=random)
    points = torch.randn(8000, 2, 2, 2, generator=random) + labels[:, None, None, None] * apart / 2
    found = direction(points, labels)
    assert float((found * apart).sum() / apart.norm()) > 0.99


def test_labels_of_one_kind_are_refused(maps):
    source, _ = maps
    for labels in (torch.tensor([True, True]), torch.tensor([False, False])):
        with pytest.raises(ValueError, match="labels must have examples with and without the attribute"):
            direction(source, labels)
    with pytest.raises(ValueError, match=r"labels must be bool \(2,\), got torch.int64 \(2,\)"):
        direction(source, torch.tensor([0, 1]))


def test_a_local_move_leaves_all_other_cells(maps):
    source, reference = maps
    way = reference[0] / reference[0].norm()
    torch.testing.assert_close(moved(source, way, 5.0), source + 5 * way)
    local = moved(source, way, 5.0, rows=slice(5, 7), columns=slice(2, 6))
    changed = (local != source).any(dim=(0, 1))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[5:7, 2:6] = True
    assert torch.equal(changed, expected)
    torch.testing.assert_close(local[..., 5:7, 2:6], (source + 5 * way)[..., 5:7, 2:6])
    with pytest.raises(ValueError, match="the direction must be of one style map"):
        moved(source, reference, 1.0)
    with pytest.raises(ValueError, match="amount must be finite, got inf"):
        moved(source, way, float("inf"))


# --- errors of an edit ---


def test_a_pasted_picture_has_no_error():
    source, reference = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    mask = torch.rand(6, 1, 4, 4) > 0.5
    assert edit_errors(torch.where(mask, reference, source), source, reference, mask) == (0, 0)
    outside, inside = edit_errors(source, source, reference, mask)
    assert outside == 0 and inside > 0
    outside, inside = edit_errors(reference, source, reference, mask)
    assert inside == 0 and outside > 0


def test_errors_are_pooled_over_the_pixels_of_a_batch():
    """One image with one masked pixel and error 1, another with three and error 4: 13/4, not 5/2."""
    source, reference = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    edited = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    mask = torch.tensor([[[[1, 0], [0, 0]]], [[[1, 1], [1, 0]]]]).bool()
    assert edit_errors(edited, source, reference, mask) == (7 / 4, 13 / 4)
    assert edit_errors(edited, source, reference, mask, batch=1) == (5 / 2, 5 / 2)


def test_errors_without_pixels_are_refused():
    images = torch.zeros(2, 3, 2, 2)
    for mask in (torch.zeros(2, 1, 2, 2).bool(), torch.ones(2, 1, 2, 2).bool()):
        with pytest.raises(ValueError, match="the mask must have pixels inside and outside"):
            edit_errors(images, images, images, mask)
    half = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert edit_errors(images, images, images, half, batch=1) == (0, 0)
    with pytest.raises(ValueError, match="images must be alike"):
        edit_errors(images, images[:1], images, half)
    with pytest.raises(ValueError, match="a mask must be bool and of the images' size"):
        edit_errors(images, images, images, half.float())
