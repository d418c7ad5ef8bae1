"""Where the API listens, who may use it, and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from labkit.config import at_least, check_types, fail

SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Address, token and limits of the API.  Raises ValueError, naming field, value and what is allowed."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token of yours: the connection is not
    encrypted, and whoever reaches it and has the token can use the model and read the runs."""
    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    token: str | None = field(default=None, repr=False)
    """What clients must send as Bearer token, at least 16 characters. Better given as LABKIT_TOKEN, since
    other users see command lines; made and printed once when neither is given."""
    body_bytes: int = 1_000_000
    """Longest body of a request, in bytes."""
    max_tokens: int = 2048
    """Most tokens that a request may ask for, per text."""
    max_texts: int = 16
    """Most texts per request: prompts times n."""
    active: int = 4
    """Requests that the model works on in turn, token by token."""
    waiting: int = 16
    """Further requests that may wait for their turn; beyond that the answer is 429."""
    followers: int = 16
    """Clients that may follow the metrics of runs at once."""
    connections: int = 100
    """Open connections; beyond that the answer is 503. Clients that connect and send nothing count too: where
    others can connect, put a reverse proxy in front, which has clocks for them."""
    generate_seconds: float = 300.0
    """Time that a request may take, from its turn in the queue to its last token."""
    idle_seconds: int = 10
    """Time for which a connection stays open after an answer, waiting for another request."""
    stall_seconds: float = 30.0
    """Time after which a stream ends whose client does not read it."""
    grace_seconds: float = 5.0
    """Time that running answers have to finish when the server is stopped."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "body_bytes", "max_tokens", "max_texts", "active", "followers", "connections")
        at_least(self, 1, "idle_seconds")
        at_least(self, 0, "waiting", "grace_seconds")
        at_least(self, 0.01, "generate_seconds", "stall_seconds")
        if not 0 <= self.port <= 65535:
            fail(self, f"port={self.port} must be from 0 to 65535.")
        if self.token is None:
            if not self.loopback:
                fail(
                    self,
                    f"host={self.host!r} lets other machines in, over a connection that is not encrypted; "
                    "they may use the model and read the runs. If that is meant, choose a token: "
                    f"LABKIT_TOKEN=(at least {SHORTEST_TOKEN} characters) labkit serve --host {self.host}.",
                )
        elif len(self.token) < SHORTEST_TOKEN or not all("!" <= sign <= "~" for sign in self.token):
            fail(
                self,
                f"the token must be at least {SHORTEST_TOKEN} characters of ASCII without spaces. "
                "One can be made so: python -c 'import secrets; print(secrets.token_urlsafe())'.",
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
