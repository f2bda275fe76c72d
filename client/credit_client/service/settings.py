"""What a service is told when it starts; checked once, the same in every worker."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from credit_common.decision import Decision
from credit_common.errors import CreditError


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files of the service's own certificate (PEM), and the CA of its clients' for mutual TLS."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a release is served.

    Attributes:
        release: A release, or a folder of releases (001, 002, ...).
        host, port: Where it listens; port 0 takes a free one.
        workers: Processes; `threads` of the model in each.
        device: As for `device_of`.
        export: An export to score by, not by PyTorch; {} in it is the name of the release's folder.
        calibration: The holder's own, of the release; {} as in `export`. None for none.
        approve_below, decline_from: The holder's own cut-offs; None for the contract's.
        token_file: Bearer tokens, see `access`; None asks for none.
        tls: None for plain HTTP.
        no_access_control: Whether an address that others reach may be served to everybody.
        plain_http: Whether records and tokens may cross a network as they are.
        rate: Requests a second of one client, over all workers; 0 for no limit.
        burst: Requests of one client at once.
        max_body: Bytes of a request's body.
        max_batch: Records of a request.
        max_waiting: Rows that wait for the model of a worker, a record's fields too where reasons
            are asked for; what would be more is refused.
        deadline: Seconds that a request waits for its score.
        header_seconds, body_seconds: Longest time for a request's head and body to arrive; an
            answer must be read in as long as a body, and 5 seconds.
        grace_seconds: Longest time that running requests are given at the end.
        docs: Whether /docs is served; that page loads its code from elsewhere.
        access_log: Whether each request is a line in the log: method, route, status, time, client.
    """

    release: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    export: Path | None = None
    calibration: Path | None = None
    approve_below: float | None = None
    decline_from: float | None = None
    token_file: Path | None = None
    tls: Tls | None = None
    no_access_control: bool = False
    plain_http: bool = False
    rate: float = 200.0
    burst: int = 400
    max_body: int = 2 << 20
    max_batch: int = 1000
    max_waiting: int = 4000
    deadline: float = 10.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    grace_seconds: float = 30.0
    docs: bool = False
    access_log: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise CreditError(f"{flag} {value}: must be between {low:g} and {high:g}")
        waiting, batch = self.max_waiting, self.max_batch
        if waiting < batch:
            raise CreditError(f"--max-waiting {waiting}: must be at least --max-batch {batch}")
        try:
            Decision(approve_below=self.approve_below, decline_from=self.decline_from)
        except CreditError as error:
            raise CreditError(f"--approve-below, --decline-from: {error}") from None
        if not (self.guarded or self.loopback or self.no_access_control):
            raise CreditError(
                f"--host {self.host} can be reached from elsewhere: give --token-file, or "
                "--tls-cert, --tls-key and --tls-client-ca; or type --no-access-control"
            )
        if not (self.tls or self.loopback or self.plain_http):
            raise CreditError(
                f"--host {self.host} can be reached from elsewhere, and records and tokens would "
                "go there unencrypted: give --tls-cert and --tls-key; or type --plain-http, behind "
                "a proxy that does TLS"
            )

    @property
    def guarded(self) -> bool:
        """Whether a client must show who it is."""
        return self.token_file is not None or self.mutual

    @property
    def mutual(self) -> bool:
        """Whether a client must have a certificate."""
        return self.tls is not None and self.tls.client_ca is not None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # another name: where it leads is not ours to say
            return False


_BOUNDS = (
    ("port", 0, 65_535),
    ("workers", 1, 256),
    ("threads", 1, 256),
    ("rate", 0, 1e6),
    ("burst", 1, 1e6),
    ("max_body", 1 << 10, 1 << 30),
    ("max_batch", 1, 100_000),
    ("max_waiting", 1, 1_000_000),
    ("deadline", 0.01, 3600),
    ("header_seconds", 0.1, 3600),
    ("body_seconds", 0.1, 3600),
    ("grace_seconds", 0, 3600),
)
