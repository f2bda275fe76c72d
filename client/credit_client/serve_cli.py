"""`credit-client serve`: a release as an HTTP service of the holder's own.

    credit-client serve --release DIR                           on this machine alone, port 8000
    credit-client serve --release DIR --host 0.0.0.0 --token-file FILE --tls-cert ... --tls-key ...

It runs until SIGTERM (exit code 0) or Ctrl-C (130); SIGHUP has it look for a newer release, and
read the tokens anew, at once. torch is loaded by its workers alone.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from credit_common.command import DEVICES, FORMATS
from credit_common.errors import CreditError
from credit_common.extras import install

_NUMBERS: tuple[tuple[str, type, str, str], ...] = (
    ("rate", float, "N", "requests a second of one client, 0 for no limit (200)"),
    ("burst", int, "N", "requests of one client at once (400)"),
    ("max-body", int, "BYTES", "of a request (2097152)"),
    ("max-batch", int, "N", "records of a request (1000)"),
    ("max-waiting", int, "N", "rows that wait for a worker's model; more are refused (4000)"),
    ("deadline", float, "SECONDS", "that a request waits for its score (10)"),
    ("header-seconds", float, "SECONDS", "for a request's head to arrive (10)"),
    ("body-seconds", float, "SECONDS", "for a request's body to arrive (30)"),
    ("grace-seconds", float, "SECONDS", "for running requests at the end (30)"),
)


def add_serve(commands: Any) -> None:
    """Add the command to the parser's."""
    serve = commands.add_parser("serve", help="score over HTTP, at the holder")
    serve.add_argument(
        "--release",
        required=True,
        type=Path,
        metavar="DIR",
        help="a release, or a folder of them (001, 002, ...): newer ones are taken up",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0 for a free one (8000)")
    serve.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    told = serve.add_argument_group("scores")
    told.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="score with this export, not with PyTorch; {} is the name of the release's folder",
    )
    told.add_argument(
        "--calibration", type=Path, metavar="FILE", help="as calibrate wrote it; {} as above"
    )
    told.add_argument(
        "--approve-below", type=float, metavar="PD", help="cut-off (the contract's decision)"
    )
    told.add_argument("--decline-from", type=float, metavar="PD", help="cut-off")
    access = serve.add_argument_group("access")
    access.add_argument(
        "--token-file", type=Path, metavar="FILE", help="NAME TOKEN, one a line; chmod 600"
    )
    access.add_argument("--tls-cert", type=Path, metavar="FILE", help="the service's, in PEM")
    access.add_argument("--tls-key", type=Path, metavar="FILE")
    access.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="whose certificates clients must have"
    )
    access.add_argument(
        "--no-access-control", action="store_true", help="let everybody in who reaches the address"
    )
    access.add_argument(
        "--plain-http", action="store_true", help="no TLS here: a proxy in front does it"
    )
    limits = serve.add_argument_group("limits")
    for name, kind, metavar, words in _NUMBERS:
        limits.add_argument(f"--{name}", type=kind, metavar=metavar, help=words)
    serve.add_argument(
        "--docs", action="store_true", help="a page at /docs; its code comes from elsewhere"
    )
    serve.add_argument(
        "--access-log", action="store_true", help="log each request: route, status, time, client"
    )
    # Suppressed defaults: the parser of the whole command has them already.
    serve.add_argument("--device", choices=DEVICES, default=argparse.SUPPRESS)
    serve.add_argument(
        "--threads", type=int, metavar="N", default=argparse.SUPPRESS, help="of each worker"
    )
    serve.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    serve.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        from credit_client.service.supervisor import supervise
    except ModuleNotFoundError as error:
        what = f"serving needs {error.name}: {install('score')}"
        raise CreditError(what) from None
    from credit_client.service.settings import Settings, Tls

    tls = (options.tls_cert, options.tls_key)
    if any(tls) != all(tls) or (options.tls_client_ca and not all(tls)):
        raise CreditError("--tls-cert and --tls-key belong together; --tls-client-ca needs both")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = options.workers or cores or 1
    given = {name: getattr(options, name) for name in (n.replace("-", "_") for n, *_ in _NUMBERS)}
    settings = Settings(
        release=options.release,
        host=options.host,
        port=options.port,
        workers=workers if options.workers is None else options.workers,
        threads=options.threads or max(1, (cores or 1) // workers),
        device="cpu" if options.device == "auto" else options.device,
        export=options.export,
        calibration=options.calibration,
        approve_below=options.approve_below,
        decline_from=options.decline_from,
        token_file=options.token_file,
        tls=Tls(certificate=tls[0], key=tls[1], client_ca=options.tls_client_ca)
        if all(tls)
        else None,
        no_access_control=options.no_access_control,
        plain_http=options.plain_http,
        docs=options.docs,
        access_log=options.access_log,
        **{name: value for name, value in given.items() if value is not None},
    )
    return supervise(settings, _tell_json if options.format == "json" else _tell_text)


def _tell_json(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def _tell_text(event: str, **facts: Any) -> None:
    words = f"{facts['url']}, {facts['workers']} workers, release {facts['release'][:12]}"
    print(f"{event}: {words}", file=sys.stderr, flush=True)
