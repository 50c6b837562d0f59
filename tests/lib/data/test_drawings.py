"""Avatar drawings: what is composed is what the renderer draws; tags, regions and edits tell the truth."""

import functools
import io
import multiprocessing
import re

import numpy as np
import pytest
import resvg_py
import torch
from dicebear import Avatar, Style
from PIL import Image

from lib.data import drawings
from lib.data.dataset import DataUnavailable, UnexpectedFormat
from lib.data.drawings import ADVENTURER, OPEN_PEEPS, Drawings, paired_edits

SETS = {"adventurer": ADVENTURER, "open-peeps": OPEN_PEEPS}


@pytest.fixture(scope="module")
def styles():
    try:
        return {name: source.load("data") for name, source in SETS.items()}
    except DataUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def made(styles):
    """Forty drawings of each style, some moved."""
    return {
        name: Drawings.of(style, style.faces(40, seed=1, shift=0.1), 48) for name, style in styles.items()
    }


@functools.cache
def dicebear(name: str) -> Style:
    return Style(SETS[name].load("data").definition)


def vector(style, faces, number, **others: str) -> str:
    """A face as DiceBear puts it together, with nothing of ours between."""
    names = {"background": "background", **style.layout.parts}
    options = {"seed": "", f"{style.layout.ink}Color": ["000000"]}
    for k, part in enumerate(style.parts):
        code = list(style.palettes[part].values())[faces.colours[number, k]]
        options[f"{names[part]}Color"] = [code]
    for component, variants, chosen in zip(
        style.components, style.variants, faces.variants[number], strict=True
    ):
        options[f"{component}Probability"] = 100 if chosen >= 0 else 0
        if chosen >= 0:
            options[f"{component}Variant"] = variants[chosen]
    right, down = (100 * faces.shift[number]).round(2).tolist()
    options |= {"translateX": right, "translateY": down}
    options |= {f"{name}Color": [code] for name, code in others.items()}
    return str(Avatar(dicebear(style.name), options))


def rendered(svg: str, size: int) -> np.ndarray:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("name", SETS)
def test_pictures_are_those_of_the_renderer(made, name):
    drawing = made[name]
    for number in range(0, 40, 4):
        expected = rendered(vector(drawing.style, drawing.faces, number), 48)
        error = np.abs(drawing.colour([number])[0].numpy() - expected)
        assert error.max() <= 4 and error.mean() < 0.1, number


def test_line_art_is_what_stays_when_everything_is_white(made, styles):
    """Whitened by DiceBear's own options, where a drawing has no colours but those that are options."""
    drawing, style = made["adventurer"], styles["adventurer"]
    free = set(style.definition["colors"]) - {"ink", "glasses", "earrings"}
    white, checked = dict.fromkeys(["background", *free], "ffffff"), 0
    for number in range(40):
        svg = vector(style, drawing.faces, number, **white)
        if set(re.findall('fill="([^"]*)"', svg)) <= {"none", "#ffffff", "#000000"}:
            error = drawing.lines([number])[0].numpy() - rendered(svg, 48)
            assert np.abs(error).max() <= 4, number
            checked += 1
    assert checked > 20


def test_other_colours_are_those_of_the_renderer(made, styles):
    drawing, style = made["adventurer"], styles["adventurer"]
    other = style.faces(40, seed=9).colours
    recoloured = drawing.colour(slice(0, 4), other[:4])
    faces = drawings.Faces(drawing.faces.variants, other, drawing.faces.shift)
    for number in range(4):
        expected = rendered(vector(style, faces, number), 48)
        assert np.abs(recoloured[number].numpy() - expected).max() <= 4
    assert not torch.equal(recoloured, drawing.colour(slice(0, 4)))


@pytest.mark.parametrize("name", SETS)
def test_shares_of_a_pixel_are_one_at_most(made, name):
    count = len(made[name].style.parts) + 1
    total = made[name].planes[:, :count].sum(1, dtype=torch.int64)
    assert total.max() <= 258
    inside = total[:, 0, 0] > 250  # corners are background
    assert inside.float().mean() > 0.8


def test_a_part_has_its_tags_colour_where_it_covers_the_whole_pixel(made):
    drawing = made["adventurer"]
    picture, vectors = drawing.colour(), drawing.colour_tag_vectors()
    assert vectors.sum(1).eq(len(drawing.style.parts)).all()
    assert len(drawing.colour_tags) == vectors.shape[1]
    checked = 0
    for number in range(40):
        for tag in np.flatnonzero(vectors[number]):
            colour, part = drawing.colour_tags[tag].split()
            code = torch.tensor(list(bytes.fromhex(drawing.style.palettes[part][colour])))
            whole = drawing.coverage(part, [number])[0] == 1
            checked += int(whole.sum())
            assert ((picture[number][:, whole].T - code.int()).abs() <= 1).all()
    assert checked > 40 * 48 * 48 / 2


def test_closed_eyes_are_not_drawn_and_every_face_shows_its_eye_colour(styles):
    style = styles["adventurer"]
    assert len(style.variants[style.components.index("eyes")]) == 24
    glasses = style.components.index("glasses")
    faces = style.faces(60, seed=4)
    faces = faces[faces.variants[:, glasses] < 0]
    seen = Drawings.of(style, faces, 64).coverage("eyes").sum((1, 2))
    assert (seen > 0).float().mean() > 0.9  # hair may hang over them


def test_regions_follow_the_components(made):
    """Hair is where hair is; taken away from a drawing, the pixels outside its region are what they were."""
    drawing = made["adventurer"]
    style, faces = drawing.style, drawing.faces
    bald = faces.variants.copy()
    bald[:, style.components.index("hair")] = -1
    without = Drawings.of(style, drawings.Faces(bald, faces.colours, faces.shift), 48)
    changed = (without.colour().int() - drawing.colour().int()).abs().amax(1) > 128
    region = drawing.region("hair") | drawing.region("earrings")
    assert (changed & ~region).float().mean() < 0.01 and (changed & region).float().mean() > 0.05
    assert drawing.region("eyes").any((1, 2)).float().mean() > 0.9
    hair = drawing.coverage("hair") > 0.9
    assert (drawing.region("hair") & hair).sum() > 0.98 * hair.sum()
    with pytest.raises(ValueError, match="there is no 'nose', but details, earrings"):
        drawing.region("nose")
    with pytest.raises(ValueError, match="no 'mouth', but background, hair"):
        drawing.coverage("mouth")


def test_shape_tags_are_the_variants(made):
    drawing = made["adventurer"]
    tags, vectors = drawing.shape_tags, drawing.shape_tag_vectors()
    assert {"long hair", "short hair", "glasses", "earrings", "freckles details"} <= set(tags)
    assert not {"eyes", "mouth", "default head"} & set(tags)
    style = drawing.style
    place = style.components.index("hair")
    for number, chosen in enumerate(drawing.faces.variants[:, place]):
        name = "long hair" if style.variants[place][chosen].startswith("long") else "short hair"
        assert vectors[number, tags.index(name)] == 1
    hair = vectors[:, [tags.index("long hair"), tags.index("short hair")]]
    assert hair.sum(1).eq(1).all()
    worn = drawing.faces.variants[:, style.components.index("glasses")] >= 0
    assert torch.equal(vectors[:, tags.index("glasses")].bool(), torch.from_numpy(worn))


def test_a_seed_decides_everything(styles):
    style = styles["adventurer"]
    first, second, other = (style.faces(6, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.variants, second.variants)
    assert not np.array_equal(first.variants, other.variants)
    one, two = (Drawings.of(style, faces, 32) for faces in (first, second))
    assert torch.equal(one.planes, two.planes) and torch.equal(one.labels, two.labels)
    assert one.planes.shape == (6, 8, 32, 32)


@pytest.mark.parametrize("attribute", ["hair", "eyes", "mouth", "background", "glasses"])
def test_an_edit_changes_the_attribute_and_nothing_else(styles, attribute):
    style = styles["adventurer"]
    pairs = paired_edits(style, 6, 40, attribute, seed=2, shift=0.05)
    source, edited = pairs.source.colour(), pairs.edited.colour()
    assert torch.equal((source != edited).any(1), pairs.changed)
    for kind, names in (("variants", style.components), ("colours", style.parts)):
        for k, name in enumerate(names):
            whose = pairs.reference if name == attribute else pairs.source
            found = getattr(pairs.edited.faces, kind)[:, k]
            assert np.array_equal(found, getattr(whose.faces, kind)[:, k]), name
    assert np.array_equal(pairs.edited.faces.shift, pairs.source.faces.shift)
    assert not np.array_equal(pairs.reference.faces.shift, pairs.source.faces.shift)
    kind, names = ("colours", style.parts) if attribute == "background" else ("variants", style.components)
    edits = [getattr(one.faces, kind)[:, names.index(attribute)] for one in (pairs.source, pairs.edited)]
    assert (edits[0] != edits[1]).all() and pairs.changed.any((1, 2)).float().mean() > 0.7
    outside = ~pairs.changed[:, None].expand_as(source)
    assert torch.equal(source[outside], edited[outside])
    if attribute == "background":
        region = (pairs.source.coverage("background") > 0) & (pairs.changed.any((1, 2))[:, None, None])
        assert (pairs.changed <= region).all()


def test_an_edit_of_nothing_is_refused(styles):
    with pytest.raises(ValueError, match="adventurer has no 'nose', but details"):
        paired_edits(styles["adventurer"], 2, 32, "nose", seed=0)
    with pytest.raises(ValueError, match="adventurer has one head only"):
        paired_edits(styles["adventurer"], 2, 32, "head", seed=0)


def test_wrong_arguments_are_refused(styles, made):
    style = styles["adventurer"]
    for bad in (dict(count=0), dict(shift=0.6), dict(shift=-0.1)):
        with pytest.raises(ValueError, match="count >= 1 and shift"):
            style.faces(**{"count": 2, "seed": 0} | bad)
    with pytest.raises(ValueError, match="size >= 8"):
        Drawings.of(style, style.faces(2, seed=0), 4)
    for colours in (np.zeros((2, 3), int), np.full((1, 4), 99), np.full((1, 4), -1)):
        with pytest.raises(ValueError, match=r"colours must be \(1, 4\) numbers below \[8, 12, 4, 8\]"):
            made["adventurer"].colour([0], colours)
    with pytest.raises(ValueError, match="no part 'nose'"):
        style.with_palettes({"nose": {"red": "ff0000"}})
    for palette in ({"red": "#f00"}, {}):
        with pytest.raises(ValueError, match="six hexadecimal digits"):
            style.with_palettes({"hair": palette})


def test_palettes_can_be_others(styles):
    style = styles["adventurer"].with_palettes({"hair": {"red": "ff0000"}})
    drawing = Drawings.of(style, style.faces(3, seed=0), 32)
    assert [tag for tag in drawing.colour_tags if tag.endswith("hair")] == ["red hair"]
    covered = drawing.coverage("hair") == 1
    assert (drawing.colour().permute(0, 2, 3, 1)[covered] == torch.tensor([255, 0, 0])).all()


def test_what_was_drawn_is_kept_and_made_again_when_damaged(styles, tmp_path, monkeypatch):
    style = styles["adventurer"]
    faces = style.faces(3, seed=5)
    first = Drawings.of(style, faces, 24, data_dir=tmp_path)
    (path,) = (tmp_path / "drawings").glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(type(style), "render", None)  # would fail
        again = Drawings.of(style, faces, 24, data_dir=tmp_path)
    assert torch.equal(first.planes, again.planes) and torch.equal(first.labels, again.labels)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    other = io.BytesIO()
    np.savez(other, planes=np.zeros(3), labels=np.zeros(3))
    for content in (b"", whole[:-40], flipped, b"no archive", other.getvalue()):
        path.write_bytes(content)
        made = Drawings.of(style, faces, 24, data_dir=tmp_path)
        assert torch.equal(made.planes, first.planes) and path.read_bytes() == whole
    Drawings.of(style, style.faces(3, seed=6), 24, data_dir=tmp_path)
    Drawings.of(style, faces, 25, data_dir=tmp_path)
    recoloured = style.with_palettes({"hair": {"red": "ff0000"}})
    Drawings.of(recoloured, faces, 24, data_dir=tmp_path)
    assert len(list((tmp_path / "drawings").glob("*.npz"))) == 3, "colours need no file of their own"


def test_a_full_disk_costs_the_file_only(styles, small_disk, caplog):
    style = styles["adventurer"]
    (small_disk / "filled").write_bytes(bytes(1_000_000))
    drawing = Drawings.of(style, style.faces(30, seed=5), 64, data_dir=small_disk)
    assert len(drawing) == 30 and "is not kept" in caplog.text
    assert not list((small_disk / "drawings").glob("*.tmp"))


def _draw(style, folder, results):
    drawn = Drawings.of(style, style.faces(12, seed=7), 24, data_dir=folder)
    results.put(int(drawn.planes.sum(dtype=torch.int64)))


def test_processes_that_want_the_same_draw_it_once(styles, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=_draw, args=(styles["adventurer"], tmp_path, results)) for _ in range(3)
    ]
    for child in children:
        child.start()
    found = {results.get(timeout=120) for _ in children}
    for child in children:
        child.join()
    names = sorted(path.suffix for path in (tmp_path / "drawings").iterdir())
    assert len(found) == 1 and names in ([".lock", ".npz"], [".npz"])


def test_a_file_of_another_kind_is_refused(tmp_path, styles):
    layout = styles["adventurer"].layout
    path = tmp_path / "style.json"
    for content in ("{}", "no json", '{"components": {"eyes": {"variants": {}}}, "colors": {}}'):
        path.write_text(content)
        with pytest.raises(UnexpectedFormat, match=r"style\.json .*no such style"):
            drawings.AvatarStyle.read(path, name="x", sha256="", layout=layout)


def test_sets_name_their_licence_and_artist():
    for source, artist, licence in (
        (ADVENTURER, "Lisa Wischofsky", "CC BY 4.0"),
        (OPEN_PEEPS, "Stanley", "CC0"),
    ):
        assert artist in source.name and source.licence.startswith(licence) and source.synthetic
