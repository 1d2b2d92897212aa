"""The columns of a face shard: one row is one face in one frame (or one whole frame with --crop frame)."""

import pyarrow as pa

# Hugging Face's image convention: `datasets`, DuckDB, Polars and pandas read it as it is.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

FACES = pa.schema(
    [
        ("corpus", pa.string()),
        ("video_id", pa.string()),  # corpus/name
        ("family_id", pa.string()),
        ("group_id", pa.string()),  # what a split must not cut
        ("part", pa.int32()),  # null outside DFDC's parts
        ("label", pa.string()),  # REAL, FAKE or null
        ("method", pa.string()),  # how the fake was made; null where unknown
        ("original", pa.string()),  # video_id of the original; null for reals
        ("frame", pa.int32()),  # index in presentation order
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("track_id", pa.int32()),
        ("clip_id", pa.int32()),  # null unless clips were sampled
        ("clip_position", pa.int32()),
        ("core", pa.bool_()),  # one of the n samples that an original and its fakes share
        ("box", pa.list_(pa.float32(), 4)),  # x y w h of the face, pixels of the frame; null for whole frames
        ("crop", pa.list_(pa.int32(), 4)),  # x y w h of what was cut out, pixels of the frame
        ("det_score", pa.float32()),
        ("detector", pa.string()),
        ("box_source", pa.string()),  # original, self; null for whole frames
        ("landmarks", pa.list_(pa.float32(), 10)),  # x y of right eye, left eye, nose, right and left mouth corner
        ("frame_width", pa.int32()),
        ("frame_height", pa.int32()),
        ("has_sound", pa.bool_()),  # whether `sound` is there; null unless --sound was asked for
        ("sound", pa.binary()),  # int16 little-endian, mono, around time_s (video/sound.py: RATE, WINDOW)
        ("image", IMAGE),
    ]
)

# Boxes that a detector found (of a clip the median, which cut all its frames), kept apart so that another crop or a denser sampling of the
# same frames need not detect again.
BOXES = pa.schema(
    [
        FACES.field(name)
        for name in (
            "video_id",
            "frame",
            "pts",
            "time_s",
            "core",
            "track_id",
            "box",
            "landmarks",
            "det_score",
            "detector",
            "frame_width",
            "frame_height",
        )
    ]
)
