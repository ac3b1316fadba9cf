"""A training step on a processor, in bfloat16 against float32.

    python benchmarks/precision.py [--networks resnet18:8 …] [--methods deep-all agr-sum]

Three domains; the passes under autocast, weights, gradients and rules in float32. The precisions
take turns in one process. bfloat16 pays where the processor itself multiplies it (AMX and
AVX512-BF16).
"""

import argparse
import time
from functools import partial

import torch
from contestants import adam, method_step, random_batches, untrained
from timing import interleaved, print_ratios

NETWORKS = ["alexnet:8", "resnet18:8", "resnet50:8", "vit_small_patch16_224:8"]
DEPTHWISE = ["tf_efficientnet_lite0:8", "mobilenetv3_large_100:8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS + DEPTHWISE)
    parser.add_argument("--methods", nargs="+", default=["deep-all", "agr-sum"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for busy machines")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, AMX: {torch.cpu._is_amx_tile_supported()}"
    )
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    for network, size in (each.split(":") for each in options.networks):
        batches = random_batches(3, int(size), options.image_size)
        for method in options.methods:
            steps = {}
            for precision, autocast in (("float32", {}), ("bfloat16", {"autocast": bfloat16})):
                model = untrained(network, options.image_size)
                optimizer = adam(model.parameters())
                steps[precision] = method_step(method, model, batches, optimizer, **autocast)
            print(f"{network}, {size} per domain, {method}")
            print_ratios(interleaved(steps, options.rounds, clock), "float32")


if __name__ == "__main__":
    main()
