"""Other ways to train a classifier, to compare Hogwear with.

    python -m bench.peers PEER --photos DIR --epochs N

Each peer follows the documentation of its library. It trains on train/CLASS/* and measures accuracy
on test/CLASS/*, from the ImageNet weights that Hogwear starts from unless its docstring says
otherwise. The last line on stdout is JSON. The caller times the process, from start to exit.
"""

PEERS = {  # {function: module}; only the module of the peer is imported, as that takes time
    "loop": "finetuning",
    "fastai": "finetuning",
    "ddp": "finetuning",
    "lightning": "finetuning",
    "timm": "finetuning",
    "frozen_features": "frozen",
    "fast_frozen_features": "frozen",
    "ultralytics": "scratch",
    "predecessor": "scratch",
    "mnist_hogwild": "scratch",
}
