"""The training step on a GPU: is it right, how fast is it, what is the time spent on, and what would make it faster?

    python benchmarks/gpu_step.py
    python benchmarks/gpu_step.py --batches 4 --variants shipped --seconds 200
    python benchmarks/gpu_step.py --device cpu --quick    # every path at toy size: shows that it works, nothing else

All losses of step 2 with ResNet-101 at the paper's sizes (source 720x1280, target 512x1024), random images, labels and
weights, full banks. In this order, each part guarded so that a failure is written down and the others still run:

1. correct: the losses of a step in bf16 beside those in float32; matching on the device beside matching on the CPU
2. what the machine can do: the rate of a large dense bf16 matrix product
3. what a step asks for: FLOPs, counted from the shapes (no hardware is needed for that)
4. where the host waits for the device within one step, by the line that waits
5. at each batch size the straightforward step (eager, float32 with TF32), ours, and ours with each change
   (what matching adds to each, `share_of_matching`; a profile, as a table)
6. matching alone

Everything goes to runs/bench/gpu.json, written anew after each part; tables to runs/bench/gpu_profile.*.txt. Variants
that would begin after `--seconds` are left out and named.
"""

import argparse
import json
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from full_size_step import random_batch
from segadapt.adaptation import step as step_module
from segadapt.adaptation.pseudo_labels import override
from segadapt.adaptation.step import TrainState, adaptation_step
from segadapt.adaptation.trainer import fastest_convolutions, new_state, weights_cast_once
from segadapt.config import Experiment, NetworkConfig, OptimiserConfig, ScheduleConfig
from segadapt.data.label_spaces import CITYSCAPES
from segadapt.data.loading import Batch
from segadapt.matching import FeatureBank, correct_labels, matching_losses, region_means, shrink_labels
from segadapt.networks.deeplab import DeepLab, SegmentationOutput
from segadapt.networks.discriminator import Discriminator
from segadapt.networks.normalisation import IMAGENET_RGB
from segadapt.whole_file import whole_file

LOSS_TOLERANCE = 0.05  # of a loss in bf16 to that in float32, relative


@dataclass(frozen=True)
class Sizes:
    """What is run: the paper's sizes, or toys that go through every line."""

    source: tuple[int, int] = (720, 1280)
    target: tuple[int, int] = (512, 1024)
    matrix: int = 8192
    warm_up: int = 4
    rounds: int = 10
    backbone: str = "resnet101"
    compile_backend: str = "inductor"
    images: int = 1  # of each domain in a batch


QUICK = Sizes((64, 96), (64, 80), 256, 1, 1, "efficientnet_lite0", "eager")


# ---- what is changed


class Float32(nn.Module):
    """A network that no autocast reaches, images as they come (N, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, enabled=False):
            if not isinstance(self.network, DeepLab):
                return self.network(images)
            features = self.network.backbone(images)
            return SegmentationOutput(features, self.network.classifier(features))


def eager(state: TrainState, sizes: Sizes) -> None:
    """The straightforward step: float32 (TF32 in convolutions, as torch has it), PyTorch's defaults everywhere."""
    state.parallel_segmenter = Float32(state.segmenter)
    state.parallel_discriminator = Float32(state.discriminator)
    state.discriminator = state.parallel_discriminator  # the same parameters, which the optimiser holds
    state.one_size = False
    for optimiser in (state.segmenter_optimiser, state.discriminator_optimiser):
        for group in optimiser.param_groups:
            group.update(fused=None, foreach=None)
    step_module.upsample = plain_upsample  # undone by `variant_step`


def plain_upsample(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=True)


def compiled(state: TrainState, sizes: Sizes) -> None:
    """torch.compile of the segmenter, once for each domain's size."""
    state.parallel_segmenter = torch.compile(state.segmenter, backend=sizes.compile_backend, dynamic=False)


def compiled_with_graphs(state: TrainState, sizes: Sizes) -> None:
    """The same, its kernels launched as CUDA graphs."""
    mode = "reduce-overhead" if sizes.compile_backend == "inductor" else None
    state.parallel_segmenter = torch.compile(state.segmenter, backend=sizes.compile_backend, mode=mode, dynamic=False)


class OneSize(nn.Module):
    """The segmenter, for images of one size: what a CUDA graph is made of."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> SegmentationOutput:
        return self.segmenter(images)


class Graphed(nn.Module):
    """Forward and backward of the segmenter, its kernels unchanged, as CUDA graphs; a pair for each size."""

    def __init__(self, segmenter: nn.Module, sizes: Sizes, device: torch.device) -> None:
        super().__init__()
        self.of_size = {}
        for size in (sizes.source, sizes.target):
            sample = torch.randn(sizes.images, 3, *size, device=device)
            with fastest_convolutions(True), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                # One call each, so that they share no memory. The first backward pass of a step leaves its own buffers
                # as the gradients and the second adds to them, so one graph must not run twice in a step (accumulate).
                self.of_size[sample.shape] = torch.cuda.make_graphed_callables(OneSize(segmenter), (sample,))

    def forward(self, images: Tensor) -> SegmentationOutput:
        return self.of_size[images.shape](images)


def cuda_graphs(state: TrainState, sizes: Sizes) -> None:
    """Only the segmenter: the regions, between its two passes, are found on the host."""
    if state.device.type == "cuda":
        state.segmenter.train()
        state.parallel_segmenter = Graphed(state.segmenter, sizes, state.device)


Change = Callable[[TrainState, Sizes], None]
PEER, SHIPPED = "eager TF32", "shipped"
CHANGES: dict[str, Change] = {
    "CUDA graphs": cuda_graphs,
    "compiled": compiled,
    "compiled, CUDA graphs": compiled_with_graphs,
}
UPSAMPLE = step_module.upsample


@dataclass
class Bench:
    """What has been found, and how to measure it."""

    device: torch.device
    sizes: Sizes
    out: Path
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """Run one part; its result, or how it failed, is written at once."""
        start = time.perf_counter()
        try:
            result = measure()
        except Exception as error:  # one part that fails, for want of memory or of a compiler, loses no other
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        self.found[name] = result
        self.write()
        print(f"[{time.perf_counter() - start:6.1f} s] {name}: {json.dumps(result)}", flush=True)
        return result

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with whole_file(self.out / "gpu.json") as file:
            file.write((json.dumps(self.found, indent=1) + "\n").encode())

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, function: Callable[[], object]) -> list[float]:
        """Of each of some calls after the warm-up: between CUDA events, so what the host does meanwhile is not lost."""
        for _ in range(self.sizes.warm_up):
            function()
        self.wait()
        if self.device.type != "cuda":
            taken = []
            for _ in range(self.sizes.rounds):
                start = time.perf_counter()
                function()
                taken.append(1e3 * (time.perf_counter() - start))
            return taken
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.sizes.rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        self.wait()
        return [first.elapsed_time(second) for first, second in pairwise(marks)]

    def new_state(self) -> TrainState:
        """Random weights, full banks, the optimiser and losses of the paper."""
        torch.manual_seed(0)
        experiment = Experiment(
            network=NetworkConfig(self.sizes.backbone, weights="random"),
            # random weights and the paper's rate would leave the range of numbers after some steps
            optimiser=OptimiserConfig(learning_rate=1e-7),
            schedule=ScheduleConfig(steps=100_000),
        )
        state = new_state(experiment, CITYSCAPES, self.device)
        state.bank.features.uniform_()
        state.bank.pushed.copy_(state.bank.ring_size)
        return state

    def batches(self, images: int) -> tuple[Batch, Batch]:
        """Source and target as the loader gives them: on the host, pinned where there is a GPU."""
        generator = torch.Generator().manual_seed(0)
        source = random_batch(self.sizes.source, 0.9, generator, images)
        target = random_batch(self.sizes.target, 0.5, generator, images)
        if self.device.type != "cuda":
            return source, target
        return tuple(Batch(each.images.pin_memory(), each.labels.pin_memory(), each.names) for each in (source, target))

    def variant_step(
        self, changes: Sequence[Change], images: int
    ) -> tuple[Callable[[], dict[str, Tensor]], TrainState]:
        """A step with these changes, and the new state that it changes."""
        step_module.upsample = UPSAMPLE
        torch.compiler.reset()
        state, (source, target) = self.new_state(), self.batches(images)
        for change in changes:
            change(state, replace(self.sizes, images=images))

        def step() -> dict[str, Tensor]:
            with fastest_convolutions(state.one_size), weights_cast_once(state.device):
                return adaptation_step(state, source, target)

        return step, state


# ---- the parts


def losses_agree(bench: Bench) -> dict[str, Any]:
    """The losses of the first step: as shipped, beside float32 without TF32. On the CPU both are float32."""

    def losses(changes: Sequence[Change]) -> dict[str, float]:
        step, _ = bench.variant_step(changes, 1)
        return losses_of(step())

    torch.backends.cudnn.allow_tf32 = False
    exact = losses([eager])
    torch.backends.cudnn.allow_tf32 = True
    shipped = losses([])
    off = largest_difference(exact, shipped)
    return {"float32": exact, "shipped": shipped, "largest_difference": off, "agree": off < LOSS_TOLERANCE}


def matching_agrees(bench: Bench) -> dict[str, Any]:
    """Regions, banks, losses and the gradient of the matching room, on the device beside the CPU, in float32."""
    generator = torch.Generator().manual_seed(0)
    size = (30, 46)
    features = torch.randn(2, 64, *size, generator=generator)
    labels = random_batch((8 * size[0], 8 * size[1]), 0.9, generator, 2).labels

    def matched_on(device: torch.device) -> tuple[Tensor, ...]:
        bank = FeatureBank(CITYSCAPES, 64).to(device)
        own = features.to(device)
        bank.store(region_means(own, shrink_labels(labels.to(device), size), CITYSCAPES))
        target = (own.flip(3) + 0.1).requires_grad_(True)
        stuff, instance = matching_losses(
            region_means(target, shrink_labels(labels.to(device), size), CITYSCAPES), bank
        )
        (stuff + instance).backward()
        assert target.grad is not None
        return stuff.detach().cpu(), instance.detach().cpu(), target.grad.cpu(), bank.features.cpu()

    there, here = matched_on(bench.device), matched_on(torch.device("cpu"))
    largest = [float((one - other).abs().max()) for one, other in zip(there, here, strict=True)]
    names = ("stuff", "instance", "gradient", "bank")
    return {"largest_difference": dict(zip(names, largest, strict=True)), "agree": max(largest) < 1e-4}


def dense_rate(bench: Bench) -> dict[str, float]:
    """TFLOP/s of a square bf16 matrix product: the rate that shares are taken of."""
    n = bench.sizes.matrix
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    taken = statistics.median(bench.milliseconds(lambda: a @ b))
    return {"matrix": n, "milliseconds": taken, "tflop_per_second": 2 * n**3 / taken / 1e9}


def counted_flop(sizes: Sizes, aspp_branches: int = 4) -> dict[str, float]:
    """GFLOP of one step with one image of each domain, from shapes alone: forward and backward of both networks.

    A multiplication with its addition is two. Only convolutions and matrix products are counted; the discriminator's
    weights get no gradient in Eq. (2), its input none in Eq. (3), the images none anywhere. Wrong for convolutions in
    groups, which the counter takes for full ones; ResNets have none.
    """
    with torch.device("meta"):
        network = NetworkConfig(sizes.backbone, "random", aspp_branches)  # type: ignore[arg-type]
        segmenter, discriminator = DeepLab(network, CITYSCAPES, IMAGENET_RGB), Discriminator(CITYSCAPES.num_classes)

        def gflop(module: nn.Module, channels: int, size: tuple[int, int], train: bool) -> float:
            module.requires_grad_(train)
            images = torch.empty(1, channels, *size, requires_grad=not train)
            with FlopCounterMode(display=False) as counter:
                output = module(images)
                (output if isinstance(output, Tensor) else output.logits).sum().backward()
            return counter.get_total_flops() / 1e9

        of_segmenter = [gflop(segmenter, 3, size, True) for size in (sizes.source, sizes.target)]
        classes = CITYSCAPES.num_classes
        of_discriminator = [
            gflop(discriminator, classes, sizes.target, False),
            *(gflop(discriminator, classes, size, True) for size in (sizes.source, sizes.target)),
        ]
    return {
        "segmenter": sum(of_segmenter),
        "discriminator": sum(of_discriminator),
        "step": sum(of_segmenter) + sum(of_discriminator),
    }


def host_waits(bench: Bench) -> dict[str, Any]:
    """How often, and at which lines, the host waits for the device in one shipped step."""
    if bench.device.type != "cuda":
        return {"count": None, "why": "a CPU waits for nothing"}
    step, _ = bench.variant_step([], 1)
    step()
    bench.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "synchroniz" in str(each.message)]
    lines = Counter(f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in waits)
    return {"count": len(waits), "lines": dict(lines.most_common())}


def timed(bench: Bench, name: str, changes: Sequence[Change], images: int) -> dict[str, Any]:
    """Milliseconds of a step with and without matching, its model FLOP rate, and that as a share of the dense rate."""
    step, state = bench.variant_step(changes, images)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    line: dict[str, Any] = {"losses": losses_of(step()), "first_step_seconds": time.perf_counter() - start}
    taken = bench.milliseconds(step)
    median = statistics.median(taken)
    line |= {"milliseconds": median, "shortest": min(taken), "longest": max(taken)}
    if bench.device.type == "cuda":
        line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    rate = bench.found["flop"]["step"] * images / median  # GFLOP a millisecond are TFLOP/s
    line["model_tflop_per_second"] = rate
    line["share_of_dense"] = rate / bench.found["dense"]["tflop_per_second"]
    line["device_busy_milliseconds"] = profile(bench, f"batch{images}.{name.replace(' ', '_')}", step)
    state.loss = replace(state.loss, matching=0.0)
    line["share_of_matching"] = 1 - statistics.median(bench.milliseconds(step)) / median
    return line


def variants(bench: Bench, images: int, wanted: Sequence[str]) -> None:
    """Time the straightforward step, ours, and ours with each change; all have the same losses at their first step."""
    key = f"batch {images}"
    lines = bench.found.setdefault(key, {})

    for name, changes in {PEER: [eager], SHIPPED: [], **{name: [change] for name, change in CHANGES.items()}}.items():
        if name not in wanted:
            continue
        if time.monotonic() > bench.deadline:
            lines[name] = {"left out": "no time left (--seconds)"}
            continue
        bench.part(f"{key}: {name}", lambda name=name, changes=changes: timed(bench, name, changes, images))
        line = lines[name] = bench.found.pop(f"{key}: {name}")
        peer = lines.get(PEER, {})
        if "milliseconds" in peer and "milliseconds" in line:
            line["times_faster_than_eager"] = peer["milliseconds"] / line["milliseconds"]
            line["losses_off"] = off = largest_difference(peer["losses"], line["losses"])
            line["losses_agree"] = off < LOSS_TOLERANCE
        bench.write()


def losses_of(report: dict[str, Tensor]) -> dict[str, float]:
    """The losses among what a step reports; reading them waits for the device."""
    return {name: float(value) for name, value in report.items() if name.startswith("loss/")}


def largest_difference(exact: dict[str, float], other: dict[str, float]) -> float:
    """Of losses, relative; NaN where one is NaN."""
    return max(
        (abs(other[name] - value) / max(abs(value), 1e-3) for name, value in exact.items()),
        key=lambda off: (off != off, off),
    )


def matching_alone(bench: Bench, images: int) -> dict[str, float]:
    """The matching room on feature maps of the step's size, with nothing else for the device to do meanwhile."""
    state, (source, target) = bench.new_state(), bench.batches(images)
    outputs = []
    for batch in (source, target):
        autocast = torch.autocast("cuda", torch.bfloat16) if bench.device.type == "cuda" else nullcontext()
        with torch.no_grad(), autocast:
            output = state.segmenter(state.segmenter.normalisation(batch.images.to(bench.device)))
        outputs.append((output.features, output.logits, batch.labels.to(bench.device)))
    (source_features, source_logits, source_labels), (target_features, target_logits, target_labels) = outputs
    target_features.requires_grad_(True)
    overridden = partial(override, mode=state.override)

    def match() -> None:
        target_features.grad = None
        correct = step_module.region_labels(correct_labels, source_logits, source_labels, state)()
        regions = step_module.find_regions(source_features, correct, state)
        state.bank.store(regions.select(step_module.agrees(state.segmenter, regions)))
        labels = step_module.region_labels(overridden, target_logits, target_labels, state)()
        regions = step_module.find_regions(target_features, labels, state)
        among = step_module.may_match(state.segmenter, regions, state.matching)
        stuff, instance = matching_losses(regions, state.bank, among=among)
        (stuff + instance).backward()

    taken = statistics.median(bench.milliseconds(match))
    return {"milliseconds": taken}


def profile(bench: Bench, name: str, step: Callable[[], object]) -> float:
    """A table of the operations of one step, the dearest first, and the milliseconds for which the device was busy."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    bench.wait()
    with torch.profiler.profile(activities=activities) as recorded:
        step()
        bench.wait()
    operations = recorded.key_averages()
    order = "self_cuda_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    table = operations.table(sort_by=order, row_limit=200, max_name_column_width=80)
    (bench.out / f"gpu_profile.{name}.txt").write_text(table)
    return sum(each.self_device_time_total for each in operations if each.device_type == DeviceType.CUDA) / 1e3


def machine(device: torch.device) -> dict[str, str]:
    """What the figures belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that every path works")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 1, 2], help="images of each domain in a batch")
    parser.add_argument("--variants", nargs="+", default=[PEER, SHIPPED, *CHANGES], choices=[PEER, SHIPPED, *CHANGES])
    parser.add_argument("--seconds", type=float, default=480, help="no variant is begun later than this")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu --quick shows that the script works")
    sizes = QUICK if options.quick else Sizes()
    bench = Bench(torch.device(options.device), sizes, options.out, time.monotonic() + options.seconds)

    bench.part("machine", lambda: machine(bench.device))
    bench.part("losses", lambda: losses_agree(bench))
    bench.part("matching", lambda: matching_agrees(bench))
    bench.part("dense", lambda: dense_rate(bench))
    bench.part("flop", lambda: counted_flop(sizes))
    bench.part("host waits", lambda: host_waits(bench))
    for images in options.batches:
        variants(bench, images, options.variants)
        bench.part(f"matching alone, batch {images}", lambda images=images: matching_alone(bench, images))
    step_module.upsample = UPSAMPLE


if __name__ == "__main__":
    main()
