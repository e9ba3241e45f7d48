"""Who may write to a store, told among processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefloop.data.storage.lease import Lease, LeaseLost, LeaseTaken
from prefloop.data.storage.objects import Objects
from tests.helpers.paths import ROOT

_PROCESS = """
import sys, time
from prefloop.data.storage.lease import Lease, LeaseLost, LeaseTaken
from prefloop.data.storage.objects import Objects
lease = Lease(Objects(sys.argv[1]), ttl=float(sys.argv[2]))
{body}
"""
_HOLD = _PROCESS.format(
    body="""
lease.take()
print("holds", flush=True)
input()
try:
    lease.require()
    lease.objects.put("written", b"late")
except LeaseLost as lost:
    print("lost:", lost, flush=True)
"""
)
_CONTEND = _PROCESS.format(
    body="""
while True:
    try:
        lease.take()
        print("won", lease.number, flush=True)
        input()  # as long as it lives, it owns
        break
    except LeaseTaken:
        if lease.objects.find("lock/00000002.json"):
            print("lost", flush=True)
            break
        time.sleep(0.05)
"""
)


def _start(script: str, address: str, ttl: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, address, str(ttl)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_of_four_who_wait_for_a_killed_holder_one_wins(bucket: str, elsewhere: bool) -> None:
    """On its machine they see that it is no more; elsewhere they wait for its beat."""
    address = f"{bucket}/run"
    holder = _start(_HOLD, address, 2)
    assert _line(holder) == "holds"
    contenders = [_start(_CONTEND, address, 2) for _ in range(4)]
    if elsewhere:
        claim = json.loads(Objects(address).get("lock/00000001.json"))
        Objects(address).put("lock/00000001.json", json.dumps(claim | {"kernel": "other"}).encode())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    try:
        said = sorted(_line(one) for one in contenders)
        assert said == ["lost", "lost", "lost", "won 2"]
    finally:
        for one in contenders:
            one.kill()
            one.wait()


def test_a_paused_holder_that_wakes_sees_that_it_lost(bucket: str) -> None:
    address = f"{bucket}/run"
    holder = _start(_HOLD, address, 1)
    assert _line(holder) == "holds"
    os.kill(holder.pid, signal.SIGSTOP)
    second = Lease(Objects(address), ttl=1)
    deadline = time.monotonic() + 60
    while not second.number and time.monotonic() < deadline:
        try:
            second.take()
        except LeaseTaken:
            time.sleep(0.1)
    os.kill(holder.pid, signal.SIGCONT)
    said, _ = holder.communicate("\n", timeout=60)
    assert "lost:" in said
    assert "another process took over" in said
    assert Objects(address).find("written") is None
    second.require()  # it is still its own


def test_a_second_one_is_told_who_works_there(bucket: str) -> None:
    first, second = (Lease(Objects(f"{bucket}/run")) for _ in range(2))
    first.take()
    with pytest.raises(LeaseTaken, match=rf"in use by process {os.getpid()} on .* since 2"):
        second.take()
    first.release()
    second.take()
    assert second.number == 2
    assert second.before is None


def test_who_comes_after_a_killed_one_knows_whose_work_it_takes_up(bucket: str) -> None:
    first, second = Lease(Objects(f"{bucket}/run"), ttl=0), Lease(Objects(f"{bucket}/run"), ttl=0)
    first.take()
    time.sleep(1.1)  # a store's clock has seconds
    second.take()
    assert second.before == first.nonce
    with pytest.raises(LeaseLost):
        first.beat()
    first.release()  # what is not its own any more, it does not end
    with pytest.raises(LeaseLost, match="process"):
        first.beat()
    second.beat()


def test_old_claims_go_and_the_last_ones_stay(bucket: str) -> None:
    objects = Objects(f"{bucket}/run")
    for _ in range(12):
        lease = Lease(objects)
        lease.take()
        lease.beat()
        lease.release()
    names = [one.name for one in objects.list("lock")]
    assert [name for name in names if name.endswith(".json")] == [
        f"{number:08d}.json" for number in range(4, 13)
    ]
    assert not [name for name in names if name < "00000004"]


def test_a_late_claim_of_a_number_that_went_is_none(bucket: str, tmp_path: Path) -> None:
    """Who listed long ago and was paused before its claim."""
    objects = Objects(f"{bucket}/run")
    objects.create("lock/00000003.json", b'{"nonce": "other"}')
    late = Lease(objects)
    late._listed = iter([{}, late._listed()]).__next__  # type: ignore[method-assign]
    with pytest.raises(LeaseTaken):
        late.take()
    assert late.objects.find("lock/00000001.json")
