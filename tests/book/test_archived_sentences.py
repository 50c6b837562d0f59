"""Sentences of pages that were typed from archived tables say what the tables have, whatever joins them."""

import numpy as np
import pandas as pd
import torch

from book.build import ROOT
from lib.ledger.archive import archived, largest
from lib.ledger.intervals import mean_interval
from lib.ledger.schema import load_ledger
from lib.ledger.wording import format_interval
from lib.models.depth.semantic_losses import TripletTerms


def page(chapter):
    """The chapter's prose, its lines joined."""
    return " ".join((ROOT / f"notebooks/{chapter}.md").read_text().split())


def table(chapter, name):
    """A table of the chapter's largest archived run."""
    return pd.read_csv(ROOT / largest(archived(chapter)).folder / f"tables/{name}.csv")


def by_seed(chapter, name, column, arm="arm"):
    """A column of such a table: a row for each seed, a column for each arm."""
    return table(chapter, name).pivot_table(index="seed", columns=arm, values=column)


def listed(values):
    *first, last = values
    return f"{', '.join(first)} and {last}"


def interval(differences):
    """Their mean with its 96 % interval over seeds, as pages write it."""
    return format_interval(*map(float, mean_interval(differences.to_numpy(), 0.96)))


WEAK = "AbsRel on weak texture"


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
    assert "in RMSE no arm of the long run is better than the median map" in page("fsre_depth")
    floor = errors.pop("median depth")
    assert (errors.mean() > floor.mean()).all()


def test_how_wrong_far_depths_are_in_fsre_depth():
    distances = table("fsre_depth", "distances").pivot_table(
        index="true depth up to (m)", columns="arm", values="too far by"
    )
    text = page("fsre_depth")
    assert "all are too far up to five metres, the map most, nearly right from five to twenty" in text
    assert "and too near beyond, the map least" in text
    near, middle, far = distances.loc[:5], distances.loc[10:20], distances.loc[30:]
    assert (near > 0).all(axis=None) and near.iloc[0].idxmax() == "median depth"
    assert (middle.abs() < 0.1).all(axis=None)
    assert (far < 0).all(axis=None) and (far.idxmax(axis=1) == "median depth").all()


def test_the_last_errors_of_fsre_depth():
    courses = table("fsre_depth", "courses")
    assert "falling below one fifth" in page("fsre_depth")
    last = courses[courses["step"] == courses["step"].max()]
    assert (last["AbsRel"] < 0.2).all()


def test_labels_as_such_and_wrong_ones_in_fsre_depth():
    text = page("fsre_depth")
    assert (
        "have the least relative error of all arms in the long run, at boundaries and on weak texture" in text
    )
    errors = {
        name: by_seed("fsre_depth", "errors", name) for name in ("AbsRel", "AbsRel at boundaries", WEAK)
    }
    assert {arms.mean().idxmin() for arms in errors.values()} == {"labels"}
    weak = errors[WEAK]
    means = weak.mean().map("{:.3f}".format)
    assert f"there it is {means['labels']} against Monodepth2's {means['Monodepth2']}" in text
    assert f"a difference of {interval(weak['labels'] - weak['Monodepth2'])}" in text
    overall, there = (
        interval(errors[name]["FSRE-Depth, wrong labels"] - errors[name]["FSRE-Depth"])
        for name in ("AbsRel", WEAK)
    )
    assert f"the relative error of the long run by {overall}, and by {there} on weak texture" in text


def test_what_the_triplet_loss_of_fsre_depth_makes_worse():
    text = page("fsre_depth")
    assert "(C2, decided by the part in RMSE" in text and "` metres more;" in text
    assert "` more relative error at boundaries)" in text
    claims = {claim.id: claim for claim in largest(archived("fsre_depth")).evidence.claims}
    for name, label in (
        ("C2", "RMSE: labels + triplet − Monodepth2"),
        ("C2b", "AbsRel at boundaries: labels + triplet − labels"),
    ):
        against = [effect for effect in claims[name].effects if effect.outcome == "contradicted"]
        assert [effect.label for effect in against] == [label] == [claims[name].interval.label]
        assert against[0].quantity_low > 0


def test_the_share_of_the_outer_rings_in_fsre_depth():
    """Of one label everywhere, only what is outside of the picture makes a boundary."""

    def share(height, width):
        sizes = [(height >> level, width >> level) for level in (3, 2, 1)]
        rings = [TripletTerms(torch.ones(1, 1, *size), torch.zeros(1, *size).long()) for size in sizes]
        return [f"{100 * float(ring.boundary.float().mean()):.0f}" for ring in rings]

    assert f"{listed(share(64, 192))} % of the three maps of 64×192 pixels" in page("fsre_depth")
    assert f"{listed(share(192, 640))} % of those of 192×640" in page("fsre_depth")


def test_who_is_ahead_of_whom_in_news_context():
    text, scores = page("news_context"), by_seed("news_context", "scores-by-seed", "AUC")
    means, content = scores.mean(), ["NRMS", "NAML", "LSTUR"]
    assert "three numbers per article rank between deep networks" in text
    assert means[content].min() < means["context only"] < means[content].max()
    assert "counting each reader's categories, without any network, beats all four" in text
    assert "The content models stay below counting categories in every seed" in text
    assert all((scores["category affinity"] > scores[arm]).all() for arm in content)
    assert means["category affinity"] > means["context only"]
    assert "they are far better than either" in text
    for arm in content:
        assert (scores[f"{arm} + module"] > scores[[arm, "context only"]].max(axis=1) + 0.03).all()
    gained = scores["NRMS + module, CTR and freshness"] - scores["NRMS + module"]
    assert f"is higher by {interval(gained)} in the long run" in text
    assert "frozen, the module is still ahead of NRMS alone in every seed of the long run" in text
    assert (scores["NRMS + module, frozen"] > scores["NRMS"]).all()
    assert (scores["context only, frozen"] < scores["NRMS"]).all()


def test_the_former_floor_of_news_context():
    scores = by_seed("news_context", "scores-by-seed", "AUC")
    ahead = scores["NRMS"] - scores["word overlap"]
    (claim,) = (one for one in load_ledger("news_context").claims if one.id == "C2")
    assert f"({ahead.mean():.3f} ahead on average, behind in three)" in claim.changed.why
    assert len(ahead) == 8 and (ahead < 0).sum() == 3


def test_the_map_of_news_context():
    text = page("news_context")
    cells = table("news_context", "map").groupby(["taste", "context"])[
        ["context only", "NAML", "NAML + module"]
    ]
    cells = cells.mean()
    assert "lies next to it: small differences between logs decide there" in text
    mind = ((cells["NAML"] - 0.669) ** 2 + (cells["context only"] - 0.692) ** 2).idxmin()
    assert abs(cells.loc[mind, "context only"] - cells.loc[mind, "NAML"]) < 0.01
    assert "Where it has nothing to say the module costs a little" in text
    nothing = cells.xs(0.0, level="context")
    assert nothing["NAML + module"].mean() < nothing["NAML"].mean()


def test_trials_and_tuning_of_news_context():
    folder = ROOT / "book/archive/news_context"
    home, *trials = pd.read_csv(folder / "more_data.csv")["test AUC"]
    assert f"NRMS gained {min(trials) - home:.2f} to {max(trials) - home:.2f} AUC" in page("news_context")
    tuned = pd.read_csv(folder / "tuning.csv").groupby("arm").filter(lambda rows: len(rows) == 3)
    best = tuned.loc[tuned.groupby("arm")["validation AUC"].idxmax()].set_index("arm")["learning_rate"]
    asked = largest(archived("news_context")).evidence.parameters
    assert best.to_dict() == {
        arm: asked["learning_rates"].get(arm, asked["learning_rate"]) for arm in best.index
    }


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
    assert "untouched source, over the whole picture and on the pixels that the eyes change" in text
    region = by_seed("stylemapgan", "moved-edits", "MSE in the changed region (moved)")
    for arm in ("map 8×8×4", "pixel paste"):
        assert (region["no edit"] < region[arm]).all()
    assert "Halfway between two places of a face the vector is the one that moves it" in text
    halves = by_seed("stylemapgan", "halves", "MSE (halfway)")
    assert (halves["vector of 256"] < halves["map 8×8×4"]).all()
    outside = by_seed("stylemapgan", "local-edits", "MSE_src").mean()
    assert outside["vector of 256, no edit"] > outside["map 8×8×4, codes"]  # the caveat of C3


def test_stylemapgans_courses_and_searches():
    text = page("stylemapgan")
    courses = table("stylemapgan", "courses").pivot_table(index="step", columns="arm", values="MSE")
    assert "the last 200 of the long run's 2000 steps still take 3 to 5 % off" in text
    assert (1 - courses.loc[2000] / courses.loc[1800]).between(0.025, 0.055).all()
    assert "larger maps fall faster and lower" in text
    sizes = ["map 2×2×64", "map 4×4×16", "map 8×8×4", "map 16×16×1"]
    assert (courses[sizes].diff(axis=1).iloc[:, 1:] < 0).all(axis=None)
    assert "from the mean map high, and all fall below the encoder" in text
    searches = by_seed("stylemapgan", "searches", "MSE (projection)")
    assert searches.drop(columns="encoder").lt(searches["encoder"], axis=0).all(axis=None)


def test_hair_without_a_tag_in_tag2pix():
    """In nearly one colour in all heads: as often right as one colour of six is asked for."""
    assert "Hair without a tag comes out in nearly one colour in all heads" in page("tag2pix")
    altered = by_seed("tag2pix", "altered", "hair as asked", arm="tags")
    assert altered["no tag for hair"].between(0.1, 0.2).all()


def test_the_scale_from_nought_is_not_behind_in_tag2pix():
    assert "On average of the long run's seeds the other is not behind in eyes as asked" in page("tag2pix")
    means = by_seed("tag2pix", "scores-by-seed", "eyes as asked").mean()
    assert means["AdaIN, scale from 0"] >= means["AdaIN"]
