"""What no training settles of Tag2Pix: sizes of the authors' networks, and what SECat is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.cost.operations import count_operations, count_parameters, totals
from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_blocks import ChannelGate
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import LineArtClassifier


def sizes() -> dict[str, float]:
    """Parameters, and at 256 pixels multiply-adds, of the networks at their published definition."""
    with torch.device("meta"):
        generator, discriminator, classifier = Generator(), Discriminator(), LineArtClassifier()
        extractor = classifier.extractor()
        inputs = torch.rand(1, 1, 256, 256), torch.rand(1, 512, 32, 32), torch.rand(1, 115)
        ablation = {
            name: Generator(block=name) for name in ("senet", "catconv", "catall", "adain", "seadain")
        }
        large = Generator(image_size=512, batch_norm=False)
        with torch.no_grad():
            operations = totals(count_operations(generator, inputs=inputs))["macs"]
    found = {
        "generator, 256 pixels": generator,
        "generator, 512 pixels": large,
        "discriminator": discriminator,
        "extractor": extractor,
        "whole classifier of line art": classifier,
    } | {f"generator with {name}": network for name, network in ablation.items()}
    counts = {f"parameters: {name}": float(count_parameters(network)) for name, network in found.items()}
    judged = discriminator.heads
    counts |= {
        "outputs: real or drawn": float(judged["real"].out_features),
        "outputs: tags without colours": float(judged["invariant_tags"].out_features),
        "outputs: colour tags": float(judged["colour_tags"].out_features),
    }
    return counts | {"billion multiply-adds: generator, 256 pixels": float(operations) / 1e9}


def identities(seed: int = 0) -> dict[str, float]:
    """What the code of SECat is, by numbers: largest differences from what it is said to be.

    The gate of 1024 channels and 64 tags in double precision, and the vector of tags of the authors' sizes.
    """
    draw = torch.Generator().manual_seed(seed)
    gate = ChannelGate(1024, 64).double()
    images = torch.randn(2, 1024, 4, 4, dtype=torch.float64, generator=draw)
    tags = torch.randn(2, 64, dtype=torch.float64, generator=draw)
    halving = ChannelGate(1024, 64).double()
    nn.init.zeros_(halving.squeeze.weight)
    blind = ChannelGate(1024).double()
    with torch.no_grad():
        blind.squeeze.weight.copy_(gate.squeeze.weight[:, :1024])
        blind.excite.weight.copy_(gate.excite.weight)
        vector = _vector_of_tags(draw)
        bias = vector(torch.eye(115, dtype=torch.float64)) - vector(torch.zeros(1, 115, dtype=torch.float64))
        found = {
            "SECat − SE with a bias from the tags": _largest(gate(images, tags) - biased(gate, images, tags)),
            "SECat without tags − SE": _largest(gate(images, torch.zeros_like(tags)) - blind(images)),
            "factor of a gate without a squeeze": float(halving(images, tags).mean()),
            "rank of the tags' biases": float(
                torch.linalg.matrix_rank(bias @ gate.squeeze.weight[:, 1024:].T)
            ),
        }
    return found


def biased(gate: ChannelGate, images: Tensor, tags: Tensor) -> Tensor:
    """Squeeze-and-excitation whose squeeze has a bias, W_t t, that depends on the tags; as `ChannelGate`."""
    by_means, by_tags = gate.squeeze.weight.split([images.shape[1], tags.shape[1]], dim=1)
    bias = tags @ by_tags.T
    return (
        (images.mean((2, 3)) @ by_means.T + bias)
        .relu()
        .matmul(gate.excite.weight.T)
        .sigmoid()[..., None, None]
    )


def tag_gates(generator: nn.Module, names: list[str], stage: int = 0) -> Tensor:
    """By how much each tag alone moves the gate of a stage's last block, (tags, channels), at means of 0.

    Raises
    ------
    ValueError
        The blocks of the generator have no gate that sees tags.
    """
    gate = getattr(generator.decoder[stage][-1], "gate", None)
    if gate is None or not gate.tag_size:
        raise ValueError("the generator's blocks have no gate that sees tags")
    device = gate.squeeze.weight.device
    images = torch.zeros(1, gate.squeeze.in_features - gate.tag_size, 1, 1, device=device)
    with torch.no_grad():
        vectors = generator.vector_of_tags(torch.eye(len(names), device=device))
        nothing = generator.vector_of_tags(torch.zeros(1, len(names), device=device))
        one = gate(images.expand(len(names), -1, -1, -1), vectors)
        return (one - gate(images, nothing))[:, :, 0, 0].cpu()


def _vector_of_tags(draw: torch.Generator) -> nn.Sequential:
    layers = [nn.Linear(115 if k == 0 else 64, 64).double() for k in range(4)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.1, generator=draw)
    return nn.Sequential(*layers)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
