"""metadata.json and groups.csv: what is right is read, what is wrong is named."""

import json

import pytest

from dfdc_ray.corpus.metadata import Listing, parse_groups, parse_metadata
from dfdc_ray.errors import UserError

WHERE = "/data/dfdc_train_part_7/metadata.json"


def test_what_dfdc_ships_is_read() -> None:
    document = {
        "fake.mp4": {"label": "FAKE", "split": "train", "original": "real.mp4", "method": "swap"},
        "real.mp4": {"label": "REAL", "split": "train", "original": None},
        "other.mp4": {"label": "REAL", "split": "train"},
        "absent.mp4": {"label": "FAKE", "split": "train", "original": "elsewhere.mp4"},
    }
    expected = {
        "fake.mp4": Listing("FAKE", "real.mp4", "swap"),
        "real.mp4": Listing("REAL", None, None),
        "other.mp4": Listing("REAL", None, None),
        "absent.mp4": Listing("FAKE", "elsewhere.mp4", None),
    }
    text = json.dumps(document)
    assert parse_metadata(text.encode(), WHERE) == expected
    assert parse_metadata(text.encode("utf-8-sig"), WHERE) == expected
    assert parse_metadata(b"{}", WHERE) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the JSON"),
        ('{"a.mp4": {"label": "REAL"}', "not the JSON"),
        ('{"a.mp4": {"label": "REAL"}, "a.mp4": {"label": "FAKE"}}', "'a.mp4' is there twice"),
        ('{"a.mp4": {"label": "REAL", "label": "FAKE"}}', "'label' is there twice"),
        ("[" * 100_000, "not the JSON"),
        ("[]", "found a list"),
        ("null", "found null"),
        ('{"a.mp4": "REAL"}', "entry 'a.mp4' must be an object, found a string"),
        ('{"a.mp4": null}', "entry 'a.mp4' must be an object, found null"),
        ('{"a.mp4": {}}', "entry 'a.mp4' has the label None"),
        ('{"a.mp4": {"label": "real"}}', "entry 'a.mp4' has the label 'real'"),
        ('{"a.mp4": {"label": ["REAL"]}}', r"entry 'a.mp4' has the label \['REAL'\]"),
        ('{"a.mp4": {"label": "FAKE", "original": 3}}', "entry 'a.mp4' has the original 3"),
        ('{"a.mp4": {"label": "FAKE", "original": "../b.mp4"}}', "entry 'a.mp4' has the original '../b.mp4'"),
        ('{"a.mp4": {"label": "FAKE", "original": ""}}', "entry 'a.mp4' has the original ''"),
        ('{"a.mp4": {"label": "FAKE", "original": "a.mp4"}}', "'a.mp4' names 'a.mp4' as its original, which is itself FAKE"),
        ('{"a.mp4": {"label": "FAKE", "original": "b.mp4"}, "b.mp4": {"label": "FAKE"}}', "'a.mp4' names 'b.mp4' .* itself FAKE"),
        ('{"a.mp4": {"label": "REAL", "original": "b.mp4"}}', "entry 'a.mp4' is REAL and names an original"),
        ('{"a.mp4": {"label": "FAKE", "method": 1}}', "entry 'a.mp4' has the method 1"),
        ('{"../a.mp4": {"label": "REAL"}}', "entry '../a.mp4' is not the name of a file"),
        ('{"..": {"label": "REAL"}}', r"entry '\.\.' is not the name of a file"),
        ('{"b\\\\a.mp4": {"label": "REAL"}}', "is not the name of a file"),
        ('{"a\\u0000.mp4": {"label": "REAL"}}', "is not the name of a file"),
        ('{"a\\ud800.mp4": {"label": "REAL"}}', "is not the name of a file"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_entry(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_metadata(text.encode(), WHERE)
    assert WHERE in str(caught.value)


def test_json_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(UserError, match="part_7"):
        parse_metadata('{"ü.mp4": {"label": "REAL"}}'.encode("latin-1"), WHERE)


def test_groups_are_read() -> None:
    assert parse_groups(b'video,group\r\na.mp4,1\r\n"b,c.mp4",actor 2\r\n\r\na.mp4,1\r\n', "groups.csv") == {
        "a.mp4": "1",
        "b,c.mp4": "actor 2",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be"),
        ("name,group\na.mp4,1\n", "first line must be `video,group`, found 'name,group'"),
        ("video,group\na.mp4\n", "row 2"),
        ("video,group\na.mp4,1\nb.mp4,\n", "row 3"),
        ("video,group\na.mp4,1,2\n", "row 2"),
        ("video,group\na.mp4,1\na.mp4,2\n", "row 3 puts 'a.mp4' in group '2'; an earlier row says '1'"),
        ('video,group\n"a.mp4,1\n', "not a CSV"),
    ],
)
def test_groups_that_are_wrong_are_named_with_file_and_row(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_groups(text.encode(), "/data/groups.csv")
    assert "/data/groups.csv" in str(caught.value)
