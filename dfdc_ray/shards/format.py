"""The version of all that preprocess and pack write: readers refuse another one. Apart from schema.py, which imports pyarrow."""

FORMAT_VERSION = 1
