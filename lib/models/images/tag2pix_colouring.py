"""Colouring with a trained Tag2Pix: line art and names of colours to a picture."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lib.inspection import evaluating
from lib.listing import first_few
from lib.models.images.tag2pix import Generator, to_pixels
from lib.models.images.tag2pix_extractor import SemanticExtractor


def tag_vector(tags: Iterable[str], known: Sequence[str]) -> Tensor:
    """A multi-hot vector, (number of known tags,) float32, of the tags of one picture.

    Raises
    ------
    ValueError
        There is no tag, one is not known, or a text is given where a list of tags is wanted.
    """
    if isinstance(tags, str):
        raise ValueError(f"tags are a list of names, got the text {tags[:40]!r}")
    tags = list(tags)
    if not tags:
        raise ValueError(f"give at least one tag, such as {first_few(list(known))}")
    vector = torch.zeros(len(known))
    for tag in tags:
        if tag not in known:
            near = difflib.get_close_matches(str(tag), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {first_few(list(known))}"
            raise ValueError(f"there is no colour tag {str(tag)[:40]!r}: {hint}")
        vector[known.index(tag)] = 1
    return vector


@torch.no_grad()
def colour(
    generator: Generator,
    extractor: SemanticExtractor | None,
    line: Tensor,
    tags: Sequence[Sequence[str]],
    known: Sequence[str],
) -> Tensor:
    """The same line art under several sets of tags.

    Parameters
    ----------
    generator, extractor
        Trained, used in evaluation mode; the extractor keeps its own. None for a generator without features.
    line : (1, S, S)
        In 0…1, white is 1.
    tags : sequence of n sequences of str
        For each picture the names of its colours.
    known : sequence of str
        The generator's colour tags, in its order.

    Returns
    -------
    (n, 3, S, S) uint8

    Raises
    ------
    ValueError
        A tag is not known, or there is none; the line art has another size, channels or values outside 0…1.
    """
    if len(known) != generator.colour_tags:
        raise ValueError(f"the generator knows {generator.colour_tags} colour tags, got {len(known)} names")
    if not len(tags):
        raise ValueError("give at least one set of tags")
    vectors = torch.stack([tag_vector(each, known) for each in tags])
    expected = (1, generator.image_size, generator.image_size)
    if tuple(line.shape) != expected:
        raise ValueError(f"line art must be {expected}, grey, got {tuple(line.shape)}")
    if not line.is_floating_point() or not (line.min() >= 0 and line.max() <= 1):
        raise ValueError(f"line art must be floats in 0..1, white is 1, got {line.dtype} up to {line.max()}")
    device = generator.output[0].weight.device
    lines = line.to(device).expand(len(vectors), -1, -1, -1)
    with evaluating(generator):
        features = None if extractor is None else extractor(lines)
        pictures, _ = generator(lines, features, vectors.to(device))
    return to_pixels(pictures).cpu()
