"""The files of a model folder: plain names only, and nothing outside of the folder."""

from __future__ import annotations

from pathlib import Path

from qwenstack.core.errors import ModelFormatError


def is_plain_name(name: str) -> bool:
    """Whether a name taken from a file or from the network names a file directly inside a folder."""
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not any(character in name for character in '/\\:*?"<>|')
    )


def file_in_folder(folder: Path, name: str) -> Path | None:
    """Return the file of that name, or None if there is none.

    Hugging Face's own cache keeps a snapshot's files as links into the `blobs` folder beside `snapshots`; those links
    are followed, all others that leave the folder are refused.

    Raises:
        ModelFormatError: the name is not a plain file name, or a link leads out of the folder.
    """
    if not is_plain_name(name):
        raise ModelFormatError(
            f"{name!r} is not a plain file name; the files of {str(folder)!r} must lie directly in it."
        )
    path = folder / name
    if not path.is_file():
        return None
    root = folder.resolve()
    real = path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    if real.parent not in (root, blobs):
        raise ModelFormatError(
            f"{str(path)!r} is a link to {str(real)!r}, outside of the model's folder. Copy the file into the folder."
        )
    return real
