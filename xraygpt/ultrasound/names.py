"""Names for the output that do not tell who the patient is.

Identifiers become keyed hashes (HMAC-SHA-256). Without the key, the hash of a known patient or
study cannot be computed; with it, the same study always gets the same name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from xraygpt.common.errors import InputError
from xraygpt.ultrasound.identity import Identity, Term

StudyFrom = Literal["uid", "folder"]
_DIGITS = 12  # of a hash; studies of one corpus do not collide
_KEY_BYTES = 32


def load_key(path: Path) -> bytes:
    """Read the key for the hashes, or create it so that only its owner can read it.

    Raises:
        InputError: The file is no such key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise InputError(f"{path}: this is no key of an ultrasound intake; choose another file")
    return key


class Names:
    """Names of files, studies and patients for the output.

    Parts of a path that repeat the header of a file below them are replaced, and so are names of
    files that repeat the header of a file in the same folder.

    Args:
        root: The folder that is read, or the only file.
        identities: What the header of each file says.
        key: Key of the hashes.
    """

    def __init__(self, root: Path, identities: Mapping[Path, Identity], key: bytes) -> None:
        self.root = root if root.is_dir() else root.parent
        self.identities, self._key = identities, key
        terms: dict[Path, dict[Term, None]] = {}
        for file, identity in identities.items():
            for folder in file.parents:
                terms.setdefault(folder, {}).update(dict.fromkeys(identity.terms))
                if folder == self.root:
                    break
        self._below = {folder: Identity(tuple(found)) for folder, found in terms.items()}
        self._safe: dict[tuple[Path, bool], str] = {}

    def hash(self, kind: str, value: str) -> str:
        """Return a keyed hash of a value, as 12 hexadecimal digits."""
        digest = hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256)
        return digest.hexdigest()[:_DIGITS]

    def clip(self, file: Path) -> str:
        """Return the id of a clip, which depends on the file's place below the root."""
        return f"clip-{self.hash('clip', file.relative_to(self.root).as_posix())}"

    def source(self, file: Path) -> str:
        """Return the path of a file below the root, without what identifies the patient."""
        folders = file.relative_to(self.root).parts[:-1]
        parts = [self._part(self.root.joinpath(*folders[: i + 1])) for i in range(len(folders))]
        return str(PurePosixPath(*parts, self._part(file, is_file=True)))

    def study(self, file: Path, by: StudyFrom) -> str:
        """Return the id of the study: the hash of its UID if asked for and known, or its folder."""
        uid = self.identities[file].study_uid
        if by == "uid" and uid:
            return f"study-{self.hash('study', uid)}"
        if file.parent == self.root:
            return self._part(self.root)
        return str(PurePosixPath(self.source(file)).parent)

    def patient(self, file: Path) -> str:
        """Return the hash of the patient's id; empty if it is unknown."""
        value = self.identities[file].patient_id
        return f"patient-{self.hash('patient', value)}" if value else ""

    def _part(self, path: Path, *, is_file: bool = False) -> str:
        """Return the last part of a path, or its replacement."""
        place = (path, is_file)
        if place not in self._safe:
            folder = path.parent if is_file else path
            whole = path.name if is_file else path.resolve().name
            name, suffix = (path.stem, path.suffix) if is_file else (whole, "")
            found = self._below.get(folder, Identity()).matches(name)
            replaced = f"{found[0]}-{self.hash('name', name)}{suffix}" if found else whole
            self._safe[place] = replaced
        return self._safe[place]
