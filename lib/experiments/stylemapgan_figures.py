"""StyleMapGAN's pictures in strips, as tables, so that an archive keeps them and a page can show them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import pandas as pd
import torch
from PIL import Image
from torch import Tensor


def sheet(rows: Mapping[str, Tensor], seed: int, *, columns: int = 6) -> pd.DataFrame:
    """Rows of pictures as `lib.chapter.figures.pictures_figure` takes them, with the seed as index.

    Parameters
    ----------
    rows : dict of str to (N, 3, H, W) in [−1, 1]
        By what is written above the row.
    seed : int
    columns : int
        Pictures of a row that are kept, side by side in one PNG of at most 64 colours.
    """
    found = []
    for label, images in rows.items():
        strip = torch.cat(list(images[:columns]), dim=2).permute(1, 2, 0)
        pixels = ((strip.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        png = base64.b64encode(file.getvalue()).decode()
        found.append({"seed": seed, "row": label, "columns": "", "png": png})
    return pd.DataFrame(found).set_index("seed")
