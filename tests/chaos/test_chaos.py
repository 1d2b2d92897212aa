"""Exactly once, proved by violence (chaos.py): killed, starved and lied to at random moments, a run ends as if nothing had been.

With `-s` they print what was done:    pytest -m slow -s tests/chaos/test_chaos.py
"""

import random
import subprocess
import time
from pathlib import Path

import pytest
from chaos.chaos import BLOWS, ENDS, Storm, Tally, compare
from chaos.nodes import cluster, nothing_left
from fault_proxy import FAULTS, FaultProxy
from helpers import preprocess_command, upload
from small_disk import small_disk

pytestmark = [pytest.mark.ray]

SEED = 20260


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> tuple[Path, Path]:
    """A corpus of 20 families, and what an undisturbed run makes of it."""
    from dfdc_ray.demo.corpus import write_corpus

    corpus, out = tmp_path_factory.mktemp("larger") / "drawn", tmp_path_factory.mktemp("undisturbed")
    write_corpus(corpus, families=20, seed=2, seconds=1.0, test_families=4)
    with nothing_left():
        done = subprocess.run(preprocess_command(corpus, out), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return corpus, out


def weather(storm: Storm, blows: tuple[str, ...], *, kills: int, seconds: float) -> bool:
    """Rounds with random blows until the output is done, or the kills are reached; True when it is done."""
    dice, deadline = storm.random, time.monotonic() + seconds
    while storm.tally.kills < kills:
        assert time.monotonic() < deadline, f"too slow: {storm.tally}"
        end = dice.choice([*ENDS, None])
        if storm.round(dice.choices(blows, k=dice.randint(2, 6)), end):
            return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_fifty_kills_and_a_full_disk(larger, tmp_path):
    """On a disk of its own, which now and then is full. One output after the other, until there were enough kills."""
    corpus, undisturbed = larger
    tally, dice = Tally(), random.Random(SEED)
    started = time.monotonic()
    with small_disk(tmp_path / "disk", size=256 * 2**20) as disk, cluster(workers=2, cpus=2) as nodes:
        outputs = 0
        while tally.kills < 50 or tally.rounds < 10:
            outputs += 1
            out = f"{disk.path}/{outputs}"
            storm = Storm(nodes, 2, preprocess_command(corpus, out), out, tmp_path / "log", dice, tally, disk=disk)
            weather(storm, BLOWS, kills=50, seconds=1800)
            assert "Nothing to do" in storm.calm() + storm.calm()
            compare(str(undisturbed), out, tally)
    print(f"{tally}; {time.monotonic() - started:.0f} s")
    assert set(tally.blows) == {*BLOWS, *ENDS}


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(1200)
def test_kills_on_a_bad_day_of_s3(larger, s3, tmp_path):
    """On S3 behind a proxy: every kind of fault, answers that come too late among them."""
    corpus, undisturbed = larger
    upload(corpus, f"{s3.uri}/drawn")
    tally, dice = Tally(), random.Random(SEED + 1)
    started = time.monotonic()
    faults = FAULTS + tuple(fault for fault in FAULTS if fault != "late") * 3
    with FaultProxy(s3.endpoint, rate=0.05, seed=SEED, faults=faults) as proxy:
        variables = s3.server.variables | {"AWS_ENDPOINT_URL": proxy.endpoint}
        with cluster(workers=2, cpus=2, variables=variables) as nodes:
            out = f"{s3.uri}/out"
            storm = Storm(nodes, 2, preprocess_command(f"{s3.uri}/drawn", out), out, tmp_path / "log", dice, tally)
            weather(storm, tuple(blow for blow in BLOWS if blow != "disk full"), kills=20, seconds=900)
            storm.calm()
    compare(str(undisturbed), f"{s3.uri}/out", tally)
    requests, faulted = sum(proxy.requests.values()), dict(proxy.faulted)
    print(f"{tally}; S3: {requests} requests, {sum(faulted.values())} faults {faulted}; {time.monotonic() - started:.0f} s")
    assert set(proxy.faulted) == set(FAULTS)
