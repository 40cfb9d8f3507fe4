"""The service that this one replaces, rebuilt from its description: FastAPI, uvicorn, requests, torchvision.

uvicorn benchmarks.sides.replaced:app --workers 2
"""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.sides.recipe import download, embed, load_network, preprocess

app = FastAPI()
network = load_network()


class EmbedRequest(BaseModel):
    url: str


# `def`, not `async def`: FastAPI runs it in a thread, as what blocks should.
@app.post("/embed")
def embed_url(request: EmbedRequest) -> dict[str, list[float]]:
    pixels = preprocess(download(request.url))
    return {"embedding": embed(network, pixels.unsqueeze(0))[0].tolist()}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}
