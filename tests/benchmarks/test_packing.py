"""What packing costs: against the straightforward version, and a training step against the plain step.

Side by side in this run, one thread, processor time. The straightforward encoder is what the definition says:
sort out the largest values with ``topk``, then round, shift and add. The training step is ResNet-50's at 224
pixels, batch 2: full precision, packed, and checkpointed at every block.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
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


def seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def straightforward_encode(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """RV-Quant with 3 bits and 2 %, by the definition."""
    k = round(0.02 * x.numel())
    values, index = x.topk(k + 1)
    step = values[k] / 6
    codes = (x / step).clamp(max=6).round() + (x > 0)
    return pack(codes.to(torch.uint8), 3), values[:k], index[:k].int()


@pytest.mark.benchmark
def test_packing_is_few_elementwise_passes(record_property):
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(0)).relu()
    codes, values, index = straightforward_encode(x)
    packed = encode(x)
    order = index.argsort()
    assert torch.equal(packed.index, index[order]) and torch.equal(packed.values, values[order])
    # At the places of large values codes mean nothing, and 1/step against a division may round differently.
    assert (packed.codes != codes).float().mean() < 1e-4
    slow = min(seconds(lambda: straightforward_encode(x)) for _ in range(3))
    fast = decoded = once = slow
    for _ in range(40):
        fast = min(fast, seconds(lambda: encode(x)))
        decoded = min(decoded, seconds(packed.decode))
        once = min(once, seconds(lambda: x.mul(2).clamp(0, 6).round()))
    rate, back = x.nbytes / fast / 1e9, x.nbytes / decoded / 1e9
    record_property("GB/s", rate)
    print(
        f"\n3 bits + 2 % of {COUNT} floats: {fast * 1e3:.1f} ms, {rate:.2f} GB/s, "
        f"{slow / fast:.1f}x as fast as sorting, {fast / once:.1f} times scaling and rounding alone; "
        f"back: {back:.2f} GB/s"
    )
    assert slow >= 3 * fast
    assert fast <= 5 * once


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
def test_a_packed_step_takes_half_as_long_again_and_a_third_of_the_memory(record_property):
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
    for _ in range(3):  # on a machine with neighbours: what it can do, not what it did once
        rounds = [
            {mode: seconds(lambda m=mode: step(net, images, modes[m]())) for mode in modes} for _ in range(4)
        ]
        ratio = {mode: sorted(r[mode] / r["full precision"] for r in rounds)[1] for mode in modes}
        if ratio["packed"] <= 1.6:
            break
    memory = kept["packed"] / kept["full precision"]
    record_property("time", ratio["packed"])
    record_property("memory", memory)
    print(
        f"\nResNet-50, batch 2: kept {kept['packed'] / 1e6:.0f} of {kept['full precision'] / 1e6:.0f} MB "
        f"({100 * memory:.0f} %); time packed {ratio['packed']:.2f}x, "
        f"checkpointed {ratio['checkpointed']:.2f}x; peak of tensors "
        + ", ".join(f"{mode} {peak / 1e6:.0f} MB" for mode, peak in peaks.items())
    )
    assert memory <= 0.35
    assert peaks["packed"] < 0.5 * peaks["full precision"]
    assert ratio["packed"] <= 1.6  # 1.3 to 1.6 on the processors seen


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
