"""What is measured of Tag2Pix's arms: colours of parts, errors, bleeding, tag heads, leaks, wrong tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor

from lib.experiments.tag2pix import LineArtSet, Trained
from lib.experiments.tag2pix_sets import FEWEST, EmojiSet, Portraits, line_art, regions, to_signed, xdog_of
from lib.inspection import evaluating
from lib.metrics.images import part_colour_accuracy
from lib.metrics.tags import mean_average_precision
from lib.streams import stream_seed
from lib.training.loop import History

#: In levels of 0…255.
ERROR, BLEEDING, FLUCTUATION = "error (levels)", "bleeding (levels)", "fluctuation (levels)"


def accuracy_name(part: str) -> str:
    """Of the metric that counts pictures with the asked colour on a part."""
    return f"{part} as asked"


def palette(portraits: Portraits, part: str) -> Tensor:
    """Colours of a part, (K, 3) in −1…1."""
    codes = portraits.test.style.palettes[part].values()
    return torch.tensor([list(bytes.fromhex(code)) for code in codes]) / 127.5 - 1


def part_accuracy(pictures: Tensor, portraits: Portraits, part: str, asked: np.ndarray) -> np.ndarray:
    """Whether each test portrait has the asked colour on a part, (tested,) of 0 and 1.

    That is whether the part's mean colour, without lines, is nearest to that one of the palette.

    Parameters
    ----------
    pictures : (tested, 3, S, S) in −1…1
    portraits, part
    asked : (tested,)
        Numbers in the part's palette.
    """
    found = part_colour_accuracy(
        pictures,
        regions(portraits.test, part),
        palette(portraits, part),
        torch.from_numpy(asked).long(),
        fewest=FEWEST,
    )
    return found.double().numpy()


def picture_scores(
    pictures: Tensor, portraits: Portraits, asked: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """By metric, a number for each test portrait: the colour of every part, the error, the bleeding.

    Parameters
    ----------
    pictures : (tested, 3, S, S) in −1…1
    portraits
    asked : (tested, parts), optional
        What was asked for; `Portraits.asked` if not given.
    """
    asked = portraits.asked if asked is None else asked
    test = portraits.test
    truth = to_signed(test.colour(colours=asked))
    distance = (pictures - truth).abs().mean(1) * 127.5
    scores = {
        accuracy_name(part): part_accuracy(pictures, portraits, part, asked[:, k])
        for k, part in enumerate(test.style.parts)
    }
    scores[ERROR] = distance.mean((1, 2)).double().numpy()
    border, core = borders(portraits)
    scores[BLEEDING] = (_mean_over(distance, border) - _mean_over(distance, core)).double().numpy()
    return scores


def borders(portraits: Portraits, reach: int = 2) -> tuple[Tensor, Tensor]:
    """Pixels of parts within reach of another part, and all others of parts, (tested, S, S) bool.

    Lines belong to neither.
    """
    parts = [regions(portraits.test, part) for part in portraits.test.style.parts]
    near = [
        F.max_pool2d(part[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
        for part in parts
    ]
    border = torch.zeros_like(parts[0])
    for k, part in enumerate(parts):
        others = torch.stack([one for number, one in enumerate(near) if number != k]).any(0)
        border |= part & others
    return border, torch.stack(parts).any(0) & ~border


def _mean_over(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)


def mean_colours(portraits: Portraits) -> Tensor:
    """Portraits painted by the truth's regions in each part's mean colour: what ignores the tags."""
    means = [palette(portraits, part).mean(0) for part in portraits.test.style.parts]
    return _painted(portraits, torch.stack(means).expand(len(portraits.test), -1, -1))


def flood_filled(portraits: Portraits) -> Tensor:
    """Portraits painted by the truth's regions in the asked colours: what knows where parts are."""
    palettes = [palette(portraits, part) for part in portraits.test.style.parts]
    paint = [colours[portraits.asked[:, k]] for k, colours in enumerate(palettes)]
    return _painted(portraits, torch.stack(paint, 1))


def _painted(portraits: Portraits, paint: Tensor) -> Tensor:
    """Lines and flat colours (tested, parts, 3); what has one colour in every drawing is left white."""
    shares = portraits.test.planes[:, : paint.shape[1] + 1].float() / 255  # the last is ink
    paper = (1 - shares.sum(1, keepdim=True)).clamp(min=0)
    return torch.einsum("nphw,npc->nchw", shares[:, :-1], (paint + 1) / 2).add(paper) * 2 - 1


def portrait_scores(trained: Mapping[str, Trained], portraits: Portraits) -> dict[str, dict[str, np.ndarray]]:
    """`picture_scores` of every arm, and of what needs no training, by name."""
    held_out = portraits.held_out(len(portraits.test))
    pictures = {name: one.draw(held_out["lines"], held_out["variant"]) for name, one in trained.items()}
    pictures |= {"mean colours": mean_colours(portraits), "flood fill": flood_filled(portraits)}
    return {name: picture_scores(drawn, portraits) for name, drawn in pictures.items()}


def seed_means(scores: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Mean over pictures, a row per arm and seed, from scores by arm and seed."""
    rows = [
        {"arm": arm, "seed": seed} | {metric: float(values.mean()) for metric, values in one.items()}
        for arm, seeds in scores.items()
        for seed, one in seeds.items()
    ]
    return pd.DataFrame(rows).set_index("seed")


def spread(means: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of some metrics, a row per arm; NaN of a single seed."""
    metrics = [accuracy_name("eyes"), ERROR]
    table = means.groupby("arm", sort=False)[metrics].agg(["mean", "std"])
    table.columns = [f"{metric}, {what}" for metric, what in table.columns]
    return table


def fluctuation(history: History) -> float:
    """Mean change of the held-out error from one evaluation to the next, over the last half of a training."""
    errors = [row["error"] for row in history.evaluations]
    late = errors[len(errors) // 2 :] if len(errors) > 2 else errors
    return float(np.abs(np.diff(late)).mean()) if len(late) > 1 else 0.0


# --- the discriminator's tag heads -------------------------------------------------------------------------


@torch.no_grad()
def tag_head_precision(trained: Trained, portraits: Portraits) -> dict[str, dict[str, float]]:
    """Mean average precision of the discriminator's tag heads, by metric and by whose pictures they see.

    Also of a constant score, which is the share of the pictures that have a tag.
    """
    real = portraits.held_out(len(portraits.test))
    drawn = trained.draw(real["lines"], real["variant"])
    device = next(trained.discriminator.parameters()).device
    found: dict[str, dict[str, float]] = {}
    with evaluating(trained.discriminator):
        for name, pictures in (("real pictures", real["images"]), ("drawn pictures", drawn)):
            judged = trained.discriminator.logits(pictures.to(device))
            for kind, logits, tags in (
                ("colour tags (AP)", judged.colour_tags, real["variant"]),
                ("shape tags (AP)", judged.invariant_tags, real["invariant"]),
            ):
                constant = mean_average_precision(torch.zeros_like(tags), tags)
                found.setdefault(kind, {"constant": constant})[name] = mean_average_precision(
                    logits.cpu(), tags
                )
    return found


# --- line art that tells of colours ------------------------------------------------------------------------


def leak(
    portraits: Portraits,
    seed: int,
    dark: Sequence[str] = ("black", "brown"),
    cells: int = 8,
    fitted: int = 600,
) -> dict[str, float]:
    """How well line art alone tells dark hair from other hair, as an area under the ROC curve, by its kind.

    Ridge regression on the line art's mean in a grid of cells, fitted on the first so many training portraits
    and tested on the test portraits, in colours of the seed.
    """
    style = portraits.test.style
    numbers = [list(style.palettes["hair"]).index(name) for name in dark]
    inputs: dict[str, list[np.ndarray]] = {"XDoG": [], "exact lines": []}
    truths = []
    for drawings, stream in ((portraits.train[:fitted], "leak, fitted"), (portraits.test, "leak, tested")):
        colours = portraits.colours(len(drawings), stream_seed(seed, stream))
        truths.append(np.isin(colours[:, style.parts.index("hair")], numbers))
        for name, lines in (("XDoG", xdog_of(drawings, colours)), ("exact lines", line_art(drawings) / 255)):
            inputs[name].append(F.adaptive_avg_pool2d(lines, cells).flatten(1).double().numpy())
    found = {}
    for name, (first, second) in inputs.items():
        centred, wanted = first - first.mean(0), truths[0] - truths[0].mean()
        ridge = np.eye(centred.shape[1])
        weights = np.linalg.solve(centred.T @ centred + ridge, centred.T @ wanted)
        found[name] = _area(second @ weights, truths[1])
    return found


def _area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs of a true and a false one that are in the right order; one half if there is no pair."""
    if truth.all() or not truth.any():
        return 0.5
    return float(mannwhitneyu(scores[truth], scores[~truth]).statistic / truth.sum() / (~truth).sum())


def contradicted(trained: Trained, portraits: Portraits) -> dict[str, np.ndarray]:
    """Whether hair has the asked colour, (tested,), on XDoG of that colouring and on XDoG of another.

    The other one is another portrait's (the list in reverse): for about one in six hair has the same colour.
    """
    hair = portraits.test.style.parts.index("hair")
    others = portraits.asked[::-1].copy()
    tags = portraits.test.colour_tag_vectors(colours=portraits.asked)
    kinds = {"lines of the same colours": portraits.asked, "lines of other colours": others}
    return {
        name: part_accuracy(
            trained.draw(xdog_of(portraits.test, colours), tags), portraits, "hair", portraits.asked[:, hair]
        )
        for name, colours in kinds.items()
    }


# --- missing and wrong tags --------------------------------------------------------------------------------


def without(tags: Tensor, portraits: Portraits, part: str) -> Tensor:
    """The tags without those of a part."""
    left = tags.clone()
    left[:, _columns(portraits, part)] = 0
    return left


def altered(portraits: Portraits) -> dict[str, Tensor]:
    """Tags of the test portraits, by what is wrong with them.

    The second tag for hair is another portrait's: for about one in six it is the same.
    """
    test = portraits.test
    tags = test.colour_tag_vectors(colours=portraits.asked)
    second = test.colour_tag_vectors(colours=portraits.asked[::-1].copy())
    both = tags.clone()
    columns = _columns(portraits, "hair")
    both[:, columns] = torch.maximum(tags[:, columns], second[:, columns])
    return {
        "as asked": tags,
        "no tag for hair": without(tags, portraits, "hair"),
        "no tag for eyes": without(tags, portraits, "eyes"),
        "two tags for hair": both,
        "no tags": torch.zeros_like(tags),
    }


def altered_scores(trained: Trained, portraits: Portraits) -> pd.DataFrame:
    """Mean scores of an arm by what is wrong with the tags, a row each."""
    lines = line_art(portraits.test) / 255
    rows = []
    for name, tags in altered(portraits).items():
        scores = picture_scores(trained.draw(lines, tags), portraits)
        rows.append({"tags": name} | {metric: float(values.mean()) for metric, values in scores.items()})
    return pd.DataFrame(rows)


def spill(trained: Trained, portraits: Portraits) -> dict[str, np.ndarray]:
    """Mean change of each test portrait, in levels, on hair and elsewhere, by the next tag of hair."""
    test, place = portraits.test, portraits.test.style.parts.index("hair")
    changed = portraits.asked.copy()
    changed[:, place] = (changed[:, place] + 1) % len(test.style.palettes["hair"])
    lines = line_art(test) / 255
    first, second = (
        trained.draw(lines, test.colour_tag_vectors(colours=colours))
        for colours in (portraits.asked, changed)
    )
    change = (first - second).abs().mean(1) * 127.5
    elsewhere = torch.stack([regions(test, part) for part in test.style.parts if part != "hair"]).any(0)
    return {
        "hair": _mean_over(change, regions(test, "hair")).double().numpy(),
        "elsewhere": _mean_over(change, elsewhere).double().numpy(),
    }


def _columns(portraits: Portraits, part: str) -> slice:
    sizes = [len(portraits.test.style.palettes[name]) for name in portraits.test.style.parts]
    place = portraits.test.style.parts.index(part)
    return slice(sum(sizes[:place]), sum(sizes[: place + 1]))


# --- emoji -------------------------------------------------------------------------------------------------


def emoji_scores(pictures: Tensor, emoji: EmojiSet) -> dict[str, np.ndarray]:
    """By metric, a number for each test emoji: the error, and the share of coloured pixels with their colour.

    A pixel has the colour of the palette's entry that it is nearest to.

    Parameters
    ----------
    pictures : (tested, 3, S, S) in −1…1
    emoji
    """
    rows = emoji.test_rows
    truth, labels = to_signed(emoji.emoji.colour[rows]), emoji.emoji.labels[rows].long()
    paints = _emoji_palette(emoji)
    flat = pictures.permute(0, 2, 3, 1)
    nearest = torch.cdist(flat.reshape(len(flat), -1, 3), paints).argmin(-1).view(labels.shape) + 1
    right = _mean_over((nearest == labels).float(), labels > 0)
    error = (pictures - truth).abs().mean((1, 2, 3)) * 127.5
    return {"emoji: error (levels)": error.double().numpy(), "emoji: pixels": right.double().numpy()}


def emoji_scores_of(trained: Mapping[str, Trained], emoji: EmojiSet) -> dict[str, dict[str, np.ndarray]]:
    """`emoji_scores` of arms and of `emoji_floor`, by name."""
    held_out = emoji.held_out(emoji.tested)
    drawn = {name: one.draw(held_out["lines"], held_out["variant"]) for name, one in trained.items()}
    drawn["mean of the tags"] = emoji_floor(emoji)
    return {name: emoji_scores(pictures, emoji) for name, pictures in drawn.items()}


def emoji_floor(emoji: EmojiSet) -> Tensor:
    """Test emoji painted by the truth's regions in the mean of the colours in their tags."""
    rows = emoji.test_rows
    tags = emoji.emoji.colour_tag_vectors()[rows]
    paint = tags @ _emoji_palette(emoji) / tags.sum(1, keepdim=True)
    lines = emoji.emoji.lines[rows].float() / 127.5 - 1
    coloured = (emoji.emoji.labels[rows] > 0)[:, None] & (lines > 0)
    return torch.where(coloured, paint[:, :, None, None], lines)


def _emoji_palette(emoji: EmojiSet) -> Tensor:
    """Mean of each colour's pixels in training emoji, (colours, 3)."""
    train = slice(0, len(emoji.emoji) - emoji.tested)
    pixels = to_signed(emoji.emoji.colour[train]).permute(0, 2, 3, 1)
    labels = emoji.emoji.labels[train].long()
    count = len(emoji.colour_tags)
    return torch.stack(
        [pixels[labels == k].mean(0) if (labels == k).any() else torch.zeros(3) for k in range(1, count + 1)]
    )


def danbooru_scores(
    trained: Mapping[str, Trained], material: LineArtSet, tested: int
) -> dict[str, dict[str, np.ndarray]]:
    """Error of each held-out picture by arms, and by the line art itself as a picture, by name."""
    held_out = material.held_out(tested)
    drawn = {name: one.draw(held_out["lines"], held_out["variant"]) for name, one in trained.items()}
    drawn["line art"] = held_out["lines"].expand(-1, 3, -1, -1) * 2 - 1
    errors = {name: (one - held_out["images"]).abs().mean((1, 2, 3)) * 127.5 for name, one in drawn.items()}
    return {name: {"error on Danbooru (levels)": error.double().numpy()} for name, error in errors.items()}


def by_metric(
    scores: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]], unit: str = "picture"
) -> dict[str, dict[str, pd.DataFrame]]:
    """Results by metric and arm as frames (seeds, pictures), from scores by arm and seed."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for arm, seeds in scores.items():
        for metric in next(iter(seeds.values())):
            frame = pd.DataFrame({seed: one[metric] for seed, one in seeds.items()}).T
            found.setdefault(metric, {})[arm] = frame.rename_axis(index="seed", columns=unit)
    return found
