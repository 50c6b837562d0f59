"""Sentences of pages that were typed from archived tables say what the tables have, whatever joins them."""

import numpy as np
import pandas as pd

from book.build import ROOT
from lib.ledger.archive import archived, largest


def page(chapter):
    """The chapter's prose, its lines joined."""
    return " ".join((ROOT / f"notebooks/{chapter}.md").read_text().split())


def table(chapter, name):
    """A table of the chapter's largest archived run."""
    return pd.read_csv(ROOT / largest(archived(chapter)).folder / f"tables/{name}.csv")


def by_seed(chapter, name, column):
    """A column of such a table: a row for each seed, a column for each arm."""
    return table(chapter, name).pivot_table(index="seed", columns="arm", values=column)


def listed(values):
    *first, last = values
    return f"{', '.join(first)} and {last}"


def test_one_shots_first_layer_and_what_it_costs():
    layers = table("oneshot_compression", "small-network-layers")
    first = layers[layers["layer"] == "features.0"]
    arms = by_seed("oneshot_compression", "arms-by-seed", "accuracy")
    noise, more = (listed(map(str, first["seed"][first["floored"] == floored])) for floored in (True, False))
    right_after, fine_tuned = (
        listed(arms[f"EVBMF, {when}"].map("{:.1f}".format)) for when in ("right after", "fine-tuned")
    )
    before = arms["original"]
    kept = listed(map(str, first["output_rank"][~first["floored"]]))
    text = page("oneshot_compression")
    assert f"In the long run's seeds {noise} EVBMF takes the whole first layer for noise" in text
    assert f"in seeds {more} it keeps {kept} of 32" in text
    assert f"Right after the decomposition {right_after} % of the test pictures are right" in text
    assert f"after fine-tuning {fine_tuned} %, of {before.min():.1f} to {before.max():.1f} % before" in text


def test_value_aware_accuracy_without_large_values():
    evidence = largest(archived("value_aware")).evidence
    (measured,) = (one.measured["test accuracy"] for one in evidence.measurements if one.claim == "C2")
    seeds = evidence.parameters["seeds"]
    arms = ("full precision", "(3, 2 %)", "(3, 0 %)", "4 bits, clipped")
    full, both, none, clipped = (f"{np.mean(measured[arm]):.1f} %" for arm in arms)
    assert (
        f"On average of the long run's seeds {seeds[0]} to {seeds[-1]}, full precision has {full}, "
        f"(3, 2 %) {both}, 3 bits without a single large value {none} and 4 clipped bits {clipped}"
    ) in page("value_aware")


def test_no_network_of_fsre_depth_beats_the_median_map_in_rmse():
    errors = by_seed("fsre_depth", "errors", "RMSE")
    assert "in RMSE no arm of the long run has so far been better than the median map" in page("fsre_depth")
    floor = errors.pop("median depth")
    assert (errors.mean() > floor.mean()).all()


def test_stylemapgans_maps():
    text = page("stylemapgan")
    assert "lies between the two latents in the long run: worse than the map, better than the vector" in text
    errors = by_seed("stylemapgan", "embedding", "MSE")
    assert (errors["map 8×8×4"] < errors["thumbnail 8×8"]).all()
    assert (errors["thumbnail 8×8"] < errors["vector of 256"]).all()
    assert "By the error to the true edit the map of 16×16×16 is nearer in the long run" in text
    edits = by_seed("stylemapgan", "local-edits", "MSE to the true edit").mean()
    assert edits["map 16×16×16, map"] < edits["map 8×8×16, map"]
    assert edits["map 16×16×16, codes"] < edits["map 8×8×16, codes"]
    assert "nearer to the true edit than the map in every seed of the long run (table `moved-edits`)" in text
    moved = by_seed("stylemapgan", "moved-edits", "MSE to the true edit (moved)")
    assert (moved["no edit"] < moved["pixel paste"]).all()
    assert (moved["pixel paste"] < moved["map 8×8×4"]).all()


def test_the_scale_from_nought_is_not_behind_in_tag2pix():
    assert "where it is not behind in the long run" in page("tag2pix")
    means = by_seed("tag2pix", "scores-by-seed", "eyes as asked").mean()
    assert means["AdaIN, scale from 0"] >= means["AdaIN"]
