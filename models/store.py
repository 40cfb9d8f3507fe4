"""BentoML's model store, written to: a new entry, or the store as it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import bentoml


class StoreError(Exception):
    """BentoML's model store can't be read or written; the message is one line that says why."""


def latest_metadata(name: str) -> Mapping[str, Any] | None:  # Any: JSON
    """What the latest model of that name was saved with; None if there is none. Raises `StoreError`."""
    import bentoml

    try:
        metadata: Mapping[str, Any] = bentoml.models.get(name).info.metadata
    except bentoml.exceptions.NotFound:
        return None
    except (bentoml.exceptions.BentoMLException, OSError) as exc:
        raise StoreError(f"the model store can't be read: {exc}") from exc
    return metadata


def save(name: str, files: Mapping[str, bytes], metadata: dict[str, Any]) -> bentoml.Model:
    """A new entry of the store, its latest, with these files by name. If it fails, the store is as it was.

    Raises `StoreError`.
    """
    import bentoml

    tag = bentoml.Tag(name, None).make_new_version()
    labels = {"weights": metadata["weights"], "trained": str(metadata["trained"]).lower()}
    try:
        # No `module`: BentoML would import it, and with it torch, in the serving process.
        with bentoml.models.create(tag, labels=labels, metadata=metadata) as model:
            for file, content in files.items():
                Path(model.path_of(file)).write_bytes(content)
        return bentoml.models.get(tag)
    except BaseException as exc:
        _undo(tag)
        if isinstance(exc, OSError):
            raise StoreError(f"{tag} can't be saved: {_reason(exc)}") from exc
        if isinstance(exc, bentoml.exceptions.BentoMLException):
            raise StoreError(f"{tag} can't be saved: {exc}") from exc
        raise


def _undo(tag: bentoml.Tag) -> None:
    """Remove what is left of an entry that failed while it was saved.

    BentoML removes it by itself, but not after Ctrl-C, nor if the disk is full when it notes which
    entry is the latest, and it leaves the folder that holds all versions.
    """
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer  # no public way

    versions = Path(BentoMLContainer.model_store_dir.get(), tag.name)
    if (versions / str(tag.version)).exists():
        bentoml.models.delete(tag)
    elif versions.is_dir() and not any(versions.iterdir()):
        versions.rmdir()


def _reason(error: OSError) -> str:
    """What the system said, without the file: it may be one of hundreds that were to be copied."""
    if isinstance(error, shutil.Error):  # a list of (from, to, what str(OSError) said)
        return str(error.args[0][0][2])
    return str(error)
