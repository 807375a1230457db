"""Members of a tar that somebody else may have written: what tarfile reads of them by itself has bounds.

A member may be preceded by headers that extend its own: longer names, further fields. tarfile reads each of them whole
into memory, whatever its length, one inside the other; and files with holes by maps that such headers may hold.
"""

import re
import tarfile

EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MOST_EXTENSION = 65_536  # bytes of a header that extends another
SPARSE = re.compile(rb"\d GNU\.sparse\.")
UNREADABLE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)  # of tarfile, on damaged files


class TarMember(tarfile.TarInfo):
    """A member for ``tarfile.open(tarinfo=...)``; raises tarfile.ReadError for headers that are too long, and holes."""

    most_extension = MOST_EXTENSION

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # which tarfile has for subclasses
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{self.name[:80]!r} has holes")
        if self.type in EXTENSIONS:
            if not 0 <= self.size <= self.most_extension:
                raise tarfile.ReadError(f"a header has {self.size:,} bytes; the limit is {self.most_extension:,}")
            file = tar.fileobj
            assert file is not None
            place = file.tell()
            if SPARSE.search(file.read(self.size)):
                raise tarfile.ReadError("a member has holes")
            file.seek(place)
        return super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue]
