"""The archive of an image as a stream."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from scripts.image import diff


def test_stream_is_read_in_any_pieces() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = 5000
            archive.addfile(member, io.BytesIO(name.encode() * 5000))
    whole = data.getvalue()
    stream: Any = diff._ChunkReader(whole[start : start + 777] for start in range(0, len(whole), 777))
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        assert [diff._file(archive, member).size for member in archive] == [5000, 5000]
