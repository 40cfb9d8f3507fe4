"""A catalogue of images → a folder of vectors, and search in that folder. On `embedder.engine` alone."""
