"""What a running coordinator tells: lines for people or programs, and status.json beside them."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from credit_common.bundle import read_object
from credit_common.claim import told_epsilon
from credit_common.errors import CreditError
from credit_common.fetch import write_atomically
from credit_server.enrol import Registry
from credit_server.lock import CHECKPOINT

STATUS = "status.json"
Format = Literal["table", "json"]


class Reporter:
    """Tells each event once: a line on stderr, or a JSON object on stdout, and status.json.

    Args:
        home: The coordinator's folder.
        form: "table" for people, "json" for programs.
    """

    def __init__(self, home: Path, form: Format) -> None:
        self._path, self._form = home / STATUS, form
        self._status: dict[str, Any] = {"pid": os.getpid(), "started": _now()}

    def tell(self, event: str, **facts: Any) -> None:
        """Tell an event: listening, resumed, waiting, round, done or failed."""
        facts = {name: plain(value) for name, value in facts.items()}
        self._status |= {"state": event, "at": _now(), **facts}
        try:
            write_atomically(self._path, json.dumps(self._status, indent=1).encode())
        except OSError as error:
            raise CreditError(f"cannot write {self._path}: {error.strerror}") from None
        if self._form == "json":
            sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
            sys.stdout.flush()
        else:
            sys.stderr.write(_line(event, facts) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON has it: no nan, no infinity, no paths."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def read_status(home: Path) -> dict[str, Any]:
    """What is known of a coordinator's folder: holders, and the run that is or was.

    Returns:
        `holders`: by name node id, size class, expiry and whether revoked; `run`: the last status,
        with `alive`, and `unfinished` where `flower-server --resume` can go on with it, or None if
        there was no run.

    Raises:
        CreditError: If status.json cannot be read or is not one that a Reporter wrote.
    """
    holders = {
        name: {
            "node_id": holder.node_id,
            "size_class": holder.size_class,
            "not_after": holder.not_after,
            "revoked": holder.revoked,
        }
        for name, holder in Registry(home).holders().items()
    }
    path = home / STATUS
    run: dict[str, Any] | None = None
    if path.exists():
        run = read_object(path)
        try:
            _last(run)
            ended = run["state"] in ("done", "failed")
            run["alive"] = not ended and _alive(run["pid"])
            run["unfinished"] = not run["alive"] and (home / CHECKPOINT).exists()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise CreditError(f"{path} is damaged: it is not a status of flower-server") from None
    return {"holders": holders, "run": run}


def show_status(status: Mapping[str, Any]) -> str:
    """The status as text."""
    lines = [f"{len(status['holders'])} holders enrolled"]
    for name, holder in sorted(status["holders"].items()):
        until = "revoked" if holder["revoked"] else f"certificate until {holder['not_after'][:10]}"
        lines.append(f"  {name}: node {holder['node_id']}, {holder['size_class']}, {until}")
    run = status["run"]
    if run is None:
        return "\n".join([*lines, "no run yet: flower-server starts one"])
    lines.append(f"{'running' if run['alive'] else 'not running'}; {_last(run)}")
    if run["unfinished"]:
        lines.append("the run is not over: flower-server --resume goes on with it")
    return "\n".join(lines)


def _last(run: Mapping[str, Any]) -> str:
    return f"last at {run['at']}: {_line(run['state'], run)}"


def _line(event: str, facts: Mapping[str, Any]) -> str:
    if event == "listening":
        return (
            f"{facts['federation']} (contract {facts['contract_digest'][:12]}) listens on "
            f"{facts['address']}; {facts['enrolled']} holders enrolled"
        )
    if event == "resumed":
        return f"goes on after round {facts['round']} of {facts['rounds']}"
    if event == "waiting":
        missing = ", ".join(facts["missing"]) or "nobody"
        return (
            f"waiting for holders: {facts['connected']} of {facts['enrolled']} enrolled are here, "
            f"at least {facts['minimum']} are needed; missing: {missing}"
        )
    if event == "round":
        # All figures are in the status; a line has room for the first two.
        figures = "  ".join(
            f"{name} {'nan' if value is None else format(value, '.4f')}"
            + _between(facts.get("intervals", {}).get(name))
            for name, value in list(facts["figures"].items())[:2]
        )
        spent = "none" if facts["epsilon"] is None else told_epsilon(facts["epsilon"], 2)
        return (
            f"round {facts['round']:>3}/{facts['rounds']}  {facts['holders']} holders  "
            f"ε {spent}  {facts['seconds']:.1f} s  {figures}".rstrip()
            + _not_used(facts.get("set_aside", {}))
        )
    if event == "done":
        return f"done: {facts['rounds']} rounds in {facts['seconds']:.0f} s; {facts['release']}"
    return f"{event}: {facts.get('reason', '')}"


def _between(ends: Sequence[float | None] | None) -> str:
    """An interval behind its figure; nothing where there is none."""
    low, high = ends or (None, None)
    return "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"


def _not_used(set_aside: Mapping[str, Mapping[str, int]]) -> str:
    """Whose answers did not count, and why, at the end of a round's line."""
    told = [
        f"{name} ({', '.join(why if n == 1 else f'{why} {n} times' for why, n in reasons.items())})"
        for name, reasons in set_aside.items()
    ]
    return f"  not used: {', '.join(told)}" if told else ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
