"""What packing costs: against the straightforward version, and a training step against the plain step.

Side by side in this run, one thread, processor time. The straightforward encoder is what the definition says:
sort out the largest values with ``topk``, then round, shift and add. The training step is ResNet-50's at 224
pixels, batch 2: full precision, packed, and checkpointed at every block.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lib.models.vision.resnet import BasicBlock, Bottleneck, resnet
from lib.quantization.packing import pack
from lib.quantization.saved_tensors import PackedActivations, checkpointed, peak_bytes
from lib.quantization.value_aware import encode

ROOT = Path(__file__).resolve().parents[2]
COUNT = 1 << 21


def straightforward_encode(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """RV-Quant with 3 bits and 2 %, by the definition."""
    k = round(0.02 * x.numel())
    values, index = x.topk(k + 1)
    step = values[k] / 6
    codes = (x / step).clamp(max=6).round() + (x > 0)
    return pack(codes.to(torch.uint8), 3), values[:k], index[:k].int()


@pytest.mark.benchmark
def test_packing_is_few_elementwise_passes(takes):
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(0)).relu()
    codes, values, index = straightforward_encode(x)
    packed = encode(x)
    order = index.argsort()
    assert torch.equal(packed.index, index[order]) and torch.equal(packed.values, values[order])
    # At the places of large values codes mean nothing, and 1/step against a division may round differently.
    assert (packed.codes != codes).float().mean() < 1e-4

    def scale_and_round():
        return x.mul(2).clamp(0, 6).round()

    of = f"of {COUNT} floats, 3 bits and 2 %,"
    takes(1 / 3, lambda: encode(x), lambda: straightforward_encode(x), what=f"packing {of} against sorting")
    takes(5, lambda: encode(x), scale_and_round, what=f"packing {of} against scaling and rounding", rounds=40)
    takes(5, packed.decode, scale_and_round, what=f"unpacking {of} against the same", rounds=40)


def step(net, images, context) -> None:
    with context:
        loss = F.cross_entropy(net(images), torch.arange(len(images)))
    loss.backward()


def contexts(net) -> dict:
    blocks = [module for module in net.modules() if isinstance(module, BasicBlock | Bottleneck)]
    return {
        "full precision": contextlib.nullcontext,
        "packed": PackedActivations,
        "checkpointed": lambda: checkpointed(blocks),
    }


@pytest.mark.benchmark
def test_a_packed_step_takes_at_most_twice_as_long_and_a_third_of_the_memory(takes, record_property):
    torch.manual_seed(0)
    net, images = resnet(50).train(), torch.randn(2, 3, 224, 224)
    modes = contexts(net)
    peaks = {mode: peak_bytes(lambda m=mode: step(net, images, modes[m]())) for mode in modes}  # warm, too
    kept = {}
    for mode, context in (("full precision", PackedActivations(None)), ("packed", PackedActivations())):
        with context:
            loss = net(images).sum()
        kept[mode] = sum(context.stored_bytes().values())
        loss.backward()
    memory = kept["packed"] / kept["full precision"]
    record_property("memory", memory)
    print(
        f"\nResNet-50, batch 2: kept {kept['packed'] / 1e6:.0f} of {kept['full precision'] / 1e6:.0f} MB "
        f"({100 * memory:.0f} %); peak of tensors "
        + ", ".join(f"{mode} {peak / 1e6:.0f} MB" for mode, peak in peaks.items())
    )
    assert memory <= 0.35
    assert peaks["packed"] < 0.5 * peaks["full precision"]
    packed, plain = (lambda m=mode: step(net, images, modes[m]()) for mode in ("packed", "full precision"))
    takes(2, packed, plain, what="a packed step of ResNet-50 against a plain one")  # 1.3 to 1.6 so far


CHILD = """
import re, sys
sys.path.insert(0, "tests/benchmarks")
import torch
from test_packing import contexts, resnet, step
torch.set_num_threads(1)
torch.manual_seed(0)
net, images = resnet(50).train(), torch.randn(4, 3, 224, 224)
step(net, images[:2, :, :32, :32], contexts(net)["full precision"]())  # gradients, libraries
def resident(what):  # not ru_maxrss, which starts from the parent's
    return 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before = resident("VmRSS")
step(net, images, contexts(net)[sys.argv[1]]())
print(resident("VmHWM") - before)
"""


@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process")
def test_the_process_itself_needs_less(record_property):
    """Peak resident memory of processes that do one step each: what the operating system saw."""
    peaks = {}
    for mode in ("full precision", "packed"):
        command = [sys.executable, "-c", CHILD, mode]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[mode] = int(done.stdout)
    ratio = peaks["packed"] / peaks["full precision"]
    record_property("ratio", ratio)
    print("\nresident: " + ", ".join(f"{mode} {peak / 1e6:.0f} MB" for mode, peak in peaks.items()))
    assert ratio < 0.75
