"""Units of work from an index."""

import pyarrow as pa

from dfdc_ray.corpus.index import INDEX
from dfdc_ray.preprocess.plan import Unit, units


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INDEX)


def test_one_family_is_one_unit_with_its_original_first(index_row):
    (unit,) = units(table(index_row("a.mp4", original="z.mp4"), index_row("z.mp4"), index_row("b.mp4", original="z.mp4")))
    assert [v.video_id for v in unit.videos] == ["c/z.mp4", "c/a.mp4", "c/b.mp4"]


def test_unit_ids_do_not_depend_on_what_else_is_there(index_row):
    alone = units(table(index_row("z.mp4")))
    more = units(table(index_row("a.mp4", original="z.mp4"), index_row("y.mp4"), index_row("z.mp4")))
    assert alone[0].unit_id in {u.unit_id for u in more}


def test_names_that_look_alike_as_file_names_stay_apart(index_row):
    first, second = units(table(index_row("a b.mp4"), index_row("a_b.mp4")))
    assert first.unit_id != second.unit_id
    assert "/" not in first.unit_id
    assert "." not in first.unit_id


def test_fakes_of_an_absent_original_are_one_unit(index_row):
    (unit,) = units(table(index_row("a.mp4", original="z.mp4"), index_row("b.mp4", original="z.mp4")))
    assert [v.video_id for v in unit.videos] == ["c/a.mp4", "c/b.mp4"]


def test_units_survive_the_way_to_a_worker(index_row):
    (unit,) = units(table(index_row("a.mp4", uri=None)))
    assert Unit.from_json(unit.to_json()) == unit
