"""What headers of sound files claim, held against the bytes there are: they are written first, and files get cut and joined.

Everything works on the open file and leaves its place anywhere.
"""

import re
from typing import BinaryIO

UNKNOWN_SIZE = 0x7FFF0000
"""Bytes of a chunk from which on its size means "nobody knows": programs that write into a pipe promise 2^31 or 2^32."""

_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"caff", b"riff")  # containers of plain samples, W64 the last

_TAIL = 1 << 24  # bytes behind the samples that are searched: more than tags have


_USUAL_PARTS = {
    *("File", "RIFF", "RIFX", "RF64", "FORM", "WAVE", "fmt", "data", "fact", "PEAK", "ds64", "JUNK", "junk", "PAD"),
    *("COMM", "SSND", "FVER", "desc", "chan", "free", "pakt", "kuki", "peak", "riff", "wave"),
    *("LIST", "NAME", "AUTH", "ANNO", "APPL", "id3", "ID3", "info"),  # what they hold is told as tags
}


def file_size(stream: BinaryIO) -> int:
    """Bytes of an open file."""
    return stream.seek(0, 2)


def ends_as_ogg(stream: BinaryIO) -> bool:
    """False for an Ogg file that was cut off: its last page is not whole or not marked as the last. True for other files."""
    stream.seek(0)
    ogg = stream.read(4) == b"OggS"
    stream.seek(max(0, file_size(stream) - (1 << 17)))  # a page has at most 65,307 bytes
    tail = stream.read() if ogg else b""
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not ogg or len(page) < 27 + (page[26] if len(page) > 26 else 0):
        return not ogg
    size = 27 + page[26] + sum(page[27 : 27 + page[26]])  # header, table of segments, segments
    return bool(page[5] & 4) and len(page) >= size


def is_chained_ogg(stream: BinaryIO) -> bool:
    """Whether more than one logical stream begins in an Ogg file: behind each other, or sound beside pictures."""
    stream.seek(0)
    begins, overlap = 0, b""
    while block := stream.read(1 << 20):
        begins += (overlap + block).count(b"OggS\0\2")
        overlap = block[-5:]
    return begins > 1


def says_its_length(stream: BinaryIO) -> bool:
    """Whether an MP3 file begins with a frame (Xing, Info or VBRI) that says how many there are, perhaps behind a tag."""
    stream.seek(0)
    head = stream.read(10)
    tag = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    stream.seek(tag if head[:3] == b"ID3" else 0)
    begin = stream.read(4096)
    return any(name in begin for name in (b"Xing", b"Info", b"VBRI"))


def second_file(stream: BinaryIO, after: int) -> int:
    """Where another file of the same container begins; 0 if none does.

    Args:
        stream: the file.
        after: a byte in or behind the samples of the first.
    """
    stream.seek(0)
    head = stream.read(24)
    if head[:4] not in _MAGIC:
        return 0
    if head[:4] == b"riff":  # W64, whose samples libsndfile takes to go on to the end
        after = min(after, int.from_bytes(head[16:], "little"))
    stream.seek(max(after, 12))
    tail, found = stream.read(_TAIL), -1
    while (found := tail.find(head[:4], found + 1)) >= 0:
        # The form ("WAVE", "AIFF") is the same, or in other containers where the samples begin.
        if head[8:12] == tail[found + 8 : found + 12] or head[4:8] == tail[found + 4 : found + 8]:
            return max(after, 12) + found
    return 0


def second_flac(stream: BinaryIO) -> int:
    """Where another FLAC file begins behind the first; 0 if none does."""
    stream.seek(0)
    first = stream.read(1 << 20).find(b"fLaC")
    stream.seek(first + 4)
    place, overlap = first + 4, b""
    while block := stream.read(1 << 20):
        if (found := (overlap + block).find(b"fLaC\0\0\0\x22")) >= 0:
            return place - len(overlap) + found
        place, overlap = place + len(block), block[-7:]
    return 0


def wav_samples(stream: BinaryIO) -> tuple[int, int]:
    """First byte of a WAV file's samples and how many there are by its header; (0, 0) for another file or none."""
    stream.seek(0)
    head, size = stream.read(12), file_size(stream)
    place = 12
    while head[:4] == b"RIFF" and place + 8 <= size:
        stream.seek(place)
        chunk = stream.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return place + 8, length
        place += 8 + length + length % 2
    return 0, 0


def holds_chunks(stream: BinaryIO, place: int) -> bool:
    """Whether chunks of a WAV file follow from a byte on to its end, or nothing; samples look otherwise."""
    size = file_size(stream)
    while place + 8 <= size:
        stream.seek(place)
        chunk = stream.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if not all(32 <= byte < 127 for byte in chunk[:4]) or place + 8 + length > size:
            return False
        place += 8 + length + length % 2
    return place >= size - 1


def broken_promise(log: str, frames: int) -> str:
    """What libsndfile noted about a file shorter than its header says; empty if nothing.

    Args:
        log: its notes.
        frames: samples of each channel that it found.
    """
    for part, promised, there in re.findall(
        r"^ *(data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE
    ):
        if int(there) < int(promised) and (int(promised) < UNKNOWN_SIZE or part in ("riff", "Riff size")):
            return f"its part {part!r} has {there} of {promised} bytes"
    told = re.search(r"^ *Frames *: (\d+)", log, re.MULTILINE)
    if told and frames < int(told[1]) < UNKNOWN_SIZE and "Samples/Block" not in log:  # SDS counts whole blocks
        return f"it has {frames} of {told[1]} samples"
    return (
        "it ends too early"
        if re.search(r"a truncated file|File seems to be truncated|Data length \d+ should be", log)
        else ""
    )


def nist_samples(stream: BinaryIO) -> int:
    """Samples of each channel that the header of a NIST (SPHERE) file promises; 0 for another file."""
    stream.seek(0)
    found = re.match(rb"NIST_1A.*?sample_count -i (\d+)", stream.read(1024), re.DOTALL)
    return int(found[1]) if found else 0


def unread_from(log: str) -> int:
    """Byte from which on libsndfile could make nothing of a file whose samples it had found before; 0 if nowhere."""
    found = re.search(
        r"^data : .*^\*\*\* Unknown chunk marker \(\w+\) at position (\d+)", log, re.MULTILINE | re.DOTALL
    )
    return int(found[1]) if found else 0


def further_parts(log: str) -> list[str]:
    """What a file holds beside samples and tags, in words, as libsndfile noted it: markers, loops, broadcast data."""
    names = re.findall(r"^(?:\*\*\* )?([A-Za-z][\w ]{3}) : \d+", log, re.MULTILINE)
    return [f"the part {name!r}" for name in dict.fromkeys(map(str.strip, names)) if name not in _USUAL_PARTS]
