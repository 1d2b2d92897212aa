"""Which H.264 packets other frames depend on, read from the headers of their NAL units (ITU-T H.264, 7.3.1 and 7.4.1).

A picture whose slices all have nal_ref_idc 0 is never a reference: leaving it undecoded changes no other picture. And what comes after an
IDR picture refers to nothing before it.
"""

from collections.abc import Iterator

# nal_unit_type, table 7-1. A packet that is left out may hold only these: no IDR slice (5), no parameter sets, no end of a sequence.
SLICES = frozenset({1, 2, 3, 4})
IDR = 5
PARAMETER_SETS = frozenset({7, 8, 13, 15})
HARMLESS = frozenset({6, 9, 12, 14, 20})  # SEI, access unit delimiter, filler; prefixes and slices of SVC and MVC, which are not decoded


def length_size(extradata: bytes | None) -> int | None:
    """Bytes in the length before each NAL unit, from a stream's extradata if it is an avcC record (ISO/IEC 14496-15, 5.3.3.1).

    None: the stream is in Annex B form, with start codes.
    """
    if extradata is not None and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    return None


def is_reference(packet: bytes, length_size: int | None) -> bool:
    """Whether a packet (one access unit) must be decoded for the sake of others: False only if it surely need not be.

    `length_size`: bytes of the length prefixes, None for Annex B start codes.
    """
    slices = 0
    for header in _headers(packet, length_size):
        kind = None if header is None else header & 0x1F
        if kind in SLICES and header is not None and header & 0x60 == 0:  # nal_ref_idc
            slices += 1
        elif kind not in HARMLESS:
            return True
    return slices == 0


class CleanStarts:
    """Finds the IDR pictures of a stream from all its packets, in order: nothing after one refers to anything before it (8.2.1).

    So what lies between two of them can be left out as a whole. Where that is not sure (parameter sets that a later part may need, times
    that contradict the order), `times` is empty.
    """

    def __init__(self, length_size: int | None) -> None:
        self.length_size = length_size
        self._sure = True
        self._starts: list[int] = []
        self._with_sets: set[bool] = set()
        self._latest: int | None = None

    def add(self, packet: bytes, pts: int | None) -> None:
        """The next packet and when it is shown."""
        kinds = {None if header is None else header & 0x1F for header in _headers(packet, self.length_size)}
        if pts is None or None in kinds:
            self._sure = False
            return
        sets = bool(kinds & PARAMETER_SETS)
        if IDR in kinds:
            self._sure &= self._latest is None or pts > self._latest
            self._starts.append(pts)
            self._with_sets.add(sets)
        else:
            self._sure &= not sets and bool(self._starts) and pts > self._starts[-1]
        self._latest = pts if self._latest is None else max(self._latest, pts)

    @property
    def times(self) -> list[int]:
        """Timestamps of the IDR pictures, ascending; frames from one up to the next need nothing else."""
        return self._starts if self._sure and len(self._with_sets) == 1 else []


def _headers(packet: bytes, length_size: int | None) -> Iterator[int | None]:
    """First byte of each NAL unit; None where the packet does not add up."""
    if length_size is None:
        start = packet.find(b"\0\0\1")
        while start >= 0:
            yield packet[start + 3] if start + 3 < len(packet) else None
            start = packet.find(b"\0\0\1", start + 3)
        return
    position = 0
    while position < len(packet):
        size = int.from_bytes(packet[position : position + length_size], "big")
        position += length_size
        yield packet[position] if size > 0 and position + size <= len(packet) else None
        position += size
