"""Run one of the peers, in a process of its own: see bench/peers/__init__.py."""

import argparse
import importlib
import json
import random
from pathlib import Path

import torch

from bench.common import process_start
from bench.peers import PEERS, __doc__
from bench.peers.options import Options


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="pixels; default: 160, predecessor: 224")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that train, or that load photos; default: 2, predecessor: 5",
    )
    options = parser.parse_args(namespace=Options(started=process_start()))
    size, workers = (224, 5) if options.peer == "predecessor" else (160, 2)
    options.size, options.workers = options.size or size, options.workers or workers
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    run = getattr(importlib.import_module(f"bench.peers.{PEERS[options.peer]}"), options.peer)
    settings = {"peer": options.peer, "epochs": options.epochs, "seed": options.seed}
    print(json.dumps(settings | run(options)), flush=True)


if __name__ == "__main__":
    main()
