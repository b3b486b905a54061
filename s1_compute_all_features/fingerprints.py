"""Which weights were used: short digests that tell one file from another without reading gigabytes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SAMPLE_BYTES = 1 << 20


def fingerprint_of_file(path: Path) -> str:
    """SHA-256 over a file's size and its first and last MiB, in hexadecimal.

    Tells two sets of trained weights apart; it is no proof against deliberate alteration.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        digest.update(handle.read(_SAMPLE_BYTES))
        if size > _SAMPLE_BYTES:
            handle.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
            digest.update(handle.read())
    return digest.hexdigest()


def fingerprint_of_folder(folder: Path) -> str:
    """SHA-256 over the names and fingerprints of a folder's files, hidden ones left out."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    lines = [f"{path.name} {fingerprint_of_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint_of_tensors(tensors: "Mapping[str, torch.Tensor]") -> str:
    """SHA-256 over names, shapes and values, for weights whose file only a library knows.

    Args:
        tensors: name to tensor, of any shape and dtype, in any order.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
