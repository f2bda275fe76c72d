"""One run under faults: processes, lines between them, and a hand that kills and starts again."""

import json
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from credit_common.bundle import read_bundle
from credit_common.errors import CreditError
from credit_simulations.chaos.door import NEVER, Calls
from credit_simulations.chaos.ground import Ground
from credit_simulations.chaos.proxy import Proxy
from credit_simulations.chaos.schedule import Fault
from credit_simulations.processes import Children, Event

SERVER = "flower-server"
HARNESS = "chaos"
SLOW_SECONDS = 3.0
"""How long a line stays slow."""
CHECKPOINT, RELEASES = "run.checkpoint", "releases"


@dataclass(frozen=True, kw_only=True)
class Liar:
    """Which holder lies, and how.

    Attributes:
        name: Of the holder.
        lies: Kinds (see `liar`).
        seed: Of which lie is told when.
    """

    name: str
    lies: Sequence[str]
    seed: int = 0


@dataclass(kw_only=True)
class Trace:
    """What was seen of a run.

    Attributes:
        told: What the processes said, in the order in which it arrived; deaths among it.
        ended: Whether the coordinator and all holders came to their end.
        reason: Why not.
        left_out: Holders that the end of the run did not reach within the grace time.
        struck: How often each kind of fault struck.
        wall, cpu: Seconds; CPU of all processes of the run.
    """

    told: list[Event] = field(default_factory=list)
    ended: bool = False
    reason: str = ""
    left_out: list[str] = field(default_factory=list)
    struck: "Counter[str]" = field(default_factory=Counter)
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def release(self) -> Path | None:
        """Folder of the coordinator's release."""
        for event in self.told:
            if event.who == SERVER and event.what == "done":
                return Path(str(event.line["release"]))
        return None

    def of(self, who: str, what: str) -> list[Mapping[str, Any]]:
        """Lines of one child and one event."""
        return [event.line for event in self.told if (event.who, event.what) == (who, what)]


class Run:
    """A run that is on its way; `watchers` may strike it (see `go`).

    Args:
        ground: Where.
        liar: None where all are honest.
        seed: Of sampling, without privacy only.
        calls: Counters of processes that end themselves at a chosen call, by name. `ends` has the
            call for the next life of each.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        liar: Liar | None = None,
        seed: int = 0,
        calls: Mapping[str, Calls] | None = None,
    ) -> None:
        self.ground, self._liar, self._seed = ground, liar, seed
        self.calls = dict(calls or {})
        self.ends: dict[str, int] = {}
        self.trace = Trace()
        self.record = ground.home / "door"
        self._address = read_bundle(next(ground.coordinator.glob("*.bundle"))).address
        self._environment = {"XDG_STATE_HOME": str((ground.home / "state").absolute())}
        self._timers: list[threading.Timer] = []
        self._over = False
        self._down: set[str] = set()
        self.round = -1

    def go(self, limit: float, watchers: Sequence[Callable[["Run", Event], None]] = ()) -> Trace:
        """Run until all have ended, or one has failed, or the time is up.

        Args:
            limit: Seconds of wall time.
            watchers: Called with each event, in this thread.
        """
        start, used = time.monotonic(), _children_cpu()
        names = list(self.ground.shards)
        try:
            with (
                Proxy(self._address, names) as self.proxy,
                Children(self._environment, mortal=True) as self.children,
            ):
                self._start(SERVER)
                for name in names:
                    self._start(name)
                self.later(limit, "overtime")
                for event in self.children.events():
                    self._hear(event)
                    for watch in watchers:
                        watch(self, event)
                self.trace.ended = self._over
                if not self._over:
                    self.trace.reason = "the coordinator did not come to its end"
        except CreditError as error:
            self.trace.reason = str(error)
        finally:
            for timer in self._timers:
                timer.cancel()
        self.trace.wall = time.monotonic() - start
        self.trace.cpu = _children_cpu() - used
        return self.trace

    def later(self, seconds: float, what: str) -> None:
        """Have an event of the harness come after a time."""
        timer = threading.Timer(seconds, lambda: self.children.post(HARNESS, what))
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def strike(self, fault: Fault) -> None:
        """Let a fault happen now. Nothing is killed that is dead or done, or once all is over."""
        if self._over:
            return
        names = list(self.ground.shards)
        name = SERVER if fault.holder < 0 else names[fault.holder]
        if fault.kind in ("kill-server", "kill-holder"):
            if name in self._down or self.trace.of(name, "done"):
                return
            self._down.add(name)
            self.children.kill(name)
            self.children.post(name, "killed")
        elif fault.kind == "drop":
            self.proxy.drop(name)
        elif fault.kind == "delay":
            self.proxy.delay(name, fault.amount, SLOW_SECONDS)
        else:
            self.proxy.truncate(name, int(fault.amount))
        self.trace.struck[fault.kind] += 1

    def _hear(self, event: Event) -> None:
        if event.who == HARNESS:
            if event.what == "overtime":
                raise CreditError("the time was up")
            if event.what == "grace is over":
                self._leave_out()
            return
        self.trace.told.append(event)
        if event.what == "killed":
            self._again(event.who)
        elif event.who == SERVER:
            if event.what in ("round", "resumed"):
                self.round = max(self.round, int(event.line["round"]))
            elif event.what == "done":
                self._end()
        elif event.what == "connected" and self.round < 0:
            connected = {e.who for e in self.trace.told if e.what == "connected"}
            if connected == set(self.ground.shards):
                self.round = 0

    def _end(self) -> None:
        self._over = True
        self.later(self.ground.contract.federation.grace_seconds, "grace is over")

    def _leave_out(self) -> None:
        """Nobody is left who would tell the others of the end."""
        done = {event.who for event in self.trace.told if event.what == "done"}
        self.trace.left_out = [name for name in self.ground.shards if name not in done]
        for name in self.trace.left_out:
            self.children.kill(name)

    def _again(self, name: str) -> None:
        """Start what was killed, as its operator would."""
        self._down.discard(name)
        if self.trace.of(name, "done"):
            return  # it was killed between its last word and its end
        if name != SERVER:
            if name not in self.trace.left_out:
                self._start(name)
            return
        kept = (self.ground.coordinator / CHECKPOINT).exists()
        releases = sorted((self.ground.coordinator / RELEASES).glob("[0-9]*"))
        if kept:
            self._start(SERVER, "--resume")
        elif releases:  # it died between its last act and its last word
            said = {"event": "done", "release": str(releases[-1])}
            self.trace.told.append(Event(who=SERVER, what="done", line=said))
            self._end()
        else:  # it died before there was anything to go on with
            self._start(SERVER)

    def _start(self, name: str, *more: str) -> None:
        contract, shards = self.ground.contract, self.ground.shards
        open_run = () if contract.privacy.private else ("--allow-no-privacy",)
        child = ("--threads", "1", "--format", "json", "--until-stdin-closes", *more, *open_run)
        counted: tuple[str, ...] = ()
        if name in self.calls:
            self.calls[name].anew(self.ends.pop(name, NEVER))
            counted = ("--calls", str(self.ground.home / f"{name}.calls"))
        if name == SERVER:
            home = self.ground.coordinator
            watched = ("--record", str(self.record), *counted, SERVER)
            words = [*watched, "--home", str(home), "--listen", self._address, *child]
            self._launch(name, "door", words, home)
            return
        home, server = self.ground.home / name, self.proxy.addresses[name]
        if self._liar is not None and name == self._liar.name:
            words = ["--home", str(home), "--server", server, "--seed", str(self._liar.seed)]
            words += ["--until-stdin-closes", "--lies", *self._liar.lies]
            self._launch(name, "liar", words, home)
            return
        words = [*counted, "credit-client", "--home", str(home), "--shard", str(shards[name])]
        words += ["--server", server, *child]
        if not contract.privacy.private:
            words += ["--seed", str(100 * self._seed + list(shards).index(name))]
        self._launch(name, "door", words, home)

    def _launch(self, name: str, module: str, words: list[str], home: Path) -> None:
        start = [sys.executable, "-P", "-m", f"credit_simulations.chaos.{module}"]
        log = home / (f"{SERVER}.log" if name == SERVER else "credit-client.log")
        self.children.start(name, [*start, *words], log)


class Weather:
    """Strikes a run with the faults of a schedule; a watcher of `Run.go`."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._waiting = list(faults)
        self._armed: dict[str, Fault] = {}

    def __call__(self, run: Run, event: Event) -> None:
        """Arm what is due by now, and let happen what was armed."""
        fault = self._armed.pop(event.what, None) if event.who == HARNESS else None
        if fault is not None:
            run.strike(fault)
        while self._waiting and self._waiting[0].after <= run.round:
            fault = self._waiting.pop(0)
            what = f"fault {len(self._waiting)}"
            self._armed[what] = fault
            run.later(fault.pause, what)


def door_lines(folder: Path) -> list[dict[str, Any]]:
    """What the witness at the coordinator's door wrote (see `door`)."""
    path = folder / "door.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _children_cpu() -> float:
    """CPU seconds of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
