"""What each chapter's parameters cell lets through: values of the right type and the wrong meaning."""

import pytest
from papermill.inspection import inspect_notebook

from lib.runs import request as requests
from lib.runs.parameters import RequestError, read_parameters
from lib.runs.request import (
    chapter_scales,
    chapters,
    parameter_table,
    read_chapter,
    refuse_absent,
    resolve,
)

COUNT = (0, -1, 2.5, 2**63)
RATE = (0.0, -0.1, float("inf"), float("nan"), "fast")
SHARE = (-0.1, 1.0, 2.0)

EVERYWHERE = {
    "seeds": ([], [-1], [2**32], [4294967296, 0], [3, 3], 0, ["0"], [0.5]),
    "device": ("gpu", "tpu", "cuda:99", "CUDA", ""),
}
REFUSED = {
    "facebook_inference": {
        "device": ("cuda",),
        "image_size": (*COUNT, 16),
        "frames": COUNT,
        "models_on_chip": (*COUNT, 6),
        "capacities_mb": ([], [-1.0], [4.0, 4.0]),
        "levels": ([], ["avx1024"], ["avx2"], ["AVX2", "AVX2"]),
        "other_shapes": (["1x2"], ["0x2x3"], ["1x2x3x4"], ["1 x 2 x 3"], ["axbxc"], ["6x4x1", "6x4x1"]),
        "rounds": COUNT,
        "blocks": COUNT,
        "table_rows": (*COUNT, 3),
        "recommendation_batch": (-1,),
        "vision_batch": (-1,),
        "language_batch": (-1,),
        "channels": ([], [0], [16, -1], [1, 1, 1, 1, 1]),
        "steps": COUNT,
        "calibration_images": (*COUNT, 100_000),
        "test_images": (*COUNT, 100_000),
        "dataset": ("fashion", "imagenet", ""),
        "photographs": (*COUNT, 1, 13),
        "crop": (*COUNT, 63, 228),
        "layers_summed": COUNT,
    },
    "meantime": {
        "dataset": ("ml100k", "ML-100K", "", "netflix"),
        "absolute": ("x", "p-", "pd", "p-s", "P-D"),
        "relative": ("x", "-s", "sl", "d-l"),
        "hidden_size": (*COUNT, 1),
        "num_blocks": COUNT,
        "bert4rec_heads": (*COUNT, 1),
        "max_interval": COUNT,
        "dropout": SHARE,
        "mask_probability": (0.0, -0.2, 1.5),
        "max_length": COUNT,
        "train_stride": COUNT,
        "batch_size": COUNT,
        "learning_rate": RATE,
        "learning_rates": ({"SASRec": 0.0}, {"SASRec": -1.0}),
        "dropouts": ({"SASRec": 1.0}, {"SASRec": -0.5}),
        "steps": COUNT,
        "evaluate_every": COUNT,
        "patience": COUNT,
        "negatives_for_training": ("seen", "Pool", "none"),
        "world_steps": COUNT,
        "world_hidden_size": COUNT,
    },
    "news_context": {
        "dataset": ("adressa",),
        "taste": (-0.5,),
        "quality": (-0.5,),
        "ageing": (-1.0,),
        "position": (-1.0,),
        "feedback": (-1.0,),
        "breaking_share": (-0.1, 1.1),
        "users": COUNT,
        "impressions": (*COUNT, 99),
        "articles_per_day": (*COUNT, 14),
        "map_tastes": ([], [-1.0], [1.0, 1.0]),
        "map_contexts": ([], [-1.0], [1.0, 1.0]),
        "map_impressions": (*COUNT, 99),
        "map_steps": COUNT,
        "map_seeds": COUNT,
        "feed_impressions": (*COUNT, 99),
        "delay_hours": (-1.0,),
        "window_hours": (-1.0,),
        "alpha": RATE,
        "num_buckets": (*COUNT, 1),
        "word_size": (*COUNT, 401),
        "num_heads": COUNT,
        "head_size": COUNT,
        "query_size": COUNT,
        "history_length": COUNT,
        "negatives": COUNT,
        "dropout": SHARE,
        "batch_size": COUNT,
        "learning_rate": RATE,
        "learning_rates": ({"NRMS": 0.0},),
        "steps": COUNT,
        "evaluate_every": COUNT,
        "patience": COUNT,
    },
    "oneshot_compression": {
        "dataset": ("mnist", "cifar-10"),
        "network": ("resnet", "vgg", "AlexNet"),
        "channels": ([], [4], [4, 4], [4, 0, 4]),
        "hidden": COUNT,
        "initial_std": RATE,
        "batch_size": COUNT,
        "steps": COUNT,
        "learning_rate": RATE,
        "weight_decay": (-0.1,),
        "finetune_steps": COUNT,
        "finetune_learning_rate": RATE,
        "sweeps": (-1,),
        "vgg_layers": (*COUNT, 14),
        "curve_points": COUNT,
        "photographs": (*COUNT, 13),
        "crops_each": COUNT,
        "shares": ([], [0.0], [1.5], [0.5, 0.5]),
        "latency_rounds": COUNT,
    },
    "precision_highway": {
        "dataset": ("fashion",),
        "text": ("none", "PTB", "wikitext-103"),
        "depth": (0, 19, 20, 1000),
        "width": (0.0, -1.0, 0.1),
        "batch_size": (*COUNT, 1),
        "learning_rate": RATE,
        "steps": COUNT,
        "quantised_learning_rate": RATE,
        "quantised_steps": COUNT,
        "deep_blocks": COUNT,
        "vocabulary_size": (-1, 1, 2),
        "lstm_units": COUNT,
        "lstm_layers": COUNT,
        "lstm_dropout": SHARE,
        "embedding_range": RATE,
        "streams": COUNT,
        "length": COUNT,
        "lstm_learning_rate": RATE,
        "lstm_steps": COUNT,
    },
    "profit": {
        "dataset": ("cifar",),
        "photographs": (*COUNT, 1, 13),
        "photo_size": (*COUNT, 16),
        "photo_steps": COUNT,
        "crop_size": (*COUNT, 63),
        "crops_each": COUNT,
        "moment_bits": ([], [4], [1, 4], [9, 4], [4, 4]),
        "width": (0.0, 11.0),
        "repeats": (*COUNT, 5),
        "reduction": (*COUNT, 3, 64),
        "v3_momentum": (0.0, -0.1, 1.1),
        "batch_size": (*COUNT, 1),
        "fp_steps": ([], [1], [1, 1, 1], [0, 1], [1, -1]),
        "fp_rate": RATE,
        "learning_rate": RATE,
        "clip_norm": (-1.0,),
        "stabilise_steps": (-1,),
        "path": ([9], [1], [8, 8]),
        "sample_steps": COUNT,
        "weight_bits": ([], [0], [1], [9], [2, 2]),
        "round_steps": COUNT,
        "quantiser_steps": COUNT,
        "teacher": ("other", "Self", ""),
        "ema_rate": (-0.1, 1.1),
    },
    "fsre_depth": {
        "dataset": ("KITTI", "street"),
        "trained": ("none", "FSRE-Depth"),
        "height": (*COUNT, 32, 100),
        "width": (*COUNT, 32, 641),
        "drives": (*COUNT, 3),
        "frames": (*COUNT, 2),
        "tested": (*COUNT, 3),
        "moving": (-0.1, 1.1),
        "encoder": (0, 20),
        "channels": (*RATE, 0.1),
        "scales": (*COUNT, 5),
        "motion": ("told", ""),
        "batch_size": COUNT,
        "steps": COUNT,
        "learning_rate": RATE,
        "schedule": ("step", ""),
        "smoothness": (-0.1,),
        "triplet_weight": (-0.1,),
        "margin": (-0.1, 2.5),
        "window": (*COUNT, 4),
        "border": ("none",),
        "nearest": (*RATE, 0.05, 6.0),
        "farthest": (*RATE, 10.0),
        "first_depth": (-1.0,),
        "wrong_labels": (-0.1, 1.1),
        "evaluations": COUNT,
        "planes": (*COUNT, 1),
        "descent_steps": COUNT,
    },
    "tag2pix": {
        "dataset": ("danbooru2017", ""),
        "arms": ("none", "SECat"),
        "sketch_tags": ([], ["blue_eyes", "blue_eyes"]),
        "image_size": (*COUNT, 23),
        "drawings": (*COUNT, 49),
        "tested": (*COUNT, 9),
        "xdog_share": (-0.1, 1.1),
        "missing_tags": SHARE,
        "emoji": (*COUNT, 39),
        "emoji_tested": (*COUNT, 7),
        "emoji_steps": (-1,),
        "width": (*COUNT, 3),
        "blocks": ([], [1], [1, 0]),
        "tag_size": COUNT,
        "groups": COUNT,
        "discriminator_width": (*COUNT, 7),
        "discriminator_stages": COUNT,
        "discriminator_last": COUNT,
        "extractor_width": RATE,
        "extractor_blocks": ([], [1], [1, 0]),
        "extractor_groups": (*COUNT, 129),
        "extractor_steps": COUNT,
        "l1_weight": (-1.0,),
        "guide_weight": (-0.1,),
        "tag_weight": (-1.0,),
        "batch_size": (*COUNT, 1),
        "learning_rate": RATE,
        "steps": COUNT,
        "first_step": (-0.1, 1.1),
        "evaluations": COUNT,
    },
    "template": {
        "device": ("cuda",),
        "samples": COUNT,
        "sigma": RATE,
    },
    "stylemapgan": {
        "trained": ("none", "map"),
        "resolution": (*COUNT, 16, 33, 512),
        "train_pictures": (*COUNT, 15),
        "test_pictures": (*COUNT, 7),
        "shift": (-0.1, 0.3),
        "width": (*COUNT, 3),
        "batch_size": (*COUNT, 6),
        "learning_rate": RATE,
        "adversarial_rate": RATE,
        "average_decay": SHARE,
        "steps": COUNT,
        "adversarial_steps": COUNT,
        "perceptual": ("squeeze", ""),
        "r1": (-1.0,),
        "r1_every": COUNT,
        "edits": (*COUNT, 3),
        "edited_part": ("glasses", "skin"),
        "moved_part": ("hair", "skin"),
        "projected": COUNT,
        "projection_steps": COUNT,
        "projection_rate": RATE,
        "samples": (*COUNT, 15),
        "published": ("10M",),
    },
    "value_aware": {
        "dataset": ("svhn",),
        "bits": (0, -1, 9),
        "depth": (19, -18, 1),
        "blocks": ([], [0], [1, -1]),
        "width": (0.0, -0.5, 0.1),
        "steps": (*COUNT, 2),
        "batch_size": COUNT,
        "learning_rate": RATE,
        "gradient_batch": COUNT,
        "conventions": (*COUNT, 4),
        "measured_depth": (0, 19),
        "measured_size": (*COUNT, 32),
        "measured_inception": (-1, 75, 106),
        "measured_batch": COUNT,
        "rounds": COUNT,
        "photographs": (*COUNT, 13),
        "crops_each": COUNT,
        "sweep_bits": ([0], [9], [1, 1]),
        "sweep_ratios": ([-0.1], [1.5], [0.0, 0.0]),
        "inference_bits": ([], [4], [0, 4], [1, 4], [4, 9], [4, 4]),
        "inference_ratios": ([], [2.0, 0.0, 0.1], [-0.1, 0.0, 0.1], [0.0, 0.0, 0.0]),
    },
}
CASES = [
    (chapter, name, value)
    for chapter, of_chapter in REFUSED.items()
    for table in (EVERYWHERE, of_chapter)
    for name, values in table.items()
    for value in values
]
every_chapter = pytest.mark.parametrize("chapter", chapters())


def test_the_table_has_every_chapter():
    assert sorted(REFUSED) == chapters()
    assert len(CASES) > 400


@every_chapter
def test_a_value_that_cannot_be_meant_is_refused_before_anything_runs(chapter):
    for _, name, value in (case for case in CASES if case[0] == chapter):
        with pytest.raises(RequestError, match=rf"^{chapter}: parameter {name} must be ") as caught:
            resolve(chapter, "smoke", {name: value})
        message = str(caught.value)
        assert len(message) <= 300 and message.isprintable(), message
        assert f"got {value!r}" in message


@every_chapter
def test_every_number_and_choice_says_what_it_may_be(chapter):
    notebook = read_chapter(chapter)
    declared = read_parameters(notebook, chapter)
    shown = inspect_notebook(notebook)  # what papermill's own help has
    table = parameter_table(chapter)
    entries = notebook.metadata["companion"]["data"]
    choices = {name: each for entry in entries if isinstance(entry, dict) for name, each in entry.items()}
    for name, parameter in declared.items():
        if name not in ("data_dir", "run_dir") and parameter.annotation != "bool":
            assert parameter.domain, name
            assert shown[name]["help"].startswith(f"{parameter.domain}: ")
            if name != "scale":
                assert f"<code>{parameter.kind}</code>" in table.replace("&#x27;", "'")
    assert all(f'data-column="{scale}"' in table for scale in chapter_scales(chapter))
    assert declared["scale"].domain == f"in {{{', '.join(chapter_scales(chapter))}}}"
    for name, known in choices.items():
        assert declared[name].domain == f"in {{{', '.join(known)}}}"


@every_chapter
def test_the_cell_runs_by_hand_and_before_any_import(chapter):
    (cell,) = (c for c in read_chapter(chapter).cells if "parameters" in c.metadata.get("tags", []))
    names = {}
    exec(cell.source, names)
    assert read_parameters(read_chapter(chapter), chapter).keys() <= names.keys()


def test_a_choice_is_refused_with_all_and_with_the_nearest():
    for chapter, name, value, allowed, nearest in [
        ("meantime", "dataset", "ml100k", "in {ml-100k, ml-1m, ml-20m, beauty, game}, ", "'ml-100k'"),
        ("profit", "teacher", "Self", "in {none, self}, ", "'self'"),
        ("value_aware", "depth", 30, "in {0, 18, 34, 50, 101, 152}, ", "34"),
        ("value_aware", "depth", 10**50, "in {0, 18, 34, 50, 101, 152}, ", "152"),
        ("facebook_inference", "levels", ["avx2"], "1+ distinct in {AVX2, AVX-512, native}, ", "'AVX2'"),
    ]:
        with pytest.raises(RequestError) as caught:
            resolve(chapter, "smoke", {name: value})
        assert f"{allowed}got {value!r} (did you mean {nearest}?)" in str(caught.value)


def test_what_only_this_machine_lacks_is_refused_where_it_would_run(monkeypatch):
    asked = resolve("meantime", "smoke", {"device": "cuda", "checkpoint": "no/such.pth"})
    with pytest.raises(RequestError, match=r"parameter checkpoint: '/.*/no/such\.pth' is not a file$"):
        refuse_absent(asked, ["checkpoint"])
    with pytest.raises(RequestError, match="parameter checkpoint: '/.*/notebooks' is not a file"):
        refuse_absent(resolve("profit", "smoke", {"checkpoint": "notebooks"}), ["checkpoint"])
    with pytest.raises(RequestError, match="parameter checkpoint: '/.{197}… is not a file$"):
        refuse_absent(resolve("profit", "smoke", {"checkpoint": "x" * 5000}), ["checkpoint"])
    refuse_absent(resolve("profit", "smoke", {"checkpoint": "README.md"}), ["checkpoint"])
    for absent in ("no/photos", "README.md"):
        with pytest.raises(RequestError, match=rf"parameter photos: '/.*{absent}' is not a folder$"):
            refuse_absent(resolve("value_aware", "smoke", {"photos": absent}), ["photos"])
    refuse_absent(resolve("value_aware", "smoke", {"photos": "notebooks"}), ["photos"])
    for there in (False, True):
        monkeypatch.setattr(requests, "_has_cuda", lambda there=there: there)
        if there:
            refuse_absent(asked, ["device"])
        else:
            with pytest.raises(RequestError, match="parameter device: PyTorch finds no GPU here for 'cuda'"):
                refuse_absent(asked, ["device"])
    refuse_absent(resolve("meantime", "smoke"), resolve("meantime", "smoke").parameters)
