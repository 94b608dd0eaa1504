"""A plain server of FastAPI and PyTorch, as in tutorials: python -m bench.peers.server PORT."""

import io
import sys
from typing import Any

import torch
import uvicorn
from efficientnet_lite_pytorch import EfficientNet
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from torchvision import transforms

from bench.peers.shared import MEAN, STD, weights_file

CLASSES, SIZE = 5, 160
PREPARE = transforms.Compose(
    [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)

app = FastAPI()
net = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=weights_file(), num_classes=CLASSES, image_size=SIZE
).eval()


def classify(content: bytes) -> list[float]:
    with Image.open(io.BytesIO(content)) as image, torch.inference_mode():
        logits = net(PREPARE(image.convert("RGB"))[None])[0]
        probabilities: list[float] = logits.softmax(0).tolist()
    return probabilities


@app.get("/health")  # type: ignore[untyped-decorator, unused-ignore]
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")  # type: ignore[untyped-decorator, unused-ignore]
async def predict(request: Request) -> dict[str, Any]:
    return {"probabilities": await run_in_threadpool(classify, await request.body())}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
