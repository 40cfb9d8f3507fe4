"""The model in BentoML's model store: found with a helpful error, packed into a Bento only when trained."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException, InvalidArgument, NotFound
from bentoml.models import BentoModel

from embedder.model.spec import ModelSpec, SpecError, save_command

ALLOW_UNTRAINED = "ALLOW_UNTRAINED"
"""Environment variable: 1 lets `bentoml build` pack a model that has learnt nothing."""


class EmbeddingModel(BentoModel):  # type: ignore[misc]  # BentoML's SDK ships no types
    """A reference to a model by tag, `resnet18:latest` for example.

    The store is asked when the model is used. A built Bento has the version that it was built with.
    """

    def resolve(self, *_: object, **__: object) -> bentoml.Model:
        """The stored model; the same one for the life of this process, whatever is saved meanwhile.

        Raises BentoMLException, in one sentence that says how to make a model.
        """
        return _stored(str(self.tag))

    def to_info(self, alias: str | None = None) -> Any:  # Any: BentoML's own record, untyped
        """What `bentoml build` writes into the Bento. Refuses weights that have learnt nothing."""
        model = self.resolve()
        if not model.info.metadata.get("trained") and os.environ.get(ALLOW_UNTRAINED) != "1":
            raise InvalidArgument(
                f"{model.tag} holds untrained weights, whose embeddings mean little; save trained ones "
                f"({save_command(model.info.metadata.get('architecture'))} --weights pretrained) "
                f"or build it all the same: {ALLOW_UNTRAINED}=1 bentoml build"
            )
        return super().to_info(alias or str(self.tag))

    def spec(self, precision: str) -> ModelSpec:
        """What depends on the network. Raises BentoMLException for a model that this code can't serve."""
        model = self.resolve()
        try:
            return ModelSpec.from_metadata(str(model.tag), model.info.metadata, precision=precision)
        except SpecError as error:
            raise self.unusable(str(error)) from None

    def file(self, precision: str) -> Path:
        """The network's file. Raises BentoMLException for a model that this code can't serve."""
        return Path(self.resolve().path_of(self.spec(precision).file))

    def check_file(self, precision: str) -> None:
        """Raises BentoMLException when the network's file is not, byte for byte, the one that was saved.

        A flipped bit in its weights would only show in the embeddings.
        """
        file = self.file(precision)
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise self.unusable(f"{file} can't be read: {error.strerror}") from None
        if found != (self.spec(precision).file_sha256 or found):
            raise self.unusable(f"{file} is damaged: it is not what was saved")

    def unusable(self, reason: str) -> BentoMLException:
        """What to raise when it can't be served for a `reason`."""
        model = self.resolve()
        command = save_command(model.info.metadata.get("architecture"))
        hint = "" if "save it again" in reason else f"; save it again: {command}"
        return BentoMLException(f"{model.tag} can't be served: {reason}{hint}")


@cache
def _stored(tag: str) -> bentoml.Model:
    try:
        # Unlike a look-up in the store itself, this one knows what "latest" was when a Bento was built.
        return bentoml.models.get(tag)
    except NotFound:
        raise BentoMLException(
            f"there is no model {tag} in BentoML's model store; make it: {save_command(tag.partition(':')[0])}"
        ) from None
