"""What every grid of this project has beside its own way to the holders."""

from collections.abc import Callable, Iterator, Set

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from credit_common.wire import SERVER_NODE, Run, empty_context, empty_run, set_identity


class Answers(Iterator[Message]):
    """Answers as they arrive, and what is to be done once no more of them are wanted.

    A generator's `finally` would not do: one that was never started does not run it, and holders
    would go on to answer, and to pay for, a round that nobody reads.
    """

    def __init__(self, arriving: Iterator[Message], end: Callable[[], None]) -> None:
        self._arriving, self._end = arriving, end

    def __next__(self) -> Message:
        try:
            return next(self._arriving)
        except BaseException:  # the last answer is past, or the wait was interrupted
            self._end()
            raise

    def close(self) -> None:
        """No more answers are wanted."""
        self._end()

    def __del__(self) -> None:
        self._end()


class OwnGrid(Grid):
    """What Flower's Grid has to have and every grid of this project does alike."""

    def __init__(self, run_id: int) -> None:
        self._run = empty_run(run_id)
        self.context = empty_context(run_id, SERVER_NODE)
        set_identity(run_id, SERVER_NODE)

    def set_run(self, run: Run) -> None:
        """Not used: the grid makes its own run."""

    def wait_for_others(self, heard: Set[int]) -> bool:
        """Wait for a holder that is not among `heard`; whether one is there in time.

        Here nobody comes later than others.
        """
        return False

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the coordinator."""
        return Message(
            content,
            dst_node_id=dst_node_id,
            message_type=message_type,
            group_id=group_id,
            ttl=ttl,
        )
