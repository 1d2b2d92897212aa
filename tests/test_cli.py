"""The command line: options, exit codes, and errors without tracebacks."""

import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from dfdc_ray import cli


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command_fits_80_columns_and_ends_with_its_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 80] == []
    assert printed.rstrip().endswith(cli.EXAMPLES[name].strip().splitlines()[-1].strip())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_commands_that_can_be_given(name):
    for line in cli.EXAMPLES[name].replace("\\\n", " ").strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "dfdc-ray"
        assert cli.command_of(words) == name
        assert isinstance(cli.parse(name, words[len(name.split()) :]), cli.COMMANDS[name][0])


def test_overview_has_each_command_once_in_its_group_and_fits_80_columns(capsys):
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(cli.COMMANDS)
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if len(line) > 80] == []
    assert len([line for line in printed if line.startswith("  ")]) == len(cli.COMMANDS)


def test_the_first_word_of_some_commands_lists_them(capsys):
    assert cli.main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "bench scale" in printed
    assert "train  " not in printed.replace("bench train", "")


def test_an_unknown_command_is_wrong_usage(capsys):
    assert cli.main(["frobnicate"]) == 2
    assert "frobnicate" in capsys.readouterr().err


def test_a_missing_option_is_wrong_usage(capsys):
    assert cli.main(["index", "--corpus", "a"]) == 2


def test_trouble_is_one_message_without_a_traceback(tmp_path, capsys):
    assert cli.main(["index", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "i.parquet")]) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "Traceback" not in error


def test_debug_shows_where_it_came_from(tmp_path):
    with pytest.raises(Exception, match="nowhere"):
        cli.main(["index", "--debug", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "i.parquet")])


def test_corpus_may_be_given_several_times(tmp_path, small_corpus, shared):
    clips = shared / "data" / "dfdc_clips"
    out = tmp_path / "i.parquet"
    assert cli.main(["index", "--corpus", str(small_corpus), "--corpus", f"clips={clips}", "--out", str(out)]) == 0
    assert set(pq.read_table(out)["corpus"].to_pylist()) == {"drawn", "clips"}


def test_index_needs_neither_torch_nor_ray(tmp_path, small_corpus):
    program = (
        "import sys\nfrom dfdc_ray.cli import main\n"
        f"assert main(['index', '--corpus', {str(small_corpus)!r}, '--out', {str(tmp_path / 'i.parquet')!r}]) == 0\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
