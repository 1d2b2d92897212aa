"""Reading NAL unit headers, on packets put together by hand (ITU-T H.264, table 7-1)."""

import pytest

from dfdc_ray.video.h264 import CleanStarts, is_reference, length_size

B_SLICE, P_SLICE, IDR = b"\x01\x9e", b"\x41\x9a", b"\x65\x88"
SEI, AUD, SPS, PPS, END_OF_SEQUENCE = b"\x06\x05", b"\x09\xf0", b"\x67\x64", b"\x68\xee", b"\x0a"


def avcc(units: list[bytes], size: int) -> bytes:
    return b"".join(len(u).to_bytes(size, "big") + u for u in units)


def annex_b(units: list[bytes], size: int) -> bytes:
    return b"".join((b"\0" if i % 2 == 0 else b"") + b"\0\0\1" + u for i, u in enumerate(units))


@pytest.mark.parametrize(("build", "size"), [(avcc, 4), (avcc, 2), (avcc, 1), (annex_b, None)])
@pytest.mark.parametrize(
    ("units", "reference"),
    [
        ([B_SLICE], False),
        ([AUD, SEI, B_SLICE, B_SLICE], False),
        ([P_SLICE], True),
        ([B_SLICE, P_SLICE], True),  # the second field of a frame may be a reference although the first is none
        ([AUD, SPS, PPS, SEI, IDR], True),
        ([B_SLICE, PPS], True),  # the frames after it need the parameter set
        ([B_SLICE, END_OF_SEQUENCE], True),
        ([AUD, SEI], True),  # no picture: for the decoder to judge
        ([], True),
    ],
)
def test_is_reference(build, size: int | None, units: list[bytes], reference: bool) -> None:
    assert is_reference(build(units, size), size) is reference


@pytest.mark.parametrize("packet", [b"\0\0\0\x09\x01\x9e", b"\0\0\0\0", b"\0\0\0\x02\x01\x9e\0\0", b"\xff\xff\xff\xff\x01"])
def test_packets_that_do_not_add_up_are_left_to_the_decoder(packet: bytes) -> None:
    assert is_reference(packet, 4) is True


def test_length_size() -> None:
    assert length_size(bytes.fromhex("0164001fffe1001967")) == 4
    assert length_size(bytes.fromhex("0164001ffde1001967")) == 2
    assert length_size(bytes.fromhex("000000016764001fac")) is None
    assert length_size(None) is None
    assert length_size(b"") is None


@pytest.mark.parametrize(
    ("packets", "times"),
    [
        ([([IDR], 0), ([P_SLICE], 3), ([B_SLICE], 1), ([IDR], 4), ([P_SLICE], 5)], [0, 4]),
        ([([SPS, PPS, IDR], 0), ([P_SLICE], 1), ([SPS, PPS, IDR], 2)], [0, 2]),
        ([([SPS, PPS, IDR], 0), ([P_SLICE], 1), ([IDR], 2)], []),  # may need the sets before it
        ([([IDR], 0), ([PPS, P_SLICE], 1), ([IDR], 2)], []),
        ([([IDR], 0), ([P_SLICE], 5), ([IDR], 4)], []),  # shown before what comes before it
        ([([IDR], 3), ([P_SLICE], 1)], []),
        ([([P_SLICE], 0), ([IDR], 1)], []),
        ([([IDR], None)], []),
        ([([P_SLICE], 0)], []),
    ],
)
def test_clean_starts(packets: list[tuple[list[bytes], int | None]], times: list[int]) -> None:
    starts = CleanStarts(4)
    for units, pts in packets:
        starts.add(avcc(units, 4), pts)
    assert starts.times == times
