"""Items as WebDataset shards: tar files with one image and one JSON file for each item."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from xraygpt.common.errors import DataError
from xraygpt.instructions.exports.reading import read_items
from xraygpt.instructions.formats import BoxWriter, llava_row

SHARD = 1000  # items


def write_webdataset(items: Path, folder: Path, boxes: BoxWriter) -> None:
    """Write ``webdataset/<split>-000000.tar`` and so on, the same bytes for the same items.

    The key of an item is its id with dots replaced by ``-``, because WebDataset reads what follows
    the first dot as the name of a field.

    Args:
        items: ``items/<split>.jsonl``.
        folder: The folder ``webdataset``.
        boxes: How boxes are written in the text.

    Raises:
        DataError: An image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{items.stem}-*.tar"):
        old.unlink()
    archive: tarfile.TarFile | None = None
    partial, out = folder / f".{items.stem}.partial", folder
    count = 0
    for item in read_items(items):
        if boxes.needs_size(item):
            continue
        if count % SHARD == 0:
            if archive is not None:
                archive.close()
                partial.replace(out)
            archive = tarfile.open(partial, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
            out = folder / f"{items.stem}-{count // SHARD:06d}.tar"
        assert archive is not None
        key = item.item_id.replace(".", "-").replace("/", "-")
        try:
            content = Path(item.image).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {item.image}: {error.strerror}") from None
        suffix = Path(item.image).suffix.lower().lstrip(".") or "bin"
        _add(archive, f"{key}.{suffix}", content)
        row = llava_row(item, boxes.texts(item))
        _add(archive, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())
        count += 1
    if archive is not None:
        archive.close()
        partial.replace(out)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
