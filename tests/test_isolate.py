"""A function in a fresh process: its result, its exception, its crash and its time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from arch_bench.config.schema import ConfigError
from arch_bench.runtime import answer, joblog, workers

T = TypeVar("T")


def add(a: int, b: int) -> tuple[int, int]:
    return a + b, os.getpid()


def refuse() -> None:
    raise ConfigError("d_model=3: no")


def hold_a_module() -> None:
    error = ValueError("no choices")
    error.module = os  # type: ignore[attr-defined]
    raise error


def die(how: int) -> None:
    os.kill(os.getpid(), how)


def leave() -> None:
    os._exit(7)


def hang() -> None:
    time.sleep(600)


def test_the_result_comes_from_another_process() -> None:
    total, pid = workers.call(add, 2, 3, time_limit_s=60)
    assert total == 5
    assert pid != os.getpid()
    assert workers.call(add, 2, 3, time_limit_s=60)[1] != pid


def test_the_parent_alone_hears_what_reaches_the_whole_group() -> None:
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR2):
        assert workers.call(signal.getsignal, signum, time_limit_s=60) == signal.SIG_IGN, signum
    assert workers.call(signal.getsignal, signal.SIGTERM, time_limit_s=60) == signal.SIG_DFL


def test_an_exception_crosses_over_with_its_traceback() -> None:
    with pytest.raises(ConfigError, match="d_model=3: no") as caught:
        workers.call(refuse, time_limit_s=60)
    assert "in refuse" in "".join(caught.value.__notes__)


def test_an_exception_that_cannot_be_packed_arrives_as_its_text() -> None:
    with pytest.raises(RuntimeError, match="ValueError: no choices") as caught:
        workers.call(hold_a_module, time_limit_s=60)
    assert "in hold_a_module" in caught.value.__notes__[0]


def test_a_crash_is_told_by_its_signal() -> None:
    with pytest.raises(workers.Crashed, match=r"SIGKILL.*out of memory"):
        workers.call(die, signal.SIGKILL, time_limit_s=60)
    with pytest.raises(workers.Crashed, match="SIGSEGV"):
        workers.call(die, signal.SIGSEGV, time_limit_s=60)
    with pytest.raises(workers.Crashed, match="exit code 7"):
        workers.call(leave, time_limit_s=60)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (200, "by itself with exit code 200"),
        (255, "by itself with exit code 255"),
        (0, "by itself with exit code 0"),
        (-9, "by SIGKILL (often: out of memory)"),
        (137, "by SIGKILL (often: out of memory)"),
        (-40, "by signal 40"),
        (None, "did not end"),
    ],
)
def test_every_ending_has_words(code: int | None, words: str) -> None:
    assert answer.ending(code).endswith(words)


class Two(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a} and {b}")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Unreadable:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return refuse, ()


def fail(kind: str) -> object:
    """Give an answer that is hard to carry."""
    match kind:
        case "two arguments":
            raise Two("this", "that")
        case "mute":
            raise Mute
        case "large":
            raise ValueError("\N{SNOWMAN}" * 10**7)
        case "a function":
            return lambda: None
        case "unreadable":
            return Unreadable()
        case "exit":
            sys.exit(255)
        case "interrupt":
            raise KeyboardInterrupt
    raise GeneratorExit("\udc80")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("two arguments", "Two: this and that"),
        ("mute", r"Mute: \(its text cannot be read: RuntimeError\)"),
        ("large", r"ValueError: .* characters \.\.\."),
        ("a function", "lambda"),
        ("unreadable", "no"),
        ("exit", "exit code 255"),
        ("interrupt", "KeyboardInterrupt"),
        ("other", "GeneratorExit"),
    ],
)
def test_any_answer_that_cannot_be_carried_is_an_exception(kind: str, words: str) -> None:
    with pytest.raises(Exception, match=f"(?s){words}") as caught:
        workers.call(fail, kind, time_limit_s=60)
    assert len(str(caught.value)) < 2 * answer.LONGEST
    assert workers.call(add, 1, 2, time_limit_s=60)[0] == 3, "the next one runs"


def leave_a_child(note: str) -> None:
    """End while a process of its own holds the connection open."""
    if os.fork():
        os._exit(7)
    report_and_hang(note)


def test_what_a_dead_process_forked_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(workers.Crashed, match="exit code 7"):
        workers.call(leave_a_child, str(tmp_path / "pid"), time_limit_s=60)
    grandchild = wait_for(lambda: int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0)
    os.kill(grandchild, signal.SIGKILL)


def kill_the_server() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


@pytest.mark.slow
def test_a_server_that_dies_is_started_again() -> None:
    with pytest.raises(workers.Crashed):
        workers.call(kill_the_server, time_limit_s=60)
    assert workers.call(add, 1, 2, time_limit_s=60)[0] == 3


def test_a_server_that_is_about_to_be_dead_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [ConnectionRefusedError, EOFError, ConnectionResetError]
    started = []

    class Process:
        def start(self) -> None:
            if failures:
                raise failures.pop()
            started.append(self)

    monkeypatch.setattr(workers, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(workers.server, "start", lambda: None)
    workers._start(Process())
    assert len(started) == 1
    failures += [ConnectionRefusedError] * 4
    with pytest.raises(ConnectionRefusedError):
        workers._start(Process())


def flood() -> None:
    line = "x" * 2**16
    for _ in range(300):
        print(line)
    print("the end", flush=True)


def test_a_log_stays_small(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "cell.log"
    workers.call(flood, time_limit_s=60, setting=workers.Setting(log=log))
    assert joblog.KEPT < log.stat().st_size <= joblog.LARGEST
    assert log.read_text().count("[... cut here") == 1


def refuse_to_end(note: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report_and_hang(note)


def leave_when_asked() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.raise_signal(signal.SIGTERM)


def test_a_process_may_end_in_order_when_it_is_asked_to() -> None:
    with pytest.raises(workers.Crashed, match="ended by SIGTERM"):
        workers.call(leave_when_asked, time_limit_s=60)


def test_a_time_limit_ends_the_process() -> None:
    with pytest.raises(workers.TimedOut, match=r"stopped after 0\.5 s"):
        workers.call(hang, time_limit_s=0.5)


_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from arch_bench.runtime import answer, joblog, workers
import test_isolate
if __name__ == "__main__":
    workers.call(getattr(test_isolate, sys.argv[3]), sys.argv[2], time_limit_s=600)
"""


def report_and_hang(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    hang()


def parent_and_child(function: Callable[[str], None], note: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-c", _PARENT, str(Path(__file__).parent), str(note), function.__name__]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    return parent, wait_for(lambda: int(note.read_text() or 0) if note.exists() else 0)


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    parent, child = parent_and_child(report_and_hang, tmp_path / "pid")
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not is_alive(child))


@pytest.mark.slow
def test_a_second_ctrl_c_insists(tmp_path: Path) -> None:
    parent, child = parent_and_child(refuse_to_end, tmp_path / "pid")
    parent.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        parent.wait(timeout=2)
    assert is_alive(child)
    parent.send_signal(signal.SIGINT)
    parent.wait(timeout=workers.GRACE_S / 2)
    assert wait_for(lambda: not is_alive(child))


def wait_for(condition: Callable[[], T], seconds: float = 60.0) -> T:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answer_late(rank: int, seconds: float) -> int:
    time.sleep(seconds)
    return rank


def one_dies(rank: int) -> None:
    if rank:
        die(signal.SIGKILL)
    time.sleep(0.5)
    raise workers.LostPeer("rank 0 waited in vain")


def one_hangs(rank: int) -> None:
    if rank:
        hang()
    raise ValueError("rank 0 knows why")


def test_several_give_the_answer_of_the_first() -> None:
    assert workers.call_together(answer_late, [(0, 0.5), (1, 0.0)], time_limit_s=60) == 0


def test_the_first_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(workers.Crashed, match=r"rank 1: the process was ended by SIGKILL"):
        workers.call_together(one_dies, [(0,), (1,)], time_limit_s=60)
    monkeypatch.setattr(workers, "SHORT_S", 0.1)
    with pytest.raises(ValueError, match="rank 0 knows why"):
        workers.call_together(one_hangs, [(0,), (1,)], time_limit_s=60)
