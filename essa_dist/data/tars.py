"""Walk a tar that somebody else wrote: forwards only, in bounded memory, trusting nothing that it says of itself.

Nothing is extracted to a disk, unpickled or followed. Samples are named as WebDataset names them: a member
``dir/0001.mask.png`` has the key ``dir/0001``, up to the first dot of the last part of its name, and the suffix
``mask.png``.
"""

import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol, Self, cast

BLOCK = tarfile.BLOCKSIZE
READ_BYTES = 1 << 16
"""Read from the tar at once. tarfile copies what is left of it after each header, so more would be slower."""
MAX_MEMBER_BYTES = 1 << 30
"""Of one member that is read: a header may claim anything."""

PICKLED = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
"""Ends of the names of pickles: to load one is to run its author's program. They are never read."""
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of the usual compressed files."""
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own members, which are no samples


class BrokenTar(Exception):
    """A tar that can't be read from here on; the message says why."""


class Stream(Protocol):
    """What a tar is read from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


class Member(NamedTuple):
    """One member that was asked for, or one that is refused."""

    key: str
    suffix: str
    """In lower case, without the first dot."""
    offset: int = 0
    """Of its first byte in the tar."""
    data: bytes = b""
    refused: str = ""
    """Why it was not read; empty: it was."""


def walk(stream: Stream, wanted: Callable[[str], bool], ignore: Collection[str] = ()) -> Iterator[Member]:
    """The members of a tar whose suffix is ``wanted``, in order, and those that are refused.

    ``ignore``: suffixes passed over without a word, pickles too. Raises BrokenTar at the place where the tar can't be read any further, also
    where it stops without the two empty blocks that end a tar: then it was cut off between two members.
    """
    head = _Head(stream)
    _refuse_compressed(head)
    try:
        file = cast(Any, head)  # typeshed asks for more than read(), which is all that a forward reader calls
        with tarfile.open(fileobj=file, mode="r|", bufsize=READ_BYTES, tarinfo=_StrictHeader) as tar:
            yield from _members(tar, wanted, ignore)
    except tarfile.TarError as error:
        raise BrokenTar(str(error)) from error
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        # The storage's own errors, and what tarfile makes of numbers and names that make no sense.
        raise BrokenTar(" ".join(str(error).split()) or type(error).__name__) from error


def split_name(name: str) -> tuple[str, str] | None:
    """A member's name as (key, suffix in lower case); None: no sample's, as WebDataset has it."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def _members(
    tar: tarfile.TarFile, wanted: Callable[[str], bool], ignore: Collection[str]
) -> Iterator[Member]:
    while True:
        member = tar.next()
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep a million headers
        if member is None:
            return
        found = split_name(member.name)
        if found is None or member.isdir() or _META.match(member.name):
            continue
        key, suffix = found
        if suffix in ignore:
            continue
        refused = _refusal(member, suffix)
        if not refused and not wanted(suffix):
            continue
        if not refused and member.size > MAX_MEMBER_BYTES:
            refused = f"{suffix} of {member.size} bytes, {MAX_MEMBER_BYTES} are the most"
        if refused:
            yield Member(key, suffix, refused=refused)
            continue
        file = tar.extractfile(member)
        assert file is not None  # a regular file
        yield Member(key, suffix, member.offset_data, file.read())


def _refusal(member: tarfile.TarInfo, suffix: str) -> str:
    """Why a member must not be touched; empty: it may be read."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the tar"
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "neither a file nor a folder"
    if f".{suffix}".endswith(PICKLED):
        return f"pickled ({suffix}): never read, because reading runs it"
    return ""


def _refuse_compressed(head: "_Head") -> None:
    start = head.peek(BLOCK)
    if not start:
        raise BrokenTar("empty file")
    for magic, name in COMPRESSIONS.items():
        if start.startswith(magic):
            raise BrokenTar(f"compressed ({name}), which has no random access: unpack it first")


class _StrictHeader(tarfile.TarInfo):
    """tarfile ends silently at a damaged or missing header; here that is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == BLOCK and not any(buf):
                raise  # the empty block that ends a tar
            cut = "cut off" if len(buf) < BLOCK else "damaged: a member's header is no header"
            raise tarfile.ReadError(cut) from None
        if header.size < 0:
            raise tarfile.ReadError("damaged: a member of negative size")
        return header


class _Head:
    """A stream whose first bytes can be looked at before they are read, and that ends once."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._ahead, self._ended = stream, b"", False

    def peek(self, size: int) -> bytes:
        self._ahead = self._stream.read(size)
        return self._ahead

    def read(self, size: int) -> bytes:
        if not self._ahead:
            data = self._stream.read(size)
            if self._ended and not data:
                # tarfile would go on to the end of a member that claims to have none.
                raise EOFError("cut off")
            self._ended = not data
            return data
        ahead, self._ahead = self._ahead[:size], self._ahead[size:]
        return ahead
