"""A training step of Tag2Pix against the straightforward one, side by side: equal results, and the time.

The straightforward step, below, is written from the description of the authors' network, on weights under
their names: images lie channel after channel, each network's step draws the pictures anew, both compute the
discriminator's gradients, probabilities go through `binary_cross_entropy`, Adam goes tensor by tensor. Sizes
are the published ones at 64 pixels, batch norms on, batch 8.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import SemanticExtractor
from lib.models.images.tag2pix_losses import ChangingLoss
from lib.training.tag2pix import Tag2PixStep

SIZE, BATCH, TAGS, OTHER_TAGS = 64, 8, 115, 370
DECODER = ((12, 256, 576), (8, 128, 384), (5, 64, 192), (5, 32, 96))  # blocks, width, channels in


# --- the authors' weights: names and shapes, random values -------------------------------------------------


def convolution(name: str, outputs: int, inputs: int, kernel: int = 3, *, bias: bool = True) -> dict:
    state = {f"{name}.weight": torch.randn(outputs, inputs, kernel, kernel) * (2 / inputs / kernel**2) ** 0.5}
    return state | ({f"{name}.bias": torch.randn(outputs) / 10} if bias else {})


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> dict:
    state = {f"{name}.weight": torch.randn(outputs, inputs) * (2 / inputs) ** 0.5}
    return state | ({f"{name}.bias": torch.randn(outputs) / 10} if bias else {})


def norm(name: str, channels: int) -> dict:
    values = {"weight": 1 + torch.randn(channels) / 10, "bias": torch.randn(channels) / 10}
    averages = {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}
    return {f"{name}.{leaf}": value for leaf, value in (values | averages).items()}


def block_weights(name: str, inputs: int, width: int, *, tags: int = 0, projection: bool) -> dict:
    state = convolution(f"{name}.conv1", width, inputs, 1, bias=False) | norm(f"{name}.bn1", width)
    state |= convolution(f"{name}.conv2", width, width // 16, bias=False) | norm(f"{name}.bn2", width)
    state |= convolution(f"{name}.conv3", 4 * width, width, 1, bias=False) | norm(f"{name}.bn3", 4 * width)
    state |= linear(f"{name}.selayer.fc.0", width // 4, 4 * width + tags, bias=False)
    state |= linear(f"{name}.selayer.fc.2", 4 * width, width // 4, bias=False)
    if projection:
        state |= convolution(f"{name}.downsample.0", 4 * width, inputs, 1, bias=False)
        state |= norm(f"{name}.downsample.1", 4 * width)
    return state


def generator_weights() -> dict[str, torch.Tensor]:
    state = linear("Linear", 32 * (SIZE // 16) ** 2, TAGS)
    for k in range(4):
        state |= linear(f"colorFC.{k}", 64, TAGS if k == 0 else 64)
        state |= norm(f"featureConv.network.{3 * (k // 2) + 1}", 256) if k % 2 else {}
    for k in range(5):
        state |= convolution(f"conv{k + 1}.0", 16 << k, max(1, 8 << k) if k else 1)
        state |= convolution(f"conv{k + 1}.2", 16 << k, 16 << k)
    for k in range(3):
        state |= convolution(f"featureConv.network.{3 * k}", 256, 256 if k else 512, bias=False)
        state |= convolution(f"colorConv.{2 * k}", 64, 64 if k else 32)
    for stage, (blocks, width, inputs) in enumerate(DECODER):
        for k in range(blocks):
            name = f"deconv{stage + 1}.secat_layer.{k}"
            state |= block_weights(name, 4 * width if k else inputs, width, tags=64, projection=k == 0)
    state |= convolution("deconv5.0", 32, 48) | convolution("deconv5.2", 3, 32)
    for k, (inputs, outputs) in enumerate([(256, 128), (128, 64), (64, 32), (32, 3)]):
        layer = convolution(f"deconv_for_decoder.{2 * k}", inputs, outputs)  # transposed: inputs first
        state |= layer | {f"deconv_for_decoder.{2 * k}.bias": torch.randn(outputs) / 10}
    return state


def discriminator_weights() -> dict[str, torch.Tensor]:
    state = convolution("conv1.0", 32, 3) | convolution("conv1.2", 32, 32)
    for k in range(2, 9):
        channels = min(512, 16 << k)
        inputs = channels // 2 if k < 6 else channels
        for r in range(2 if k < 6 else 1):
            given = inputs if r == 0 else channels
            state |= block_weights(f"conv{k}.0.{r}", given, channels // 4, projection=given != channels)
        state |= convolution(f"conv{k}.1", channels, channels) if k < 6 else {}
    heads = {"adv_judge": 1, "cit_judge": OTHER_TAGS, "cvt_judge": TAGS}
    for head, outputs in heads.items():
        state |= linear(f"{head}.0", outputs, 512)
    return state


# --- the straightforward networks ---------------------------------------------------------------------------


class Straightforward:
    """Both networks as functions of weights under the authors' names, and a step of both."""

    def __init__(self, generator: dict, discriminator: dict, dtype=torch.float32, gate_sees_tags=True):
        self.weights = [
            {
                key: value.to(dtype).clone().requires_grad_("running" not in key)
                for key, value in state.items()
            }
            for state in (generator, discriminator)
        ]
        self.gate_sees_tags = gate_sees_tags
        self.optimizers = [
            torch.optim.Adam([w for w in state.values() if w.requires_grad], lr=2e-4, betas=(0.5, 0.999))
            for state in self.weights
        ]

    @staticmethod
    def conv(w, name, x, **options):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)

    @staticmethod
    def norm(w, name, x):
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    def block(self, w, name, x, tags=None):
        y = F.relu(self.norm(w, f"{name}.bn1", self.conv(w, f"{name}.conv1", x)))
        y = F.relu(self.norm(w, f"{name}.bn2", self.conv(w, f"{name}.conv2", y, padding=1, groups=16)))
        y = self.norm(w, f"{name}.bn3", self.conv(w, f"{name}.conv3", y))
        means = F.adaptive_avg_pool2d(y, 1).flatten(1)
        if tags is not None:
            means = torch.cat([means, tags if self.gate_sees_tags else torch.zeros_like(tags)], dim=1)
        hidden = F.relu(F.linear(means, w[f"{name}.selayer.fc.0.weight"]))
        gate = torch.sigmoid(F.linear(hidden, w[f"{name}.selayer.fc.2.weight"]))
        if f"{name}.downsample.0.weight" in w:
            x = self.norm(w, f"{name}.downsample.1", self.conv(w, f"{name}.downsample.0", x))
        return F.relu(y * gate[:, :, None, None] + x)

    def generate(self, line, features, tags):
        w, skips, x = self.weights[0], [], line
        for k in range(1, 6):
            x = F.leaky_relu(self.conv(w, f"conv{k}.0", x, padding=1, stride=1 if k == 1 else 2), 0.2)
            x = F.leaky_relu(self.conv(w, f"conv{k}.2", x, padding=1), 0.2)
            skips.append(x)
        side = line.shape[-1] // 16
        tag_map = F.linear(tags, w["Linear.weight"], w["Linear.bias"]).view(-1, 32, side, side)
        for k in (0, 2):
            tag_map = F.leaky_relu(self.conv(w, f"colorConv.{k}", tag_map, padding=1), 0.2)
        tag_map = torch.tanh(self.conv(w, "colorConv.4", tag_map, padding=1))
        vector = tags
        for k in range(4):
            vector = F.linear(vector, w[f"colorFC.{k}.weight"], w[f"colorFC.{k}.bias"])
        name = "featureConv.network"
        y = F.relu(self.norm(w, f"{name}.1", self.conv(w, f"{name}.0", features, stride=2, padding=1)))
        y = F.relu(self.norm(w, f"{name}.4", self.conv(w, f"{name}.3", y, padding=1)))
        y = F.relu(self.conv(w, f"{name}.6", y, padding=1))
        x = torch.cat([x, y, tag_map], dim=1)
        for stage, (blocks, *_) in enumerate(DECODER):
            for k in range(blocks):
                x = self.block(w, f"deconv{stage + 1}.secat_layer.{k}", x, vector)
            batch, channels, height, width = x.shape
            x = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
            x = x.reshape(batch, channels // 4, 2 * height, 2 * width)
            if stage == 0:
                guide = x
            x = torch.cat([x, skips[3 - stage]], dim=1)
        for k in range(4):
            name = f"deconv_for_decoder.{2 * k}"
            options = {"stride": 2, "output_padding": 1} if k < 3 else {}
            guide = F.conv_transpose2d(guide, w[f"{name}.weight"], w[f"{name}.bias"], padding=1, **options)
            guide = F.leaky_relu(guide, 0.2) if k < 3 else torch.tanh(guide)
        x = F.leaky_relu(self.conv(w, "deconv5.0", x, padding=1), 0.2)
        return torch.tanh(self.conv(w, "deconv5.2", x, padding=1)), guide

    def judge(self, x):
        w = self.weights[1]
        x = F.leaky_relu(self.conv(w, "conv1.0", x, padding=1), 0.2)
        x = F.leaky_relu(self.conv(w, "conv1.2", x, stride=2), 0.2)
        for k in range(2, 9):
            for r in range(2 if k < 6 else 1):
                x = self.block(w, f"conv{k}.0.{r}", x)
            if k < 6:
                x = F.leaky_relu(self.conv(w, f"conv{k}.1", x, stride=2, padding=1), 0.2)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        heads = ("adv_judge", "cit_judge", "cvt_judge")
        return [torch.sigmoid(F.linear(x, w[f"{h}.0.weight"], w[f"{h}.0.bias"])) for h in heads]

    def step(self, batch, features):
        def judged(pictures, truth):
            real, other, colours = self.judge(pictures)
            loss = F.binary_cross_entropy(real, torch.full_like(real, truth))
            loss = loss + 40 * F.binary_cross_entropy(colours, batch["variant"])
            return loss + 40 * F.binary_cross_entropy(other, batch["invariant"])

        line, picture, tags = batch["lines"], batch["images"], batch["variant"]
        drawn, _ = self.generate(line, features, tags)
        judging = judged(picture, 1.0) + judged(drawn.detach(), 0.0)
        self.optimizers[1].zero_grad()
        judging.backward()
        self.optimizers[1].step()
        drawn, guide = self.generate(line, features, tags)
        error = F.l1_loss(drawn, picture) + 0.9 * F.l1_loss(guide, picture)
        generating = judged(drawn, 1.0) + 1000 * error
        self.optimizers[0].zero_grad()
        generating.backward()
        self.optimizers[0].step()
        return {"discriminator": judging, "generator": generating}


class Given(SemanticExtractor):
    """An extractor of features that are given: it costs both sides the same, here nothing."""

    def __init__(self, features: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.mode, self.channels, self.given = "eval", features.shape[1], features

    def forward(self, line: torch.Tensor) -> torch.Tensor:
        return self.given


def sides(batch_size: int, dtype=torch.float32, **twin):
    """Our step, and the straightforward networks, with the same weights and batch."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    weights = generator_weights(), discriminator_weights()
    draw = torch.rand(batch_size, 4 + 512, SIZE, SIZE, generator=generator).to(dtype)
    batch = {
        "lines": draw[:, :1],
        "images": 2 * draw[:, 1:4] - 1,
        "variant": (torch.rand(batch_size, TAGS, generator=generator) < 0.05).to(dtype),
        "invariant": (torch.rand(batch_size, OTHER_TAGS, generator=generator) < 0.05).to(dtype),
    }
    networks = Generator.from_authors(weights[0]), Discriminator.from_authors(weights[1])
    networks = [network.to(dtype).train() for network in networks]
    extractor, schedule = Given(draw[:, 4:, :8, :8].contiguous()), ChangingLoss(two_step_epoch=0)
    step = Tag2PixStep(*networks, extractor, lambda _: batch, steps_per_epoch=1, schedule=schedule)
    return step, Straightforward(*weights, dtype, **twin)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.benchmark
def test_pictures_judgements_and_losses_of_steps_equal_the_straightforward_ones():
    step, theirs = sides(2, torch.float64)
    batch, features = step.batch_at(0), step.extractor.given
    given = batch["lines"], features, batch["variant"]
    with torch.no_grad():
        pairs = list(zip(step.generator(*given), theirs.generate(*given), strict=True))
        judgement = step.discriminator(batch["images"])
        ours = judgement.real, judgement.invariant_tags, judgement.colour_tags
        pairs += zip(ours, theirs.judge(batch["images"]), strict=True)
    assert max(relative(*pair) for pair in pairs) < 1e-9
    for number in range(2):  # the second has the weights that the first has made
        losses, expected = step(number), theirs.step(batch, features)
        assert max(relative(losses[name], expected[name]) for name in expected) < 1e-6, number


@pytest.mark.benchmark
def test_a_twin_whose_gates_do_not_see_the_tags_is_found():
    step, theirs = sides(2, torch.float64, gate_sees_tags=False)
    batch, features = step.batch_at(0), step.extractor.given
    with torch.no_grad():
        given = batch["lines"], features, batch["variant"]
        assert relative(step.generator(*given)[0], theirs.generate(*given)[0]) > 1e-3


@pytest.mark.benchmark
def test_a_step_is_faster(takes):
    """1.47 to 1.56 times as fast so far, at batches of 4, 8 and 16."""
    step, theirs = sides(BATCH)
    batch, features = step.batch_at(0), step.extractor.given
    step(0), theirs.step(batch, features)  # allocations and caches
    what = f"a step at {SIZE} pixels, batch {BATCH}"
    takes(1 / 1.4, lambda: step(1), lambda: theirs.step(batch, features), what=what)
