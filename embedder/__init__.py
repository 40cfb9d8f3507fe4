"""Images in, embeddings out. Start reading at `engine.py`, then `pipeline.py`."""

__version__ = "0.1.0"
