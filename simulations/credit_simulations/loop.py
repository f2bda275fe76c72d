"""LoopGrid: Flower's Grid inside one process, for the very ServerApp and ClientApps that run live.

A message reaches the ClientApp as a call, so a round costs what its holders compute. The call is
made when the reply is pulled: replies exist one at a time.
"""

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from credit_common.wire import SERVER_NODE, empty_context, set_message_id
from credit_server.own_grid import OwnGrid

_runs = itertools.count(1)


class LoopGrid(OwnGrid):
    """Hands each message to its holder's app when the reply to it is pulled.

    Args:
        apps: ClientApp by holder name; node ids follow the names' order.
    """

    def __init__(self, apps: Mapping[str, ClientApp]) -> None:
        run_id = next(_runs)
        super().__init__(run_id)
        names = sorted(apps)
        self.node_ids = {name: SERVER_NODE + 1 + i for i, name in enumerate(names)}
        self._apps = {self.node_ids[name]: apps[name] for name in names}
        self._contexts: dict[int, Context] = {
            node: empty_context(run_id, node) for node in self._apps
        }
        self._open: dict[str, Message] = {}
        self._prefix = uuid.uuid4().hex  # ids stay apart where ledgers outlive this process
        self._count = itertools.count(1)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all holders."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled; returns their ids."""
        ids = []
        for message in messages:
            message_id = f"{self._prefix}-{next(self._count)}"
            set_message_id(message, message_id)
            self._open[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies to the messages with these ids; each app runs when its reply is iterated to."""
        for message_id in message_ids:
            message = self._open.pop(message_id, None)
            if message is not None:
                node = message.metadata.dst_node_id
                yield self._apps[node](message, self._contexts[node])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push and pull; an in-process call cannot time out."""
        return self.pull_messages(self.push_messages(messages))


def run_in_process(server: ServerApp, apps: Mapping[str, ClientApp]) -> None:
    """Run a ServerApp over a LoopGrid until its rounds are done."""
    grid = LoopGrid(apps)
    server(grid, grid.context)
