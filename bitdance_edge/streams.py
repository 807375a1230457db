"""Standard output that prints whatever a name holds: file names need not be text, nor in the terminal's encoding."""

import codecs
import io
import sys

HANDLER = "bitdance-names"  # of characters that an encoding lacks
BYTES = range(0xDC80, 0xDD00)  # surrogates that Python reads undecodable bytes as (PEP 383)


def print_any_name() -> None:
    """Have standard output write undecodable bytes of names unchanged, and escape characters that it cannot encode."""
    codecs.register_error(HANDLER, _encoded)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=HANDLER)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode the first character that ``error`` is about; returns where encoding goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if code in BYTES:
        return bytes([code - BYTES.start + 0x80]), error.start + 1
    return codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
